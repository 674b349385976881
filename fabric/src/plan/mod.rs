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

mod chains;
mod direct;
mod gateway;
mod known;
pub mod part;
mod ports;
mod routing;
mod shortcuts;
mod tunnel;

pub use known::{LEARNED, TABLE as KNOWN};
pub use shortcuts::{FLOWS, TABLE as SHORTCUTS};
pub use tunnel::is_elsewhere;

use crate::Settings;
use crate::state::{
    BRIDGE, HOST_LEG, KernelState, Link, LinkKind, Place, Space, Table, host_device, own_mac, provider_bridge,
};
use base::node::{
    Document, FloatingIp, Group, Members, Network, Port, Remote, Router, RuleSet, Section, SectionKey, Vm,
};
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

/// What the kernel of a node can do, as tried at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Powers {
    pub tracking: Tracking,
    /// nft's `flow add`.
    pub flowtable: bool,
    /// nft's `fwd` of what comes in by a device.
    pub shortcuts: bool,
    /// Sets that packets fill, and hooks where packets leave.
    pub known: bool,
}

impl Powers {
    pub const ALL: Powers =
        Powers { tracking: Tracking::Bridge, flowtable: true, shortcuts: true, known: true };
}

/// The sections by kind.
#[derive(Clone, Default)]
pub struct Sections<'a> {
    pub vms: BTreeMap<Uuid, &'a Vm>,
    pub ports: BTreeMap<Uuid, &'a Port>,
    pub networks: BTreeMap<Uuid, &'a Network>,
    /// By network.
    pub members: BTreeMap<Uuid, &'a Members>,
    pub routers: BTreeMap<Uuid, &'a Router>,
    pub groups: BTreeMap<Uuid, &'a Group>,
    pub rules: BTreeMap<u64, &'a RuleSet>,
    /// How many members a network has, also where not all of them are looked at (`part`).
    sizes: BTreeMap<Uuid, usize>,
    network_by_vni: BTreeMap<u32, Uuid>,
    ports_by_network: BTreeMap<Uuid, Vec<&'a Port>>,
    /// By their interfaces and gateways.
    routers_by_network: BTreeMap<Uuid, Vec<&'a Router>>,
    floating_by_router: BTreeMap<Uuid, Vec<&'a FloatingIp>>,
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
        out.index();
        out
    }

    fn index(&mut self) {
        self.sizes = self.members.iter().map(|(network, members)| (*network, members.ports.len())).collect();
        self.network_by_vni = self.networks.values().map(|network| (network.vni, network.id)).collect();
        for &port in self.ports.values() {
            self.ports_by_network.entry(port.network).or_default().push(port);
            for floating in &port.floating {
                self.floating_by_router.entry(floating.router).or_default().push(floating);
            }
        }
        for &router in self.routers.values() {
            for network in networks_of(router) {
                self.routers_by_network.entry(network).or_default().push(router);
            }
        }
    }

    pub fn ports_of(&self, network: Uuid) -> impl Iterator<Item = &'a Port> {
        self.ports_by_network.get(&network).into_iter().flatten().copied()
    }

    /// A network and those that packets may come from: by one distributed router, or several one after the other.
    pub fn joined(&self, network: Uuid) -> BTreeSet<Uuid> {
        let (mut all, mut last) = (BTreeSet::from([network]), vec![network]);
        while let Some(network) = last.pop() {
            let distributed = self.routers_of(network).filter(|router| !router.central);
            let beside = distributed.filter(|r| r.interfaces.iter().any(|leg| leg.network == network));
            let networks = beside.flat_map(|router| router.interfaces.iter().map(|leg| leg.network));
            last.extend(networks.filter(|network| all.insert(*network)));
        }
        all
    }

    /// The networks that a distributed router joins with this one and that have ports here: known flows lead from them
    /// to its members (`direct`).
    fn beside(&self, network: Uuid) -> impl Iterator<Item = Uuid> {
        let distributed = self.routers_of(network).filter(|router| !router.central);
        let legs = distributed.flat_map(|router| &router.interfaces).map(|leg| leg.network);
        legs.filter(|network| self.ports_by_network.contains_key(network))
    }

    pub fn routers_of(&self, network: Uuid) -> impl Iterator<Item = &'a Router> {
        self.routers_by_network.get(&network).into_iter().flatten().copied()
    }

    pub fn floating_of(&self, router: Uuid) -> impl Iterator<Item = &'a FloatingIp> {
        self.floating_by_router.get(&router).into_iter().flatten().copied()
    }

    /// All that there are to be.
    pub fn places(&self) -> BTreeSet<Place> {
        let networks = self.networks.keys().map(|id| Place::Network(*id));
        let routers = self.routers.keys().map(|id| Place::Router(*id));
        networks.chain(routers).chain([Place::Host]).collect()
    }
}

