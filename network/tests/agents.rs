//! Agents, zones and service providers through the real router.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use base::node::{KernelCosts, Report};
use serde_json::{Value, json};
use support::{NODES, Net, all, id};

#[tokio::test]
async fn a_node_whose_kernel_is_slow_says_so_and_small_changes_are_no_record() {
    let net = Net::new().await;
    let report = |link_us| Report {
        costs: Some(KernelCosts { link_us, rules_us: 900, namespace_us: 100 }),
        ..Report::default()
    };
    let kernel = async |node: &str| {
        let agents = net.get(&net.admin, &format!("/agents?host={node}")).await;
        let of = &agents[0]["configurations"];
        (of["kernel_costs"]["link_us"].clone(), of["kernel_slow"].clone())
    };
    assert_eq!(kernel("n1").await, (Value::Null, Value::Null));
    net.fleet.report("n1", report(100)).await.unwrap();
    net.fleet.report("n2", report(910)).await.unwrap();
    assert_eq!(kernel("n1").await, (json!(100), json!([])));
    assert_eq!(kernel("n2").await, (json!(910), json!(["links cost 9 times its peers' median"])));
    let before = net.cloud.cell.read().revision();
    net.fleet.report("n2", report(1_500)).await.unwrap();
    assert_eq!((net.cloud.cell.read().revision(), kernel("n2").await.0), (before, json!(910)));
    net.fleet.report("n2", report(120)).await.unwrap();
    assert_eq!(kernel("n2").await, (json!(120), json!([])));
}

#[tokio::test]
async fn each_node_shows_as_its_agents() {
    let net = Net::new().await;
    let list = net.get(&net.admin, "/agents").await;
    assert_eq!(list.as_array().unwrap().len(), 4 * NODES.len());
    assert!(list.as_array().unwrap().iter().all(|a| a["alive"] == true && a["admin_state_up"] == true));
    let l3 = net.get(&net.admin, "/agents?agent_type=L3+agent&host=n2").await;
    assert_eq!(all(&l3, "host"), ["n2"]);
    let path = format!("/agents/{}", id(&l3[0]));
    assert_eq!(net.get(&net.admin, &path).await, l3[0]);
    let changed =
        net.change(&net.admin, &path, "agent", json!({"admin_state_up": false, "description": "d"})).await;
    assert_eq!((&changed["admin_state_up"], &changed["description"]), (&json!(false), &json!("d")));
    assert_eq!(net.get(&net.admin, "/agents?admin_state_up=false").await, json!([changed]));
    assert_eq!(net.refused(&net.admin, "DELETE", &path, json!(null)).await.0, 409);
}

#[tokio::test]
async fn agents_are_the_administrators() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    assert_eq!(net.get(&member, "/agents").await, json!([]));
    let path = format!("/agents/{}", id(&net.get(&net.admin, "/agents").await[0]));
    let refusals =
        [("GET", json!(null), 404), ("PUT", json!({"agent": {}}), 403), ("DELETE", json!(null), 403)];
    for (method, body, status) in refusals {
        assert_eq!(net.refused(&member, method, &path, body).await.0, status, "{method}");
    }
    let absent = "/agents/11111111-2222-3333-4444-555555555555";
    for (method, body) in [("GET", json!(null)), ("PUT", json!({"agent": {}})), ("DELETE", json!(null))] {
        let refused = net.refused(&net.admin, method, absent, body).await;
        assert_eq!(refused, (404, "AgentNotFound".into()), "{method}");
    }
}

#[tokio::test]
async fn zones_are_those_of_the_nodes() {
    let net = Net::new().await;
    let zones = net.get(&net.admin, "/availability_zones").await;
    assert_eq!(all(&zones, "resource"), ["network", "router"]);
    assert_eq!(all(&zones, "name"), ["nova", "nova"]);
    for (many, one) in [("networks", "network"), ("routers", "router")] {
        let made = net.make(&net.admin, many, one, json!({"availability_zone_hints": ["nova"]})).await;
        assert_eq!(made["availability_zone_hints"], json!(["nova"]));
        let body = json!({one: {"availability_zone_hints": ["mars"]}});
        let refused = net.refused(&net.admin, "POST", &format!("/{many}"), body).await;
        assert_eq!(refused, (404, "AvailabilityZoneNotFound".into()));
    }
}
