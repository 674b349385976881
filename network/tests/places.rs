//! Where routers and addresses are, as the documents of nodes have it: blocks of source ports, owners, central routers,
//! claimed addresses.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use base::Id;
use base::node::{Document, PortReport, Report, Router, Section, SnatShare, claim_id};
use base::units::Mac;
use fleet::Fleet;
use network::port::{self, NewPort, Port};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;
use store::Cause;
use support::{Net, id};
use uuid::Uuid;

/// A network behind a router with a gateway.
struct Site {
    net: Net,
    network: String,
    router: String,
}

impl Site {
    async fn new(router: Value) -> Site {
        let net = Net::new().await;
        let outside = json!({"network": {"router:external": true}});
        let outside = id(&net.good(&net.admin, "POST", "/networks", outside).await);
        let cidr = json!({"subnet": {"network_id": outside, "cidr": "198.51.100.0/24", "ip_version": 4}});
        net.good(&net.admin, "POST", "/subnets", cidr).await;
        let network = id(&net.good(&net.admin, "POST", "/networks", json!({"network": {}})).await);
        let cidr = json!({"subnet": {"network_id": network, "cidr": "10.0.0.0/24", "ip_version": 4}});
        let subnet = id(&net.good(&net.admin, "POST", "/subnets", cidr).await);
        let mut wanted = json!({"external_gateway_info": {"network_id": outside}});
        wanted.as_object_mut().unwrap().extend(router.as_object().unwrap().clone());
        let router = id(&net.good(&net.admin, "POST", "/routers", json!({"router": wanted})).await);
        let path = format!("/routers/{router}/add_router_interface");
        net.good(&net.admin, "PUT", &path, json!({"subnet_id": subnet})).await;
        Site { net, network, router }
    }

    /// A server's port on a node.
    async fn port(&self, host: &str) -> Id<Port> {
        let new = NewPort {
            network: self.network.parse().unwrap(),
            owner: "compute:nova".into(),
            host: host.into(),
            device: Uuid::from_u128(7).to_string(),
            ..NewPort::default()
        };
        let project = self.net.admin.project;
        let made = move |tx: &mut store::Tx| port::create(tx, project, &new).map(|port| port.id);
        self.net.cloud.cell.write(Cause::step("test"), made).await.unwrap()
    }

    async fn document(&self, node: &str) -> Document {
        // Of a fleet that follows nothing: as it is now.
        let now = Fleet::new(self.net.cloud.cell.clone(), vec![network::sections::SOURCE], vec![]);
        let mut document = Document::default();
        document.patch(now.document(node, document.generation, Duration::ZERO).await.unwrap());
        document
    }

    async fn router_at(&self, node: &str) -> Option<Router> {
        let document = self.document(node).await;
        document.sections.into_values().find_map(|section| match section {
            Section::Router(router) if router.id.to_string() == self.router => Some(router),
            _ => None,
        })
    }
}

