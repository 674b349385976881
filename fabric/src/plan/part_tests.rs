//! A change planned by its part takes the steps of the whole plans, and leads to the whole plan.

use super::*;
use crate::diff::diff;
use proptest::prelude::*;

type World = BTreeMap<SectionKey, Section>;

/// What may happen to the wide cloud. Few MACs, addresses and nodes, so that they meet.
#[derive(Clone, Debug)]
enum Event {
    /// `afield`: its IPv4 address is in no subnet.
    Member {
        network: u8,
        id: u8,
        mac: u8,
        address: u8,
        node: u8,
        afield: bool,
    },
    MemberGoes {
        network: u8,
        id: u8,
    },
    Port {
        network: u8,
        id: u8,
        address: u8,
        ruled: bool,
        has: Has,
    },
    PortGoes {
        id: u8,
    },
    GroupMember(u8),
    GroupMemberGoes(u8),
}

/// What else a port has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Has {
    Nothing,
    Pairs,
    FloatingAddress,
    NoSecurity,
}

fn event() -> impl Strategy<Value = Event> {
    let network = || 1..=2u8;
    let has = prop::sample::select(vec![Has::Nothing, Has::Pairs, Has::FloatingAddress, Has::NoSecurity]);
    prop_oneof![
        4 => (network(), 10..34u8, 0..12u8, 3..30u8, 0..6u8, prop::bool::weighted(0.1)).prop_map(
            |(network, id, mac, address, node, afield)| Event::Member { network, id, mac, address, node, afield }
        ),
        2 => (network(), 10..34u8).prop_map(|(network, id)| Event::MemberGoes { network, id }),
        2 => (network(), 1..9u8, 3..30u8, any::<bool>(), has)
            .prop_map(|(network, id, address, ruled, has)| Event::Port { network, id, address, ruled, has }),
        1 => (1..9u8).prop_map(|id| Event::PortGoes { id }),
        1 => (3..30u8).prop_map(Event::GroupMember),
        1 => (3..30u8).prop_map(Event::GroupMemberGoes),
    ]
}

fn members(world: &mut World, network: u8) -> &mut base::node::OrdMap<Uuid, Member> {
    match world.get_mut(&SectionKey::Members(id(1, network))) {
        Some(Section::Members(members)) => &mut members.ports,
        _ => panic!("there is such a network"),
    }
}

fn group(world: &mut World) -> &mut base::node::OrdSet<IpAddr> {
    match world.get_mut(&SectionKey::Group(id(7, 1))) {
        Some(Section::Group(group)) => &mut group.members,
        _ => panic!("there is such a group"),
    }
}

fn address_in(network: u8, n: u8) -> IpAddr {
    let third = if network == 1 { 0 } else { network };
    IpAddr::V4(Ipv4Addr::new(10, 0, third, n))
}

fn happen(world: &mut World, event: &Event) {
    match *event {
        Event::Member { network, id: n, mac, address, node, afield } => {
            let vtep = match node {
                0 => None,
                1 => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                node => Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, node))),
            };
            let addresses = vec![
                address_in(if afield { 9 } else { network }, address),
                format!("fd00:2::{address:x}").parse().unwrap(),
            ];
            let mac = Mac([0xfa, 0x16, 0x3e, 0, 0, mac]);
            let member = Member { mac, addresses, vtep, name: String::new() };
            members(world, network).insert(id(3, n), member);
        }
        Event::MemberGoes { network, id: n } => drop(members(world, network).remove(&id(3, n))),
        Event::Port { network, id: n, address, ruled, has } => {
            let rules = ruled.then(|| rule_set().hash());
            let fixed = address_in(network, address);
            let mut port = port(n, network, &fixed.to_string(), rules);
            let floating = FloatingIp {
                floating: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 100 + n)),
                fixed,
                router: id(4, 1),
                network: id(1, 9),
            };
            match has {
                Has::Nothing => {}
                Has::Pairs => port.pairs = vec![("10.0.0.0/28".parse().unwrap(), Mac([2; 6]))],
                Has::FloatingAddress => port.floating = vec![floating],
                Has::NoSecurity => port.port_security = false,
            }
            world.insert(SectionKey::Port(port.id), Section::Port(port));
        }
        Event::PortGoes { id: n } => drop(world.remove(&SectionKey::Port(id(3, n)))),
        Event::GroupMember(n) => drop(group(world).insert(address_in(1, n))),
        Event::GroupMemberGoes(n) => drop(group(world).remove(&address_in(1, n))),
    }
}

