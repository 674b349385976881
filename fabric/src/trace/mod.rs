//! A packet simulator over planned kernel states: which way does a packet take, and what stops it. Pure, without root.
//!
//! It walks the first packet of a flow through bridges, tunnels, routers and their rules as `plan` made them for each
//! node, in the way the kernel would. Answers of a flow that was let through are let through by the state of its
//! connection, so they are not walked. A rule that it cannot read is an error and never a guess. Where later packets
//! would go another way (`straight`), the first one's way must lead to the same place.
//!
//! Deliberately absent: ARP and neighbour discovery (who has an address is taken from the documents), fragments, what
//! the world beyond an external network does.

mod packet;
mod rules;
mod straight;
#[cfg(test)]
pub(crate) mod tests;

pub use packet::Packet;

use crate::Settings;
use crate::plan::{FLOWS, KNOWN, Powers, SHORTCUTS, Sections, plan};
use crate::state::{HOST_LEG, KernelState, Link, LinkKind, MAIN, Place, Space, TUNNEL, tap};
use base::node::{Document, claim_id};
use base::units::Mac;
use rules::{Verdict, hook};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use uuid::Uuid;

/// Places that a packet may pass: more is a loop.
const PLACES_MAX: usize = 32;

/// The nodes of a cloud as planned, by name.
#[derive(Default)]
pub struct World {
    nodes: BTreeMap<String, Node>,
}

struct Node {
    address: IpAddr,
    state: KernelState,
    document: Document,
}

/// What happened to the packet at one place of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub node: String,
    pub place: Place,
    pub what: String,
}

/// How the way ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At the guest with this port.
    Delivered { port: Uuid },
    /// At an address of the node or a router itself.
    Answered,
    /// By this device to the world outside, from this source.
    Left { device: String, source: IpAddr },
    /// By this rule.
    Dropped { chain: String, rule: String },
    /// Nobody knows where to.
    Lost { why: String },
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            End::Delivered { port } => write!(out, "delivered to port {port}"),
            End::Answered => write!(out, "arrived at the router or node itself"),
            End::Left { device, source } => write!(out, "leaves to the outside by {device} as {source}"),
            End::Dropped { chain, rule } => write!(out, "dropped by chain {chain}: {rule}"),
            End::Lost { why } => write!(out, "lost: {why}"),
        }
    }
}

/// A way and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub hops: Vec<Hop>,
    pub end: End,
}

/// What a flow is: an IP protocol number and, where it has ports, the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub to: IpAddr,
    pub protocol: u8,
    pub port: Option<u16>,
}

/// Where a packet is: a node, a place, and the device by which it comes in.
struct At {
    node: String,
    place: Place,
    device: String,
}

/// From one place to the next, or the end.
enum Step {
    To(At),
    End(End),
}

impl World {
    /// Adds a node with its document.
    pub fn node(&mut self, name: &str, settings: &Settings, document: Document) {
        let state = plan(&Sections::of(&document), settings, Powers::ALL);
        let node = Node { address: settings.node_address, state, document };
        self.nodes.insert(name.to_string(), node);
    }

    /// The way of a flow's first packet from a guest's port.
    ///
    /// Errors: a port that no node has, an address that the port has no family for, a rule that is not understood.
    pub fn trace(&self, port: Uuid, flow: Flow) -> Result<Way, String> {
        let (mut packet, mut at, asked) = self.start(port, flow)?;
        let mut hops = Vec::new();
        match self.mac_on(&at, asked) {
            Some(mac) => packet.target_mac = mac,
            None => {
                let what = format!("the guest asks for {asked}");
                hops.push(Hop { node: at.node, place: at.place, what });
                let why = format!("nobody on the network has {asked}");
                return Ok(Way { hops, end: End::Lost { why } });
            }
        }
        let mut straight = None;
        for _ in 0..PLACES_MAX {
            straight = straight.or(self.straight(&at, &packet)?);
            let here = Hop { node: at.node.clone(), place: at.place, what: String::new() };
            packet.came.clone_from(&at.device);
            let (step, what) = match at.place {
                Place::Network(network) => self.bridge(&at, network, &mut packet)?,
                Place::Router(_) => self.route(&at, &mut packet)?,
                Place::Host => (
                    Step::End(End::Left { device: at.device.clone(), source: packet.source }),
                    "the host routes it".to_string(),
                ),
            };
            hops.push(Hop { what, ..here });
            if let Some(straight) = &straight {
                self.same(straight, at.place, &step, &packet)?;
            }
            straight = straight.filter(|_| !matches!(&step, Step::To(next) if next.device == TUNNEL));
            match step {
                Step::To(next) => at = next,
                Step::End(end) => return Ok(Way { hops, end }),
            }
        }
        Ok(Way { hops, end: End::Lost { why: "it goes in a circle".to_string() } })
    }

