//! Routers: extra routes, places, gateways; ports: MAC addresses; groups: the rules that they start with.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use support::{Net, all, id};

#[tokio::test]
async fn routes_are_added_and_removed_alone() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (external, _) = net.external("203.0.113.0/24").await;
    let (_, subnet) = net.network(&member, "10.0.0.0/24").await;
    let router = net.router(&member, &external, &subnet).await;
    let route = |n: u8, hop: &str| json!({"destination": format!("10.{n}.0.0/16"), "nexthop": hop});
    let change = async |verb: &str, routes: Value| {
        let path = format!("/routers/{router}/{verb}_extraroutes");
        net.ask(&member, "PUT", &path, json!({"router": {"routes": routes}})).await
    };
    change("add", json!([route(1, "10.0.0.5")])).await;
    let (_, answer) = change("add", json!([route(1, "10.0.0.5"), route(2, "10.0.0.5")])).await;
    assert_eq!(answer["router"]["routes"].as_array().unwrap().len(), 2);
    assert_eq!(change("add", json!([route(3, "10.7.0.1")])).await.0, 400, "no such next hop");
    let unplug = format!("/routers/{router}/remove_router_interface");
    let body = json!({"subnet_id": subnet});
    let used = net.refused(&member, "PUT", &unplug, body.clone()).await;
    assert_eq!(used, (409, "RouterInterfaceInUseByRoute".into()));
    let (_, answer) =
        change("remove", json!([route(1, "10.0.0.5"), route(2, "10.0.0.5"), route(9, "10.0.0.5")])).await;
    assert_eq!(answer["router"]["routes"], json!([]));
    net.good(&member, "PUT", &unplug, body).await;
}

#[tokio::test]
async fn a_router_is_distributed_unless_an_administrator_says_otherwise() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let own = net.make(&member, "routers", "router", json!({})).await;
    assert!(own.get("distributed").is_none());
    let path = format!("/routers/{}", id(&own));
    assert_eq!(net.get(&net.admin, &path).await["distributed"], true);
    for body in [json!({"distributed": false}), json!({"ha": false})] {
        assert_eq!(net.refused(&member, "POST", "/routers", json!({"router": body})).await.0, 403);
    }
    let central = net.make(&net.admin, "routers", "router", json!({"distributed": false})).await;
    assert_eq!(central["distributed"], false);
}

#[tokio::test]
async fn a_port_gets_another_mac_while_nothing_is_plugged_in() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (network, _) = net.network(&member, "10.0.0.0/24").await;
    let port = net.make(&member, "ports", "port", json!({"network_id": network})).await;
    let path = format!("/ports/{}", id(&port));
    let other = net.change(&member, &path, "port", json!({"mac_address": null})).await;
    assert_ne!(other["mac_address"], port["mac_address"]);
    net.change(&net.admin, &path, "port", json!({"binding:host_id": "n1"})).await;
    let bound = net.refused(&member, "PUT", &path, json!({"port": {"mac_address": null}})).await;
    assert_eq!(bound, (409, "PortBound".into()));
}

#[tokio::test]
async fn new_groups_start_with_the_rules_that_administrators_chose() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let path = "/default-security-group-rules";
    let rules = net.get(&member, path).await;
    assert_eq!(all(&rules, "remote_group_id"), ["", "", "PARENT", "PARENT"]);
    let ssh = json!({
        "direction": "ingress", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22,
        "used_in_default_sg": false, "used_in_non_default_sg": true,
    });
    let body = json!({"default_security_group_rule": ssh});
    assert_eq!(net.refused(&member, "POST", path, body.clone()).await.0, 403);
    net.good(&net.admin, "POST", path, body.clone()).await;
    assert_eq!(net.refused(&net.admin, "POST", path, body).await.1, "DefaultSecurityGroupRuleExists");
    let bad = json!({"default_security_group_rule": {"direction": "ingress", "port_range_min": 1, "port_range_max": 2}});
    assert_eq!(net.refused(&net.admin, "POST", path, bad).await.0, 400);
    let six = net.get(&net.admin, &format!("{path}?direction=egress&ethertype=IPv6")).await;
    let one = format!("{path}/{}", id(&six[0]));
    net.delete(&net.admin, &one).await;
    assert_eq!(net.refused(&net.admin, "GET", &one, Value::Null).await.1, "DefaultSecurityGroupRuleNotFound");
    let group = net.make(&member, "security-groups", "security_group", json!({"name": "g"})).await;
    let of = |group: &Value| {
        let mut all: Vec<String> = group["security_group_rules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| {
                let words = ["direction", "ethertype", "protocol"]
                    .map(|w| r[w].as_str().unwrap_or("any").to_string());
                format!(
                    "{} {}",
                    words.join(" "),
                    if r["remote_group_id"] == group["id"] { "parent" } else { "any" }
                )
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(of(&group), ["egress IPv4 any any", "ingress IPv4 tcp any"]);
    let default = &net.get(&member, "/security-groups?name=default").await[0];
    assert_eq!(of(default), ["egress IPv4 any any", "ingress IPv4 any parent", "ingress IPv6 any parent"]);
    assert!(
        default["security_group_rules"]
            .as_array()
            .unwrap()
            .iter()
            .all(|r| r["belongs_to_default_sg"] == true)
    );
}
