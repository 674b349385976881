//! The rules of a network's ports: anti-spoofing on what comes from a tap, then one verdict map per direction from
//! the tap to the chain of its rule set. Ports with equal rules share a chain; a change of a remote group, an address
//! or a port is a change of elements.
//!
//! The order on a packet's way, all in the bridge family: `spoof` (prerouting, -300, no state), the state of the
//! connection into the packet's mark (-150), `egress` (prerouting, 100), `ingress` (postrouting, 0). Marks: 1 known,
//! 2 invalid, 8 sent by the node itself. A port without port security is in no set.
//!
//! The target of a neighbour advertisement is checked by a chain per port (`na_`): this nft has no name for the field,
//! and sets of unnamed fields only inside of rules.
//!
//! Deliberately absent: VLAN tags from guests (dropped).

use super::{Sections, Tracking, table};
use crate::state::{Set, Table, fnv, tap};
use base::node::{Direction, Port, Remote, Rule, RuleSet};
use ipnet::{IpNet, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use uuid::Uuid;

/// ICMPv6 types that a port may always send and receive: neighbour discovery and multicast listeners.
/// Source: RFC 4861, RFC 3810.
const ND_OUT: &str = "{ 131, 132, 133, 135, 136, 143 }";
const ND_IN: &str = "{ 130, 131, 132, 134, 135, 136, 143 }";

const SETS: [(&str, &str); 13] = [
    ("advertised", "type ifname : verdict"),
    ("answered", "type inet_service"),
    ("egress", "type ifname : verdict"),
    ("held", "type ipv4_addr"),
    ("host", "type ether_addr"),
    ("ingress", "type ifname : verdict"),
    ("legs", "type ether_addr"),
    ("mac", "type ifname . ether_addr"),
    ("pair4", "type ifname . ether_addr . ipv4_addr; flags interval"),
    ("pair6", "type ifname . ether_addr . ipv6_addr; flags interval"),
    ("secured", "type ifname"),
    ("src4", "type ifname . ether_addr . ipv4_addr"),
    ("src6", "type ifname . ether_addr . ipv6_addr"),
];

/// The tables of one network.
pub fn tables(s: &Sections, network: Uuid, tracking: Tracking) -> BTreeMap<String, Table> {
    let set =
        |(name, of): &(&str, &str)| (name.to_string(), Set { of: of.to_string(), elements: BTreeMap::new() });
    let mut bridge = table(base(tracking), SETS.iter().map(set).collect());
    let mut used = BTreeSet::new();
    for port in s.ports_of(network).filter(|port| port.port_security) {
        guard(port, &mut bridge);
        let rules = port.rules.filter(|hash| s.rules.contains_key(hash));
        let name = rules.map_or("none".to_string(), |hash| format!("{hash:016x}"));
        verdict(&mut bridge, "egress", port, format!("goto out_{name}"));
        if !cfg!(feature = "break-security-group") {
            verdict(&mut bridge, "ingress", port, format!("goto in_{name}"));
        }
        used.extend(rules);
    }
    for hash in used {
        rule_set(s, hash, &mut bridge);
    }
    let mut out = BTreeMap::from([("bridge shisa".to_string(), bridge.seal())]);
    if tracking == Tracking::BrNetfilter {
        out.insert("inet shisa".to_string(), table(states(), BTreeMap::new()).seal());
    }
    out
}

fn verdict(table: &mut Table, map: &str, port: &Port, to: String) {
    insert(table, map, vec![tap(port.id)], to);
}

fn insert(table: &mut Table, set: &str, key: Vec<String>, value: String) {
    if let Some(set) = table.sets.get_mut(set) {
        set.elements.insert(key, value);
    }
}

/// What the mark says of the packet's connection. Packets from the side that began it have none, so that the rules are
/// asked for each of them, and one that is removed ends at once what it allowed.
fn states() -> Vec<String> {
    lines(&[
        "chain state { type filter hook prerouting priority -150; policy accept; }",
        "rule state ct state established ct direction reply meta mark set 1",
        "rule state ct state related meta mark set 1",
        "rule state ct state invalid meta mark set 2",
    ])
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| line.to_string()).collect()
}