    /// What the guest sends, and whom it asks for first: the target on its link, or the gateway of its subnet.
    fn start(&self, port: Uuid, flow: Flow) -> Result<(Packet, At, IpAddr), String> {
        let found = self
            .nodes
            .iter()
            .find_map(|(name, node)| Some((name, node, *Sections::of(&node.document).ports.get(&port)?)));
        let (name, node, port) = found.ok_or_else(|| format!("port {port} is on no node"))?;
        let s = Sections::of(&node.document);
        let same_family = |a: &&base::node::FixedIp| a.address.is_ipv4() == flow.to.is_ipv4();
        let fixed = port.fixed.iter().find(same_family);
        let fixed =
            fixed.ok_or_else(|| format!("the port has no address that could speak with {}", flow.to))?;
        let subnets = s.networks.get(&port.network).map(|n| &n.subnets);
        let subnet = subnets.into_iter().flatten().find(|subnet| subnet.id == fixed.subnet);
        let subnet = subnet.ok_or("the subnet of the port is not there")?;
        let routed = subnet
            .routes
            .iter()
            .filter(|(to, _)| to.contains(&flow.to))
            .max_by_key(|(to, _)| to.prefix_len());
        let hop = if subnet.cidr.contains(&flow.to) {
            flow.to
        } else {
            routed.map(|(_, via)| *via).or(subnet.gateway).ok_or("the subnet has no gateway")?
        };
        let ports = flow.port.map(|target| (40_000, target));
        let packet = Packet {
            source_mac: port.mac,
            target_mac: Mac([0; 6]),
            source: fixed.address,
            target: flow.to,
            protocol: flow.protocol,
            ports,
            translated: false,
            mark: 0,
            came: String::new(),
            leaves: String::new(),
        };
        let at = At { node: name.clone(), place: Place::Network(port.network), device: tap(port.id) };
        Ok((packet, at, hop))
    }

    /// Who answers for an address on a network, as seen from a node: a member, or a leg of a router.
    fn mac_on(&self, at: &At, address: IpAddr) -> Option<Mac> {
        let Place::Network(network) = at.place else { return None };
        let s = Sections::of(&self.nodes.get(&at.node)?.document);
        let members = s.members.get(&network).into_iter().flat_map(|members| members.ports.values());
        let member =
            members.filter(|member| member.addresses.contains(&address)).map(|member| member.mac).next();
        let legs = s.routers.values().filter(|r| r.admin_up).flat_map(|router| &router.interfaces);
        let mut legs = legs.filter(|leg| leg.network == network);
        member
            .or_else(|| legs.find(|leg| leg.addresses.iter().any(|a| a.addr() == address)).map(|leg| leg.mac))
    }

    /// Through the bridge of a network.
    fn bridge(&self, at: &At, network: Uuid, packet: &mut Packet) -> Result<(Step, String), String> {
        let node = &self.nodes[&at.node];
        let Some(space) = node.state.places.get(&at.place) else {
            return Ok((Step::End(End::Lost { why: format!("{} is not there", at.place) }), String::new()));
        };
        if at.device == TUNNEL && !space.links.contains_key(TUNNEL) {
            let why = format!("{} has no tunnel on this node", at.place);
            return Ok((Step::End(End::Lost { why }), String::new()));
        }
        if forwarded(space, KNOWN, packet)?.is_some() {
            return Err(format!("{} knows a flow before its first packet", at.place));
        }
        if let Some(device) = shortcut(space, packet)? {
            let Some((_, next)) =
                self.station(at, network, space, packet.target_mac).filter(|(by, _)| *by == device)
            else {
                return Err(format!("a shortcut of {} leads elsewhere than the bridge", at.place));
            };
            return Ok((next, format!("straight from {} to {device}", at.device)));
        }
        let rules = space.tables.get("bridge shisa");
        if let Some(Verdict::Drop { chain, rule }) =
            rules.map(|t| hook(t, "prerouting", packet)).transpose()?
        {
            return Ok((Step::End(End::Dropped { chain, rule }), format!("comes in by {}", at.device)));
        }
        let Some((device, next)) = self.station(at, network, space, packet.target_mac) else {
            let why = format!("no device of the network leads to {}", packet.target_mac);
            return Ok((Step::End(End::Lost { why }), format!("comes in by {}", at.device)));
        };
        packet.leaves.clone_from(&device);
        let what = format!("bridged from {} to {device}", at.device);
        match rules.map(|t| hook(t, "postrouting", packet)).transpose()? {
            Some(Verdict::Drop { chain, rule }) => Ok((Step::End(End::Dropped { chain, rule }), what)),
            Some(Verdict::Accept | Verdict::Forward(_)) | None => Ok((next, what)),
        }
    }

