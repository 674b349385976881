//! A small cloud as steps from nothing, and single changes of it, as golden text. `GOLDEN=write cargo test -p fabric`
//! writes the files anew; review them as a diff.

#[path = "advisories.rs"]
mod advisories;
#[path = "known_tests.rs"]
mod known_tests;
#[path = "part_tests.rs"]
mod part_tests;

use super::*;
use crate::diff::diff;
use base::node::*;

fn id(kind: u8, n: u8) -> Uuid {
    Uuid::from_u128((kind as u128) << 120 | (n as u128) << 112)
}

fn network(n: u8, cidr: &str, external: bool) -> Network {
    let cidr: IpNet = cidr.parse().unwrap();
    let subnet = Subnet {
        id: id(2, n),
        cidr,
        gateway: cidr.hosts().next(),
        dhcp: true,
        dns: Vec::new(),
        routes: Vec::new(),
        ipv6_ra: None,
        ipv6_address: None,
    };
    Network {
        id: id(1, n),
        vni: n.into(),
        mtu: 1450,
        external,
        physical: None,
        router: None,
        subnets: vec![subnet],
        dns_domain: String::new(),
    }
}

fn port(n: u8, network: u8, address: &str, rules: Option<u64>) -> Port {
    Port {
        id: id(3, n),
        network: id(1, network),
        vm: None,
        mac: Mac([0xfa, 0x16, 0x3e, 0, 0, n]),
        admin_up: true,
        fixed: vec![FixedIp { subnet: id(2, network), address: address.parse().unwrap() }],
        pairs: Vec::new(),
        port_security: true,
        rules,
        floating: Vec::new(),
        dhcp_options: Vec::new(),
        name: String::new(),
    }
}

fn rule(direction: Direction, protocol: Option<u8>, ports: Option<(u16, u16)>, remote: Remote) -> Rule {
    Rule { direction, v6: false, protocol, min: ports.map(|p| p.0), max: ports.map(|p| p.1), remote }
}

fn rule_set() -> RuleSet {
    RuleSet {
        rules: vec![
            rule(Direction::Ingress, Some(6), Some((22, 22)), Remote::Cidr("192.0.2.0/24".parse().unwrap())),
            rule(Direction::Ingress, Some(17), Some((1000, 2000)), Remote::Group(id(7, 1))),
            rule(Direction::Ingress, Some(1), None, Remote::Any),
            rule(Direction::Egress, None, None, Remote::Any),
        ],
        stateful: true,
    }
}

/// One network behind one router with a gateway, two ports, one floating address, one without security.
fn sections() -> BTreeMap<SectionKey, Section> {
    let rules = rule_set();
    let hash = rules.hash();
    let mut one = port(1, 1, "10.0.0.5", Some(hash));
    one.pairs = vec![("10.0.0.128/25".parse().unwrap(), one.mac)];
    one.floating = vec![FloatingIp {
        floating: "198.51.100.20".parse().unwrap(),
        fixed: one.fixed[0].address,
        router: id(4, 1),
        network: id(1, 9),
    }];
    let mut open = port(2, 1, "10.0.0.6", None);
    open.port_security = false;
    let inner = network(1, "10.0.0.0/24", false);
    let member = |port: &Port| Member {
        mac: port.mac,
        addresses: vec![port.fixed[0].address],
        vtep: None,
        name: String::new(),
    };
    let ports = vec![(one.id, member(&one)), (open.id, member(&open))].into();
    let members = Members { network: inner.id, ports };
    let interface = RouterInterface {
        port: id(5, 1),
        network: id(1, 1),
        mac: Mac([0xfa, 0x16, 0x3e, 0, 1, 1]),
        addresses: vec!["10.0.0.1/24".parse().unwrap()],
    };
    let gateway = RouterGateway {
        port: id(6, 1),
        network: id(1, 9),
        mac: Mac([0xfa, 0x16, 0x3e, 0, 1, 9]),
        addresses: vec!["198.51.100.10/24".parse().unwrap()],
        next_hops: vec!["198.51.100.1".parse().unwrap()],
        snat: true,
        owner: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        shares: Vec::new(),
    };
    let router = Router {
        id: id(4, 1),
        admin_up: true,
        interfaces: vec![interface],
        gateway: Some(gateway),
        routes: vec![("10.9.0.0/16".parse().unwrap(), "10.0.0.6".parse().unwrap())],
        central: false,
        forwards: Vec::new(),
    };
    let group = Group { id: id(7, 1), members: vec!["10.0.0.5".parse().unwrap()].into() };
    [
        (SectionKey::Port(one.id), Section::Port(one)),
        (SectionKey::Port(open.id), Section::Port(open)),
        (SectionKey::Members(inner.id), Section::Members(members)),
        (SectionKey::Network(inner.id), Section::Network(inner)),
        (SectionKey::Network(id(1, 9)), Section::Network(network(9, "198.51.100.0/24", true))),
        (SectionKey::Router(router.id), Section::Router(router)),
        (SectionKey::Rules(hash), Section::Rules(rules)),
        (SectionKey::Group(group.id), Section::Group(group)),
    ]
    .into()
}