fn base(tracking: Tracking) -> Vec<String> {
    let mut out = lines(&[
        "chain spoof { type filter hook prerouting priority -300; policy accept; }",
        "chain outward { type filter hook prerouting priority 100; policy accept; }",
        "chain own { type filter hook output priority -150; policy accept; }",
        "chain inward { type filter hook postrouting priority 0; policy accept; }",
        "chain spoof_arp",
        "chain spoof_ip",
        "chain spoof_ip6",
        "chain spoof_from6",
        "chain base_in",
        "chain base_out",
        "chain in_none",
        "chain out_none",
        "rule spoof meta mark set 0",
        "rule spoof iifname != @secured accept",
        "rule spoof iifname . ether saddr != @mac drop",
        "rule spoof ether type arp goto spoof_arp",
        "rule spoof ether type ip goto spoof_ip",
        "rule spoof ether type ip6 goto spoof_ip6",
        "rule spoof drop",
        "rule spoof_arp iifname . arp saddr ether . arp saddr ip @src4 accept",
        "rule spoof_arp iifname . arp saddr ether . arp saddr ip @pair4 accept",
        "rule spoof_arp iifname . arp saddr ether @mac arp saddr ip 0.0.0.0 accept",
        "rule spoof_arp drop",
        "rule spoof_ip udp sport 67 udp dport 68 drop",
        "rule spoof_ip iifname . ether saddr . ip saddr @src4 accept",
        "rule spoof_ip iifname . ether saddr . ip saddr @pair4 accept",
        "rule spoof_ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
        "rule spoof_ip drop",
        "rule spoof_ip6 icmpv6 type { 134, 137 } drop",
        "rule spoof_ip6 udp sport 547 udp dport 546 drop",
        "rule spoof_ip6 icmpv6 type 136 iifname vmap @advertised",
        "rule spoof_ip6 goto spoof_from6",
        "rule spoof_from6 iifname . ether saddr . ip6 saddr @src6 accept",
        "rule spoof_from6 iifname . ether saddr . ip6 saddr @pair6 accept",
        "rule spoof_from6 ip6 saddr :: icmpv6 type { 131, 132, 133, 135, 143 } accept",
        "rule spoof_from6 drop",
        "rule own meta mark set 8",
        "rule outward iifname vmap @egress",
        "rule inward meta mark 8 accept",
        "rule inward oifname vmap @ingress",
        "rule base_out ether type arp accept",
        "rule base_out ether type ip udp sport 68 udp dport 67 accept",
        "rule base_out ether type ip6 udp sport 546 udp dport 547 accept",
        "rule base_in ether type arp accept",
        "rule in_none jump base_in",
        "rule in_none drop",
        "rule out_none jump base_out",
        "rule out_none drop",
    ]);
    out.push(format!("rule base_out icmpv6 type {ND_OUT} accept"));
    out.push(format!("rule base_in icmpv6 type {ND_IN} accept"));
    out.extend(super::tunnel::rules());
    if tracking == Tracking::Bridge {
        out.extend(states());
    }
    out
}

/// The addresses that may come out of a tap.
fn guard(port: &Port, table: &mut Table) {
    let tap = tap(port.id);
    insert(table, "secured", vec![tap.clone()], String::new());
    let fixed = port.fixed.iter().map(|fixed| (IpNet::from(fixed.address), port.mac));
    let own = IpNet::from(IpAddr::V6(port.mac.link_local()));
    let mut all: BTreeSet<(IpNet, _)> = fixed.chain([(own, port.mac)]).collect();
    for (net, mac) in &port.pairs {
        all.insert((net.trunc(), *mac));
        all.insert((IpNet::from(IpAddr::V6(mac.link_local())), *mac));
    }
    let inside =
        |net: &IpNet, mac| all.iter().any(|(other, of)| of == mac && other != net && other.contains(net));
    for (net, mac) in all.iter().filter(|(net, mac)| !inside(net, mac)) {
        insert(table, "mac", vec![tap.clone(), mac.to_string()], String::new());
        let family = if net.addr().is_ipv4() { '4' } else { '6' };
        let whole = net.prefix_len() == net.max_prefix_len();
        let (set, text) = if whole { ("src", net.addr().to_string()) } else { ("pair", net.to_string()) };
        insert(table, &format!("{set}{family}"), vec![tap.clone(), mac.to_string(), text], String::new());
    }
    advertised(&tap, all.iter().map(|(net, _)| net), table);
}

