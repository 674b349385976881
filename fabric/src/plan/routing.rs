//! The namespace of a router: a leg per interface, its routes, and the gateway (`gateway`).
//!
//! Packets between servers by their floating addresses turn around in the router: they take the floating address of
//! the sender, or the router's, so that answers come back this way.
//!
//! Limits: a router that is administratively down has its legs down.

use super::gateway::{self, Gateway};
use super::{METADATA, Sections, link, plug_network, sysctls};
use crate::state::{self, KernelState, Link, LinkKind, MAIN, Place, Route, Space, leg, leg_port};
use base::node::{Member, Network, Router};
use base::units::Mac;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// The namespace without its legs.
pub fn router_space() -> Space {
    let mut lo = link(LinkKind::Loopback);
    lo.addresses.insert(IpNet::from(IpAddr::V4(METADATA)));
    Space {
        sysctls: sysctls(&[
            ("net/bridge/bridge-nf-call-iptables", "0"),
            // Guests of other nodes come by the address that they share with this one.
            ("net/ipv4/conf/all/accept_local", "1"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/all/arp_announce", "2"),
            ("net/ipv4/conf/all/arp_ignore", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/rp_filter", "2"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/forwarding", "1"),
        ]),
        links: [("lo".to_string(), lo)].into(),
        ..Space::default()
    }
}

pub fn default_of(hop: IpAddr) -> IpNet {
    match hop {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// Puts the legs of a router in its namespace and their other ends in the bridges.
pub fn plug(s: &Sections, state: &mut KernelState, router: &Router, node: IpAddr) {
    for interface in &router.interfaces {
        let Some(network) = s.networks.get(&interface.network) else { continue };
        let addresses = interface.addresses.iter().copied().collect();
        let name = leg(interface.port, false);
        add_leg(state, router, network, (interface.port, &name, interface.mac), addresses);
        let Some(space) = state.places.get_mut(&Place::Router(router.id)) else { continue };
        let members = s.members.get(&network.id).map(|members| &members.ports);
        space.neighbours.extend(neighbours(
            members.into_iter().flat_map(|ports| ports.values()),
            &interface.addresses,
            &name,
        ));
    }
    let network = router.gateway.as_ref().and_then(|gateway| s.networks.get(&gateway.network));
    if let (Some(leg), Some(network)) = (&router.gateway, network) {
        plug_network(state, network, &leg_port(leg.port));
    }
    let Some(space) = state.places.get_mut(&Place::Router(router.id)) else { return };
    let gateway = Gateway::of(s, router, node).filter(|_| network.is_some());
    if let (Some(gateway), Some(leg), Some(network)) = (&gateway, &router.gateway, network) {
        space.links.insert(state::leg(leg.port, true), gateway.leg(network));
        gateway.translate(space);
    }
    space.routes.extend(gateway.iter().flat_map(Gateway::routes));
    space.routes.extend(routes(router, gateway.as_ref(), space));
    space.tables.insert("inet shisa".to_string(), gateway::translation(gateway.as_ref()));
}

/// The default by the gateway and the extra routes, as far as a leg reaches their next hops: the kernel takes no others.
fn routes(router: &Router, gateway: Option<&Gateway>, space: &Space) -> BTreeSet<Route> {
    let held = space.links.values().flat_map(|link| &link.addresses);
    let held = held.map(|net| (net.trunc(), net.addr()));
    let outside = gateway.into_iter().flat_map(Gateway::links).map(|net| (net, net.addr()));
    let nets: Vec<(IpNet, IpAddr)> = held.chain(outside).collect();
    let hops = router.gateway.iter().flat_map(|gateway| gateway.next_hops.iter());
    let defaults = hops.map(|hop| (default_of(*hop), *hop));
    let extra = router.routes.iter().map(|(to, via)| (to.trunc(), *via));
    let reached = |(_, via): &(IpNet, IpAddr)| {
        router.admin_up && nets.iter().any(|(net, own)| net.contains(via) && own != via)
    };
    let all = defaults.chain(extra).filter(reached);
    all.map(|(to, via)| Route { table: MAIN, to, via: Some(via), device: None }).collect()
}

fn add_leg(
    state: &mut KernelState,
    router: &Router,
    network: &Network,
    (port, name, mac): (Uuid, &str, Mac),
    addresses: BTreeSet<IpNet>,
) {
    let peer = leg_port(port);
    let end = Link {
        kind: LinkKind::Veth { peer: (Place::Network(network.id), peer.clone()) },
        mac: Some(mac),
        mtu: Some(network.mtu),
        up: router.admin_up,
        master: None,
        port: None,
        addresses,
    };
    if let Some(space) = state.places.get_mut(&Place::Router(router.id)) {
        space.links.insert(name.to_string(), end);
    }
    plug_network(state, network, &peer);
}

/// Static neighbours of a leg: the members of the network within the subnets of the leg, without the leg itself.
pub fn neighbours<'a>(
    members: impl Iterator<Item = &'a Member>,
    own: &[IpNet],
    device: &str,
) -> BTreeMap<(String, IpAddr), Mac> {
    let mut out = BTreeMap::new();
    for member in members {
        let here = |a: &&IpAddr| own.iter().any(|net| net.contains(*a) && net.addr() != **a);
        for address in member.addresses.iter().filter(here).filter(|_| !cfg!(feature = "break-east-west")) {
            out.insert((device.to_string(), *address), member.mac);
        }
    }
    out
}

/// External ranges leave by the uplink with the host's address. Forwarding is enabled on the two devices only.
///
/// The previous value of the uplink's switch is remembered by the kernel layer in the table itself (a chain named
/// `was_0` or `was_1`), so that it can be taken back after a crash.
pub fn masquerade(uplink: &str, ranges: &BTreeSet<IpNet>, space: &mut Space) -> Vec<String> {
    let names: Vec<String> = space.links.keys().cloned().collect();
    for name in names.iter().map(String::as_str).chain([uplink]) {
        space.sysctls.insert(format!("net/ipv4/conf/{name}/forwarding"), "1".to_string());
    }
    let mut base = vec!["chain post { type nat hook postrouting priority 100; policy accept; }".to_string()];
    for range in ranges {
        base.push(format!("rule post ip saddr {range} ip daddr != {range} oifname \"{uplink}\" masquerade"));
    }
    base
}