fn networks_of(router: &Router) -> BTreeSet<Uuid> {
    let interfaces = router.interfaces.iter().map(|interface| interface.network);
    interfaces.chain(router.gateway.as_ref().map(|gateway| gateway.network)).collect()
}

/// The kernel as the document wants it.
pub fn plan(sections: &Sections, settings: &Settings, powers: Powers) -> KernelState {
    plan_of(sections, settings, powers, &sections.places())
}

/// Some places of it: those that are not in the result are not to be.
pub fn plan_of(s: &Sections, settings: &Settings, powers: Powers, places: &BTreeSet<Place>) -> KernelState {
    let mut state = KernelState::default();
    let mut routers: BTreeMap<Uuid, &Router> = BTreeMap::new();
    for &place in places {
        match place {
            Place::Host => {}
            Place::Network(id) => {
                let Some(network) = s.networks.get(&id) else { continue };
                state.places.insert(place, network_space(s, settings, network, powers.tracking));
                routers.extend(s.routers_of(id).map(|router| (router.id, router)));
                if has_host_end(settings, network) {
                    plug_network(&mut state, network, HOST_LEG);
                }
            }
            Place::Router(id) => {
                let Some(router) = s.routers.get(&id) else { continue };
                state.places.insert(place, routing::router_space());
                routers.insert(id, router);
            }
        }
    }
    routers.values().for_each(|router| routing::plug(s, &mut state, router, settings.node_address));
    for (place, space) in &mut state.places {
        if let Place::Network(network) = place {
            s.networks.get(network).into_iter().for_each(|network| tunnel::dig(s, settings, network, space));
        }
    }
    shortcuts::take(s, settings, &mut state, powers);
    if places.contains(&Place::Host) {
        state.places.extend(host(s, settings).map(|space| (Place::Host, space)));
    }
    state
}

/// The places that a section has a say in, as it is among the others now. Before and after a change of it, together,
/// they are all that the change can touch. `shared`: whether its network has members elsewhere has changed too.
pub fn places_of(s: &Sections, key: &SectionKey, shared: bool) -> BTreeSet<Place> {
    let mut out = BTreeSet::new();
    match key {
        SectionKey::Vm(_) | SectionKey::Image(_) => {}
        SectionKey::Port(id) => {
            let Some(port) = s.ports.get(id) else { return out };
            out.insert(Place::Network(port.network));
            for floating in &port.floating {
                out.extend([Place::Router(floating.router), Place::Host]);
            }
        }
        SectionKey::Network(id) => {
            out.extend([Place::Network(*id), Place::Host]);
            out.extend(s.routers_of(*id).map(|router| Place::Router(router.id)));
            let turned = s.networks.get(id).map(|network| direct::turned(network.vni));
            let turned = turned.and_then(|vni| s.network_by_vni.get(&vni)).copied();
            out.extend(s.beside(*id).chain(turned).map(Place::Network));
        }
        SectionKey::Members(id) => {
            out.insert(Place::Network(*id));
            out.extend(s.beside(*id).map(Place::Network));
            out.extend(s.routers_of(*id).map(|router| Place::Router(router.id)));
            if shared {
                let networks = s.routers_of(*id).flat_map(networks_of).chain(s.joined(*id));
                out.extend(networks.map(Place::Network).chain([Place::Host]));
            }
        }
        SectionKey::Router(id) => {
            out.extend([Place::Router(*id), Place::Host]);
            let networks = s.routers.get(id).map(|router| networks_of(router)).unwrap_or_default();
            let joined = networks.iter().flat_map(|network| s.joined(*network));
            out.extend(joined.chain(networks.iter().copied()).map(Place::Network));
        }
        SectionKey::Group(id) => {
            let names = |set: &RuleSet| set.rules.iter().any(|rule| rule.remote == Remote::Group(*id));
            let hashes: BTreeSet<u64> =
                s.rules.iter().filter(|(_, set)| names(set)).map(|(hash, _)| *hash).collect();
            out.extend(networks_with(s, &hashes));
        }
        SectionKey::Rules(hash) => out.extend(networks_with(s, &[*hash].into())),
    }
    out
}

