//! Ways through several routers, as the simulator sees them in what the nodes are told.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use base::Id;
use base::node::{Document, SectionKey};
use network::port::{self, NewPort, Port};
use serde_json::{Value, json};
use std::time::Duration;
use store::Cause;
use support::{Net, id};
use uuid::Uuid;

/// Networks 1 to 4 in a row, 10.0.N.0/24, with a router between each and the next: router N has .1 on network N and
/// .254 on network N + 1, so that it is the gateway of network N.
struct Row {
    net: Net,
    networks: Vec<String>,
    routers: Vec<String>,
}

const NETWORKS: usize = 4;

impl Row {
    async fn new() -> Row {
        let net = Net::new().await;
        let (mut networks, mut subnets, mut routers) = (Vec::new(), Vec::new(), Vec::new());
        for n in 1..=NETWORKS {
            let (network, subnet) = net.network(&net.admin, &format!("10.0.{n}.0/24")).await;
            networks.push(network);
            subnets.push(subnet);
        }
        for n in 1..NETWORKS {
            let router = id(&net.make(&net.admin, "routers", "router", json!({"name": n.to_string()})).await);
            let plug = format!("/routers/{router}/add_router_interface");
            net.good(&net.admin, "PUT", &plug, json!({"subnet_id": subnets[n - 1]})).await;
            let fixed = json!([{"ip_address": format!("10.0.{}.254", n + 1)}]);
            let port = json!({"network_id": networks[n], "fixed_ips": fixed});
            let port = id(&net.make(&net.admin, "ports", "port", port).await);
            net.good(&net.admin, "PUT", &plug, json!({"port_id": port})).await;
            routers.push(router);
        }
        Row { net, networks, routers }
    }

    /// Extra routes of router `n`: to network or range, via.
    async fn routes(&self, n: usize, routes: &[(&str, &str)]) {
        let routes: Vec<Value> =
            routes.iter().map(|(to, via)| json!({"destination": to, "nexthop": via})).collect();
        let path = format!("/routers/{}", self.routers[n - 1]);
        self.net.change(&self.net.admin, &path, "router", json!({"routes": routes})).await;
    }

    /// A server's port on network `n`.
    async fn port(&self, n: usize, host: &str) -> Id<Port> {
        let new = NewPort {
            network: self.networks[n - 1].parse().unwrap(),
            owner: "compute:nova".into(),
            host: host.into(),
            device: Uuid::from_u128(n as u128).to_string(),
            port_security: Some(false),
            ..NewPort::default()
        };
        let project = self.net.admin.project;
        let made = move |tx: &mut store::Tx| port::create(tx, project, &new).map(|port| port.id);
        self.net.cloud.cell.write(Cause::step("test"), made).await.unwrap()
    }

    fn address(&self, port: Id<Port>) -> String {
        self.net.cloud.cell.read().get::<Port>(&port).unwrap().fixed[0].address.to_string()
    }

    /// How a packet's way ends, and on how many nodes it was.
    async fn way(&self, from: Id<Port>, to: &str) -> (String, usize) {
        let trace = self.net.get(&self.net.admin, &format!("/ports/{from}/trace?to={to}")).await;
        let hosts: std::collections::BTreeSet<&str> =
            trace["hops"].as_array().unwrap().iter().map(|hop| hop["host"].as_str().unwrap()).collect();
        (trace["result"].as_str().unwrap().to_string(), hosts.len())
    }

    /// Which routers a node is told of, as the numbers of this row.
    fn routers_at(&self, node: &str) -> Vec<usize> {
        let state = self.net.cloud.cell.read();
        let told = self.net.fleet.document_at(&state, node);
        let has = |router: &str| told.sections.contains_key(&SectionKey::Router(router.parse().unwrap()));
        (1..NETWORKS).filter(|n| has(&self.routers[n - 1])).collect()
    }
}

const DELIVERED: &str = "delivered";

#[tokio::test]
async fn a_packet_passes_two_routers_and_three() {
    let row = Row::new().await;
    let (a, c, d) = (row.port(1, "n1").await, row.port(3, "n2").await, row.port(4, "n2").await);
    let (to_c, to_d, to_a) = (row.address(c), row.address(d), row.address(a));
    assert_eq!((row.routers_at("n1"), row.routers_at("n2")), (vec![1], vec![2, 3]));
    assert_eq!(row.way(a, &to_c).await.0, "lost");

    row.routes(1, &[("10.0.3.0/24", "10.0.2.1"), ("10.0.4.0/24", "10.0.2.1")]).await;
    assert_eq!(row.routers_at("n1"), [1, 2]);
    row.routes(2, &[("10.0.4.0/24", "10.0.3.1"), ("10.0.1.0/24", "10.0.2.254")]).await;
    row.routes(3, &[("10.0.1.0/24", "10.0.3.254")]).await;
    assert_eq!((row.routers_at("n1"), row.routers_at("n2")), (vec![1, 2, 3], vec![1, 2, 3]));
    assert_eq!(row.way(a, &to_c).await, (DELIVERED.into(), 2), "from network 1 to network 3");
    assert_eq!(row.way(a, &to_d).await, (DELIVERED.into(), 2), "from network 1 to network 4");
    assert_eq!(row.way(c, &to_a).await, (DELIVERED.into(), 2), "from network 3 back to network 1");

    row.routes(1, &[]).await;
    assert_eq!(row.routers_at("n1"), [1], "nothing leads on");
}

#[tokio::test]
async fn a_packet_leaves_by_the_gateway_of_the_second_router() {
    let row = Row::new().await;
    let (external, _) = row.net.external("198.51.100.0/24").await;
    let path = format!("/routers/{}", row.routers[1]);
    let gateway = json!({"external_gateway_info": {"network_id": external}});
    row.net.change(&row.net.admin, &path, "router", gateway).await;
    let a = row.port(1, "n1").await;
    row.routes(1, &[("0.0.0.0/0", "10.0.2.1")]).await;
    assert_eq!(row.way(a, "9.9.9.9").await.0, "left");
    // A node that comes later gets its block of ports, too.
    let late = row.port(1, "n2").await;
    assert_eq!(row.way(late, "9.9.9.9").await.0, "left");
}

#[tokio::test]
async fn what_a_patch_brings_is_what_a_whole_document_has() {
    let row = Row::new().await;
    let following = tokio::spawn({
        let fleet = row.net.fleet.clone();
        async move { fleet.follow().await }
    });
    row.port(1, "n1").await;
    let mut document = Document::default();
    for routes in [&[("10.0.3.0/24", "10.0.2.1")][..], &[], &[("10.0.4.0/24", "10.0.2.1")]] {
        row.routes(1, routes).await;
        let wanted = row.net.fleet.document_at(&row.net.cloud.cell.read(), "n1").sections;
        let told = async {
            while document.sections != wanted {
                let patch = row.net.fleet.document("n1", document.generation, Duration::from_secs(5)).await;
                document.patch(patch.unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    }
    following.abort();
}
