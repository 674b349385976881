//! Devices, addresses, routes and neighbours by route netlink.
//!
//! What is asked for and is so already is no error, so a step may be taken twice.

use super::Kernel;
use super::netlink::Netlink;
use super::tap;
use crate::diff::LinkChange;
use crate::plan::METADATA6;
use crate::state::{BridgePort, Link, LinkKind, Place, Space, Station};
use base::Result;
use base::units::Mac;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

pub fn add(kernel: &Kernel, place: Place, name: &str, kind: &LinkKind, mac: Option<Mac>) -> Result<()> {
    // The other namespace stays open until the kernel has it.
    let there;
    let mut message = named(name, mac);
    let mut from = place;
    let info = match kind {
        LinkKind::Tap => return tap::create(kernel.namespace(place)?, name),
        LinkKind::Loopback | LinkKind::VethEnd | LinkKind::Foreign => return Ok(()),
        LinkKind::Bridge => {
            vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(bridge()))]
        }
        LinkKind::Veth { peer: (other, peer) } => {
            there = kernel.namespace(*other)?;
            let mut end = named(peer, None);
            end.attributes.push(LinkAttribute::NetNsFd(there.as_raw_fd()));
            vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end)))]
        }
        LinkKind::Vxlan { vni, port, local } => {
            // Asked for in the host's namespace it comes to be in the other one, and its socket stays.
            there = kernel.namespace(place)?;
            from = Place::Host;
            message.attributes.push(LinkAttribute::NetNsFd(there.as_raw_fd()));
            let data = InfoData::Vxlan(vxlan(*vni, *port, *local));
            vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)]
        }
    };
    message.attributes.push(LinkAttribute::LinkInfo(info));
    let route = &mut kernel.handle(from)?.route;
    but(route.change(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL), &[libc::EEXIST])
}

/// A pair with both ends in the socket's namespace.
pub fn pair(route: &mut Netlink, name: &str, peer: &str) -> Result<()> {
    let mut message = named(name, None);
    let data = InfoData::Veth(InfoVeth::Peer(named(peer, None)));
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)];
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Ok(route.change(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?)
}

/// No spanning tree, no delay, and no snooping: without a querier it loses neighbour discovery.
fn bridge() -> Vec<InfoBridge> {
    vec![
        InfoBridge::ForwardDelay(0),
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::MulticastSnooping(false),
    ]
}

fn vxlan(vni: u32, port: u16, local: IpAddr) -> Vec<InfoVxlan> {
    let local = match local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    // What guests send has its own checksum.
    let sum = InfoVxlan::UDPCsum(false);
    vec![InfoVxlan::Id(vni), InfoVxlan::Port(port), local, InfoVxlan::Learning(false), sum]
}

fn named(name: &str, mac: Option<Mac>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message
}

pub fn set(route: &mut Netlink, name: &str, change: &LinkChange) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index(route, name)?;
    message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    if let Some(master) = &change.master {
        let master = master.as_ref().map_or(Ok(0), |master| index(route, master))?;
        message.attributes.push(LinkAttribute::Controller(master));
    }
    if let Some(up) = change.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    let index = message.header.index;
    route.change(Message::SetLink(message), 0)?;
    change.port.map_or(Ok(()), |port| set_port(route, index, port))
}

/// What a device does as a port of the bridge that it is in already.
fn set_port(route: &mut Netlink, index: u32, port: BridgePort) -> Result<()> {
    let data = vec![InfoBridgePort::Learning(port.learning), InfoBridgePort::NeighSupress(port.suppress)];
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(data)),
    ]));
    Ok(route.change(Message::NewLink(message), 0)?)
}

pub fn remove(route: &mut Netlink, name: &str) -> Result<()> {
    let Ok(index) = index(route, name) else { return Ok(()) };
    let mut message = LinkMessage::default();
    message.header.index = index;
    but(route.change(Message::DelLink(message), 0), &[libc::ENODEV])
}

/// Duplicate address detection is off: we say who has an address.
pub fn address(route: &mut Netlink, name: &str, address: IpNet, add: bool) -> Result<()> {
    let mut message = AddressMessage::default();
    message.header.index = index(route, name)?;
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    match add {
        true => {
            but(route.change(Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE), &[libc::EEXIST])
        }
        false => but(route.change(Message::DelAddress(message), 0), &[libc::EADDRNOTAVAIL]),
    }
}