/// A kernel that has no more than it must.
const LEAST: Powers =
    Powers { tracking: Tracking::BrNetfilter, flowtable: false, shortcuts: false, known: false };

fn planned(sections: BTreeMap<SectionKey, Section>, uplink: Option<&str>) -> KernelState {
    planned_with(LEAST, sections, uplink)
}

fn planned_with(
    powers: Powers,
    sections: BTreeMap<SectionKey, Section>,
    uplink: Option<&str>,
) -> KernelState {
    let document = Document { sections, ..Document::default() };
    plan(&Sections::of(&document), &small_settings(uplink), powers)
}

fn small_settings(uplink: Option<&str>) -> Settings {
    Settings {
        cloud: 0xfeed,
        node_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        vxlan_port: 4789,
        uplink: uplink.map(str::to_string),
        physical: [("public".to_string(), "eth1".to_string())].into(),
    }
}

fn check(name: &str, seen: &KernelState, wanted: &KernelState) {
    let steps: Vec<String> = diff(seen, wanted).iter().map(|step| format!("{step}\n")).collect();
    let text = steps.concat();
    let path = format!("{}/src/plan/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{path} differs; the steps are now:\n{text}");
    assert!(diff(wanted, wanted).is_empty(), "nothing is left to do");
}

/// The steps of one change to the small cloud.
fn check_change(name: &str, change: impl FnOnce(&mut BTreeMap<SectionKey, Section>)) {
    let mut after = sections();
    change(&mut after);
    check(name, &planned(sections(), None), &planned(after, None));
}

fn edit_port(sections: &mut BTreeMap<SectionKey, Section>, edit: impl FnOnce(&mut Port)) {
    match sections.get_mut(&SectionKey::Port(id(3, 1))) {
        Some(Section::Port(port)) => edit(port),
        _ => panic!("there is such a port"),
    }
}

#[test]
fn from_nothing() {
    check("from_nothing", &KernelState::default(), &planned(sections(), Some("eth0")));
}

/// The small cloud with a second subnet and a member elsewhere, so that there is something to shorten.
fn wide() -> BTreeMap<SectionKey, Section> {
    let mut wide = sections();
    remote_member(&mut wide, "192.0.2.7");
    let Some(Section::Router(router)) = wide.get_mut(&SectionKey::Router(id(4, 1))) else {
        panic!("a router")
    };
    router.routes.clear();
    router.interfaces.push(RouterInterface {
        port: id(5, 2),
        network: id(1, 2),
        mac: Mac([0xfa, 0x16, 0x3e, 0, 1, 2]),
        addresses: vec!["10.0.2.1/24".parse().unwrap(), "fd00:2::1/64".parse().unwrap()],
    });
    let other = port(4, 2, "10.0.2.5", None);
    let member = Member {
        mac: other.mac,
        addresses: vec![other.fixed[0].address, "fd00:2::5".parse().unwrap()],
        vtep: None,
        name: String::new(),
    };
    let members = Members { network: id(1, 2), ports: vec![(other.id, member)].into() };
    wide.insert(SectionKey::Network(id(1, 2)), Section::Network(network(2, "10.0.2.0/24", false)));
    wide.insert(SectionKey::Members(id(1, 2)), Section::Members(members));
    wide.insert(SectionKey::Port(other.id), Section::Port(other));
    wide
}

#[test]
fn a_kernel_with_all_powers_takes_shortcuts_beside_the_same_places() {
    let (least, all) = (planned(wide(), None), planned_with(Powers::ALL, wide(), None));
    check("powers", &least, &all);
    check("powers_from_nothing", &KernelState::default(), &all);
    let shortcuts = |state: &KernelState| {
        let tables = state.places.values().flat_map(|space| space.tables.values());
        tables.filter(|table| !table.devices.is_empty()).count()
    };
    assert_eq!((shortcuts(&least), shortcuts(&all)), (0, 5), "the way of all rules is whole without them");
}

