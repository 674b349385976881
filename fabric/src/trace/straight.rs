//! Where the later packets of a flow go once it is known (`plan::direct`): past the router and its legs, to a member on
//! another node. The way of the first packet must come to the same node, network, MAC and source.

use super::{At, End, Packet, Step, World, hook};
use crate::plan::KNOWN;
use crate::state::{DIRECT, LinkKind, Place, TUNNEL};
use base::units::Mac;
use std::net::IpAddr;

/// What a known flow would be.
pub struct Straight {
    from: Place,
    source_mac: Mac,
    target_mac: Mac,
    vtep: IpAddr,
    vni: u32,
}

impl World {
    /// The way that a network's tables have for later packets of what comes in there, if it is another one.
    ///
    /// Errors: one that has no end.
    pub(super) fn straight(&self, at: &At, packet: &Packet) -> Result<Option<Straight>, String> {
        let space = self.nodes[&at.node].state.places.get(&at.place);
        let Some((space, known)) = space.and_then(|space| Some((space, space.tables.get(KNOWN)?))) else {
            return Ok(None);
        };
        let has = |set: &str, key: String| {
            known.sets.get(set).is_some_and(|set| set.elements.contains_key(&vec![key]))
        };
        let in_at_a_tap = at.device.starts_with("tap");
        if !in_at_a_tap
            || !has("direct", packet.target.to_string())
            || !has("legs", packet.target_mac.to_string())
        {
            return Ok(None);
        }
        let mac = space.neighbours.get(&(DIRECT.to_string(), packet.target));
        let mut stations = space.stations.iter().filter(|s| s.device == DIRECT && Some(&s.mac) == mac);
        let device = space.links.get(DIRECT).and_then(|link| link.mac);
        let (Some(station), None, Some(source_mac)) = (stations.next(), stations.next(), device) else {
            return Err(format!("known flows of {} to {} have no end", at.place, packet.target));
        };
        let (Some(vtep), Some(vni)) = (station.vtep, station.vni) else {
            return Err(format!("known flows of {} to {} have no node", at.place, packet.target));
        };
        Ok(Some(Straight { from: at.place, source_mac, target_mac: station.mac, vtep, vni }))
    }

    /// Holds a step of the whole way against it: the one into the tunnel must be its own, and there must be one unless
    /// rules stop the packet.
    pub(super) fn same(
        &self,
        straight: &Straight,
        place: Place,
        step: &Step,
        packet: &Packet,
    ) -> Result<(), String> {
        let elsewhere =
            || Err(format!("known flows of {} are led elsewhere than the whole way", straight.from));
        let next = match step {
            Step::End(End::Dropped { .. }) => return Ok(()),
            Step::End(End::Lost { .. }) if !matches!(place, Place::Router(_)) => return Ok(()),
            Step::End(_) => return elsewhere(),
            Step::To(next) if next.device != TUNNEL => return Ok(()),
            Step::To(next) => next,
        };
        let node = &self.nodes[&next.node];
        let space = node.state.places.get(&next.place);
        let tunnel = space.and_then(|space| space.links.get(TUNNEL)).map(|link| &link.kind);
        let Some(LinkKind::Vxlan { vni, .. }) = tunnel else { return Ok(()) };
        let mut arrives = Packet { source_mac: straight.source_mac, ..packet.clone() };
        arrives.came = TUNNEL.to_string();
        if let Some(known) = space.and_then(|space| space.tables.get(KNOWN)) {
            hook(known, "ingress", &mut arrives)?;
        }
        let same = node.address == straight.vtep
            && *vni == straight.vni
            && packet.target_mac == straight.target_mac
            && arrives.source_mac == packet.source_mac;
        if same { Ok(()) } else { elsewhere() }
    }
}
