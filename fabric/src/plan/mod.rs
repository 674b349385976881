//! From the sections of a document to the state of the kernel. Pure: the same sections give the same state.
//!
//! What a section names and the document does not have (a port of an unknown network) is left out, and the port is
//! reported as not up.
//!
//! An external network is a network like others; its gateway addresses are held by the host, on the end of a pair
//! whose other end is in the network's bridge. Routers plug in with their gateway port, so floating addresses are
//! reached from the host's own namespace and nothing of the host is bridged. With an uplink, external ranges are
//! masqueraded out of it. A physical network is bridged to the host's device on it instead.
//!
//! Deliberately absent for now: IPv6 behind the uplink.

mod gateway;
mod ports;
mod routing;
mod tunnel;

use crate::Settings;
use crate::state::{
    BRIDGE, HOST_LEG, KernelState, Link, LinkKind, Place, Space, TUNNEL, Table, host_device, own_mac,
    provider_bridge,
};
use base::node::{Document, Group, Members, Network, Port, Router, RuleSet, Section, SectionKey, Vm};
use base::units::Mac;
use gateway::Gateway;
use ipnet::{IpNet, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// Where metadata and DHCP answer, on every network.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same over IPv6. Source: openstack/neutron, metadata service over IPv6.
pub const METADATA6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);

/// Who keeps the state of connections for the rules of bridged ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// `nf_conntrack_bridge`.
    Bridge,
    /// `br_netfilter`: bridged packets pass the inet hooks, which leave the state in the packet's mark.
    BrNetfilter,
}

/// The sections by kind.
#[derive(Default)]
pub struct Sections<'a> {
    pub vms: BTreeMap<Uuid, &'a Vm>,
    pub ports: BTreeMap<Uuid, &'a Port>,
    pub networks: BTreeMap<Uuid, &'a Network>,
    /// By network.
    pub members: BTreeMap<Uuid, &'a Members>,
    pub routers: BTreeMap<Uuid, &'a Router>,
    pub groups: BTreeMap<Uuid, &'a Group>,
    pub rules: BTreeMap<u64, &'a RuleSet>,
}

impl<'a> Sections<'a> {
    pub fn of(document: &'a Document) -> Sections<'a> {
        let mut out = Sections::default();
        for (key, section) in &document.sections {
            match section {
                Section::Vm(vm) => drop(out.vms.insert(vm.id, vm)),
                Section::Port(port) => drop(out.ports.insert(port.id, port)),
                Section::Network(network) => drop(out.networks.insert(network.id, network)),
                Section::Members(members) => drop(out.members.insert(members.network, members)),
                Section::Router(router) => drop(out.routers.insert(router.id, router)),
                Section::Group(group) => drop(out.groups.insert(group.id, group)),
                Section::Rules(rules) => {
                    if let SectionKey::Rules(hash) = key {
                        out.rules.insert(*hash, rules);
                    }
                }
                Section::Image(_) => {}
            }
        }
        out
    }

    pub fn ports_of(&self, network: Uuid) -> impl Iterator<Item = &'a Port> {
        self.ports.values().copied().filter(move |port| port.network == network)
    }
}

/// The kernel as the document wants it.
pub fn plan(sections: &Sections, settings: &Settings, tracking: Tracking) -> KernelState {
    let mut state = KernelState::default();
    for network in sections.networks.values() {
        let space = network_space(sections, settings, network, tracking);
        state.places.insert(Place::Network(network.id), space);
    }
    for router in sections.routers.values() {
        state.places.insert(Place::Router(router.id), routing::router_space());
    }
    for router in sections.routers.values() {
        routing::plug(sections, &mut state, router, settings.node_address);
    }
    for network in sections.networks.values() {
        if let Some(space) = state.places.get_mut(&Place::Network(network.id)) {
            tunnel::dig(sections, settings, network, space);
        }
    }
    host(sections, settings, &mut state);
    state
}

pub fn link(kind: LinkKind) -> Link {
    Link { kind, mac: None, mtu: None, up: true, master: None, port: None, addresses: BTreeSet::new() }
}

