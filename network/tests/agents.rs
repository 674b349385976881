//! Agents, zones and service providers through the real router.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::json;
use support::{NODES, Net, all, id};

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
