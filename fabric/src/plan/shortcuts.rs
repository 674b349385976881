//! Ways around what has no say in a packet, where the kernel has them. Each is a table of its own that names devices, and
//! may be taken away at any time: packets then take the way of all rules and end at the same place.
//!
//! - Between subnets (`netdev shisa` of a router): a packet that comes by a leg to a member of another leg's network goes
//!   on from the leg's ingress with its MACs and its time to live set, without the router's own stack. No connection is
//!   known there: packets of one direction alone pass a router whose members are on several nodes, so nothing
//!   could be, and what is translated has an address outside as its target.
//! - From a router's leg to another node (`netdev shisa` of a network): into the tunnel, without the bridge. The rules of
//!   ports are asked where the port is.
//! - Translated and other established flows (`inet flows` of a router): nft's flowtable. A router has no rules of ports, so
//!   none is passed by: a removed rule cuts a flow of a flowtable as any other. A floating address that goes deletes its
//!   connections, and with them what the flowtable has.
//!
//! Left to the whole way: packets with IP options, at their last hop, to the router itself, to an unknown member, to a leg
//! with a smaller MTU than another, and all of a router whose routes lead to addresses within its subnets.

use super::gateway::Gateway;
use super::{Powers, Sections, direct, known, table};
use crate::Settings;
use crate::state::{KernelState, Link, Place, Set, Space, TUNNEL, Table};
use base::node::Router;
use base::units::Mac;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The table of a place's shortcuts.
pub const TABLE: &str = "netdev shisa";
/// The table of a router's flowtable.
pub const FLOWS: &str = "inet flows";

/// Adds the tables to places that are planned otherwise.
pub fn take(s: &Sections, settings: &Settings, state: &mut KernelState, powers: Powers) {
    for (place, space) in &mut state.places {
        match place {
            Place::Network(id) => {
                let inner = s.networks.get(id).is_some_and(|network| !network.external);
                let away = away(space).filter(|_| inner && powers.shortcuts);
                space.tables.extend(away.map(|table| (TABLE.to_string(), table)));
                let Some(network) = s.networks.get(id).filter(|_| inner && powers.known) else { continue };
                direct::lay(s, settings, network, space);
                if let Some(table) = known::flows(s, *id, space) {
                    space.tables.insert(known::TABLE.to_string(), table);
                    // It does not see each packet of a connection.
                    let liberal = "net/netfilter/nf_conntrack_tcp_be_liberal";
                    space.sysctls.insert(liberal.to_string(), "1".to_string());
                }
            }
            Place::Router(id) => {
                let Some(router) = s.routers.get(id).filter(|router| router.admin_up) else { continue };
                let gateway = Gateway::of(s, router, settings.node_address);
                if powers.shortcuts && is_plain(router, gateway.as_ref()) {
                    space.tables.extend(across(space).map(|table| (TABLE.to_string(), table)));
                }
                if powers.flowtable {
                    space.tables.extend(flows(space).map(|table| (FLOWS.to_string(), table)));
                }
            }
            Place::Host => {}
        }
    }
}

/// A table that hangs on devices.
pub fn on(devices: BTreeSet<String>, base: Vec<String>, sets: BTreeMap<String, Set>) -> Table {
    Table { devices, ..table(base, sets) }.seal()
}

pub fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// From the legs of routers into the tunnel: frames for stations behind it.
fn away(space: &Space) -> Option<Table> {
    let legs: BTreeSet<String> =
        space.links.keys().filter(|name| name.starts_with("leg-")).cloned().collect();
    let one = |mac: &Mac| *mac != Mac([0; 6]);
    let stations = space.stations.iter().filter(|station| station.device == TUNNEL && one(&station.mac));
    let elements: BTreeMap<Vec<String>, String> =
        stations.map(|station| (vec![station.mac.to_string()], String::new())).collect();
    if legs.is_empty() || elements.is_empty() {
        return None;
    }
    let base = vec![
        format!(
            "chain routed {{ type filter hook ingress devices = {{ {} }} priority 0; policy accept; }}",
            list(&legs)
        ),
        format!("rule routed ether daddr @away fwd to \"{TUNNEL}\""),
    ];
    let away = Set { of: "type ether_addr".to_string(), elements };
    let devices = legs.into_iter().chain([TUNNEL.to_string()]).collect();
    Some(on(devices, base, [("away".to_string(), away)].into()))
}

