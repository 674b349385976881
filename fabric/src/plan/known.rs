//! Flows that have just passed every rule (`netdev known` of a network), so that their next packets need not be asked
//! again: from a guest to its router's leg, and from the tunnel to a guest, without the bridge, its rules and the state of
//! connections.
//!
//! - Learned where a packet leaves by a leg or a tap, and so only after all rules and the state have let it through.
//!   Answers are learned as what was asked is: each direction by its own packets.
//! - Known for `SECONDS`, and not longer by being used: then a packet takes the whole way, which asks all rules anew and
//!   tells the state that the connection lives.
//! - Forgotten with every change of the network's rules, members of groups or ports, in the same transaction (`diff`).
//! - What comes from a guest is held against its port's MAC and address, each packet.
//!
//! Left to the whole way: all but TCP and UDP over IPv4, packets that begin or end a connection, fragments, IP options,
//! ports without port security, addresses of pairs, and what the node itself says (mark 8). A known packet has mark 16
//! and is not learned again; the mark ends with the namespace. Sequence numbers are not watched, as the state no longer sees them all.

use super::Sections;
use super::shortcuts::{list, on};
use crate::state::{Set, Space, TUNNEL, Table, leg_port, tap};
use base::node::Port;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The table of a network.
pub const TABLE: &str = "netdev known";
/// Its sets that packets fill.
pub const LEARNED: [&str; 4] = ["in_tcp", "in_udp", "out_tcp", "out_udp"];
/// How long a flow is known.
const SECONDS: u32 = 2;
/// Flows of a network that are known at once, of each of the sets; others take the whole way.
const FLOWS_MAX: u32 = 16_384;

const FLOW: &str = "ether daddr . ip saddr . ip daddr . th sport . th dport";
/// Neither options nor a fragment.
const WHOLE: &str = "ip hdrlength 5 @nh,50,14 0";
/// For one receiver, not many.
const SINGLE: &str = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00";

/// The table of a network that is planned otherwise; none where nothing could be known.
pub fn flows(s: &Sections, network: Uuid, space: &Space) -> Option<Table> {
    let ports: Vec<&Port> = s.ports_of(network).collect();
    let legs = legs(s, network, space);
    let tunnel = space.links.contains_key(TUNNEL);
    if ports.is_empty() || (legs.is_empty() && !tunnel) {
        return None;
    }
    let learned = format!(
        "type ether_addr . ipv4_addr . ipv4_addr . inet_service . inet_service; size {FLOWS_MAX}; flags dynamic,timeout; timeout {SECONDS}s"
    );
    let set = |of: &str| Set { of: of.to_string(), elements: BTreeMap::new() };
    let mut sets: BTreeMap<String, Set> =
        LEARNED.iter().map(|name| (name.to_string(), set(&learned))).collect();
    let (mut base, mut devices) = (Vec::new(), BTreeSet::new());
    if !legs.is_empty() {
        outward(&ports, &legs, &mut base, &mut devices);
        sets.insert("legs".to_string(), exits(legs.iter().map(|(mac, leg)| (mac.clone(), leg.clone()))));
    }
    if tunnel {
        inward(&ports, &mut base, &mut devices);
        sets.insert("taps".to_string(), exits(ports.iter().map(|port| (port.mac.to_string(), tap(port.id)))));
    }
    // Chains come before the rules that name them.
    base.sort_by_key(|line| line.starts_with("rule "));
    Some(on(devices, base, sets))
}

/// By MAC, the ends of distributed routers in the bridge.
fn legs(s: &Sections, network: Uuid, space: &Space) -> BTreeMap<String, String> {
    let routers = s.routers_of(network).filter(|router| router.admin_up && !router.central);
    let interfaces = routers.flat_map(|router| &router.interfaces).filter(|leg| leg.network == network);
    let ends = interfaces.map(|leg| (leg.mac.to_string(), leg_port(leg.port)));
    ends.filter(|(_, end)| space.links.contains_key(end)).collect()
}

fn exits(all: impl Iterator<Item = (String, String)>) -> Set {
    let elements = all.map(|(mac, device)| (vec![mac], format!("goto to_{device}"))).collect();
    Set { of: "type ether_addr : verdict".to_string(), elements }
}

/// From taps to legs.
fn outward(
    ports: &[&Port],
    legs: &BTreeMap<String, String>,
    base: &mut Vec<String>,
    devices: &mut BTreeSet<String>,
) {
    base.push("chain out".to_string());
    for port in ports.iter().filter(|port| port.port_security) {
        let tap = tap(port.id);
        base.push(hook(&format!("from_{tap}"), "ingress", [&tap]));
        for fixed in port.fixed.iter().filter(|fixed| fixed.address.is_ipv4()) {
            let own = format!("ether saddr {} ip saddr {}", port.mac, fixed.address);
            base.push(format!("rule from_{tap} {own} {WHOLE} goto out"));
        }
        devices.insert(tap);
    }
    known("out", "legs", base);
    base.push(hook("to_legs", "egress", legs.values()));
    base.push("rule to_legs meta mark 16 accept".to_string());
    learn("to_legs", SINGLE, "out", base);
    for leg in legs.values() {
        base.push(format!("chain to_{leg}"));
        base.push(format!("rule to_{leg} meta mark set 16 fwd to \"{leg}\""));
        devices.insert(leg.clone());
    }
}

/// From the tunnel to taps.
fn inward(ports: &[&Port], base: &mut Vec<String>, devices: &mut BTreeSet<String>) {
    base.push("chain in".to_string());
    base.push(hook("from_tunnel", "ingress", [&TUNNEL.to_string()]));
    base.push(format!("rule from_tunnel {WHOLE} goto in"));
    known("in", "taps", base);
    for port in ports {
        let tap = tap(port.id);
        let chain = format!("into_{tap}");
        base.push(hook(&chain, "egress", [&tap]));
        base.push(format!("rule {chain} meta mark 16 accept"));
        base.push(format!("rule {chain} meta mark 8 accept"));
        // What is flooded has passed the rules of this port, not those of its receiver.
        learn(&chain, &format!("ether daddr {}", port.mac), "in", base);
        base.push(format!("chain to_{tap}"));
        base.push(format!("rule to_{tap} meta mark set 16 fwd to \"{tap}\""));
        devices.insert(tap);
    }
    devices.insert(TUNNEL.to_string());
}

fn hook<'a>(chain: &str, hook: &str, devices: impl IntoIterator<Item = &'a String>) -> String {
    let devices = list(devices);
    format!(
        "chain {chain} {{ type filter hook {hook} devices = {{ {devices} }} priority 0; policy accept; }}"
    )
}

/// A packet of a known flow goes where its MAC is.
fn known(way: &str, exits: &str, base: &mut Vec<String>) {
    base.push(format!("rule {way} meta l4proto 17 {FLOW} @{way}_udp ether daddr vmap @{exits}"));
    base.push(format!(
        "rule {way} meta l4proto 6 {FLOW} @{way}_tcp tcp flags ! fin,syn,rst ether daddr vmap @{exits}"
    ));
}

/// What leaves here has passed. `add` leaves the time of a known flow as it is.
fn learn(chain: &str, to: &str, way: &str, base: &mut Vec<String>) {
    for (number, protocol) in [(17, "udp"), (6, "tcp")] {
        base.push(format!(
            "rule {chain} {to} {WHOLE} meta l4proto {number} add @{way}_{protocol} {{ {FLOW} }}"
        ));
    }
}
