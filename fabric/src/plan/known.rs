//! Flows that have just passed every rule (`netdev known` of a network), so that their next packets need not be asked
//! again: from a guest to its router's leg, or straight to a member of another network on another node (`direct`), and
//! from the tunnel to a guest, without the bridge, its rules, the router and the state of connections.
//!
//! - Learned where a packet leaves by a leg or a tap, and so only after all rules and the state have let it through.
//!   Answers are learned as what was asked is: each direction by its own packets.
//! - Known for `SECONDS`, and not longer by being used: then a packet takes the whole way, which asks all rules anew and
//!   tells the state that the connection lives.
//! - Forgotten with every change of the network's rules, members of groups or ports, in the same transaction (`diff`).
//! - What comes from a guest is held against its port's MAC and address, each packet. An address that another port here
//!   may speak as, by its pairs or without port security, is not known: the flow could be that port's.
//!
//! Left to the whole way: all but TCP and UDP over IPv4, packets that begin or end a connection, fragments, IP options,
//! ports without port security, addresses of pairs, last hops to other nodes, and what the node itself says (mark 8). A
//! known packet has mark 16 and is not learned again; the mark ends with the namespace. Sequence numbers are not watched,
//! as the state no longer sees them all.

use super::shortcuts::{list, on};
use super::{Sections, direct, tunnel};
use crate::state::{DIRECT, Set, Space, TUNNEL, Table, leg_port, tap};
use base::node::Port;
use base::units::Mac;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use uuid::Uuid;

/// The table of a network.
pub const TABLE: &str = "netdev known";
/// What of it packets fill, and what each is to nft.
pub const LEARNED: [(&str, &str); 6] = [
    ("away_tcp", "map"),
    ("away_udp", "map"),
    ("in_tcp", "set"),
    ("in_udp", "set"),
    ("out_tcp", "set"),
    ("out_udp", "set"),
];
/// How long a flow is known.
const SECONDS: u32 = 2;
/// Flows of a network that are known at once, of each of the sets; others take the whole way.
const FLOWS_MAX: u32 = 16_384;

/// Addresses and ports. A key of a map takes no more in this nft.
const ENDS: &str = "ip saddr . ip daddr . th sport . th dport";
const ENDS_TYPE: &str = "ipv4_addr . ipv4_addr . inet_service . inet_service";
/// IPv4, neither options nor a fragment.
const WHOLE: &str = "@nh,0,8 0x45 @nh,50,14 0";
/// Neither begins nor ends a connection.
const ON: &str = "tcp flags ! fin,syn,rst";
/// For one receiver, not many.
const SINGLE: &str = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00";

/// What is made of a network's table.
#[derive(Default)]
struct Making {
    base: Vec<String>,
    sets: BTreeMap<String, Set>,
    devices: BTreeSet<String>,
}

impl Making {
    fn chain(&mut self, name: &str) {
        self.base.push(format!("chain {name}"));
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        self.base.push(format!("rule {chain} {rule}"));
    }

    /// A chain where packets come in by devices or leave by them.
    fn hook<'a>(&mut self, chain: &str, hook: &str, devices: impl IntoIterator<Item = &'a str>) {
        let devices: Vec<String> = devices.into_iter().map(str::to_string).collect();
        let names = list(&devices);
        self.base.push(format!(
            "chain {chain} {{ type filter hook {hook} devices = {{ {names} }} priority 0; policy accept; }}"
        ));
        self.devices.extend(devices);
    }

    /// Two sets that packets fill, of each protocol one.
    fn learned(&mut self, way: &str, of: &str) {
        let of = format!("type {of}; size {FLOWS_MAX}; flags dynamic,timeout; timeout {SECONDS}s");
        for protocol in ["tcp", "udp"] {
            self.sets.insert(format!("{way}_{protocol}"), Set { of: of.clone(), elements: BTreeMap::new() });
        }
    }

    /// By MAC, chains that send out of a device.
    fn exits(&mut self, name: &str, all: impl Iterator<Item = (Mac, String)>) {
        let elements = all.map(|(mac, device)| (vec![mac.to_string()], format!("goto to_{device}")));
        let of = "type ether_addr : verdict".to_string();
        self.sets.insert(name.to_string(), Set { of, elements: elements.collect() });
    }

    /// A packet of a known flow goes where its MAC is.
    fn known(&mut self, way: &str, exits: &str) {
        let known = |protocol| format!("ether daddr . {ENDS} @{way}_{protocol}");
        self.rule(way, &format!("meta l4proto 17 {} ether daddr vmap @{exits}", known("udp")));
        self.rule(way, &format!("meta l4proto 6 {} {ON} ether daddr vmap @{exits}", known("tcp")));
    }

    /// What leaves here has passed. `add` leaves the time of a known flow as it is.
    fn learn(&mut self, chain: &str, of: &str, way: &str, flow: &str) {
        for (number, protocol) in [(17, "udp"), (6, "tcp")] {
            self.rule(chain, &format!("{of}meta l4proto {number} add @{way}_{protocol} {{ {flow} }}"));
        }
    }

    fn seal(mut self) -> Table {
        // Chains come before the rules that name them.
        self.base.sort_by_key(|line| line.starts_with("rule "));
        on(self.devices, self.base, self.sets)
    }
}

/// The table of a network that is planned otherwise; none where nothing could be known.
pub fn flows(s: &Sections, network: Uuid, space: &Space) -> Option<Table> {
    let ports: Vec<&Port> = s.ports_of(network).collect();
    let legs = legs(s, network, space);
    let tunnel = space.links.contains_key(TUNNEL);
    if ports.is_empty() || (legs.is_empty() && !tunnel) {
        return None;
    }
    let mut making = Making::default();
    if !legs.is_empty() {
        outward(&ports, &legs, space, &mut making);
    }
    if tunnel {
        inward(s, network, &ports, &mut making);
    }
    Some(making.seal())
}