    /// The device of a bridge that leads to a MAC, and what is behind it.
    fn station(&self, at: &At, network: Uuid, space: &Space, mac: Mac) -> Option<(String, Step)> {
        let node = &self.nodes[&at.node];
        let to = |node: &str, place, device: &str| {
            Step::To(At { node: node.to_string(), place, device: device.to_string() })
        };
        let s = Sections::of(&node.document);
        let virtual_at = |port: &base::node::Port| {
            let members = s.members.get(&network).map(|members| &members.ports);
            members.is_some_and(|members| members.contains_key(&claim_id(port.id, mac)))
        };
        if let Some(port) = s.ports_of(network).find(|port| port.mac == mac || virtual_at(port)) {
            return Some((tap(port.id), Step::End(End::Delivered { port: port.id })));
        }
        for (place, other) in &node.state.places {
            for (name, link) in &other.links {
                let LinkKind::Veth { peer: (there, end) } = &link.kind else { continue };
                if *there == at.place && link.mac == Some(mac) {
                    return Some((end.clone(), to(&at.node, *place, name)));
                }
            }
        }
        let tunnel = space.stations.iter().find(|s| s.device == TUNNEL && s.mac == mac).and_then(|s| s.vtep);
        if let Some(vtep) = tunnel {
            let (name, _) = self.nodes.iter().find(|(_, node)| node.address == vtep)?;
            return Some((TUNNEL.to_string(), to(name, at.place, TUNNEL)));
        }
        // A physical network is one link for all nodes, behind each one's host.
        let physical = s.networks.get(&network).is_some_and(|network| network.physical.is_some());
        if !physical || at.device == HOST_LEG {
            return None;
        }
        let has = |node: &Node| {
            let s = Sections::of(&node.document);
            let mut links = node.state.places.values().flat_map(|space| space.links.values());
            let here =
                |link: &Link| matches!(&link.kind, LinkKind::Veth { peer: (there, _) } if *there == at.place);
            s.ports_of(network).any(|port| port.mac == mac)
                || links.any(|link| here(link) && link.mac == Some(mac))
        };
        let (name, _) = self.nodes.iter().find(|(name, node)| **name != at.node && has(node))?;
        Some((HOST_LEG.to_string(), to(name, at.place, HOST_LEG)))
    }