#[test]
fn shortcuts_follow_their_devices_and_members() {
    let mut after = wide();
    remote_member(&mut after, "192.0.2.8");
    let Some(Section::Router(router)) = after.get_mut(&SectionKey::Router(id(4, 1))) else {
        panic!("a router")
    };
    router.interfaces.pop();
    check(
        "shortcuts_changed",
        &planned_with(Powers::ALL, wide(), None),
        &planned_with(Powers::ALL, after, None),
    );
    let mut odd = wide();
    let Some(Section::Router(router)) = odd.get_mut(&SectionKey::Router(id(4, 1))) else {
        panic!("a router")
    };
    router.routes.push(("10.0.2.128/25".parse().unwrap(), "10.0.0.6".parse().unwrap()));
    let state = planned_with(Powers::ALL, odd, None);
    let tables = &state.places[&Place::Router(id(4, 1))].tables;
    assert!(!tables.contains_key("netdev shisa"), "a route into a subnet takes the whole way");
}

#[test]
fn a_device_that_is_made_anew_takes_its_tables_along() {
    let all = planned_with(Powers::ALL, wide(), None);
    let mut seen = all.clone();
    let router = seen.places.get_mut(&Place::Router(id(4, 1))).unwrap();
    let leg = router.links.keys().find(|name| name.starts_with("qr-")).unwrap().clone();
    router.links.remove(&leg);
    let steps: Vec<String> = diff(&seen, &all).iter().map(|step| step.to_string()).collect();
    for table in ["netdev shisa", "inet flows"] {
        let anew = format!("delete table {table}\n    add table {table}\n");
        assert!(steps.iter().any(|step| step.contains(&anew)), "{table}: {steps:#?}");
    }
}

#[test]
fn to_nothing() {
    check("to_nothing", &planned(sections(), None), &KernelState::default());
}

#[test]
fn a_member_of_a_group_is_one_element() {
    check_change("group_member", |s| {
        let group = Group { id: id(7, 1), members: vec!["10.0.0.7".parse().unwrap()].into() };
        s.insert(SectionKey::Group(group.id), Section::Group(group));
    });
}

#[test]
fn a_removed_floating_address_is_forgotten() {
    check_change("floating_removed", |s| edit_port(s, |port| port.floating.clear()));
}

#[test]
fn other_rules_are_another_chain() {
    check_change("rules_changed", |s| {
        let rules =
            RuleSet { rules: vec![rule(Direction::Egress, None, None, Remote::Any)], stateful: false };
        let hash = rules.hash();
        s.insert(SectionKey::Rules(hash), Section::Rules(rules));
        edit_port(s, |port| port.rules = Some(hash));
    });
}

#[test]
fn a_port_that_goes_takes_its_tap_first() {
    check_change("port_removed", |s| drop(s.remove(&SectionKey::Port(id(3, 1)))));
}

#[test]
fn a_router_that_goes_leaves_the_bridge() {
    check_change("router_removed", |s| drop(s.remove(&SectionKey::Router(id(4, 1)))));
}

fn remote_member(sections: &mut BTreeMap<SectionKey, Section>, vtep: &str) {
    let member = Member {
        mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 7]),
        addresses: vec!["10.0.0.7".parse().unwrap()],
        vtep: Some(vtep.parse().unwrap()),
        name: String::new(),
    };
    match sections.get_mut(&SectionKey::Members(id(1, 1))) {
        Some(Section::Members(members)) => drop(members.ports.insert(id(3, 7), member)),
        _ => panic!("there are such members"),
    }
}

#[test]
fn a_member_on_another_node_digs_a_tunnel() {
    check_change("tunnel", |s| remote_member(s, "192.0.2.7"));
}

#[test]
fn a_member_that_moves_to_a_third_node_is_replaced() {
    let (mut before, mut after) = (sections(), sections());
    remote_member(&mut before, "192.0.2.7");
    remote_member(&mut after, "192.0.2.8");
    check("member_moved", &planned(before, None), &planned(after, None));
}

/// The small cloud's gateway shared with another node, with a port forwarded there; owned by the one or the other.
fn shared(sections: &mut BTreeMap<SectionKey, Section>, owner: &str) {
    let Some(Section::Router(router)) = sections.get_mut(&SectionKey::Router(id(4, 1))) else { return };
    let (here, there): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), "192.0.2.7".parse().unwrap());
    let gateway = router.gateway.as_mut().unwrap();
    gateway.owner = Some(owner.parse().unwrap());
    let address = gateway.addresses[0].addr();
    let share = |vtep, n| SnatShare { vtep, address, ports: SnatShare::block(n) };
    gateway.shares = vec![share(here, 0), share(there, 1)];
    let forward = |port, vtep| PortForward {
        floating: "198.51.100.30".parse().unwrap(),
        protocol: 6,
        ports: (port, port),
        fixed: "10.0.0.6".parse().unwrap(),
        fixed_ports: (22, 22),
        vtep: Some(vtep),
    };
    router.forwards = vec![forward(2200, here), forward(2201, there)];
}

