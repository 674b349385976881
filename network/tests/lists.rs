//! What all resources have in common at the API: bulk, filters, fields, order, pages, tags, revisions.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use identity::testing::Person;
use serde_json::{Value, json};
use support::{Net, all};

async fn three() -> (Net, Person, Vec<String>) {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let bodies: Vec<Value> = ["a", "b", "c"].iter().map(|n| json!({"name": n, "description": ""})).collect();
    let made = net.good(&member, "POST", "/networks", json!({"networks": bodies})).await;
    let ids = all(&made, "id");
    (net, member, ids)
}

#[tokio::test]
async fn a_bulk_is_made_whole_or_not_at_all() {
    let (net, member, ids) = three().await;
    assert_eq!(ids.len(), 3);
    let bodies = json!({"networks": [{"name": "d"}, {"name": "e", "mtu": 9000}]});
    assert_eq!(net.refused(&member, "POST", "/networks", bodies).await.0, 400);
    assert_eq!(net.get(&member, "/networks?name=d").await, json!([]));
}

#[tokio::test]
async fn filters_choose_and_unknown_ones_are_refused() {
    let (net, member, ids) = three().await;
    let names = |list: Value| all(&list, "name").join("");
    for (query, expect) in [
        ("name=b", "b".to_string()),
        ("name=a&name=c", "ac".into()),
        ("description=", "abc".into()),
        ("name=", String::new()),
        ("admin_state_up=True", "abc".into()),
        ("shared=true", String::new()),
        ("mtu=1450&name=a", "a".into()),
        (&format!("id={}", ids[1]), "b".into()),
    ] {
        let list = net.get(&member, &format!("/networks?{query}&sort_key=name")).await;
        assert_eq!(names(list), expect, "{query}");
    }
    for query in ["color=red", "sort_key=color", "sort_key=name&sort_dir=up", "limit=-1", "limit=x"] {
        assert_eq!(
            net.refused(&member, "GET", &format!("/networks?{query}"), Value::Null).await.0,
            400,
            "{query}"
        );
    }
    let one = net.get(&member, "/networks?name=a&fields=id&fields=name").await;
    assert_eq!(one, json!([{"id": ids[0], "name": "a"}]));
}

#[tokio::test]
async fn pages_go_both_ways() {
    let (net, member, ids) = three().await;
    let page = async |query: &str| {
        let path = format!("/networks?sort_key=name&limit=2&{query}");
        let (status, answer) = net.ask(&member, "GET", &path, Value::Null).await;
        assert_eq!(status, 200);
        let names = all(&answer["networks"], "name").join("");
        let links = answer.get("networks_links").map_or_else(Vec::new, |l| all(l, "rel"));
        (names, links.join(" "))
    };
    let said = |a: &str, b: &str| (a.to_string(), b.to_string());
    assert_eq!(page("").await, said("ab", "next"));
    assert_eq!(page(&format!("marker={}", ids[1])).await, said("c", "previous"));
    assert_eq!(page(&format!("marker={}&page_reverse=True", ids[2])).await, said("ab", "next"));
    assert_eq!(page("page_reverse=True").await, said("bc", "previous"));
    assert_eq!(net.get(&member, "/networks?sort_key=name&sort_dir=desc").await[0]["name"], "c");
}

#[tokio::test]
async fn a_revision_that_is_gone_is_412() {
    let (net, member, ids) = three().await;
    let path = format!("/network/v2.0/networks/{}", ids[0]);
    let body = json!({"network": {"name": "x"}}).to_string();
    let send = async |revision: &str| {
        let headers = [("if-match", revision), ("content-type", "application/json")];
        let (status, _, answer) = net.cloud.send("PUT", &path, &member.token, &headers, body.clone()).await;
        (status.as_u16(), answer)
    };
    assert_eq!(send("revision_number=7").await.0, 412);
    let (status, answer) = send("revision_number=0").await;
    assert_eq!((status, &answer["network"]["revision_number"]), (200, &json!(1)));
    let (status, answer) = send("revision_number=0").await;
    assert_eq!((status, &answer["NeutronError"]["type"]), (412, &json!("RevisionNumberConstraintFailed")));
    assert_eq!(send("yesterday").await.0, 400);
}

#[tokio::test]
async fn tags_are_their_owners() {
    let (net, member, ids) = three().await;
    let tags = format!("/networks/{}/tags", ids[0]);
    net.good(&member, "POST", &tags, json!({"tags": ["red", "blue"]})).await;
    net.good(&member, "POST", &tags, json!({"tags": ["red", "green"]})).await;
    assert_eq!(net.get(&member, &tags).await, json!(["blue", "green", "red"]));
    for (query, expect) in
        [("tags=red,blue", 1), ("tags=red,pink", 0), ("tags-any=pink,red", 1), ("not-tags=red", 2)]
    {
        let list = net.get(&member, &format!("/networks?{query}")).await;
        assert_eq!(list.as_array().unwrap().len(), expect, "{query}");
    }
    for bad in [json!({"tags": ["a,b"]}), json!({"tags": [""]}), json!({"tags": "red"}), json!({})] {
        assert_eq!(net.refused(&member, "POST", &tags, bad).await.0, 400);
    }
}

#[tokio::test]
async fn a_resource_stays_in_its_project() {
    let (net, member, ids) = three().await;
    let other = net.cloud.member("other").await;
    let path = format!("/networks/{}", ids[0]);
    for body in [json!({"project_id": other.project}), json!({"tenant_id": other.project})] {
        assert_eq!(net.refused(&member, "PUT", &path, json!({"network": body})).await.0, 400);
    }
    let body = json!({"network": {"project_id": other.project}});
    assert_eq!(net.refused(&member, "POST", "/networks", body).await.0, 403);
}