/// What a port may advertise as its own.
fn advertised<'a>(tap: &str, nets: impl Iterator<Item = &'a IpNet>, table: &mut Table) {
    let text = |net: &Ipv6Net| {
        let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
        if first == last { format!("{first:#034x}") } else { format!("{first:#034x}-{last:#034x}") }
    };
    let nets: BTreeSet<Ipv6Net> =
        nets.filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None }).collect();
    let within = |net: &&Ipv6Net| !nets.iter().any(|other| other != *net && other.contains(*net));
    let targets: Vec<String> = nets.iter().filter(within).map(text).collect();
    let own = match &targets[..] {
        _ if nets.contains(&Ipv6Net::default()) => "goto spoof_from6".to_string(),
        targets => format!("@th,64,128 {{ {} }} goto spoof_from6", targets.join(", ")),
    };
    let rules = vec![own, "drop".to_string()];
    let chain = format!("na_{:016x}", fnv(rules.iter().cloned()));
    insert(table, "advertised", vec![tap.to_string()], format!("goto {chain}"));
    table.chains.insert(chain, rules);
}

/// The two chains of a rule set and the sets of the groups it names.
fn rule_set(s: &Sections, hash: u64, table: &mut Table) {
    let Some(set) = s.rules.get(&hash) else { return };
    for (direction, chain, jump) in
        [(Direction::Ingress, "in", "jump base_in"), (Direction::Egress, "out", "jump base_out")]
    {
        let mut rules = state_rules(set);
        rules.push(jump.to_string());
        rules.extend(set.rules.iter().filter(|rule| rule.direction == direction).filter_map(rule_text));
        rules.push("drop".to_string());
        table.chains.insert(format!("{chain}_{hash:016x}"), rules);
    }
    for rule in &set.rules {
        if let Remote::Group(group) = rule.remote {
            let members = s.groups.get(&group).map(|group| &group.members);
            let members = members.into_iter().flatten().filter(|address| address.is_ipv6() == rule.v6);
            let elements = members.map(|address| (vec![address.to_string()], String::new())).collect();
            table.sets.insert(group_set(group, rule.v6), Set { of: group_type(rule.v6), elements });
        }
    }
}

fn state_rules(set: &RuleSet) -> Vec<String> {
    if set.stateful { lines(&["meta mark 1 accept", "meta mark 2 drop"]) } else { Vec::new() }
}

fn group_set(group: Uuid, v6: bool) -> String {
    format!("g{}_{}", if v6 { 6 } else { 4 }, group.simple())
}

fn group_type(v6: bool) -> String {
    format!("type ipv{}_addr", if v6 { 6 } else { 4 })
}

/// One rule as nft has it; none when it can never match.
fn rule_text(rule: &Rule) -> Option<String> {
    let (kind, ip) = if rule.v6 { ("ip6", "ip6") } else { ("ip", "ip") };
    let end = if rule.direction == Direction::Ingress { "saddr" } else { "daddr" };
    let remote = match rule.remote {
        Remote::Any => String::new(),
        Remote::Cidr(net) if net.addr().is_ipv6() != rule.v6 => return None,
        Remote::Cidr(net) if net.prefix_len() == 0 => String::new(),
        Remote::Cidr(net) => format!(" {ip} {end} {}", net.trunc()),
        Remote::Group(group) => format!(" {ip} {end} @{}", group_set(group, rule.v6)),
    };
    Some(format!("ether type {kind}{remote}{} accept", protocol_text(rule)))
}

fn protocol_text(rule: &Rule) -> String {
    match rule.protocol {
        None => String::new(),
        Some(1 | 58) => {
            let (number, word) = if rule.v6 { (58, "icmpv6") } else { (1, "icmp") };
            let kind = rule.min.map(|kind| format!(" {word} type {kind}")).unwrap_or_default();
            let code = rule.max.map(|code| format!(" {word} code {code}")).unwrap_or_default();
            format!(" meta l4proto {number}{kind}{code}")
        }
        Some(number) => format!(" meta l4proto {number}{}", ports_text(number, rule)),
    }
}

/// Ports of the protocols that have them: DCCP, SCTP, TCP, UDP, UDP-Lite.
fn ports_text(protocol: u8, rule: &Rule) -> String {
    if !matches!(protocol, 6 | 17 | 33 | 132 | 136) || (rule.min, rule.max) == (None, None) {
        return String::new();
    }
    let min = rule.min.unwrap_or(0);
    let max = rule.max.unwrap_or(min).max(min);
    match (min, max) {
        (0, u16::MAX) => String::new(),
        (min, max) if min == max => format!(" th dport {min}"),
        (min, max) => format!(" th dport {min}-{max}"),
    }
}