fn networks_with(s: &Sections, hashes: &BTreeSet<u64>) -> BTreeSet<Place> {
    let with = s.ports.values().filter(|port| port.rules.is_some_and(|hash| hashes.contains(&hash)));
    with.map(|port| Place::Network(port.network)).collect()
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
    // What the bridge tracks itself does not pass the inet hooks, too.
    let inet = if tracking == Tracking::BrNetfilter { "1" } else { "0" };
    out.extend(sysctls(&[
        ("net/bridge/bridge-nf-call-arptables", "0"),
        ("net/bridge/bridge-nf-call-ip6tables", inet),
        ("net/bridge/bridge-nf-call-iptables", inet),
    ]));
    out
}

/// The host's ends of external and physical networks, and what the uplink and tunnels need.
fn host(s: &Sections, settings: &Settings) -> Option<Space> {
    let mut space = Space::default();
    let mut ranges = BTreeSet::new();
    for network in s.networks.values().filter(|network| has_host_end(settings, network)) {
        match network.physical.as_ref().and_then(|physical| settings.physical.get(physical)) {
            Some(device) => provide(settings, network, device, &mut space),
            None => {
                hold(s, settings, network, &mut space);
                let nets = network.subnets.iter().map(|s| s.cidr.trunc());
                ranges.extend(nets.filter(|cidr| cidr.addr().is_ipv4()));
            }
        }
    }
    let mut base = Vec::new();
    if let Some(uplink) = &settings.uplink {
        base.extend(routing::masquerade(uplink, &ranges, &mut space));
    }
    if s.networks.values().any(|network| tunnel::is_dug(s, settings, network)) {
        base.extend(tunnel::untracked(settings.vxlan_port));
    }
    if !base.is_empty() {
        let name = format!("inet shisa_{:08x}", settings.cloud);
        space.tables.insert(name, table(base, BTreeMap::new()).seal());
    }
    Some(space).filter(|space| *space != Space::default())
}

/// Held by the host, or on a physical network that it has a device to.
fn has_host_end(settings: &Settings, network: &Network) -> bool {
    match &network.physical {
        Some(physical) => settings.physical.contains_key(physical),
        None => network.external,
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
fn hold(s: &Sections, settings: &Settings, network: &Network, space: &mut Space) {
    let (name, mut end) = host_end(settings, network);
    end.addresses = network.subnets.iter().filter_map(|s| held(s.gateway?, s.cidr)).collect();
    for key in ["accept_ra", "accept_dad"] {
        space.sysctls.insert(format!("net/ipv6/conf/{name}/{key}"), "0".to_string());
    }
    let known = external_neighbours(s, settings, network.id);
    space.neighbours.extend(known.into_iter().map(|(address, mac)| ((name.clone(), address), mac)));
    space.links.insert(name, end);
}

/// A bridge of the host joins its device on a physical network with the network's own bridge. The device stays where
/// it is and is otherwise as its operator has it.
fn provide(settings: &Settings, network: &Network, device: &str, space: &mut Space) {
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
    let up = s.routers_of(network).filter(|router| router.admin_up);
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
