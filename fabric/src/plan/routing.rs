//! The namespace of a router: a leg per interface, the gateway with floating addresses, translation by maps.
//!
//! A floating address is one element in each of two maps and one address on the gateway's leg, so it is answered by
//! ARP while it is ours and dark when it is not. Packets between servers by their floating addresses turn around in
//! the router: they take the floating address of the sender, or the router's, so that answers come back this way.
//!
//! Limits: one gateway address per family translates; a router that is administratively down has its legs down.

use super::{METADATA, Sections, link, plug_network, sysctls, table};
use crate::state::{KernelState, Link, LinkKind, Place, Set, Space, Table, leg, leg_port};
use base::node::{FloatingIp, Member, Network, Router, RouterGateway};
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

fn default_of(hop: IpAddr) -> IpNet {
    match hop {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// The floating addresses on this node that a router translates.
pub fn floating<'a>(s: &Sections<'a>, router: &Router) -> impl Iterator<Item = &'a FloatingIp> {
    let (id, network) = (router.id, router.gateway.as_ref().map(|gateway| gateway.network));
    let ports: Vec<&'a base::node::Port> = s.ports.values().copied().collect();
    let all = ports.into_iter().flat_map(|port| port.floating.iter());
    all.filter(move |f| f.router == id && Some(f.network) == network)
}

/// Puts the legs of a router in its namespace and their other ends in the bridges.
pub fn plug(s: &Sections, state: &mut KernelState, router: &Router) {
    for interface in &router.interfaces {
        let Some(network) = s.networks.get(&interface.network) else { continue };
        let addresses = interface.addresses.iter().copied().collect();
        let name = leg(interface.port, false);
        add_leg(state, router, network, (interface.port, &name, interface.mac), addresses);
        let Some(space) = state.places.get_mut(&Place::Router(router.id)) else { continue };
        let members = s.members.get(&network.id).map(|members| &members.ports);
        space.neighbours.extend(neighbours(
            members.into_iter().flat_map(BTreeMap::values),
            &interface.addresses,
            &name,
        ));
    }
    let gateway = router.gateway.as_ref();
    if let Some((gateway, network)) = gateway.and_then(|g| Some((g, s.networks.get(&g.network)?))) {
        let mut addresses: BTreeSet<IpNet> = gateway.addresses.iter().copied().collect();
        addresses.extend(floating(s, router).map(|floating| IpNet::from(floating.floating)));
        let name = leg(gateway.port, true);
        add_leg(state, router, network, (gateway.port, &name, gateway.mac), addresses);
    }
    if let Some(space) = state.places.get_mut(&Place::Router(router.id)) {
        space.routes = routes(router, space);
        space.tables = [("inet shisa".to_string(), translation(s, router, gateway))].into();
    }
}

/// The default by the gateway and the extra routes, as far as a leg reaches their next hops: the kernel takes no others.
fn routes(router: &Router, space: &Space) -> BTreeSet<(IpNet, IpAddr)> {
    let nets: Vec<&IpNet> = space.links.values().flat_map(|link| &link.addresses).collect();
    let hops = router.gateway.iter().flat_map(|gateway| gateway.next_hops.iter());
    let defaults = hops.map(|hop| (default_of(*hop), *hop));
    let extra = router.routes.iter().map(|(to, via)| (to.trunc(), *via));
    let reached = |(_, via): &(IpNet, IpAddr)| {
        router.admin_up && nets.iter().any(|net| net.contains(via) && net.addr() != *via)
    };
    defaults.chain(extra).filter(reached).collect()
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
fn neighbours<'a>(
    members: impl Iterator<Item = &'a Member>,
    own: &[IpNet],
    device: &str,
) -> BTreeMap<(String, IpAddr), Mac> {
    let mut out = BTreeMap::new();
    for member in members {
        let here = |a: &&IpAddr| own.iter().any(|net| net.contains(*a) && net.addr() != **a);
        for address in member.addresses.iter().filter(here) {
            out.insert((device.to_string(), *address), member.mac);
        }
    }
    out
}

fn translation(s: &Sections, router: &Router, gateway: Option<&RouterGateway>) -> Table {
    let mut maps: BTreeMap<String, Set> = BTreeMap::new();
    for name in ["fip_in", "fip_out"] {
        let of = "type ipv4_addr : ipv4_addr".to_string();
        maps.insert(name.to_string(), Set { of, elements: BTreeMap::new() });
    }
    for f in floating(s, router).filter(|f| f.floating.is_ipv4() && f.fixed.is_ipv4()) {
        for (map, key, value) in [("fip_in", f.floating, f.fixed), ("fip_out", f.fixed, f.floating)] {
            if let Some(map) = maps.get_mut(map) {
                map.elements.insert(vec![key.to_string()], value.to_string());
            }
        }
    }
    let mut base = vec![
        "chain pre { type nat hook prerouting priority -100; policy accept; }".to_string(),
        "chain post { type nat hook postrouting priority 100; policy accept; }".to_string(),
        "rule pre dnat ip to ip daddr map @fip_in".to_string(),
    ];
    if let Some(gateway) = gateway {
        base.extend(sources(gateway).into_iter().map(|rule| format!("rule post {rule}")));
    }
    table(base, maps).seal()
}

/// Whose address packets take on their way out, and when they turn around.
fn sources(gateway: &RouterGateway) -> Vec<String> {
    let out = leg(gateway.port, true);
    let own = gateway.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
    let mut rules = vec![format!("oifname \"{out}\" snat ip to ip saddr map @fip_out")];
    if let Some(own) = own.filter(|_| gateway.snat) {
        rules.push(format!("oifname \"{out}\" meta nfproto ipv4 snat ip to {own}"));
    }
    let turned = format!("iifname != \"{out}\" oifname != \"{out}\" ct status dnat");
    rules.push(format!("{turned} snat ip to ip saddr map @fip_out"));
    rules.extend(own.map(|own| format!("{turned} meta nfproto ipv4 snat ip to {own}")));
    rules
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