/// Makes a permanent entry, or removes it.
pub fn neighbour(netlink: &mut Netlink, name: &str, address: IpAddr, mac: Option<Mac>) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index(netlink, name)?;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    match mac {
        Some(mac) => {
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
            Ok(netlink.change(Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)?)
        }
        None => but(netlink.change(Message::DelNeighbour(message), 0), &[libc::ENOENT]),
    }
}

/// What `bridge fdb` calls static: neither learned nor forgotten.
const STATIC: NeighbourState = NeighbourState::Other(0x42);

/// Makes or removes a station, in the bridge and, if it is behind a tunnel, in the tunnel's own table.
/// The zero MAC is in the latter alone, and there once for each node; what is in another network is there alone, too.
pub fn station(netlink: &mut Netlink, station: &Station, add: bool) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index(netlink, &station.device)?;
    message.header.state = STATIC;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(station.mac.0.to_vec()));
    let zero = station.mac == Mac([0; 6]);
    let mut tables = Vec::new();
    if !zero && station.vni.is_none() {
        // Where a member is the document says: a guest that begins to use a MAC of its pairs does not take the station
        // to its tap, where nobody would take it away.
        let sticky = if station.vtep.is_some() { NeighbourFlags::Sticky } else { NeighbourFlags::empty() };
        tables.push((NeighbourFlags::Controller | sticky, message.clone()));
    }
    if let Some(vtep) = station.vtep {
        message.attributes.push(NeighbourAttribute::Destination(vtep.into()));
        message.attributes.extend(station.vni.map(NeighbourAttribute::Vni));
        tables.push((NeighbourFlags::Own, message));
    }
    for (flags, mut message) in tables {
        message.header.flags = flags;
        if add {
            let how = if zero { NLM_F_APPEND } else { NLM_F_REPLACE };
            but(netlink.change(Message::NewNeighbour(message), NLM_F_CREATE | how), &[libc::EEXIST])?;
        } else {
            but(netlink.change(Message::DelNeighbour(message), 0), &[libc::ENOENT])?;
        }
    }
    Ok(())
}

pub fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// A result where some errors say that it is so already.
pub fn but(result: io::Result<()>, fine: &[i32]) -> Result<()> {
    match result {
        Err(e) if e.raw_os_error().is_some_and(|code| fine.contains(&code)) => Ok(()),
        other => Ok(other?),
    }
}

pub fn index(route: &mut Netlink, name: &str) -> io::Result<u32> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    match route.get(Message::GetLink(message))? {
        Some(Message::NewLink(link)) => Ok(link.header.index),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Devices of our kinds that are `ours`, with their addresses and neighbours, and our routes.
/// Others are seen while their master is ours.
pub fn observe(netlink: &mut Netlink, ours: impl Fn(&str) -> bool) -> Result<Space> {
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let mut messages = Vec::new();
    for message in netlink.dump(Message::GetLink(LinkMessage::default()))? {
        let Message::NewLink(link) = message else { continue };
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        if let Some(name) = name {
            names.insert(link.header.index, name);
            messages.push(link);
        }
    }
    let mut space = Space::default();
    for message in &messages {
        let Some(name) = names.get(&message.header.index) else { continue };
        let mut link = link_of(message, &names);
        if !ours(name) {
            link.kind = LinkKind::Foreign;
        }
        if ours(name) && link.kind != LinkKind::Foreign || link.master.as_ref().is_some_and(|m| ours(m)) {
            space.links.insert(name.clone(), link);
        }
    }
    names.retain(|_, name| space.links.contains_key(name));
    observe_addresses(netlink, &names, &mut space)?;
    observe_neighbours(netlink, &names, &mut space)?;
    observe_stations(netlink, &names, &mut space)?;
    super::route::observe(netlink, &names, &mut space)?;
    Ok(space)
}

fn link_of(message: &LinkMessage, names: &BTreeMap<u32, String>) -> Link {
    let mut link = Link {
        kind: LinkKind::VethEnd,
        mac: None,
        mtu: None,
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        port: None,
        addresses: BTreeSet::new(),
    };
    let mut kind = message.header.flags.contains(LinkFlags::Loopback).then_some(LinkKind::Loopback);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => link.mac = <[u8; 6]>::try_from(mac.as_slice()).ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => {
                kind = kind_of(infos).or(kind);
                link.port = infos.iter().find_map(port_of);
            }
            _ => {}
        }
    }
    link.kind = kind.unwrap_or(LinkKind::Foreign);
    link
}

fn kind_of(infos: &[LinkInfo]) -> Option<LinkKind> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(LinkKind::Bridge),
        LinkInfo::Kind(InfoKind::Tun) => Some(LinkKind::Tap),
        LinkInfo::Kind(InfoKind::Veth) => Some(LinkKind::VethEnd),
        LinkInfo::Data(InfoData::Vxlan(data)) => vxlan_of(data),
        _ => None,
    })
}