    /// Through a router.
    fn route(&self, at: &At, packet: &mut Packet) -> Result<(Step, String), String> {
        let node = &self.nodes[&at.node];
        let Some(space) = node.state.places.get(&at.place) else {
            return Ok((Step::End(End::Lost { why: format!("{} is not there", at.place) }), String::new()));
        };
        let straight = shortcut(space, packet)?;
        let rules = space.tables.get("inet shisa").filter(|_| straight.is_none());
        (packet.mark, packet.translated) = (0, false);
        let (from, to) = (packet.source, packet.target);
        if let Some(Verdict::Drop { chain, rule }) =
            rules.map(|t| hook(t, "prerouting", packet)).transpose()?
        {
            return Ok((Step::End(End::Dropped { chain, rule }), "before it is routed".to_string()));
        }
        let mut what = String::new();
        if packet.target != to {
            what = format!("to {to} becomes to {}; ", packet.target);
        }
        let own = |link: &Link| link.addresses.iter().any(|a| a.addr() == packet.target);
        if packet.mark == 0 && space.links.values().any(own) {
            return Ok((Step::End(End::Answered), format!("{what}{} is its own", packet.target)));
        }
        let Some((device, hop)) = next_hop(space, packet) else {
            return Ok((Step::End(End::Lost { why: format!("no route to {}", packet.target) }), what));
        };
        if straight.as_ref().is_some_and(|straight| *straight != device || hop != packet.target) {
            return Err(format!("a shortcut of {} leads elsewhere than its routes", at.place));
        }
        packet.leaves.clone_from(&device);
        let flows = space.tables.get(FLOWS).filter(|_| straight.is_none());
        flows.map(|table| hook(table, "forward", packet)).transpose()?;
        for point in ["forward", "postrouting"] {
            if let Some(Verdict::Drop { chain, rule }) = rules.map(|t| hook(t, point, packet)).transpose()? {
                return Ok((Step::End(End::Dropped { chain, rule }), format!("{what}routed to {device}")));
            }
        }
        let how = if straight.is_some() { "routed straight" } else { "routed" };
        what += &format!("{how} to {hop} by {device}");
        if packet.source != from {
            what += &format!(", from {from} becomes from {}", packet.source);
        }
        let link = &space.links[&device];
        let LinkKind::Veth { peer: (bridge, end) } = &link.kind else {
            return Ok((Step::End(End::Lost { why: format!("{device} leads nowhere") }), what));
        };
        let mac = space
            .neighbours
            .get(&(device.clone(), hop))
            .copied()
            .or_else(|| self.outside(&at.node, *bridge, hop));
        let Some(mac) = mac else {
            let end = match device.starts_with("qg-") {
                true => End::Left { device, source: packet.source },
                false => End::Lost { why: format!("nobody on the network has {hop}") },
            };
            return Ok((Step::End(end), what));
        };
        packet.source_mac = link.mac.unwrap_or(packet.source_mac);
        packet.target_mac = mac;
        Ok((Step::To(At { node: at.node.clone(), place: *bridge, device: end.clone() }), what))
    }

    /// Who answers for an address on an external network: the node's own host first, then legs of routers anywhere.
    fn outside(&self, node: &str, bridge: Place, address: IpAddr) -> Option<Mac> {
        let on = |node: &Node| {
            let links = node.state.places.values().flat_map(|space| space.links.values());
            let mut on = links
                .filter(|link| matches!(&link.kind, LinkKind::Veth { peer: (there, _) } if *there == bridge));
            on.find(|link| link.addresses.iter().any(|a| a.addr() == address)).and_then(|link| link.mac)
        };
        on(&self.nodes[node]).or_else(|| self.nodes.values().find_map(on))
    }
}

/// The device and the address that a packet goes to: by the table of its mark, or the links and routes of the place.
fn next_hop(space: &Space, packet: &Packet) -> Option<(String, IpAddr)> {
    let table = if space.marks.contains(&packet.mark) { packet.mark } else { MAIN };
    let links = || space.links.iter().filter(|(_, link)| link.up);
    let reach = |hop: IpAddr| {
        let nets = links().flat_map(|(name, link)| link.addresses.iter().map(move |net| (name, net)));
        let bare = space.routes.iter().filter(|r| r.table == MAIN && r.via.is_none());
        let bare = bare.filter_map(|r| Some((r.device.as_ref()?, &r.to)));
        let on = nets.chain(bare).filter(|(name, net)| net.contains(&hop) && *name != "lo");
        on.max_by_key(|(_, net)| net.prefix_len()).map(|(name, net)| (name.clone(), net.prefix_len()))
    };
    let route =
        space.routes.iter().filter(|r| r.table == table && r.via.is_some() && r.to.contains(&packet.target));
    let route = route.max_by_key(|route| route.to.prefix_len());
    let direct = (table == MAIN).then(|| reach(packet.target)).flatten();
    match (direct, route) {
        (Some((device, length)), Some(route)) if length >= route.to.prefix_len() => {
            Some((device, packet.target))
        }
        (Some((device, _)), None) => Some((device, packet.target)),
        (_, Some(route)) => {
            let via = route.via?;
            let device = route.device.clone().or_else(|| reach(via).map(|(device, _)| device))?;
            Some((device, via))
        }
        (None, None) => None,
    }
}

/// The device by which a packet leaves a place at once.
fn shortcut(space: &Space, packet: &mut Packet) -> Result<Option<String>, String> {
    forwarded(space, SHORTCUTS, packet)
}

fn forwarded(space: &Space, table: &str, packet: &mut Packet) -> Result<Option<String>, String> {
    let taken = space.tables.get(table).map(|table| hook(table, "ingress", packet)).transpose()?;
    Ok(taken.and_then(|verdict| if let Verdict::Forward(device) = verdict { Some(device) } else { None }))
}
