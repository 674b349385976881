//! Routes of our own protocol, and rules that send marked packets to tables of their own.

use super::link::{but, family, index};
use super::netlink::Netlink;
use crate::state::{Route, Space};
use base::Result;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The protocol number of our routes and rules: `S`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x53);
/// `RT_TABLE_LOCAL`.
const LOCAL: u8 = 255;
/// Before the main table's.
const PRIORITY: u32 = 1000;

/// Makes or removes a route. One with a device takes its next hop to be on that device's link.
pub fn set(netlink: &mut Netlink, route: &Route, add: bool) -> Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.to.addr());
    message.header.destination_prefix_length = route.to.prefix_len();
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = PROTOCOL;
    message.header.scope = if route.via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Destination(route.to.addr().into()));
    message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
    if let Some(device) = &route.device {
        message.attributes.push(RouteAttribute::Oif(index(netlink, device)?));
        if route.via.is_some() {
            message.header.flags = RouteFlags::Onlink;
        }
    }
    match add {
        true => {
            but(netlink.change(Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE), &[libc::EEXIST])
        }
        false => but(netlink.change(Message::DelRoute(message), 0), &[libc::ESRCH]),
    }
}

/// Marks are looked at before the host's own addresses: a marked packet may be to one of them and for another node.
fn before_local(netlink: &mut Netlink) -> Result<()> {
    let rule = |priority: u32| {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.header.table = LOCAL;
        message.attributes.push(RuleAttribute::Priority(priority));
        message.attributes.push(RuleAttribute::Table(LOCAL.into()));
        message
    };
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    but(netlink.change(Message::NewRule(rule(PRIORITY + 1)), flags), &[libc::EEXIST])?;
    but(netlink.change(Message::DelRule(rule(0)), 0), &[libc::ENOENT])
}

/// Sends packets with a mark to the table of its number, or no longer.
pub fn mark(netlink: &mut Netlink, mark: u32, add: bool) -> Result<()> {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(PRIORITY));
    message.attributes.push(RuleAttribute::FwMark(mark));
    message.attributes.push(RuleAttribute::Table(mark));
    message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
    match add {
        true => {
            before_local(netlink)?;
            but(netlink.change(Message::NewRule(message), NLM_F_CREATE | NLM_F_EXCL), &[libc::EEXIST])
        }
        false => but(netlink.change(Message::DelRule(message), 0), &[libc::ENOENT]),
    }
}

pub fn observe(netlink: &mut Netlink, names: &BTreeMap<u32, String>, space: &mut Space) -> Result<()> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in netlink.dump(Message::GetRoute(request))? {
            let Message::NewRoute(message) = message else { continue };
            let ours = message.header.protocol == PROTOCOL;
            space.routes.extend(ours.then(|| route_of(&message, names)).flatten());
        }
    }
    let mut request = RuleMessage::default();
    request.header.family = AddressFamily::Inet;
    for message in netlink.dump(Message::GetRule(request))? {
        let Message::NewRule(message) = message else { continue };
        space.marks.extend(mark_of(&message));
    }
    Ok(())
}

fn mark_of(message: &RuleMessage) -> Option<u32> {
    let ours = |attribute: &RuleAttribute| *attribute == RuleAttribute::Protocol(PROTOCOL);
    message.attributes.iter().find(|attribute| ours(attribute))?;
    message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    })
}

/// The kernel tells a device of every route; it is kept where it says more than the next hop.
fn route_of(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let (mut to, mut via, mut device, mut table) = (None, None, None, message.header.table.into());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = plain(address),
            RouteAttribute::Gateway(address) => via = plain(address),
            RouteAttribute::Oif(index) => device = names.get(index).cloned(),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let onlink = message.header.flags.contains(RouteFlags::Onlink);
    let v4 = message.header.address_family == AddressFamily::Inet;
    let any: IpAddr = if v4 { [0; 4].into() } else { [0; 16].into() };
    let to = IpNet::new(to.unwrap_or(any), message.header.destination_prefix_length).ok()?;
    Some(Route { table, to, via, device: device.filter(|_| onlink || via.is_none()) })
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}
