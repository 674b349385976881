//! The tunnel of a network to the nodes that have other members of it.
//!
//! Nothing is learned from it: each remote member is a station with its node, each leg of a router here is a station of
//! its own port. A router has the same MAC on every node, so what its leg says to everyone stays on its node, and so
//! does what the node itself says and what guests ask of services that each node answers. Questions for the address of
//! a member are answered by the bridge; those for unknown addresses, and frames for unknown receivers, go to the nodes
//! that have a member, and to no others.

use super::{Sections, host_mac, link};
use crate::Settings;
use crate::state::{BRIDGE, BridgePort, LinkKind, Space, Station, TUNNEL, leg_port};
use base::node::{Member, Network, Router};
use base::units::Mac;
use std::collections::BTreeMap;
use std::net::IpAddr;
use uuid::Uuid;

const EVERYONE: Mac = Mac([0; 6]);

/// Members of a network that other nodes have, with the node.
pub fn remote<'a>(
    s: &Sections<'a>,
    settings: &'a Settings,
    network: Uuid,
) -> impl Iterator<Item = (&'a Member, IpAddr)> {
    let members = s.members.get(&network).into_iter().flat_map(|members| members.ports.values());
    members.filter_map(|member| Some((member, member.vtep.filter(|vtep| *vtep != settings.node_address)?)))
}

/// Legs of routers that other nodes have into an external network: those of this node's own routers, whether or not
/// they are among the members.
fn legs_elsewhere(s: &Sections, settings: &Settings, network: Uuid) -> BTreeMap<Mac, IpAddr> {
    let gateways = s.routers_of(network).filter_map(|router| router.gateway.as_ref());
    let mut out = BTreeMap::new();
    for gateway in gateways.filter(|gateway| gateway.network == network) {
        let nodes = gateway.shares.iter().map(|share| share.vtep).chain(gateway.owner);
        let others = nodes.filter(|vtep| *vtep != settings.node_address);
        out.extend(others.map(|vtep| (gateway.mac_at(vtep), vtep)));
    }
    out
}

/// Whether a network has a tunnel.
pub fn is_dug(s: &Sections, settings: &Settings, network: &Network) -> bool {
    network.physical.is_none() && is_shared(s, settings, network.id)
}

/// Whether another node has a member of a network itself.
pub fn is_elsewhere(s: &Sections, settings: &Settings, network: Uuid) -> bool {
    remote(s, settings, network).next().is_some()
}

/// Whether another node has a member of the network, or may send to it by its routers.
fn is_shared(s: &Sections, settings: &Settings, network: Uuid) -> bool {
    !legs_elsewhere(s, settings, network).is_empty()
        || s.joined(network).into_iter().any(|network| is_elsewhere(s, settings, network))
}

/// Adds the tunnel to a network's namespace, when another node may send to it.
pub fn dig(s: &Sections, settings: &Settings, network: &Network, space: &mut Space) {
    stay_here(s, settings, network, space);
    let members = s.members.get(&network.id).into_iter().flat_map(|members| members.ports.values());
    for member in members.filter(|member| member.vtep == Some(settings.node_address)) {
        // Those of its claims too.
        for address in &member.addresses {
            space.neighbours.insert((BRIDGE.to_string(), *address), member.mac);
        }
    }
    if !is_dug(s, settings, network) {
        return;
    }
    let kind = LinkKind::Vxlan { vni: network.vni, port: settings.vxlan_port, local: settings.node_address };
    let mut device = link(kind);
    (device.mtu, device.master) = (Some(network.mtu), Some(BRIDGE.to_string()));
    // Questions of nobody are not passed on where the bridge answers, and the legs of routers ask so.
    device.port = Some(BridgePort { learning: false, suppress: !network.external });
    space.links.insert(TUNNEL.to_string(), device);
    let legs = legs_elsewhere(s, settings, network.id);
    let members = remote(s, settings, network.id).map(|(member, vtep)| (member.mac, vtep));
    for (mac, vtep) in members.chain(legs) {
        for mac in [mac, EVERYONE] {
            space.stations.insert(Station { device: TUNNEL.to_string(), mac, vtep: Some(vtep), vni: None });
        }
    }
    for (member, _) in remote(s, settings, network.id) {
        for address in member.addresses.iter().filter(|_| !cfg!(feature = "break-east-west")) {
            space.neighbours.insert((BRIDGE.to_string(), *address), member.mac);
        }
    }
}

/// The legs of routers that every node has, and the ports of services that every node answers.
fn stay_here(s: &Sections, settings: &Settings, network: &Network, space: &mut Space) {
    let Some(table) = space.tables.get_mut("bridge shisa") else { return };
    if let Some(ingress) = table.sets.get_mut("ingress").filter(|_| is_dug(s, settings, network)) {
        ingress.elements.insert(vec![TUNNEL.to_string()], "goto tunnel".to_string());
    }
    let mut insert = |set: &str, key: String| {
        if let Some(set) = table.sets.get_mut(set) {
            set.elements.insert(vec![key], String::new());
        }
    };
    if network.external && network.physical.is_none() {
        insert("host", host_mac(settings, network.id).to_string());
        let gateways = network.subnets.iter().filter_map(|subnet| subnet.gateway);
        gateways.filter(IpAddr::is_ipv4).for_each(|gateway| insert("held", gateway.to_string()));
    }
    for (router, interface) in distributed_legs(s, network.id) {
        let device = leg_port(interface.port);
        space.stations.insert(Station { device, mac: interface.mac, vtep: None, vni: None });
        for address in interface.addresses.iter().filter(|_| router.admin_up) {
            space.neighbours.insert((BRIDGE.to_string(), address.addr()), interface.mac);
        }
        insert("legs", interface.mac.to_string());
    }
    for subnet in network.subnets.iter().filter(|subnet| subnet.dhcp) {
        let port = if subnet.cidr.addr().is_ipv4() { "67" } else { "547" };
        insert("answered", port.to_string());
    }
}

pub fn distributed_legs<'a>(
    s: &Sections<'a>,
    network: Uuid,
) -> impl Iterator<Item = (&'a Router, &'a base::node::RouterInterface)> {
    let routers: Vec<&'a Router> = s.routers_of(network).filter(|router| !router.central).collect();
    let legs = routers.into_iter().flat_map(|r| r.interfaces.iter().map(move |interface| (r, interface)));
    legs.filter(move |(_, interface)| interface.network == network)
}

/// Frames that do not leave the node, in the table of a network: asked of what goes into the tunnel.
pub fn rules() -> Vec<String> {
    let everyone = "ether daddr & 01:00:00:00:00:00 != 01:00:00:00:00:00";
    [
        "rule tunnel meta mark 8 drop".to_string(),
        "rule tunnel ether saddr @host drop".to_string(),
        "rule tunnel ether type arp arp daddr ip @held drop".to_string(),
        format!("rule tunnel {everyone} accept"),
        "rule tunnel ether saddr @legs drop".to_string(),
        "rule tunnel meta l4proto udp th dport @answered drop".to_string(),
    ]
    .into()
}

/// Tunnels are not connections: the host's table of them stays for the host.
pub fn untracked(port: u16) -> Vec<String> {
    let mut rules = Vec::new();
    for (chain, hook) in [("tunnel_in", "prerouting"), ("tunnel_out", "output")] {
        rules.push(format!("chain {chain} {{ type filter hook {hook} priority -300; policy accept; }}"));
        rules.push(format!("rule {chain} udp dport {port} notrack"));
    }
    rules
}
