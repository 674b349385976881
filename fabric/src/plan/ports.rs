//! The rules of a network's ports: anti-spoofing on what comes from a tap, then one verdict map per direction from
//! the tap to the chain of its rule set. Ports with equal rules share a chain; a change of a remote group, an address
//! or a port is a change of elements.
//!
//! The order on a packet's way, all in the bridge family: `spoof` (prerouting, -300, no state), the state of the
//! connection, `egress` (prerouting, 100), `ingress` (postrouting, 0). Where the bridge tracks (`Tracking::Bridge`) the
//! chains of a rule set ask for the state themselves; else the inet hooks leave it in the packet's mark (-150). Marks:
//! 1 known, 2 invalid, 8 sent by the node itself. A port without port security is in no set.
//!
//! Every packet pays for each rule that it is asked, so what most packets are comes first, and rules that differ in
//! their ports alone are one rule with a set.
//!
//! The target of a neighbour advertisement is checked by a chain per port (`na_`): this nft has no name for the field,
//! and sets of unnamed fields only inside of rules.
//!
//! Deliberately absent: VLAN tags from guests (dropped).

use super::{Sections, Tracking, chains, table};
use crate::state::{Set, Table, fnv, tap};
use base::node::{Direction, Port, Remote};
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
    ("secured", "type ifname : verdict"),
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
        rule_set(s, hash, tracking, &mut bridge);
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

/// What the mark says of the packet's connection, as the chains of a rule set would ask for it (`chains`).
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

/// What does not depend on the ports. `in_none` and `out_none` are of ports without a rule set. An empty chain tells who
/// tracks, as the chains of rule sets say it otherwise for the one and the other.
fn base(tracking: Tracking) -> Vec<String> {
    let mut out = lines(&[
        "chain spoof { type filter hook prerouting priority -300; policy accept; }",
        "chain outward { type filter hook prerouting priority 100; policy accept; }",
        "chain own { type filter hook output priority -150; policy accept; }",
        "chain inward { type filter hook postrouting priority 0; policy accept; }",
        "chain guarded",
        "chain spoof_ip",
        "chain spoof_arp",
        "chain spoof_ip6",
        "chain spoof_from6",
        "chain base_in",
        "chain base_out",
        "chain in_none",
        "chain out_none",
        "chain tunnel",
        "rule spoof iifname vmap @secured",
        "rule guarded ether type ip iifname . ether saddr . ip saddr @src4 goto spoof_ip",
        "rule guarded ether type ip iifname . ether saddr . ip saddr @pair4 goto spoof_ip",
        "rule guarded iifname . ether saddr != @mac drop",
        "rule guarded ether type ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
        "rule guarded ether type arp goto spoof_arp",
        "rule guarded ether type ip6 goto spoof_ip6",
        "rule guarded drop",
        "rule spoof_ip udp sport 67 udp dport 68 drop",
        "rule spoof_ip accept",
        "rule spoof_arp iifname . arp saddr ether . arp saddr ip @src4 accept",
        "rule spoof_arp iifname . arp saddr ether . arp saddr ip @pair4 accept",
        "rule spoof_arp iifname . arp saddr ether @mac arp saddr ip 0.0.0.0 accept",
        "rule spoof_arp drop",
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
        "rule inward oifname vmap @ingress",
        "rule base_out ether type arp accept",
        "rule base_out ether type ip udp sport 68 udp dport 67 accept",
        "rule base_out ether type ip6 udp sport 546 udp dport 547 accept",
        "rule base_in ether type arp accept",
        "rule in_none meta mark 8 accept",
        "rule in_none jump base_in",
        "rule in_none drop",
        "rule out_none jump base_out",
        "rule out_none drop",
    ]);
    out.push(format!("rule base_out icmpv6 type {ND_OUT} accept"));
    out.push(format!("rule base_in icmpv6 type {ND_IN} accept"));
    out.extend(super::tunnel::rules());
    if tracking == Tracking::Bridge {
        out.push("chain bridge_tracks".to_string());
    }
    out
}

/// The addresses that may come out of a tap.
fn guard(port: &Port, table: &mut Table) {
    let tap = tap(port.id);
    insert(table, "secured", vec![tap.clone()], "goto guarded".to_string());
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
fn rule_set(s: &Sections, hash: u64, tracking: Tracking, table: &mut Table) {
    let Some(set) = s.rules.get(&hash) else { return };
    for (direction, chain) in [(Direction::Ingress, "in"), (Direction::Egress, "out")] {
        let rules = chains::chain(set, direction, tracking);
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

pub fn group_set(group: Uuid, v6: bool) -> String {
    format!("g{}_{}", if v6 { 6 } else { 4 }, group.simple())
}

fn group_type(v6: bool) -> String {
    format!("type ipv{}_addr", if v6 { 6 } else { 4 })
}