/// By MAC, the ends of distributed routers in the bridge.
fn legs(s: &Sections, network: Uuid, space: &Space) -> BTreeMap<Mac, String> {
    let legs = tunnel::distributed_legs(s, network).filter(|(router, _)| router.admin_up);
    let ends = legs.map(|(_, leg)| (leg.mac, leg_port(leg.port)));
    ends.filter(|(_, end)| space.links.contains_key(end)).collect()
}

/// From taps to legs, and past a single one of them to other nodes.
fn outward(ports: &[&Port], legs: &BTreeMap<Mac, String>, space: &Space, making: &mut Making) {
    let away = legs.keys().next().filter(|_| space.links.contains_key(DIRECT));
    let (to, next) = match away {
        Some(leg) => (format!("ether daddr {leg} "), "away"),
        None => (String::new(), "out"),
    };
    making.chain("out");
    let others: Vec<(Uuid, IpNet)> = ports.iter().flat_map(|port| said(port)).collect();
    for port in ports.iter().filter(|port| port.port_security) {
        let alone =
            |address: &IpAddr| !others.iter().any(|(id, net)| *id != port.id && net.contains(address));
        let own = port.fixed.iter().map(|fixed| fixed.address).filter(IpAddr::is_ipv4);
        let own: Vec<IpAddr> = own.filter(alone).collect();
        if own.is_empty() {
            continue;
        }
        let tap = tap(port.id);
        let chain = format!("from_{tap}");
        making.hook(&chain, "ingress", [tap.as_str()]);
        for address in own {
            let own = format!("{to}ether saddr {} ip saddr {address}", port.mac);
            making.rule(&chain, &format!("{own} {WHOLE} goto {next}"));
        }
    }
    making.known("out", "legs");
    making.hook("to_legs", "egress", legs.values().map(String::as_str));
    making.rule("to_legs", "meta mark 16 accept");
    if let Some(leg) = away {
        directly(leg, space, making);
    }
    making.learn("to_legs", &format!("{SINGLE} {WHOLE} "), "out", &format!("ether daddr . {ENDS}"));
    making.learned("out", &format!("ether_addr . {ENDS_TYPE}"));
    making.exits("legs", legs.iter().map(|(mac, leg)| (*mac, leg.clone())));
    for leg in legs.values() {
        making.chain(&format!("to_{leg}"));
        making.rule(&format!("to_{leg}"), &format!("meta mark set 16 fwd to \"{leg}\""));
    }
}

/// What a port may speak as beside its own addresses.
fn said(port: &Port) -> Vec<(Uuid, IpNet)> {
    let every = IpNet::V4(Ipv4Net::default());
    let pairs = port.pairs.iter().map(|(net, _)| *net);
    pairs.chain((!port.port_security).then_some(every)).map(|net| (port.id, net)).collect()
}

/// Past the leg of the only router, to members on other nodes.
fn directly(leg: &Mac, space: &Space, making: &mut Making) {
    making.chain("away");
    let flow = |protocol| format!("fwd ip to ip daddr device {ENDS} map @away_{protocol}");
    making.rule("away", &format!("meta l4proto 17 ip ttl > 1 {}", flow("udp")));
    making.rule("away", &format!("meta l4proto 6 {ON} ip ttl > 1 {}", flow("tcp")));
    making.rule("away", "goto out");
    making.chain("leaves");
    making.rule("to_legs", &format!("ether daddr {leg} {WHOLE} ip daddr @direct goto leaves"));
    making.learn("leaves", "", "away", &format!("{ENDS} : \"{DIRECT}\""));
    making.learned("away", &format!("{ENDS_TYPE} : iface_index"));
    let addresses = space.neighbours.keys().filter(|(device, _)| device == DIRECT);
    let elements = addresses.map(|(_, address)| (vec![address.to_string()], String::new())).collect();
    making.sets.insert("direct".to_string(), Set { of: "type ipv4_addr".to_string(), elements });
    // Nobody sends to it.
    making.hook("from_direct", "ingress", [DIRECT]);
    making.rule("from_direct", "drop");
}

/// From the tunnel to taps. What came past a leg of a router here has its MAC from now on.
fn inward(s: &Sections, network: Uuid, ports: &[&Port], making: &mut Making) {
    making.chain("in");
    making.hook("from_tunnel", "ingress", [TUNNEL]);
    for (router, leg) in tunnel::distributed_legs(s, network) {
        let (from, to) = (direct::mac(router.id), leg.mac);
        making.rule("from_tunnel", &format!("ether saddr {from} ether saddr set {to}"));
    }
    making.rule("from_tunnel", &format!("{WHOLE} goto in"));
    making.known("in", "taps");
    making.learned("in", &format!("ether_addr . {ENDS_TYPE}"));
    making.exits("taps", ports.iter().map(|port| (port.mac, tap(port.id))));
    for port in ports {
        let tap = tap(port.id);
        let chain = format!("into_{tap}");
        making.hook(&chain, "egress", [tap.as_str()]);
        making.rule(&chain, "meta mark 16 accept");
        making.rule(&chain, "meta mark 8 accept");
        // What is flooded has passed the rules of this port, not those of its receiver.
        let own = format!("ether daddr {} {WHOLE} ", port.mac);
        making.learn(&chain, &own, "in", &format!("ether daddr . {ENDS}"));
        making.chain(&format!("to_{tap}"));
        making.rule(&format!("to_{tap}"), &format!("meta mark set 16 fwd to \"{tap}\""));
    }
}