/// Whether there was a part.
fn check_part(before: &World, after: &World, powers: Powers) -> bool {
    let document = |world: &World| Document { sections: world.clone(), ..Document::default() };
    let (old, new) = (document(before), document(after));
    let changed = crate::changed(&old, &new);
    let (old, new) = (Sections::of(&old), Sections::of(&new));
    let settings = small_settings(None);
    let places = crate::touched(&old, &new, &settings, &changed);
    let (mut was, is) = (plan(&old, &settings, powers), plan(&new, &settings, powers));
    let Some(part) = part::of((&old, &new), &changed, (&settings, powers), &places, &was) else {
        return false;
    };
    let steps: Vec<String> = diff(&was, &is).iter().map(|step| step.to_string()).collect();
    let parts: Vec<String> = diff(&part.seen, &part.wanted).iter().map(|step| step.to_string()).collect();
    for (part, step) in parts.iter().zip(&steps) {
        assert_eq!(part, step);
    }
    assert_eq!(parts.len(), steps.len());
    was.follow(&part.seen, &part.wanted);
    for (place, space) in &is.places {
        let now = &was.places[place];
        assert_eq!(now.neighbours, space.neighbours, "{place}");
        assert_eq!(now.stations, space.stations, "{place}");
        for (name, table) in &space.tables {
            assert_eq!(&now.tables[name], table, "{place}: {name}");
        }
    }
    assert!(was == is, "something else differs");
    true
}

fn worlds(past: &[Event], now: &[Event]) -> (World, World) {
    let mut before = wide();
    past.iter().for_each(|event| happen(&mut before, event));
    let mut after = before.clone();
    now.iter().for_each(|event| happen(&mut after, event));
    (before, after)
}

proptest! {
    #[test]
    fn a_change_takes_the_steps_of_the_whole_plans(
        past in prop::collection::vec(event(), 0..60),
        now in prop::collection::vec(event(), 1..4),
    ) {
        let (before, after) = worlds(&past, &now);
        check_part(&before, &after, LEAST);
        check_part(&before, &after, Powers::ALL);
    }
}

/// What the property is about does happen.
#[test]
fn most_changes_of_a_crowd_have_a_part() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let strategy = (prop::collection::vec(event(), 60), prop::collection::vec(event(), 1..4));
    for powers in [LEAST, Powers::ALL] {
        let parts = (0..100).filter(|_| {
            let (past, now) = strategy.new_tree(&mut runner).unwrap().current();
            let (before, after) = worlds(&past, &now);
            check_part(&before, &after, powers)
        });
        let parts = parts.count();
        assert!(parts > 50, "{parts} of 100");
    }
}

fn elsewhere(network: u8, id: u8) -> Event {
    Event::Member { network, id, mac: id, address: id, node: 2, afield: false }
}

#[test]
fn a_change_beside_others_is_planned_by_its_part() {
    let check = |now: Event, expect: bool| {
        let mut past = vec![Event::Port { network: 1, id: 5, address: 9, ruled: true, has: Has::Nothing }];
        past.extend([(1, 20), (1, 21), (2, 22), (2, 23)].map(|(network, id)| elsewhere(network, id)));
        let (before, after) = worlds(&past, &[now]);
        assert_eq!(check_part(&before, &after, Powers::ALL), expect);
    };
    check(elsewhere(1, 30), true);
    check(Event::MemberGoes { network: 2, id: 22 }, true);
    check(Event::Member { network: 1, id: 20, mac: 20, address: 20, node: 3, afield: false }, true);
    check(Event::Port { network: 1, id: 6, address: 10, ruled: true, has: Has::Nothing }, true);
    check(Event::PortGoes { id: 5 }, true);
    check(Event::GroupMember(20), true);
    // The last port of a network takes its tables along.
    check(Event::PortGoes { id: 4 }, false);
}

#[test]
fn what_is_planned_does_not_grow_with_what_exists() {
    let entries = |others: u32| {
        let mut before = wide();
        let member = |n: u32| {
            let [_, _, c, d] = n.to_be_bytes();
            let mac = Mac([2, 0, 0, 0, c, d]);
            let addresses = vec![IpAddr::V4(Ipv4Addr::new(10, 0, c, d))];
            let vtep = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, d)));
            (Uuid::from_u128(u128::MAX - u128::from(n)), Member { mac, addresses, vtep, name: String::new() })
        };
        members(&mut before, 1).extend((1_000..1_000 + others).map(member));
        let mut after = before.clone();
        happen(&mut after, &elsewhere(1, 30));
        let document = |sections: World| Document { sections, ..Document::default() };
        let (old, new) = (document(before), document(after));
        let changed = crate::changed(&old, &new);
        let (old, new) = (Sections::of(&old), Sections::of(&new));
        let settings = small_settings(None);
        let places = crate::touched(&old, &new, &settings, &changed);
        let whole = plan(&old, &settings, Powers::ALL);
        let part = part::of((&old, &new), &changed, (&settings, Powers::ALL), &places, &whole).unwrap();
        part.wanted.places.values().map(|space| space.neighbours.len() + space.stations.len()).sum::<usize>()
    };
    assert_eq!(entries(300), entries(1_900));
}
