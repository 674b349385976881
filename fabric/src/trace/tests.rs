//! Ways through two nodes: who may reach whom, by which way, and what stops the others.

use super::*;
use base::node::*;

pub fn packet(source: &str, target: &str, protocol: u8, ports: Option<(u16, u16)>) -> Packet {
    Packet {
        source_mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 1]),
        target_mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 2]),
        source: source.parse().unwrap(),
        target: target.parse().unwrap(),
        protocol,
        ports,
        translated: false,
        mark: 0,
        came: String::new(),
        leaves: String::new(),
    }
}

fn id(kind: u8, n: u8) -> Uuid {
    Uuid::from_u128((kind as u128) << 120 | (n as u128) << 112 | 7)
}

fn mac(kind: u8, n: u8) -> Mac {
    Mac([0xfa, 0x16, 0x3e, 0, kind, n])
}

fn vtep(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn network(n: u8, cidr: &str, physical: bool) -> Network {
    let cidr: ipnet::IpNet = cidr.parse().unwrap();
    serde_json::from_value(serde_json::json!({
        "id": id(1, n), "vni": n, "mtu": 1450, "external": n == 9, "router": null, "dns_domain": "",
        "physical": physical.then_some("outside"),
        "subnets": [{"id": id(2, n), "cidr": cidr, "gateway": cidr.hosts().next(), "dhcp": n != 9, "dns": [],
            "routes": [], "ipv6_ra": null, "ipv6_address": null}],
    }))
    .unwrap()
}

fn port(n: u8, network: u8, address: &str, rules: &RuleSet) -> Port {
    serde_json::from_value(serde_json::json!({
        "id": id(3, n), "network": id(1, network), "vm": null, "mac": mac(3, n), "admin_up": true,
        "fixed": [{"subnet": id(2, network), "address": address}], "pairs": [], "port_security": true,
        "rules": rules.hash(), "floating": [], "dhcp_options": [],
    }))
    .unwrap()
}

fn rules(inward: &[(Option<u8>, Option<u16>, Remote)]) -> RuleSet {
    let rule = |direction, protocol, port, remote| Rule {
        direction,
        v6: false,
        protocol,
        min: port,
        max: port,
        remote,
    };
    let mut all = vec![rule(Direction::Egress, None, None, Remote::Any)];
    all.extend(
        inward
            .iter()
            .map(|(protocol, port, remote)| rule(Direction::Ingress, *protocol, *port, remote.clone())),
    );
    all.sort();
    RuleSet { rules: all, stateful: true }
}

/// Ports 1 on node 1 and 2 on node 2 in network 1, port 3 on node 2 in network 2, port 4 on node 1 in network 3
/// without a router. A router between 1 and 2 with a gateway of node 1; port 3 has the floating address .20.
/// Port 2 lets SSH in, port 3 echo and what comes from the group of port 1, the others nothing.
fn world(physical: bool) -> World {
    let group = Group { id: id(7, 1), members: vec!["10.0.1.5".parse().unwrap()].into() };
    let closed = rules(&[]);
    let ssh = rules(&[(Some(6), Some(22), Remote::Any)]);
    let friends = rules(&[(Some(1), None, Remote::Any), (Some(17), Some(53), Remote::Group(group.id))]);
    let (a, b) = (port(1, 1, "10.0.1.5", &closed), port(2, 1, "10.0.1.6", &ssh));
    let (mut c, d) = (port(3, 2, "10.0.2.6", &friends), port(4, 3, "10.0.1.7", &closed));
    c.floating = vec![FloatingIp {
        floating: "198.51.100.20".parse().unwrap(),
        fixed: c.fixed[0].address,
        router: id(4, 1),
        network: id(1, 9),
    }];
    let networks = [
        network(1, "10.0.1.0/24", false),
        network(2, "10.0.2.0/24", false),
        network(3, "10.0.1.0/24", false),
        network(9, "198.51.100.0/24", physical),
    ];
    let interface = |n: u8| RouterInterface {
        port: id(5, n),
        network: id(1, n),
        mac: mac(5, n),
        addresses: vec![format!("10.0.{n}.1/24").parse().unwrap()],
    };
    let address: ipnet::IpNet = "198.51.100.10/24".parse().unwrap();
    let share =
        |n: u8| SnatShare { vtep: vtep(n), address: address.addr(), ports: SnatShare::block(n.into()) };
    let router = Router {
        id: id(4, 1),
        admin_up: true,
        interfaces: vec![interface(1), interface(2)],
        gateway: Some(RouterGateway {
            port: id(6, 1),
            network: id(1, 9),
            mac: mac(6, 1),
            addresses: vec![address],
            next_hops: vec!["198.51.100.1".parse().unwrap()],
            snat: true,
            owner: Some(vtep(1)),
            shares: vec![share(1), share(2)],
        }),
        routes: vec![],
        central: false,
        forwards: vec![],
    };
    let member = |port: &Port, node: u8| Member {
        mac: port.mac,
        addresses: vec![port.fixed[0].address],
        vtep: Some(vtep(node)),
        name: String::new(),
    };
    let members = |network: u8, ports: &[(&Port, u8)]| Members {
        network: id(1, network),
        ports: ports.iter().map(|(port, node)| (port.id, member(port, *node))).collect(),
    };
    let shared = || {
        let mut out = std::collections::BTreeMap::new();
        for network in &networks {
            out.insert(SectionKey::Network(network.id), Section::Network(network.clone()));
        }
        for members in [members(1, &[(&a, 1), (&b, 2)]), members(2, &[(&c, 2)]), members(3, &[(&d, 1)])] {
            out.insert(SectionKey::Members(members.network), Section::Members(members));
        }
        for set in [&closed, &ssh, &friends] {
            out.insert(SectionKey::Rules(set.hash()), Section::Rules(set.clone()));
        }
        out.insert(SectionKey::Router(router.id), Section::Router(router.clone()));
        out.insert(SectionKey::Group(group.id), Section::Group(group.clone()));
        out
    };
    let mut world = World::default();
    for (n, own) in [(1, vec![&a, &d]), (2, vec![&b, &c])] {
        let mut sections = shared();
        for port in own {
            sections.insert(SectionKey::Port(port.id), Section::Port(port.clone()));
        }
        let settings = Settings {
            cloud: 1,
            node_address: vtep(n),
            vxlan_port: 4789,
            uplink: None,
            physical: [("outside".to_string(), "eth1".to_string())].into(),
        };
        world.node(&format!("node-{n}"), &settings, Document { sections, ..Document::default() });
    }
    world
}

/// The nodes and kinds of places of the way, and how it ends.
fn check(physical: bool, from: u8, to: &str, (protocol, port): (u8, Option<u16>), expect: (&str, &str)) {
    let flow = Flow { to: to.parse().unwrap(), protocol, port };
    let way = world(physical).trace(id(3, from), flow).unwrap();
    let kind = |place: Place| match place {
        Place::Host => "host",
        Place::Network(_) => "net",
        Place::Router(_) => "router",
    };
    let hops: Vec<String> =
        way.hops.iter().map(|hop| format!("{}:{}", &hop.node[5..], kind(hop.place))).collect();
    let end = match &way.end {
        End::Delivered { port } => format!("port {}", port.as_bytes()[1]),
        End::Left { source, .. } => format!("left as {source}"),
        End::Dropped { chain, rule } => format!("{}: {rule}", chain.split('_').next().unwrap_or_default()),
        End::Answered => "answered".to_string(),
        End::Lost { why } => format!("lost: {why}"),
    };
    assert_eq!((hops.join(" ").as_str(), end.as_str()), expect, "{from} to {to}: {:#?}", way.hops);
}

const SSH: (u8, Option<u16>) = (6, Some(22));
const ECHO: (u8, Option<u16>) = (1, None);

#[test]
fn the_way_inside_a_network_goes_by_the_tunnel_and_ends_at_the_rules() {
    check(false, 1, "10.0.1.6", SSH, ("1:net 2:net", "port 2"));
    check(false, 1, "10.0.1.6", (6, Some(80)), ("1:net 2:net", "in: drop"));
    check(false, 2, "10.0.1.5", SSH, ("2:net 1:net", "in: drop"));
}

#[test]
fn the_way_between_subnets_is_routed_by_the_sender() {
    check(false, 1, "10.0.2.6", ECHO, ("1:net 1:router 1:net 2:net", "port 3"));
    check(false, 1, "10.0.2.6", (17, Some(53)), ("1:net 1:router 1:net 2:net", "port 3"));
    check(false, 2, "10.0.2.6", (17, Some(53)), ("2:net 2:router 2:net", "in: drop"));
    check(false, 1, "10.0.2.1", ECHO, ("1:net 1:router", "answered"));
}

/// Port 1 in network 1 and port 2 in network 3, which meet by two routers with a leg each in network 2; the second
/// router is in the documents of those `told`.
fn two_routers(told: &[u8]) -> World {
    let open = rules(&[(None, None, Remote::Any)]);
    let ports = [port(1, 1, "10.0.1.5", &open), port(2, 3, "10.0.3.5", &open)];
    let interface = |n: u8, network: u8, address: &str| RouterInterface {
        port: id(5, n),
        network: id(1, network),
        mac: mac(5, n),
        addresses: vec![address.parse().unwrap()],
    };
    let router = |n: u8, interfaces, route: (&str, &str)| Router {
        id: id(4, n),
        admin_up: true,
        interfaces,
        gateway: None,
        routes: vec![(route.0.parse().unwrap(), route.1.parse().unwrap())],
        central: false,
        forwards: vec![],
    };
    let first = vec![interface(1, 1, "10.0.1.1/24"), interface(2, 2, "10.0.2.1/24")];
    let second = vec![interface(3, 2, "10.0.2.2/24"), interface(4, 3, "10.0.3.1/24")];
    let routers =
        [router(1, first, ("10.0.3.0/24", "10.0.2.2")), router(2, second, ("10.0.1.0/24", "10.0.2.1"))];
    let mut world = World::default();
    for n in [1u8, 2] {
        let mut sections = std::collections::BTreeMap::new();
        for m in 1..=3 {
            let section = Section::Network(network(m, &format!("10.0.{m}.0/24"), false));
            sections.insert(SectionKey::Network(id(1, m)), section);
        }
        for (port, node) in ports.iter().zip([1, 2]) {
            let addresses = vec![port.fixed[0].address];
            let member = Member { mac: port.mac, addresses, vtep: Some(vtep(node)), name: String::new() };
            let members = Members { network: port.network, ports: vec![(port.id, member)].into() };
            sections.insert(SectionKey::Members(port.network), Section::Members(members));
        }
        sections.insert(SectionKey::Rules(open.hash()), Section::Rules(open.clone()));
        let own = &ports[usize::from(n) - 1];
        sections.insert(SectionKey::Port(own.id), Section::Port(own.clone()));
        for router in routers.iter().filter(|r| r.id == id(4, n) || told.contains(&n)) {
            sections.insert(SectionKey::Router(router.id), Section::Router(router.clone()));
        }
        let (node_address, physical) = (vtep(n), std::collections::BTreeMap::new());
        let settings = Settings { cloud: 1, node_address, vxlan_port: 4789, uplink: None, physical };
        world.node(&format!("node-{n}"), &settings, Document { sections, ..Document::default() });
    }
    world
}

#[test]
fn the_way_through_two_routers_needs_both_on_both_nodes() {
    let flow = |to: &str| Flow { to: to.parse().unwrap(), protocol: 1, port: None };
    let end = |told: &[u8], from: u8, to: &str| two_routers(told).trace(id(3, from), flow(to)).unwrap().end;
    let lost = |end: End| match end {
        End::Lost { why } => why,
        other => panic!("{other}"),
    };
    let nowhere = lost(end(&[], 1, "10.0.3.5"));
    assert!(nowhere.starts_with("no device of the network leads to"), "{nowhere}");
    let tunnel = lost(end(&[1], 1, "10.0.3.5"));
    assert!(tunnel.ends_with("has no tunnel on this node"), "{tunnel}: nothing there leads back");
    assert_eq!(end(&[1, 2], 1, "10.0.3.5"), End::Delivered { port: id(3, 2) });
    assert_eq!(end(&[1, 2], 2, "10.0.1.5"), End::Delivered { port: id(3, 1) });
}

#[test]
fn the_way_outside_takes_the_source_that_it_has() {
    for physical in [false, true] {
        let (net, host) = match physical {
            true => ("1:net 1:router", "2:net 2:router"),
            false => ("1:net 1:router 1:net 1:host", "2:net 2:router 2:net 2:host"),
        };
        check(physical, 1, "9.9.9.9", SSH, (net, "left as 198.51.100.10"));
        check(physical, 3, "9.9.9.9", SSH, (host, "left as 198.51.100.20"));
    }
}

#[test]
fn a_floating_address_is_reached_on_its_node() {
    for physical in [false, true] {
        let way = "1:net 1:router 1:net 2:net 2:router 2:net";
        check(physical, 1, "198.51.100.20", ECHO, (way, "port 3"));
        check(physical, 1, "198.51.100.20", SSH, (way, "in: drop"));
        check(physical, 2, "198.51.100.20", ECHO, ("2:net 2:router 2:net", "port 3"));
    }
}

/// Port 1 to port 3, on another node and by the router, after something was changed on the nodes.
fn straight(change: impl Fn(u8, &mut KernelState)) -> Result<End, String> {
    let mut world = world(false);
    for (n, node) in (1..).zip(world.nodes.values_mut()) {
        change(n, &mut node.state);
    }
    let flow = Flow { to: "10.0.2.6".parse().unwrap(), protocol: 1, port: None };
    world.trace(id(3, 1), flow).map(|way| way.end)
}

#[test]
fn known_flows_are_led_where_the_whole_way_leads() {
    let (one, two) = (Place::Network(id(1, 1)), Place::Network(id(1, 2)));
    let here = |state: &mut KernelState| state.places.get_mut(&one).unwrap().clone();
    straight(|n, state| assert!(n != 1 || here(state).links.contains_key(crate::state::DIRECT))).unwrap();
    assert_eq!(straight(|_, _| {}), Ok(End::Delivered { port: id(3, 3) }));
    let station = |edit: fn(&mut crate::state::Station)| {
        straight(move |n, state| {
            if n != 1 {
                return;
            }
            let space = state.places.get_mut(&one).unwrap();
            let edited = |mut station: crate::state::Station| {
                if station.device == crate::state::DIRECT {
                    edit(&mut station);
                }
                station
            };
            space.stations = std::mem::take(&mut space.stations).into_iter().map(edited).collect();
        })
    };
    let elsewhere = |got: Result<End, String>| {
        let why = got.unwrap_err();
        assert!(why.contains("led elsewhere"), "{why}");
    };
    elsewhere(station(|station| station.vni = Some(1)));
    elsewhere(station(|station| station.vtep = Some(vtep(9))));
    elsewhere(straight(|n, state| {
        // The receiver does not make the source its router's leg.
        let table = state.places.get_mut(&two).and_then(|space| space.tables.get_mut(crate::plan::KNOWN));
        let table = table.filter(|_| n == 2).into_iter();
        table.for_each(|table| table.base.retain(|line| !line.contains("ether saddr set")));
    }));
    let lost = straight(|n, state| {
        if n == 1 {
            state.places.get_mut(&one).unwrap().neighbours.clear();
        }
    });
    assert!(lost.unwrap_err().contains("have no end"));
}

#[test]
fn what_cannot_go_says_why() {
    check(false, 4, "10.0.2.6", SSH, ("1:net", "lost: nobody on the network has 10.0.1.1"));
    let flow = |to: &str| Flow { to: to.parse().unwrap(), protocol: 6, port: Some(22) };
    assert!(world(false).trace(id(3, 9), flow("10.0.1.5")).unwrap_err().contains("on no node"));
    assert!(world(false).trace(id(3, 1), flow("fd00::1")).unwrap_err().contains("no address"));
}

#[test]
fn every_rule_that_is_planned_is_understood() {
    for physical in [false, true] {
        for node in world(physical).nodes.values() {
            for (name, table) in node.state.places.values().flat_map(|space| &space.tables) {
                let packets = [
                    packet("10.0.1.5", "10.0.1.6", 6, Some((1, 22))),
                    packet("10.0.1.5", "198.51.100.10", 17, Some((53, 3000))),
                    packet("10.0.1.5", "10.0.1.6", 1, None),
                    packet("fe80::1", "ff02::1", 58, None),
                ];
                for (mut packet, point) in packets.into_iter().flat_map(|packet| {
                    ["prerouting", "forward", "postrouting"].map(|point| (packet.clone(), point))
                }) {
                    if let Err(why) = hook(table, point, &mut packet) {
                        panic!("{name}: {why}");
                    }
                }
            }
        }
    }
}