#[tokio::test]
async fn a_quota_is_not_set_below_what_is_used() {
    let (net, member, _) = three().await;
    let path = format!("/quotas/{}", member.project);
    let set = |more: Value| json!({"quota": more});
    assert_eq!(net.refused(&net.admin, "PUT", &path, set(json!({"network": 2}))).await.0, 400);
    let forced = net.good(&net.admin, "PUT", &path, set(json!({"network": 2, "force": true}))).await;
    assert_eq!(forced["network"], 2);
    let details = net.get(&member, &format!("{path}/details.json")).await;
    assert_eq!(details["network"], json!({"limit": 2, "used": 3, "reserved": 0}));
    let over = net.refused(&member, "POST", "/networks", json!({"network": {}})).await;
    assert_eq!(over, (409, "OverQuota".into()));
    assert_eq!(net.good(&net.admin, "PUT", &path, set(json!({"network": -1}))).await["network"], -1);
}

#[tokio::test]
async fn every_attribute_shown_can_be_asked_for() {
    let net = Net::new().await;
    let (external, _) = net.external("203.0.113.0/24").await;
    let (_, subnet) = net.network(&net.admin, "10.0.0.0/24").await;
    net.router(&net.admin, &external, &subnet).await;
    net.make(&net.admin, "floatingips", "floatingip", json!({"floating_network_id": external})).await;
    net.make(&net.admin, "subnetpools", "subnetpool", json!({"prefixes": ["10.0.0.0/8"]})).await;
    net.make(&net.admin, "address-scopes", "address_scope", json!({"ip_version": 4})).await;
    net.make(&net.admin, "address-groups", "address_group", json!({})).await;
    net.make(&net.admin, "metering/metering-labels", "metering_label", json!({})).await;
    for many in [
        "networks",
        "subnets",
        "ports",
        "routers",
        "floatingips",
        "subnetpools",
        "address-scopes",
        "address-groups",
        "security-groups",
        "security-group-rules",
        "rbac-policies",
        "metering/metering-labels",
    ] {
        let first = net.get(&net.admin, &format!("/{many}")).await[0].clone();
        for name in first.as_object().unwrap_or_else(|| panic!("{many} is empty")).keys() {
            let (status, answer) =
                net.ask(&net.admin, "GET", &format!("/{many}?{name}=x"), Value::Null).await;
            assert_eq!(status, 200, "{many} {name}: {answer}");
        }
    }
}

#[tokio::test]
async fn ports_are_found_by_what_they_are_of() {
    let (net, member, ids) = three().await;
    let port = |name: &str, network: &str, device: &str| json!({"name": name, "network_id": network, "device_id": device});
    let bodies = [port("a", &ids[0], ""), port("b", &ids[0], "one"), port("c", &ids[1], "two")];
    let made = net.good(&member, "POST", "/ports", json!({"ports": bodies})).await;
    let (first, group) = (made[0]["id"].as_str().unwrap(), made[0]["security_groups"][0].as_str().unwrap());
    let stranger = net.cloud.member("stranger").await;
    for (query, expect) in [
        (format!("network_id={}", ids[0]), "ab"),
        (format!("network_id={}&network_id={}", ids[0], ids[1]), "abc"),
        (format!("network_id={}&device_id=two", ids[0]), ""),
        (format!("network_id={}&name=b", ids[0]), "b"),
        (format!("network_id={}", ids[2]), ""),
        ("network_id=none".into(), ""),
        ("device_id=one".into(), "b"),
        ("device_id=".into(), "a"),
        (format!("security_groups={group}"), "abc"),
        (format!("id={first}"), "a"),
        (format!("id={first}&network_id={}", ids[1]), ""),
        ("id=none".into(), ""),
    ] {
        let list = net.get(&member, &format!("/ports?{query}&sort_key=name")).await;
        assert_eq!(all(&list, "name").join(""), expect, "{query}");
        assert_eq!(net.get(&stranger, &format!("/ports?{query}")).await, json!([]), "{query}");
    }
}

#[tokio::test]
async fn a_list_shows_what_its_reader_may_see_and_asked_for() {
    let (net, member, ids) = three().await;
    let new =
        json!({"name": "a", "network_id": ids[0], "allowed_address_pairs": [{"ip_address": "10.9.9.9"}]});
    let made = net.make(&member, "ports", "port", new).await;
    let port = made["id"].as_str().unwrap();
    let keys = |view: &Value| view.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    // Chosen by the record, by the view, and in an order of views.
    for query in ["", "&admin_state_up=true", "&sort_key=name"] {
        let path = format!("/ports?id={port}{query}");
        let (listed, alone) =
            (net.get(&member, &path).await, net.get(&member, &format!("/ports/{port}")).await);
        assert_eq!((&listed[0], &alone), (&made, &made), "{query}");
        let hidden = |view: &Value| !keys(view).iter().any(|k| k.starts_with("binding:host"));
        assert!(hidden(&listed[0]) && !hidden(&net.get(&net.admin, &path).await[0]), "{query}");
        let few = net.get(&member, &format!("{path}&fields=mac_address&fields=id,binding:host_id")).await;
        assert_eq!(keys(&few[0]), ["id", "mac_address"], "{query}");
    }
}
