//! What published advisories on spoofing and security groups ask of the rules of a network's ports, as their text.

use super::*;
use crate::state::Table;
use std::collections::BTreeSet;

/// The rules of the network's ports.
fn rules(sections: BTreeMap<SectionKey, Section>) -> Table {
    let state = planned(sections, None);
    let mut tables = state.places.values().filter_map(|space| space.tables.get("bridge shisa"));
    let found = tables.find(|table| table.sets.get("secured").is_some_and(|set| !set.elements.is_empty()));
    found.cloned().expect("a network has secured ports")
}

/// The rules of one chain, in their order.
fn chain(table: &Table, name: &str) -> Vec<String> {
    let start = format!("rule {name} ");
    table.base.iter().filter_map(|line| line.strip_prefix(&start)).map(str::to_string).collect()
}

fn elements(table: &Table, set: &str) -> BTreeSet<String> {
    table.sets[set].elements.keys().map(|key| key.join(" . ")).collect()
}

/// Where a rule stands; it has to be there.
fn at(chain: &[String], rule: &str) -> usize {
    chain.iter().position(|r| r == rule).unwrap_or_else(|| panic!("no '{rule}' in {chain:#?}"))
}

/// CVE-2016-5363: frames from a MAC that is not the port's. The check stands before every other, and before the state
/// of connections: what is known may not be spoofed either.
#[test]
fn ossa_2016_009_a_foreign_mac_is_dropped_before_all_else() {
    let table = rules(sections());
    let spoof = chain(&table, "spoof");
    assert!(
        table
            .base
            .contains(&"chain spoof { type filter hook prerouting priority -300; policy accept; }".into())
    );
    assert_eq!(spoof, ["iifname vmap @secured"], "only ports without security pass");
    assert!(table.sets["secured"].elements.values().all(|to| to == "goto guarded"));
    let guarded = chain(&table, "guarded");
    for rule in &guarded[..at(&guarded, "iifname . ether saddr != @mac drop")] {
        assert!(rule.starts_with("ether type ip iifname . ether saddr . ip saddr @"), "{rule}");
    }
    assert_eq!(guarded.last().map(String::as_str), Some("drop"), "neither ARP nor IP, VLAN tags with them");
    assert!(!guarded.iter().any(|r| r.contains("ct ")));
    let mac = Mac([0xfa, 0x16, 0x3e, 0, 0, 1]);
    assert_eq!(elements(&table, "mac"), [format!("{} . {mac}", crate::state::tap(id(3, 1)))].into());
}

/// CVE-2016-5362 and CVE-2015-8914: a guest that answers DHCP, DHCPv6 or router solicitations for the others.
#[test]
fn ossa_2016_009_guests_are_no_dhcp_servers_or_routers() {
    let table = rules(sections());
    let (ip, ip6) = (chain(&table, "spoof_ip"), chain(&table, "spoof_ip6"));
    assert_eq!(ip, ["udp sport 67 udp dport 68 drop", "accept"]);
    let mut from_own = chain(&table, "guarded").into_iter().filter(|r| r.contains("ip saddr @"));
    assert!(from_own.all(|r| r.ends_with(" goto spoof_ip")));
    assert!(!ip6.iter().any(|r| r.ends_with(" accept")), "{ip6:#?}");
    let onward = at(&ip6, "goto spoof_from6");
    assert!(at(&ip6, "icmpv6 type { 134, 137 } drop") < onward, "advertisements and redirects");
    assert!(at(&ip6, "udp sport 547 udp dport 546 drop") < onward);
}

/// CVE-2021-38598: ARP for addresses of others, where the family of the table hid the rules from the packets.
#[test]
fn ossa_2021_004_arp_names_only_the_ports_own_addresses() {
    let table = rules(sections());
    let arp = chain(&table, "spoof_arp");
    for rule in arp.iter().filter(|r| r.ends_with(" accept")) {
        let own = rule.contains("@src4") || rule.contains("@pair4") || rule.contains("arp saddr ip 0.0.0.0");
        assert!(own && rule.contains("arp saddr ether"), "{rule}");
    }
    assert_eq!(arp.last().map(String::as_str), Some("drop"));
    assert!(at(&chain(&table, "guarded"), "ether type arp goto spoof_arp") > 0);
    let own = format!("{} . fa:16:3e:00:00:01 . 10.0.0.5", crate::state::tap(id(3, 1)));
    assert_eq!(elements(&table, "src4"), [own].into(), "an address of the other port is not among them");
}

