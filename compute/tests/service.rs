//! Network and servers through the real router: tenancy, security groups, a server's create as one transaction.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use support::{Whole, id};

const NET: &str = "/network/v2.0";
const NOVA: &str = "/compute/v2.1";

async fn refused(whole: &Whole, who: &identity::testing::Person, method: &str, path: &str, body: Value) {
    let (status, answer) = whole.ask(who, method, path, body).await;
    assert!([400, 403, 404, 409].contains(&status), "{method} {path}: {status} {answer}");
}

#[tokio::test]
async fn ossa_2014_008_nobody_plugs_into_anothers_router_network_or_server() {
    let whole = Whole::new().await;
    let (victim, thief) = (whole.cloud.member("victim").await, whole.cloud.member("thief").await);
    let ground = whole.ground(&victim).await;
    let router = id(&whole.make(&victim, &format!("{NET}/routers"), json!({"router": {}})).await);
    let server = id(&whole.make(&victim, &format!("{NOVA}/servers"), ground.server("s")).await);
    let network = id(&whole.make(&thief, &format!("{NET}/networks"), json!({"network": {}})).await);
    let new = json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.3.0.0/24"}});
    let subnet = id(&whole.make(&thief, &format!("{NET}/subnets"), new).await);
    let plug = format!("{NET}/routers/{router}/add_router_interface");
    refused(&whole, &thief, "PUT", &plug, json!({"subnet_id": subnet})).await;
    let own = id(&whole.make(&thief, &format!("{NET}/routers"), json!({"router": {}})).await);
    let plug = format!("{NET}/routers/{own}/add_router_interface");
    refused(&whole, &thief, "PUT", &plug, json!({"subnet_id": ground.subnet})).await;
    refused(&whole, &thief, "POST", &format!("{NET}/ports"), json!({"port": {"network_id": ground.network}}))
        .await;
    let sub = json!({"subnet": {"network_id": ground.network, "ip_version": 4, "cidr": "10.4.0.0/24"}});
    refused(&whole, &thief, "POST", &format!("{NET}/subnets"), sub).await;
    for owner in ["network:router_interface", "network:dhcp", "network:router_gateway"] {
        let port = json!({"port": {"network_id": network, "device_id": router, "device_owner": owner}});
        refused(&whole, &thief, "POST", &format!("{NET}/ports"), port).await;
    }
    // A port may name any device; the device does not get it.
    let port = json!({"port": {"network_id": network, "device_id": server, "device_owner": "compute:nova"}});
    whole.make(&thief, &format!("{NET}/ports"), port).await;
    let (_, list) =
        whole.ask(&victim, "GET", &format!("{NOVA}/servers/{server}/os-interface"), Value::Null).await;
    assert_eq!(list["interfaceAttachments"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn ossa_2015_018_a_port_does_not_become_the_clouds_own() {
    let whole = Whole::new().await;
    let member = whole.cloud.member("member").await;
    let ground = whole.ground(&member).await;
    let port = id(&whole
        .make(&member, &format!("{NET}/ports"), json!({"port": {"network_id": ground.network}}))
        .await);
    for body in [
        json!({"device_owner": "network:dhcp"}),
        json!({"device_owner": "network:router_interface"}),
        json!({"binding:host_id": "n1"}),
    ] {
        refused(&whole, &member, "PUT", &format!("{NET}/ports/{port}"), json!({"port": body})).await;
    }
}

#[tokio::test]
async fn ossa_2014_014_and_2019_001_bad_rules_are_refused() {
    let whole = Whole::new().await;
    let (member, other) = (whole.cloud.member("member").await, whole.cloud.member("other").await);
    let group = json!({"security_group": {"name": "g"}});
    let own = id(&whole.make(&member, &format!("{NET}/security-groups"), group.clone()).await);
    let foreign = id(&whole.make(&other, &format!("{NET}/security-groups"), group).await);
    for more in [
        json!({"remote_ip_prefix": "10.0.0.0/99"}),
        json!({"remote_ip_prefix": "::/0", "ethertype": "IPv4"}),
        json!({"remote_ip_prefix": "10.0.0.0/8\n-A INPUT -j ACCEPT"}),
        json!({"protocol": "112", "port_range_min": 1, "port_range_max": 2}),
        json!({"protocol": "vrrp", "port_range_min": 1, "port_range_max": 2}),
        json!({"port_range_min": 1, "port_range_max": 2}),
        json!({"protocol": "tcp", "port_range_min": 2, "port_range_max": 1}),
        json!({"protocol": "tcp", "port_range_min": -5, "port_range_max": 70_000}),
        json!({"protocol": "tcp; reboot"}),
        json!({"protocol": "999"}),
    ] {
        let mut rule = json!({"security_group_id": own, "direction": "ingress"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = json!({"security_group_rule": rule});
        refused(&whole, &member, "POST", &format!("{NET}/security-group-rules"), body).await;
    }
    let into = json!({"security_group_rule": {"security_group_id": foreign, "direction": "ingress"}});
    refused(&whole, &member, "POST", &format!("{NET}/security-group-rules"), into).await;
}

#[tokio::test]
async fn ossa_2021_005_and_2024_005_options_have_no_lines_and_tags_have_owners() {
    let whole = Whole::new().await;
    let (member, other) = (whole.cloud.member("member").await, whole.cloud.member("other").await);
    let ground = whole.ground(&member).await;
    for value in ["a\nb", "a\rb", "a\0b"] {
        let option = json!([{"opt_name": "bootfile-name", "opt_value": value}]);
        let port = json!({"port": {"network_id": ground.network, "extra_dhcp_opts": option}});
        refused(&whole, &member, "POST", &format!("{NET}/ports"), port).await;
    }
    let tags = format!("{NET}/networks/{}/tags", ground.network);
    let before = whole.ask(&member, "GET", &tags, Value::Null).await;
    let one = format!("{tags}/mine");
    refused(&whole, &other, "PUT", &one, Value::Null).await;
    refused(&whole, &other, "PUT", &tags, json!({"tags": ["mine"]})).await;
    refused(&whole, &other, "DELETE", &tags, Value::Null).await;
    refused(&whole, &other, "GET", &tags, Value::Null).await;
    assert_eq!(whole.ask(&member, "GET", &tags, Value::Null).await, before);
}

async fn count(whole: &Whole, who: &identity::testing::Person, path: &str, many: &str) -> usize {
    whole.ask(who, "GET", path, Value::Null).await.1[many].as_array().unwrap().len()
}

#[tokio::test]
async fn a_failing_create_leaves_nothing() {
    let whole = Whole::new().await;
    let member = whole.cloud.member("member").await;
    let ground = whole.ground(&member).await;
    let mut bad = ground.server("bad");
    // The first network gives a port before the second fails.
    bad["server"]["networks"] = json!([{"uuid": ground.network}, {"uuid": ground.image}]);
    let (status, _) = whole.ask(&member, "POST", &format!("{NOVA}/servers"), bad).await;
    assert_eq!(status, 400);
    let mut many = ground.server("many");
    many["server"]["min_count"] = json!(11);
    let (status, fault) = whole.ask(&member, "POST", &format!("{NOVA}/servers"), many).await;
    assert_eq!((status, &fault["forbidden"]["code"]), (403, &json!(403)), "{fault}");
    assert_eq!(count(&whole, &member, &format!("{NET}/ports"), "ports").await, 0);
    assert_eq!(count(&whole, &member, &format!("{NOVA}/servers"), "servers").await, 0);
    let (_, limits) = whole.ask(&member, "GET", &format!("{NOVA}/limits"), Value::Null).await;
    assert_eq!(limits["limits"]["absolute"]["totalInstancesUsed"], 0, "{limits}");
}

#[tokio::test]
async fn what_fits_nowhere_is_in_error_and_says_why() {
    let whole = Whole::new().await;
    let member = whole.cloud.member("member").await;
    let mut ground = whole.ground(&member).await;
    let big = json!({"flavor": {"name": "big", "ram": 16_384, "vcpus": 1, "disk": 1}});
    ground.flavor = id(&whole.make(&whole.cloud.admin, &format!("{NOVA}/flavors"), big).await);
    let server = id(&whole.make(&member, &format!("{NOVA}/servers"), ground.server("s")).await);
    let (_, shown) = whole.ask(&member, "GET", &format!("{NOVA}/servers/{server}"), Value::Null).await;
    assert_eq!(shown["server"]["status"], "ERROR", "{shown}");
    assert!(shown["server"]["fault"]["message"].as_str().unwrap().contains("No valid host"), "{shown}");
}

#[tokio::test]
async fn own_ports_go_and_user_made_ports_stay() {
    let whole = Whole::new().await;
    let member = whole.cloud.member("member").await;
    let mut ground = whole.ground(&member).await;
    // Where no node has it, a delete is done at once.
    let big = json!({"flavor": {"name": "big", "ram": 16_384, "vcpus": 1, "disk": 1}});
    ground.flavor = id(&whole.make(&whole.cloud.admin, &format!("{NOVA}/flavors"), big).await);
    let ports = format!("{NET}/ports");
    let kept = id(&whole.make(&member, &ports, json!({"port": {"network_id": ground.network}})).await);
    let mut new = ground.server("s");
    new["server"]["networks"] = json!([{"port": kept}, {"uuid": ground.network}]);
    let server = id(&whole.make(&member, &format!("{NOVA}/servers"), new).await);
    assert_eq!(count(&whole, &member, &ports, "ports").await, 2);
    let (status, _) = whole.ask(&member, "DELETE", &format!("{NOVA}/servers/{server}"), Value::Null).await;
    assert_eq!(status, 204);
    let (_, left) = whole.ask(&member, "GET", &ports, Value::Null).await;
    assert_eq!(left["ports"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!((&left["ports"][0]["id"], &left["ports"][0]["device_id"]), (&json!(kept), &json!("")));
}

/// What each microversion adds to and takes from the server as the one before shows it.
const SHAPES: &str = include_str!("server_shapes.txt");

#[tokio::test]
async fn a_server_at_four_microversions() {
    let whole = Whole::new().await;
    let member = whole.cloud.member("member").await;
    let ground = whole.ground(&member).await;
    let server = id(&whole.make(&member, &format!("{NOVA}/servers"), ground.server("s")).await);
    let mut text = String::new();
    for version in ["2.1", "2.47", "2.75", "2.104"] {
        for who in [&member, &whole.cloud.admin] {
            let (_, shown) =
                whole.at(who, version, "GET", &format!("{NOVA}/servers/{server}"), Value::Null).await;
            let names = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
            let name = if who.token == member.token { "member" } else { "admin" };
            let (all, flavor) = (names(&shown["server"]), names(&shown["server"]["flavor"]));
            text += &format!("{version} {name}: {all}\n{version} {name} flavor: {flavor}\n");
        }
    }
    assert!(text == SHAPES, "the shapes differ; they are now:\n{text}");
}