fn vtep(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

#[tokio::test]
async fn each_node_with_a_port_behind_a_router_has_a_block_of_its_own() {
    let site = Site::new(json!({})).await;
    assert_eq!(site.router_at("n1").await, None, "no port, no router");
    let first = site.port("n1").await;
    site.port("n2").await;
    let gateway = site.router_at("n2").await.unwrap().gateway.unwrap();
    let address = gateway.addresses[0].addr();
    let share = |n: u8| SnatShare { vtep: vtep(n), address, ports: SnatShare::block(u16::from(n) - 1) };
    assert_eq!((gateway.owner, gateway.shares), (Some(vtep(1)), vec![share(1), share(2)]));
    assert_eq!(site.router_at("n1").await, site.router_at("n2").await, "all nodes are told the same");

    // The owner is lost: the other one answers, and no block changes.
    let moved = site
        .net
        .cloud
        .cell
        .write(Cause::step("test"), |tx| network::spread::move_from_lost(tx, &|n| n == "n2"));
    assert!(moved.await.unwrap());
    let gateway = site.router_at("n2").await.unwrap().gateway.unwrap();
    assert_eq!((gateway.owner, gateway.shares.len()), (Some(vtep(2)), 2));
    let path = format!("/ports/{first}");
    site.net.good(&site.net.admin, "DELETE", &path, json!(null)).await;
    site.net
        .cloud
        .cell
        .write(Cause::step("test"), |tx| network::spread::move_from_lost(tx, &|_| true))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_central_router_is_on_one_node_and_moves_when_that_is_lost() {
    let site = Site::new(json!({"distributed": false})).await;
    site.port("n2").await;
    let router = site.router_at("n1").await.expect("on the first of two equal nodes");
    assert!(router.central && site.router_at("n2").await.is_none());
    let document = site.document("n2").await;
    let interface = document.sections.values().find_map(|section| match section {
        Section::Members(members) => members.ports.get(&router.interfaces[0].port).cloned(),
        _ => None,
    });
    assert_eq!(interface.and_then(|member| member.vtep), Some(vtep(1)), "others find it by the tunnel");
    assert_eq!(router.gateway.unwrap().owner, Some(vtep(1)));

    let lost = |tx: &mut store::Tx| network::spread::move_from_lost(tx, &|name| name == "n2");
    assert!(site.net.cloud.cell.write(Cause::step("test"), lost).await.unwrap());
    assert!(!site.net.cloud.cell.write(Cause::step("test"), lost).await.unwrap(), "once");
    let router = site.router_at("n2").await.unwrap();
    assert_eq!(router.gateway.unwrap().owner, Some(vtep(2)));
    assert!(site.router_at("n1").await.is_none());
}

#[tokio::test]
async fn an_address_of_allowed_pairs_goes_to_who_claimed_it_last() {
    let site = Site::new(json!({})).await;
    let (a, b) = (site.port("n1").await, site.port("n2").await);
    let body = json!({"port": {"network_id": site.network, "fixed_ips": [{"ip_address": "10.0.0.200"}]}});
    let vip = id(&site.net.good(&site.net.admin, "POST", "/ports", body).await);
    for port in [a, b] {
        let pairs = json!({"allowed_address_pairs": [{"ip_address": "10.0.0.200"}]});
        site.net.change(&site.net.admin, &format!("/ports/{port}"), "port", pairs).await;
    }
    let outside = site.net.get(&site.net.admin, &format!("/routers/{}", site.router)).await;
    let outside = outside["external_gateway_info"]["network_id"].clone();
    let body = json!({"floatingip": {"floating_network_id": outside, "port_id": vip}});
    site.net.good(&site.net.admin, "POST", "/floatingips", body).await;
    let address: IpAddr = "10.0.0.200".parse().unwrap();
    let claim = |port: Id<Port>, claims: &[&str]| Report {
        ports: [(
            port.uuid(),
            PortReport {
                up: true,
                claims: claims.iter().map(|c| c.parse().unwrap()).collect(),
                macs: Default::default(),
            },
        )]
        .into(),
        ..Report::default()
    };
    let holder = async || {
        let (one, two) = (site.document("n1").await, site.document("n2").await);
        let members = one.sections.values().find_map(|section| match section {
            Section::Members(members) if members.network.to_string() == site.network => Some(members.clone()),
            _ => None,
        });
        let holders = members.unwrap().ports.into_iter().filter(|(_, m)| m.addresses.contains(&address));
        let holders: Vec<Uuid> = holders.map(|(id, _)| id).collect();
        let sections = one.sections.into_values().chain(two.sections.into_values());
        let floating = sections.filter_map(|section| match section {
            Section::Port(port) if !port.floating.is_empty() => Some(port.id),
            _ => None,
        });
        (holders, floating.collect::<Vec<_>>())
    };
    assert_eq!(holder().await, (vec![], vec![]));
    site.net.fleet.report("n1", claim(a, &["10.0.0.200", "10.0.0.99"])).await.unwrap();
    assert_eq!(holder().await, (vec![a.uuid()], vec![a.uuid()]), "its floating address goes with it");
    site.net.fleet.report("n2", claim(b, &["10.0.0.200"])).await.unwrap();
    assert_eq!(holder().await, (vec![b.uuid()], vec![b.uuid()]));
    // A port that is not the node's, and an address that a server has.
    site.net.fleet.report("n1", claim(b, &[])).await.unwrap();
    let state = site.net.cloud.cell.read();
    let theirs = state.get::<Port>(&a).unwrap().fixed[0].address.to_string();
    let pairs = json!({"allowed_address_pairs": [{"ip_address": "10.0.0.0/24"}]});
    site.net.change(&site.net.admin, &format!("/ports/{b}"), "port", pairs).await;
    site.net.fleet.report("n2", claim(b, &["10.0.0.200", &theirs])).await.unwrap();
    assert_eq!(holder().await, (vec![b.uuid()], vec![b.uuid()]));
    assert_eq!(site.net.cloud.cell.read().get::<Port>(&b).unwrap().claims, [address].into());
}

#[tokio::test]
async fn an_address_claimed_at_the_mac_of_a_pair_is_a_member_with_that_mac() {
    let site = Site::new(json!({})).await;
    let (a, b) = (site.port("n1").await, site.port("n2").await);
    let (vip, mac) = ("10.0.0.200", "00:00:5e:00:01:07");
    for port in [a, b] {
        let pairs =
            json!({"allowed_address_pairs": [{"ip_address": vip, "mac_address": mac}, {"ip_address": vip}]});
        site.net.change(&site.net.admin, &format!("/ports/{port}"), "port", pairs).await;
    }
    let (address, mac): (IpAddr, Mac) = (vip.parse().unwrap(), mac.parse().unwrap());
    let holders = async || {
        let sections = site.document("n1").await.sections.into_values();
        let members = sections.filter_map(|section| match section {
            Section::Members(members) if members.network.to_string() == site.network => Some(members.ports),
            _ => None,
        });
        let all = members.flatten().filter(|(_, member)| member.addresses.contains(&address));
        all.map(|(id, member)| (id, member.mac, member.vtep)).collect::<Vec<_>>()
    };
    let claim = |port: Id<Port>, at: Mac| Report {
        ports: [(
            port.uuid(),
            PortReport { up: true, claims: [address].into(), macs: [(address, at)].into() },
        )]
        .into(),
        ..Report::default()
    };
    for (node, port, number) in [("n1", a, 1), ("n2", b, 2), ("n1", a, 1)] {
        site.net.fleet.report(node, claim(port, mac)).await.unwrap();
        assert_eq!(holders().await, [(claim_id(port.uuid(), mac), mac, Some(vtep(number)))], "{node}");
    }
    // A MAC that no pair has is not believed.
    site.net.fleet.report("n2", claim(b, Mac([2; 6]))).await.unwrap();
    let own = site.net.cloud.cell.read().get::<Port>(&b).unwrap().mac;
    assert_eq!(holders().await, [(b.uuid(), own, Some(vtep(2)))]);
}

#[tokio::test]
async fn a_trace_names_the_way_and_the_rule_that_stops_a_packet() {
    let site = Site::new(json!({})).await;
    let (a, b) = (site.port("n1").await, site.port("n2").await);
    let fixed = |port: Id<Port>| site.net.cloud.cell.read().get::<Port>(&port).unwrap().fixed[0].address;
    let to = fixed(b);
    let trace = async |query: String| {
        let path = format!("/ports/{a}/trace?{query}");
        let trace = site.net.get(&site.net.admin, &path).await;
        let hops =
            trace["hops"].as_array().unwrap().iter().map(|hop| hop["host"].as_str().unwrap().to_string());
        (trace["result"].as_str().unwrap().to_string(), hops.collect::<Vec<_>>())
    };
    let way =
        |result: &str, hosts: &[&str]| (result.to_string(), hosts.iter().map(|h| h.to_string()).collect());
    // Both are in the default group, which lets its own in.
    assert_eq!(trace(format!("to={to}&protocol=tcp&port=22")).await, way("delivered", &["n1", "n2"]));
    assert_eq!(trace("to=9.9.9.9".to_string()).await, way("left", &["n1"; 4]));
    site.net.change(&site.net.admin, &format!("/ports/{b}"), "port", json!({"security_groups": []})).await;
    assert_eq!(trace(format!("to={to}")).await, way("dropped", &["n1", "n2"]));

    let path = format!("/ports/{a}/trace");
    for query in ["", "?to=x", "?to=10.0.0.1&protocol=tcp", "?to=10.0.0.1&port=1", "?to=10.0.0.1&protocol=x"]
    {
        let refused = site.net.refused(&site.net.admin, "GET", &format!("{path}{query}"), Value::Null).await;
        assert_eq!(refused.0, 400, "{query}");
    }
    let member = site.net.cloud.member("member").await;
    assert_eq!(site.net.refused(&member, "GET", &format!("{path}?to=10.0.0.1"), Value::Null).await.0, 403);
}