fn vxlan_of(data: &[InfoVxlan]) -> Option<LinkKind> {
    let (mut id, mut to, mut from) = (None, None, None);
    for attribute in data {
        match attribute {
            InfoVxlan::Id(vni) => id = Some(*vni),
            InfoVxlan::Port(port) => to = Some(*port),
            InfoVxlan::Local(address) => from = Some(IpAddr::V4(*address)),
            InfoVxlan::Local6(address) => from = Some(IpAddr::V6(*address)),
            _ => {}
        }
    }
    Some(LinkKind::Vxlan { vni: id?, port: to?, local: from? })
}

fn port_of(info: &LinkInfo) -> Option<BridgePort> {
    let LinkInfo::PortData(InfoPortData::BridgePort(data)) = info else { return None };
    let mut port = BridgePort { learning: false, suppress: false };
    for attribute in data {
        match attribute {
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::NeighSupress(on) => port.suppress = *on,
            _ => {}
        }
    }
    Some(port)
}

/// Addresses that the kernel makes by itself are not ours to know: of loopback and IPv6 link-local ones.
fn observe_addresses(netlink: &mut Netlink, names: &BTreeMap<u32, String>, space: &mut Space) -> Result<()> {
    for message in netlink.dump(Message::GetAddress(AddressMessage::default()))? {
        let Message::NewAddress(message) = message else { continue };
        let link = names.get(&message.header.index).and_then(|name| space.links.get_mut(name));
        let Some(link) = link.filter(|link| link.kind != LinkKind::Foreign) else { continue };
        let find = |local: bool| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
        };
        let Some(address) = find(true).or_else(|| find(false)) else { continue };
        let automatic = address.is_loopback()
            || (message.header.scope == AddressScope::Link && address.is_ipv6() && address != METADATA6);
        if let (false, Ok(net)) = (automatic, IpNet::new(address, message.header.prefix_len)) {
            link.addresses.insert(net);
        }
    }
    Ok(())
}

fn observe_neighbours(netlink: &mut Netlink, names: &BTreeMap<u32, String>, space: &mut Space) -> Result<()> {
    for message in netlink.dump(Message::GetNeighbour(NeighbourMessage::default()))? {
        let Message::NewNeighbour(message) = message else { continue };
        let name = names.get(&message.header.ifindex);
        let Some(name) = name.filter(|_| message.header.state == NeighbourState::Permanent) else { continue };
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
                NeighbourAttribute::LinkLayerAddress(m) => mac = <[u8; 6]>::try_from(m.as_slice()).ok(),
                _ => {}
            }
        }
        if let (Some(address), Some(mac)) = (address, mac) {
            space.neighbours.insert((name.clone(), address), Mac(mac));
        }
    }
    Ok(())
}

/// Static entries of bridges, and what tunnels have of their own. One behind a tunnel in a bridge is there when both
/// have it.
fn observe_stations(netlink: &mut Netlink, names: &BTreeMap<u32, String>, space: &mut Space) -> Result<()> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    let mut bridged: BTreeSet<(String, Mac)> = BTreeSet::new();
    let mut tunnelled = BTreeSet::new();
    for message in netlink.dump(Message::GetNeighbour(request))? {
        let Message::NewNeighbour(message) = message else { continue };
        let Some(device) = names.get(&message.header.ifindex).cloned() else { continue };
        let (mut mac, mut vtep, mut vni) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(m) => mac = <[u8; 6]>::try_from(m.as_slice()).ok(),
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => vtep = plain(bytes),
                NeighbourAttribute::Vni(number) => vni = Some(*number),
                _ => {}
            }
        }
        let Some(mac) = mac.map(Mac) else { continue };
        match vtep {
            Some(_) => drop(tunnelled.insert(Station { device, mac, vtep, vni })),
            None if message.header.state == NeighbourState::Noarp => drop(bridged.insert((device, mac))),
            None => {}
        }
    }
    for station in tunnelled {
        let of_bridge = bridged.remove(&(station.device.clone(), station.mac));
        if of_bridge || station.vni.is_some() || station.mac == Mac([0; 6]) {
            space.stations.insert(station);
        }
    }
    space.stations.extend(bridged.into_iter().map(|(device, mac)| Station {
        device,
        mac,
        vtep: None,
        vni: None,
    }));
    Ok(())
}

fn plain(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
