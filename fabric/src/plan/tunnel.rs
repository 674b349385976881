//! The tunnel of a network to the nodes that have other members of it.
//!
//! Nothing is learned from it: each remote member is a station with its node, each leg of a router here is a station of
//! its own port. A router has the same MAC on every node, so what its leg says to everyone stays on its node, and so
//! does what the node itself says and what guests ask of services that each node answers. Questions for the address of
//! a member are answered by the bridge; those for unknown addresses, and frames for unknown receivers, go to the nodes
//! that have a member, and to no others.

use super::{Sections, link};
use crate::Settings;
use crate::state::{BRIDGE, BridgePort, LinkKind, Space, Station, TUNNEL, leg_port};
use base::node::{Member, Network, Router};
use base::units::Mac;
use std::net::IpAddr;
use uuid::Uuid;

const EVERYONE: Mac = Mac([0; 6]);

/// Members of a network that other nodes have, with the node.
fn remote<'a>(
    s: &Sections<'a>,
    settings: &'a Settings,
    network: Uuid,
) -> impl Iterator<Item = (&'a Member, IpAddr)> {
    let members = s.members.get(&network).into_iter().flat_map(|members| members.ports.values());
    members.filter_map(|member| Some((member, member.vtep.filter(|vtep| *vtep != settings.node_address)?)))
}

/// Whether another node has a member of the network, or a leg into it of a router with a member behind.
fn is_shared(s: &Sections, settings: &Settings, network: Uuid) -> bool {
    let beyond = distributed_legs(s, network).flat_map(|(router, _)| router.interfaces.iter());
    let mut networks = beyond.map(|interface| interface.network).chain([network]);
    networks.any(|network| remote(s, settings, network).next().is_some())
}

/// Adds the tunnel to a network's namespace, when another node may send to it.
pub fn dig(s: &Sections, settings: &Settings, network: &Network, space: &mut Space) {
    stay_here(s, network, space);
    if network.physical.is_some() || !is_shared(s, settings, network.id) {
        return;
    }
    let kind = LinkKind::Vxlan { vni: network.vni, port: settings.vxlan_port, local: settings.node_address };
    let mut device = link(kind);
    (device.mtu, device.master) = (Some(network.mtu), Some(BRIDGE.to_string()));
    device.port = Some(BridgePort { learning: false, suppress: true });
    space.links.insert(TUNNEL.to_string(), device);
    for (member, vtep) in remote(s, settings, network.id) {
        for mac in [member.mac, EVERYONE] {
            space.stations.insert(Station { device: TUNNEL.to_string(), mac, vtep: Some(vtep) });
        }
        for address in &member.addresses {
            space.neighbours.insert((BRIDGE.to_string(), *address), member.mac);
        }
    }
}

/// The legs of routers that every node has, and the ports of services that every node answers.
fn stay_here(s: &Sections, network: &Network, space: &mut Space) {
    let Some(table) = space.tables.get_mut("bridge shisa") else { return };
    for (router, interface) in distributed_legs(s, network.id) {
        let device = leg_port(interface.port);
        space.stations.insert(Station { device, mac: interface.mac, vtep: None });
        for address in interface.addresses.iter().filter(|_| router.admin_up) {
            space.neighbours.insert((BRIDGE.to_string(), address.addr()), interface.mac);
        }
        if let Some(set) = table.sets.get_mut("legs") {
            set.elements.insert(vec![interface.mac.to_string()], String::new());
        }
    }
    for subnet in network.subnets.iter().filter(|subnet| subnet.dhcp) {
        let port = if subnet.cidr.addr().is_ipv4() { "67" } else { "547" };
        if let Some(set) = table.sets.get_mut("answered") {
            set.elements.insert(vec![port.to_string()], String::new());
        }
    }
}

fn distributed_legs<'a>(
    s: &Sections<'a>,
    network: Uuid,
) -> impl Iterator<Item = (&'a Router, &'a base::node::RouterInterface)> {
    let routers: Vec<&'a Router> = s.routers.values().copied().filter(|router| !router.central).collect();
    let legs = routers.into_iter().flat_map(|r| r.interfaces.iter().map(move |interface| (r, interface)));
    legs.filter(move |(_, interface)| interface.network == network)
}

/// Frames that do not leave the node, in the table of a network.
pub fn rules() -> Vec<String> {
    let everyone = "ether daddr & 01:00:00:00:00:00 != 01:00:00:00:00:00";
    let mut rules =
        vec!["chain tunnel { type filter hook postrouting priority -10; policy accept; }".to_string()];
    rules.extend([
        format!("rule tunnel oifname != \"{TUNNEL}\" accept"),
        "rule tunnel meta mark 8 drop".to_string(),
        format!("rule tunnel {everyone} accept"),
        "rule tunnel ether saddr @legs drop".to_string(),
        "rule tunnel meta l4proto udp th dport @answered drop".to_string(),
    ]);
    rules
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
