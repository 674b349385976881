//! What of flows is known, who lets it be, and where it is led.

use super::*;
use crate::diff::diff;

#[test]
fn flows_that_are_known_are_forgotten_with_any_change_of_rules() {
    let all = planned_with(Powers::ALL, wide(), None);
    let mut after = wide();
    let Some(Section::Group(group)) = after.get_mut(&SectionKey::Group(id(7, 1))) else { panic!("a group") };
    group.members.clear();
    let steps = diff(&all, &planned_with(Powers::ALL, after, None));
    let batches: Vec<String> = steps.iter().map(|step| step.to_string()).collect();
    let batch =
        batches.iter().find(|step| step.contains("delete element bridge shisa g4_")).expect("a member goes");
    let table = &all.places[&Place::Network(id(1, 1))].tables[KNOWN];
    for (set, kind) in LEARNED {
        let line = format!("flush {kind} {KNOWN} {set}");
        assert_eq!(batch.contains(&line), table.sets.contains_key(set), "{set}: {batch}");
    }
    assert!(diff(&all, &all).is_empty(), "nothing is flushed without a change");
}

#[test]
fn only_the_port_that_a_flow_is_for_lets_it_be_known() {
    let all = planned_with(Powers::ALL, wide(), None);
    let table = &all.places[&Place::Network(id(1, 1))].tables[KNOWN];
    let learning: Vec<&String> = table.base.iter().filter(|line| line.contains(" add @in_")).collect();
    assert!(!learning.is_empty());
    for line in learning {
        assert!(line.contains("ether daddr fa:16:3e:") && !line.contains('&'), "{line}");
    }
    let table = &all.places[&Place::Network(id(1, 2))].tables[KNOWN];
    let from: Vec<&String> = table.base.iter().filter(|line| line.contains("goto away")).collect();
    assert!(from.iter().all(|line| line.contains("ether saddr ") && line.contains(" ip saddr ")), "{from:?}");
    assert!(!from.is_empty());
}

/// The addresses that known flows of the second network are led to past its router, with node and network.
fn direct(sections: BTreeMap<SectionKey, Section>) -> Vec<String> {
    let state = planned_with(Powers::ALL, sections, None);
    let space = &state.places[&Place::Network(id(1, 2))];
    let own = |device: &str| device == crate::state::DIRECT;
    let ways = space.neighbours.iter().filter(|((device, _), _)| own(device)).map(|((_, address), mac)| {
        let mut at = space.stations.iter().filter(|s| own(&s.device) && s.mac == *mac);
        let station = at.next().unwrap();
        assert!(at.next().is_none(), "one way for a MAC");
        let table = &space.tables[KNOWN];
        assert!(table.sets["direct"].elements.contains_key(&vec![address.to_string()]));
        format!("{address} at {mac} on {} in {}", station.vtep.unwrap(), station.vni.unwrap())
    });
    let ways: Vec<String> = ways.collect();
    assert_eq!(space.links.contains_key(crate::state::DIRECT), !ways.is_empty());
    let led = space.tables.get(KNOWN).is_some_and(|table| table.sets.contains_key("direct"));
    assert_eq!(led, !ways.is_empty());
    ways
}

