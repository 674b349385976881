//! Where routers are, and what nodes are told when one is lost or moves to another address.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use base::node::{Document, Section};
use network::router::Router;
use network::spread;
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;
use store::Cause;
use support::{NODES, Net, hello, id};

#[tokio::test]
async fn a_central_router_leaves_a_lost_node_and_stays_with_one_that_lives() {
    let net = Net::new().await;
    let router = json!({"name": "r", "distributed": false});
    let router = id(&net.make(&net.admin, "routers", "router", router).await);
    let cell = net.fleet.cell();
    let host = || cell.read().get::<Router>(&router.parse().unwrap()).unwrap().host.clone();
    let move_from = async |lost: Option<String>| {
        let alive = move |name: &str| lost.as_deref() != Some(name);
        let step = move |tx: &mut store::Tx| spread::move_from_lost(tx, &alive);
        cell.write(Cause::step("lost_routers_moved"), step).await.unwrap()
    };
    let first = host().unwrap();
    assert!(!move_from(None).await);
    assert_eq!(host().as_ref(), Some(&first));
    assert!(move_from(Some(first.clone())).await);
    let second = host().unwrap();
    assert!(second != first && NODES.contains(&second.as_str()));
    // The lost one is back: nothing moves for it.
    assert!(!move_from(None).await);
    assert_eq!(host(), Some(second));
}

#[tokio::test]
async fn a_node_at_another_address_is_told_to_those_who_send_to_it() {
    let net = Net::new().await;
    let following = tokio::spawn({
        let fleet = net.fleet.clone();
        async move { fleet.follow().await }
    });
    let (network, _) = net.network(&net.admin, "10.0.0.0/24").await;
    for node in NODES {
        let port = json!({"network_id": network, "device_owner": "compute:nova", "binding:host_id": node});
        net.make(&net.admin, "ports", "port", port).await;
    }
    let mut document = Document::default();
    let sees = |document: &Document, address: &str| {
        let address: IpAddr = address.parse().unwrap();
        document.sections.values().any(|section| match section {
            Section::Members(members) => members.ports.values().any(|m| m.vtep == Some(address)),
            _ => false,
        })
    };
    for (moved, address) in [(false, "192.0.2.1"), (true, "192.0.2.9")] {
        if moved {
            net.fleet.hello(hello("n1", 1, address)).await.unwrap();
        }
        let told = async {
            while !sees(&document, address) {
                let patch = net.fleet.document("n2", document.generation, Duration::from_secs(5)).await;
                document.patch(patch.unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    }
    assert!(!sees(&document, "192.0.2.1"));
    following.abort();
}
