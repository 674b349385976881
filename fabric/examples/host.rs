//! The fabric of one of two hosts, for `make bench-fabric`: in the network namespace that it is started in.
//!
//! `host up CLOUD N ADDRESS OTHER` builds what host N (1 or 2) of a cloud holds when the other one has `OTHER`: two
//! subnets, a router between them, one guest each in subnet N. It prints the namespace and the name of the guest's tap.
//! `host down CLOUD N` removes it all. CLOUD is six hex digits.
//!
//! Rules go by a device's name, so a veth of the tap's name in the tap's place gets the same as the tap.

use base::node::*;
use base::units::Mac;
use base::{Error, Result};
use fabric::{Fabric, Settings, state};
use std::net::IpAddr;
use uuid::Uuid;

/// As wide as the others' of the run, with room for the tunnel on the wire.
const MTU: u32 = 1500;
const PORT: u16 = 4789;
const GUESTS: [(Mac, &str, &str); 2] = [
    (Mac([2, 0, 0, 0, 0x0a, 1]), "10.0.1.11", "10.0.1.1/24"),
    (Mac([2, 0, 0, 0, 0x0b, 2]), "10.0.2.12", "10.0.2.1/24"),
];
const TCP_IN: [u16; 6] = [22, 80, 443, 5201, 5202, 11111];
const UDP_IN: [u16; 3] = [5201, 5202, 11111];

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["up", cloud, n, address, other] => up(cloud, n, address, other).await,
        ["down", cloud, n] => down(cloud, n).await,
        _ => Err(Error::invalid("host up CLOUD N ADDRESS OTHER | host down CLOUD N")),
    };
    if let Err(e) = done {
        eprintln!("{}", e.chain());
        std::process::exit(1);
    }
}

async fn up(cloud: &str, n: &str, address: &str, other: &str) -> Result<()> {
    let (settings, own) = settings(cloud, n, parse(address)?)?;
    let document = document(own, [settings.node_address, parse(other)?])?;
    let mut fabric = Fabric::open(settings.clone()).await?;
    fabric.sync(&document).await?;
    if let Some((_, failure)) = fabric.last_failures().first() {
        return Err(Error::internal(failure.clone()));
    }
    let place = state::Place::Network(network(own));
    println!("{} {}", place.name(settings.cloud).unwrap_or_default(), state::tap(port(own)));
    Ok(())
}

async fn down(cloud: &str, n: &str) -> Result<()> {
    let (settings, _) = settings(cloud, n, parse("127.0.0.1")?)?;
    Fabric::down(&settings).await.map(drop)
}

/// And the host's place among the two.
fn settings(cloud: &str, n: &str, node_address: IpAddr) -> Result<(Settings, usize)> {
    let own = match n {
        "1" => 0,
        "2" => 1,
        _ => return Err(Error::invalid("the host is 1 or 2")),
    };
    let cloud =
        u32::from_str_radix(cloud, 16).map_err(|e| Error::invalid("the cloud is no number").because(e))?;
    // Both hosts keep their namespaces in one directory, by cloud.
    let cloud = cloud << 4 | own as u32;
    let physical = Default::default();
    Ok((Settings { cloud, node_address, vxlan_port: PORT, uplink: None, physical }, own))
}

fn parse<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(text: &str) -> Result<T> {
    text.parse().map_err(|e| Error::invalid(format!("'{text}' is no address")).because(e))
}

fn network(n: usize) -> Uuid {
    Uuid::from_u128(1 << 120 | (n as u128) << 112)
}

fn port(n: usize) -> Uuid {
    Uuid::from_u128(3 << 120 | (n as u128) << 112)
}

fn subnet(n: usize) -> Uuid {
    Uuid::from_u128(2 << 120 | (n as u128) << 112)
}

/// Own guest first, by address of its node.
fn document(own: usize, nodes: [IpAddr; 2]) -> Result<Document> {
    let mut document = Document::default();
    let mut put = |key, section| drop(document.sections.insert(key, section));
    let mut interfaces = Vec::new();
    for (n, (mac, address, leg)) in GUESTS.iter().enumerate() {
        let leg: ipnet::IpNet = parse(leg)?;
        let subnet = Subnet {
            id: subnet(n),
            cidr: leg.trunc(),
            gateway: Some(leg.addr()),
            dhcp: true,
            dns: Vec::new(),
            routes: Vec::new(),
            ipv6_ra: None,
            ipv6_address: None,
        };
        let section = Network {
            id: network(n),
            vni: 100 + n as u32,
            mtu: MTU,
            external: false,
            physical: None,
            router: None,
            subnets: vec![subnet],
            dns_domain: String::new(),
        };
        put(SectionKey::Network(network(n)), Section::Network(section));
        let vtep = Some(nodes[usize::from(n != own)]);
        let member = Member { mac: *mac, addresses: [parse(address)?].into(), vtep, name: String::new() };
        let members = Members { network: network(n), ports: vec![(port(n), member)].into() };
        put(SectionKey::Members(network(n)), Section::Members(members));
        interfaces.push(RouterInterface {
            port: Uuid::from_u128(5 << 120 | (n as u128) << 112),
            network: network(n),
            mac: Mac([2, 0, 0, 0, 0xff, 1 + n as u8]),
            addresses: vec![leg],
        });
    }
    let id = Uuid::from_u128(4 << 120);
    let router = Router {
        id,
        admin_up: true,
        interfaces,
        gateway: None,
        routes: Vec::new(),
        central: false,
        forwards: Vec::new(),
    };
    put(SectionKey::Router(id), Section::Router(router));
    let rules = rules();
    put(SectionKey::Port(port(own)), Section::Port(guest(own, rules.hash())?));
    put(SectionKey::Rules(rules.hash()), Section::Rules(rules));
    Ok(document)
}

fn guest(n: usize, rules: u64) -> Result<Port> {
    let (mac, address, _) = GUESTS[n];
    Ok(Port {
        id: port(n),
        network: network(n),
        vm: None,
        mac,
        admin_up: true,
        fixed: vec![FixedIp { subnet: subnet(n), address: parse(address)? }],
        pairs: Vec::new(),
        port_security: true,
        rules: Some(rules),
        floating: Vec::new(),
        dhcp_options: Vec::new(),
        name: String::new(),
    })
}

/// Everything out; in what the measuring programs and a usual server need.
fn rules() -> RuleSet {
    let rule = |direction, protocol, port: Option<u16>| Rule {
        direction,
        v6: false,
        protocol,
        min: port,
        max: port,
        remote: Remote::Any,
    };
    let mut rules = vec![rule(Direction::Egress, None, None), rule(Direction::Ingress, Some(1), None)];
    rules.extend(TCP_IN.map(|port| rule(Direction::Ingress, Some(6), Some(port))));
    rules.extend(UDP_IN.map(|port| rule(Direction::Ingress, Some(17), Some(port))));
    rules.sort();
    RuleSet { rules, stateful: true }
}