#[test]
fn known_flows_are_led_to_members_of_the_routers_other_networks_elsewhere() {
    let one = ["10.0.0.7 at fa:16:3e:00:00:07 on 192.0.2.7 in 1".to_string()];
    assert_eq!(direct(wide()), one);
    let with = |change: fn(&mut BTreeMap<SectionKey, Section>)| {
        let mut sections = wide();
        change(&mut sections);
        direct(sections)
    };
    fn network_of(s: &mut BTreeMap<SectionKey, Section>, n: u8) -> &mut Network {
        match s.get_mut(&SectionKey::Network(id(1, n))) {
            Some(Section::Network(network)) => network,
            _ => panic!("there is such a network"),
        }
    }
    fn router_of(s: &mut BTreeMap<SectionKey, Section>) -> &mut Router {
        match s.get_mut(&SectionKey::Router(id(4, 1))) {
            Some(Section::Router(router)) => router,
            _ => panic!("there is such a router"),
        }
    }
    fn third_network(
        s: &mut BTreeMap<SectionKey, Section>,
        subnet: &str,
        leg: &str,
        members: Vec<(uuid::Uuid, Member)>,
    ) {
        let members = Members { network: id(1, 3), ports: members.into_iter().collect() };
        s.insert(SectionKey::Network(id(1, 3)), Section::Network(network(3, subnet, false)));
        s.insert(SectionKey::Members(id(1, 3)), Section::Members(members));
        let mac = Mac([0xfa, 0x16, 0x3e, 0, 1, 3]);
        let addresses = vec![leg.parse().unwrap()];
        router_of(s).interfaces.push(RouterInterface { port: id(5, 3), network: id(1, 3), mac, addresses });
    }
    assert_eq!(with(|s| network_of(s, 1).mtu = 1500), one, "a larger MTU there");
    assert!(with(|s| network_of(s, 1).mtu = 1400).is_empty(), "a smaller MTU there");
    assert!(with(|s| network_of(s, 9).vni = 2 | 1 << 23).is_empty(), "its number is another's");
    assert!(with(|s| router_of(s).admin_up = false).is_empty());
    assert!(with(|s| router_of(s).central = true).is_empty());
    let odd = |s: &mut BTreeMap<SectionKey, Section>| {
        router_of(s).routes.push(("10.0.0.128/25".parse().unwrap(), "10.0.2.5".parse().unwrap()));
    };
    assert!(with(odd).is_empty(), "a route into a subnet");
    let second = |s: &mut BTreeMap<SectionKey, Section>| {
        let mut other = router_of(s).clone();
        (other.id, other.gateway) = (id(4, 2), None);
        other.interfaces =
            vec![RouterInterface { port: id(5, 7), mac: Mac([2; 6]), ..other.interfaces[1].clone() }];
        s.insert(SectionKey::Router(other.id), Section::Router(other));
    };
    assert!(with(second).is_empty(), "two routers");
    let twin = |s: &mut BTreeMap<SectionKey, Section>| {
        // A third network of the router, with the same MAC on another node.
        let member = Member {
            mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 7]),
            addresses: vec!["10.0.3.7".parse().unwrap()],
            vtep: Some("192.0.2.8".parse().unwrap()),
            name: String::new(),
        };
        third_network(s, "10.0.3.0/24", "10.0.3.1/24", vec![(id(3, 8), member)]);
    };
    assert!(with(twin).is_empty(), "a MAC says one place");
    let here = |s: &mut BTreeMap<SectionKey, Section>| remote_member(s, "127.0.0.1");
    assert!(with(here).is_empty(), "a member on this node");
    let crowd = |size: u32| {
        let mut sections = wide();
        let member = |n: u32| {
            let [_, _, c, d] = n.to_be_bytes();
            let (mac, vtep) = (Mac([0xfa, 0x16, 0x3e, 3, c, d]), Some("192.0.2.8".parse().unwrap()));
            let addresses = vec![[10, 3, c, d].into()];
            (uuid::Uuid::from_u128(n.into()), Member { mac, addresses, vtep, name: String::new() })
        };
        let members = (256..256 + size).map(member).collect();
        third_network(&mut sections, "10.3.0.0/16", "10.3.0.1/16", members);
        direct(sections)
    };
    // The first network has three members, one of them elsewhere.
    assert_eq!(crowd(2_045).len(), 2_046);
    assert_eq!(crowd(2_046), one, "a network that is too large is left to the legs");
}

#[test]
fn an_address_that_another_port_may_speak_as_is_not_known() {
    let known = |change: fn(&mut Port)| {
        let mut sections = wide();
        let mut other = port(2, 1, "10.0.0.6", None);
        change(&mut other);
        sections.insert(SectionKey::Port(other.id), Section::Port(other));
        let all = planned_with(Powers::ALL, sections, None);
        let table = &all.places[&Place::Network(id(1, 1))].tables[KNOWN];
        table.base.iter().any(|line| line.starts_with("rule from_tap03010000000 "))
    };
    let pair = |net: &str| vec![(net.parse().unwrap(), Mac([2; 6]))];
    assert!(known(|_| {}));
    assert!(!known(|other| other.port_security = false));
    assert!(!known(|other| other.pairs = vec![("10.0.0.0/29".parse().unwrap(), Mac([2; 6]))]));
    assert!(known(|other| other.pairs = vec![("10.0.0.128/25".parse().unwrap(), Mac([2; 6]))]));
    let mut own = wide();
    edit_port(&mut own, |port| port.pairs = pair("0.0.0.0/0"));
    let mut other = port(2, 1, "10.0.0.6", None);
    other.port_security = true;
    own.insert(SectionKey::Port(other.id), Section::Port(other));
    let all = planned_with(Powers::ALL, own, None);
    let table = &all.places[&Place::Network(id(1, 1))].tables[KNOWN];
    let from = |tap: &str| table.base.iter().any(|line| line.starts_with(&format!("rule from_{tap} ")));
    assert!(from("tap03010000000") && !from("tap03020000000"), "its own pairs are no other's");
}

#[test]
fn a_flow_to_another_node_is_led_only_from_its_own_port_and_by_its_router() {
    let all = planned_with(Powers::ALL, wide(), None);
    let table = &all.places[&Place::Network(id(1, 2))].tables[KNOWN];
    let from: Vec<&String> = table.base.iter().filter(|line| line.contains("goto away")).collect();
    let own = "ether daddr fa:16:3e:00:01:02 ether saddr fa:16:3e:00:00:04 ip saddr 10.0.2.5 ";
    assert!(from.len() == 1 && from[0].contains(own), "{from:?}");
    let learned: Vec<&String> = table.base.iter().filter(|line| line.contains("goto leaves")).collect();
    assert!(learned.len() == 1 && learned[0].contains("rule to_legs ether daddr fa:16:3e:00:01:02 "));
    let led: Vec<&String> = table.base.iter().filter(|line| line.contains("fwd ip to")).collect();
    assert!(led.len() == 2 && led.iter().all(|line| line.contains("ip ttl > 1 ")), "{led:?}");
    assert!(table.base.contains(&"rule from_direct drop".to_string()));
}