#[test]
fn a_gateway_that_is_shared_steers_by_blocks() {
    check_change("gateway_shared", |s| shared(s, "127.0.0.1"));
}

#[test]
fn a_gateway_that_another_node_owns_has_only_what_is_here() {
    let mut before = sections();
    shared(&mut before, "127.0.0.1");
    let mut after = sections();
    shared(&mut after, "192.0.2.7");
    check("gateway_given", &planned(before, None), &planned(after, None));
}

#[test]
fn a_physical_network_is_bridged_to_the_hosts_device() {
    check_change("physical", |s| match s.get_mut(&SectionKey::Network(id(1, 9))) {
        Some(Section::Network(network)) => network.physical = Some("public".to_string()),
        _ => panic!("there is such a network"),
    });
}

/// Single changes of a cloud, with another node in it.
fn changes(sections: &BTreeMap<SectionKey, Section>) -> Vec<(SectionKey, Option<Section>)> {
    let mut all = sections.clone();
    shared(&mut all, "192.0.2.7");
    let mut out: Vec<(SectionKey, Option<Section>)> = all.keys().map(|key| (key.clone(), None)).collect();
    for (key, mut section) in all {
        match &mut section {
            Section::Port(port) => (port.floating, port.rules) = (Vec::new(), None),
            Section::Network(network) => (network.mtu, network.physical) = (1400, Some("public".to_string())),
            Section::Members(members) => {
                let vtep = Some("192.0.2.9".parse().unwrap());
                let moved = |member: &Member| Member { vtep, ..member.clone() };
                members.ports = members.ports.iter().map(|(id, member)| (*id, moved(member))).collect();
            }
            Section::Router(router) => {
                router.interfaces.clear();
                router.gateway.as_mut().unwrap().shares.clear();
            }
            Section::Group(group) => group.members.clear(),
            Section::Rules(set) => set.stateful = false,
            Section::Vm(_) | Section::Image(_) => {}
        }
        out.push((key, Some(section)));
    }
    out
}

#[test]
fn a_change_touches_no_other_places_than_are_planned_for_it() {
    for (mut before, powers) in [(sections(), LEAST), (wide(), Powers::ALL)] {
        shared(&mut before, "127.0.0.1");
        for (key, section) in changes(&before) {
            let mut after = before.clone();
            match section {
                Some(section) => after.insert(key.clone(), section),
                None => after.remove(&key),
            };
            for (from, to) in [(&before, &after), (&after, &before)] {
                check_places(&key, from, to, powers);
            }
        }
    }
}

fn check_places(
    key: &SectionKey,
    before: &BTreeMap<SectionKey, Section>,
    after: &BTreeMap<SectionKey, Section>,
    powers: Powers,
) {
    let document = |sections: &BTreeMap<SectionKey, Section>| Document {
        sections: sections.clone(),
        ..Document::default()
    };
    let (old, new) = (document(before), document(after));
    let changed = crate::changed(&old, &new);
    let (old, new) = (Sections::of(&old), Sections::of(&new));
    let settings = small_settings(None);
    let places = crate::touched(&old, &new, &settings, &changed);
    let planned = |sections: &BTreeMap<_, _>| planned_with(powers, sections.clone(), None);
    let (was, is) = (planned(before), planned(after));
    let differ = old.places().into_iter().chain(new.places());
    let differ: BTreeSet<Place> =
        differ.filter(|place| was.places.get(place) != is.places.get(place)).collect();
    assert!(differ.is_subset(&places), "{key:?}: {differ:?} differ, {places:?} are planned");
    let part = plan_of(&new, &settings, powers, &places);
    assert_eq!(part, is.of(&places), "{key:?}: a place is the same planned alone");
}

#[test]
fn pairs_inside_of_others_are_one() {
    let mut all = sections();
    edit_port(&mut all, |port| {
        port.pairs = vec![
            ("10.0.0.0/24".parse().unwrap(), port.mac),
            ("10.0.0.128/25".parse().unwrap(), port.mac),
            ("0.0.0.0/0".parse().unwrap(), Mac([2, 0, 0, 0, 0, 1])),
        ];
    });
    let state = planned(all, None);
    let table = &state.places[&Place::Network(id(1, 1))].tables["bridge shisa"];
    let last = |set: &str| table.sets[set].elements.keys().map(|key| key[2].clone()).collect::<Vec<_>>();
    assert_eq!(last("pair4"), ["0.0.0.0/0", "10.0.0.0/24"]);
    assert!(last("src4").is_empty());
}
