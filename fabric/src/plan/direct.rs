//! The tunnel of known flows to members of a router's other networks on other nodes: `direct0`, beside the bridge.
//!
//! A packet of such a flow goes from its tap by nft's `fwd ip to` out of this device: its neighbours are the members'
//! addresses, its stations their MACs with node and the number of *their* network, where it arrives as if its router had
//! been there. It is in no bridge, so that nothing is flooded between networks; what would come in by it is dropped
//! (`known`). Its own number is that of its network with one bit turned, which nobody sends to.
//!
//! A device has one MAC, and a router one in each of its networks: frames leave with a MAC that says which router they
//! passed, and the receiver's node makes it the MAC of that router's leg there. The last hop is taken by the kernel: the
//! time to live goes down by one, as in the router.
//!
//! Left to the router's legs: a network with several of them, a router whose routes lead into its subnets
//! (`shortcuts::is_plain`), networks with a smaller MTU than the sender's, physical and external ones, members on this
//! node, a MAC that two networks of a router have, IPv6.
//!
//! Limits: `WAYS_MAX` members of other networks. A network that would be more, by the order of the router's legs, is left to
//! the legs as a whole.

use super::gateway::Gateway;
use super::shortcuts::is_plain;
use super::{Sections, link, routing, tunnel};
use crate::Settings;
use crate::state::{DIRECT, LinkKind, Space, Station, TUNNEL, own_mac};
use base::node::{Network, Router, RouterInterface};
use base::units::Mac;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use uuid::Uuid;

/// So a network's first port on a node costs no more, however large its router's other networks are.
const WAYS_MAX: usize = 2_048;

/// The bit that tells the number of a direct tunnel from that of its network.
const TURNED: u32 = 1 << 23;

/// Where an address is: the MAC of the member, its node, and the number of its network.
type Way = (Mac, IpAddr, u32);

/// The number of a network's direct tunnel, and of the network whose direct tunnel has this one.
pub fn turned(vni: u32) -> u32 {
    vni ^ TURNED
}

/// What the frames of a router have as their source, on every node.
pub fn mac(router: Uuid) -> Mac {
    own_mac(0, &format!("direct {router}"))
}

/// Adds the tunnel to the namespace of a network that has one to its own members' nodes.
pub fn lay(s: &Sections, settings: &Settings, network: &Network, space: &mut Space) {
    let Some((router, _)) = leg(s, network.id) else { return };
    let vni = turned(network.vni);
    let taken = vni == 0 || s.network_by_vni.contains_key(&vni);
    let senders = has_senders(s, network.id);
    let plain = is_plain(router, Gateway::of(s, router, settings.node_address).as_ref());
    if taken || !senders || !plain || !space.links.contains_key(TUNNEL) {
        return;
    }
    let ways = ways(s, settings, network, router);
    if ways.is_empty() {
        return;
    }
    let kind = LinkKind::Vxlan { vni, port: settings.vxlan_port, local: settings.node_address };
    let mut device = link(kind);
    (device.mac, device.mtu) = (Some(mac(router.id)), Some(network.mtu));
    space.links.insert(DIRECT.to_string(), device);
    for (address, (mac, vtep, vni)) in ways {
        let device = DIRECT.to_string();
        space.neighbours.insert((device.clone(), address), mac);
        space.stations.insert(Station { device, mac, vtep: Some(vtep), vni: Some(vni) });
    }
}

/// The leg of a distributed router in a network that has no other.
pub fn leg<'a>(s: &Sections<'a>, network: Uuid) -> Option<(&'a Router, &'a RouterInterface)> {
    let mut legs = tunnel::distributed_legs(s, network).filter(|(router, _)| router.admin_up);
    legs.next().filter(|_| legs.next().is_none())
}

/// Whether a network has a port here of which flows are known.
fn has_senders(s: &Sections, network: Uuid) -> bool {
    s.ports_of(network).any(|port| port.port_security)
}

/// The other networks that known flows of a network are led to, where they have members to be led to.
pub fn led(s: &Sections, network: Uuid) -> Vec<Uuid> {
    let of = s.networks.get(&network).zip(leg(s, network)).filter(|_| has_senders(s, network));
    let others = of.into_iter().flat_map(|(network, (router, _))| others(s, network, router));
    others.map(|(_, other)| other.id).collect()
}

/// A router's legs of IPv4 in other networks that packets may go to directly, as far as there is room for their members.
fn others<'a>(
    s: &Sections<'a>,
    network: &Network,
    router: &'a Router,
) -> Vec<(&'a RouterInterface, &'a Network)> {
    let (mut room, mut out) = (WAYS_MAX, Vec::new());
    for interface in router.interfaces.iter().filter(|interface| interface.network != network.id) {
        let Some(&other) = s.networks.get(&interface.network) else { continue };
        let left = other.external || other.physical.is_some() || other.mtu < network.mtu;
        if left || !interface.addresses.iter().any(|address| address.addr().is_ipv4()) {
            continue;
        }
        if let Some(rest) = room.checked_sub(s.sizes.get(&other.id).copied().unwrap_or_default()) {
            room = rest;
            out.push((interface, other));
        }
    }
    out
}

/// Their members that are on other nodes, by IPv4 address.
fn ways(s: &Sections, settings: &Settings, network: &Network, router: &Router) -> BTreeMap<IpAddr, Way> {
    let (mut ways, mut places) = (BTreeMap::new(), BTreeMap::<Mac, BTreeSet<(IpAddr, u32)>>::new());
    for (interface, other) in others(s, network, router) {
        for (member, vtep) in tunnel::remote(s, settings, other.id) {
            places.entry(member.mac).or_default().insert((vtep, other.vni));
        }
        let members = s.members.get(&other.id).into_iter().flat_map(|members| members.ports.values());
        let known = routing::neighbours(members, &interface.addresses, DIRECT);
        let known = known.into_iter().filter(|((_, address), _)| address.is_ipv4());
        ways.extend(known.map(|((_, address), mac)| (address, (mac, other.vni))));
    }
    let whole = |(address, (mac, vni)): (IpAddr, (Mac, u32))| {
        let places = places.get(&mac).filter(|places| places.len() == 1)?;
        let (vtep, of) = *places.first()?;
        (of == vni).then_some((address, (mac, vtep, vni)))
    };
    ways.into_iter().filter_map(whole).collect()
}