/// Whether addresses within the subnets are where the subnets are, and translations are those that `gateway` makes.
pub fn is_plain(router: &Router, gateway: Option<&Gateway>) -> bool {
    let subnets = || router.interfaces.iter().flat_map(|interface| &interface.addresses);
    let elsewhere =
        |to: &ipnet::IpNet| subnets().any(|subnet| subnet.trunc() != *to && subnet.trunc().contains(to));
    !router.routes.iter().any(|(to, _)| elsewhere(&to.trunc())) && gateway.is_none_or(Gateway::turns_around)
}

/// The legs of interfaces that take a packet of any other.
fn legs(space: &Space) -> BTreeMap<&String, &Link> {
    let legs = || space.links.iter().filter(|(name, link)| name.starts_with("qr-") && link.up);
    let widest = legs().filter_map(|(_, link)| link.mtu).max();
    legs().filter(|(_, link)| link.mtu == widest).collect()
}

/// Between the legs of a router: packets to members of their networks.
fn across(space: &Space) -> Option<Table> {
    let legs = legs(space);
    if legs.values().map(|link| link.addresses.len()).sum::<usize>() < 2 {
        return None;
    }
    let devices: BTreeSet<String> = legs.keys().map(|name| name.to_string()).collect();
    let hook = format!(
        "chain east_west {{ type filter hook ingress devices = {{ {} }} priority 0; policy accept; }}",
        list(&devices)
    );
    let (mut base, mut sets) = (vec![hook], BTreeMap::new());
    let members = |v6: bool| {
        let on_leg = |((device, address), _): &(&(String, IpAddr), &Mac)| {
            devices.contains(device) && address.is_ipv6() == v6
        };
        space
            .neighbours
            .iter()
            .filter(on_leg)
            .map(|((device, address), _)| (device, address))
            .collect::<Vec<_>>()
    };
    for (n, ip, hops) in [(4, "ip", "ip ttl > 1 ip hdrlength 5"), (6, "ip6", "ip6 hoplimit > 1")] {
        let speaks = |link: &&Link| link.addresses.iter().any(|net| net.addr().is_ipv6() == (n == 6));
        for (name, _) in legs.iter().filter(|(_, link)| speaks(link)) {
            base.push(format!("chain to{n}_{name}"));
            base.push(format!("rule to{n}_{name} fwd {ip} to {ip} daddr device \"{name}\""));
        }
        if !legs.values().any(speaks) {
            continue;
        }
        base.push(format!("rule east_west meta pkttype host {hops} {ip} daddr vmap @members{n}"));
        let element = |(device, address): (&String, &IpAddr)| {
            (vec![address.to_string()], format!("goto to{n}_{device}"))
        };
        let elements = members(n == 6).into_iter().map(element).collect();
        let of = format!("type ipv{n}_addr : verdict");
        sets.insert(format!("members{n}"), Set { of, elements });
    }
    Some(on(devices, base, sets))
}

/// The flowtable of a router that has a gateway.
fn flows(space: &Space) -> Option<Table> {
    let devices: BTreeSet<String> = space
        .links
        .keys()
        .filter(|name| name.starts_with("qr-") || name.starts_with("qg-"))
        .cloned()
        .collect();
    if !devices.iter().any(|name| name.starts_with("qg-")) {
        return None;
    }
    let base = vec![
        format!("flowtable flows {{ hook ingress priority 0; devices = {{ {} }}; }}", list(&devices)),
        "chain established { type filter hook forward priority 10; policy accept; }".to_string(),
        "rule established ct state established meta l4proto { tcp, udp } flow add @flows".to_string(),
    ];
    Some(on(devices, base, BTreeMap::new()))
}