pub fn sysctls(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// The namespace of a network: a bridge that never routes and has no address but the metadata address.
fn network_space(s: &Sections, settings: &Settings, network: &Network, tracking: Tracking) -> Space {
    let mut bridge = link(LinkKind::Bridge);
    bridge.mac = Some(own_mac(settings.cloud, &format!("bridge {}", network.id)));
    bridge.mtu = Some(network.mtu);
    bridge.addresses.insert(IpNet::from(IpAddr::V4(METADATA)));
    bridge.addresses.insert(IpNet::V6(Ipv6Net::new_assert(METADATA6, 64)));
    let mut links: BTreeMap<String, Link> = [(BRIDGE.to_string(), bridge)].into();
    links.insert("lo".to_string(), link(LinkKind::Loopback));
    let mut neighbours = BTreeMap::new();
    for port in s.ports_of(network.id) {
        let mut tap = link(LinkKind::Tap);
        (tap.mtu, tap.up, tap.master) = (Some(network.mtu), port.admin_up, Some(BRIDGE.to_string()));
        links.insert(crate::state::tap(port.id), tap);
        for fixed in port.fixed.iter().filter(|fixed| fixed.address.is_ipv4()) {
            neighbours.insert((BRIDGE.to_string(), fixed.address), port.mac);
        }
    }
    Space {
        sysctls: network_sysctls(tracking),
        links,
        neighbours,
        tables: ports::tables(s, network.id, tracking),
        ..Space::default()
    }
}

fn network_sysctls(tracking: Tracking) -> BTreeMap<String, String> {
    let mut out = sysctls(&[
        ("net/ipv4/conf/all/arp_ignore", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        // No address by itself: devices speak IPv6 only so that the bridge can answer for neighbours.
        ("net/ipv6/conf/default/addr_gen_mode", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
    ]);
    if tracking == Tracking::BrNetfilter {
        out.extend(sysctls(&[
            ("net/bridge/bridge-nf-call-arptables", "0"),
            ("net/bridge/bridge-nf-call-ip6tables", "1"),
            ("net/bridge/bridge-nf-call-iptables", "1"),
        ]));
    }
    out
}

/// The host's ends of external and physical networks, and what the uplink and tunnels need.
fn host(s: &Sections, settings: &Settings, state: &mut KernelState) {
    let mut space = Space::default();
    let mut ranges = BTreeSet::new();
    for network in s.networks.values() {
        if let Some(physical) = &network.physical {
            let device = settings.physical.get(physical);
            device.into_iter().for_each(|device| provide(settings, network, device, &mut space, state));
        } else if network.external {
            hold(s, settings, network, &mut space, state);
            ranges.extend(network.subnets.iter().map(|s| s.cidr.trunc()).filter(|c| c.addr().is_ipv4()));
        }
    }
    let mut base = Vec::new();
    if let Some(uplink) = &settings.uplink {
        base.extend(routing::masquerade(uplink, &ranges, &mut space));
    }
    if state.places.values().any(|space| space.links.contains_key(TUNNEL)) {
        base.extend(tunnel::untracked(settings.vxlan_port));
    }
    if !base.is_empty() {
        let name = format!("inet shisa_{:08x}", settings.cloud);
        space.tables.insert(name, table(base, BTreeMap::new()).seal());
    }
    if space != Space::default() {
        state.places.insert(Place::Host, space);
    }
}

/// The host's end of the pair into a network's bridge.
fn host_end(settings: &Settings, network: &Network) -> (String, Link) {
    let mut end = link(LinkKind::Veth { peer: (Place::Network(network.id), HOST_LEG.to_string()) });
    end.mtu = Some(network.mtu);
    end.mac = Some(host_mac(settings, network.id));
    (host_device(settings.cloud, network.id), end)
}

/// The same on every node, as the gateway is.
pub fn host_mac(settings: &Settings, network: Uuid) -> Mac {
    own_mac(settings.cloud, &format!("host {network}"))
}

/// The host holds the gateway addresses of an external network.
fn hold(s: &Sections, settings: &Settings, network: &Network, space: &mut Space, state: &mut KernelState) {
    let (name, mut end) = host_end(settings, network);
    end.addresses = network.subnets.iter().filter_map(|s| held(s.gateway?, s.cidr)).collect();
    for key in ["accept_ra", "accept_dad"] {
        space.sysctls.insert(format!("net/ipv6/conf/{name}/{key}"), "0".to_string());
    }
    let known = external_neighbours(s, settings, network.id);
    space.neighbours.extend(known.into_iter().map(|(address, mac)| ((name.clone(), address), mac)));
    space.links.insert(name, end);
    plug_network(state, network, HOST_LEG);
}

/// A bridge of the host joins its device on a physical network with the network's own bridge. The device stays where
/// it is and is otherwise as its operator has it.
fn provide(settings: &Settings, network: &Network, device: &str, space: &mut Space, state: &mut KernelState) {
    let bridge = provider_bridge(settings.cloud, network.id);
    let (name, mut end) = host_end(settings, network);
    let mut foreign = link(LinkKind::Foreign);
    (end.master, foreign.master) = (Some(bridge.clone()), Some(bridge.clone()));
    let mut between = link(LinkKind::Bridge);
    between.mac = Some(own_mac(settings.cloud, &format!("provider {}", network.id)));
    for name in [&name, &bridge] {
        space.sysctls.insert(format!("net/ipv6/conf/{name}/disable_ipv6"), "1".to_string());
    }
    space.links.extend([(name, end), (bridge, between), (device.to_string(), foreign)]);
    plug_network(state, network, HOST_LEG);
}

/// An address with the prefix of its subnet.
pub fn held(address: IpAddr, cidr: IpNet) -> Option<IpNet> {
    IpNet::new(address, cidr.prefix_len()).ok()
}

/// The end of a pair in the bridge of a network.
pub fn plug_network(state: &mut KernelState, network: &Network, name: &str) {
    let Some(space) = state.places.get_mut(&Place::Network(network.id)) else { return };
    let mut end = link(LinkKind::VethEnd);
    (end.mtu, end.master) = (Some(network.mtu), Some(BRIDGE.to_string()));
    space.links.insert(name.to_string(), end);
}

/// Addresses on an external network that this node's legs answer for.
fn external_neighbours(s: &Sections, settings: &Settings, network: Uuid) -> BTreeMap<IpAddr, Mac> {
    let up = s.routers.values().filter(|router| router.admin_up);
    let on = up.filter(|router| router.gateway.as_ref().is_some_and(|gateway| gateway.network == network));
    let gateways = on.filter_map(|router| Gateway::of(s, router, settings.node_address));
    gateways.flat_map(|gateway| gateway.reached().map(|a| (a, gateway.mac())).collect::<Vec<_>>()).collect()
}

/// A table with a base of lines.
pub fn table(base: Vec<String>, sets: BTreeMap<String, crate::state::Set>) -> Table {
    Table { base, sets, ..Table::default() }
}

#[cfg(test)]
mod tests;