/// CVE-2021-20267: IPv6 from addresses of others. Without an address a port may look for one, and announces none.
/// The target of an advertisement is checked too, before its source.
#[test]
fn ossa_2021_001_ipv6_comes_from_the_ports_own_addresses() {
    let table = rules(sections());
    let (all, ip6) = (chain(&table, "spoof_ip6"), chain(&table, "spoof_from6"));
    assert_eq!(all.last().map(String::as_str), Some("goto spoof_from6"));
    assert!(at(&all, "icmpv6 type 136 iifname vmap @advertised") < all.len() - 1);
    let claim = &table.sets["advertised"].elements[&vec![crate::state::tap(id(3, 1))]];
    let claim = &table.chains[claim.strip_prefix("goto ").unwrap()];
    assert_eq!(claim[..], ["@th,64,128 { 0xfe80000000000000f8163efffe000001 } goto spoof_from6", "drop"]);
    let from_none = "ip6 saddr :: icmpv6 type { 131, 132, 133, 135, 143 } accept";
    for rule in ip6.iter().filter(|r| r.ends_with(" accept") && *r != from_none) {
        assert!(rule.starts_with("iifname . ether saddr . ip6 saddr @"), "{rule}");
    }
    assert_eq!(ip6.last().map(String::as_str), Some("drop"));
    let own = "fe80::f816:3eff:fe00:1";
    let tap = crate::state::tap(id(3, 1));
    assert_eq!(elements(&table, "src6"), [format!("{tap} . fa:16:3e:00:00:01 . {own}")].into());
}

/// CVE-2015-3221: pairs of everything broke the filters of a whole node.
#[test]
fn ossa_2015_012_pairs_of_everything_are_one_element_of_their_port() {
    let mut with = sections();
    edit_port(&mut with, |port| {
        port.pairs = ["0.0.0.0/0", "::/0", "10.0.0.0/8"].map(|net| (net.parse().unwrap(), port.mac)).into();
    });
    let (before, after) = (rules(sections()), rules(with));
    let own = format!("{} . fa:16:3e:00:00:01", crate::state::tap(id(3, 1)));
    assert_eq!(
        elements(&after, "pair4"),
        [format!("{own} . 0.0.0.0/0")].into(),
        "no element lies in another"
    );
    assert_eq!(elements(&after, "pair6"), [format!("{own} . ::/0")].into());
    let shared = |table: Table| {
        let chains = table.chains.into_iter().filter(|(name, _)| !name.starts_with("na_"));
        (table.base, chains.collect::<BTreeMap<_, _>>())
    };
    assert_eq!(shared(before), shared(after), "no rule differs but the port's own");
}

/// CVE-2014-0187, CVE-2019-10876: one rule that cannot be applied, or overlaps another, took the others with it.
#[test]
fn ossa_2014_014_and_2019_002_a_bad_rule_is_missing_alone() {
    let with = |more: &[Rule]| {
        let mut sections = sections();
        let mut set = rule_set();
        set.rules.extend_from_slice(more);
        let hash = set.hash();
        sections.insert(SectionKey::Rules(hash), Section::Rules(set));
        edit_port(&mut sections, |port| port.rules = Some(hash));
        rules(sections).chains[&format!("in_{hash:016x}")].clone()
    };
    let tcp = |min, max| rule(Direction::Ingress, Some(6), Some((min, max)), Remote::Any);
    let plain = with(&[]);
    let other_family = rule(Direction::Ingress, None, None, Remote::Cidr("2001:db8::/32".parse().unwrap()));
    assert_eq!(with(&[other_family]), plain);
    let overlapping = with(&[tcp(1, 100), tcp(50, 150), tcp(60, 60)]);
    let text = "meta l4proto 6 ether type ip th dport 1-150 accept";
    assert_eq!(overlapping.iter().filter(|r| *r == text).count(), 1, "one range of all that overlap");
    assert_eq!(overlapping.len(), plain.len() + 1);
    assert_eq!(overlapping.last().map(String::as_str), Some("drop"), "the rest stays out");
}
