//! Connections that the kernel knows: those of given addresses are deleted, so that what a rule or a floating address
//! no longer allows ends at once instead of at its time-out.
//!
//! The kernel has no deletion by one address, so all are dumped and the matching ones deleted by their tuple.
//! A TCP connection that is still allowed goes on: its next packet makes a new entry. But if that packet is of the side
//! that did not begin it, the entry has it the other way round; so where rules depend on who began, TCP is left alone.
//! Source: linux/netfilter/nfnetlink_conntrack.h.

use super::netlink::{Netlink, attribute, attributes};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

const CONNTRACK: u16 = 1 << 8;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;
const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const ZONE: u16 = 18;
/// Length of `nfgenmsg`: family, version, resource id.
const GENERIC: usize = 4;

/// Which connections of an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    All,
    /// All but TCP.
    Datagrams,
}

/// Deletes every connection that has one of these addresses on either side, before or after translation.
pub fn forget(netlink: &mut Netlink, addresses: &BTreeSet<IpAddr>, which: Which) -> io::Result<usize> {
    let mut count = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        if !addresses.iter().any(|address| address.is_ipv4() == (family == libc::AF_INET as u8)) {
            continue;
        }
        for entry in netlink.raw(GET, NLM_F_DUMP, &[family, 0, 0, 0])? {
            let Some(deletion) = deletion(&entry.body, addresses, which) else { continue };
            match netlink.raw(DELETE, NLM_F_ACK, &deletion) {
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                _ => count += 1,
            }
        }
    }
    Ok(count)
}

/// The message that deletes an entry, when it has one of the addresses.
fn deletion(entry: &[u8], addresses: &BTreeSet<IpAddr>, which: Which) -> Option<Vec<u8>> {
    let all = attributes(entry.get(GENERIC..)?);
    let tuples = all.iter().filter(|(kind, _)| matches!(*kind, TUPLE_ORIG | TUPLE_REPLY));
    let mut found = tuples.flat_map(|(_, tuple)| addresses_of(tuple));
    if !found.any(|address| addresses.contains(&address)) {
        return None;
    }
    let (_, tuple) = all.iter().find(|(kind, _)| *kind == TUPLE_ORIG)?;
    if which == Which::Datagrams && protocol(tuple) == Some(libc::IPPROTO_TCP as u8) {
        return None;
    }
    let mut out = vec![entry[0], 0, 0, 0];
    out.extend(attribute(TUPLE_ORIG | NESTED, tuple));
    if let Some((_, zone)) = all.iter().find(|(kind, _)| *kind == ZONE) {
        out.extend(attribute(ZONE, zone));
    }
    Some(out)
}

fn protocol(tuple: &[u8]) -> Option<u8> {
    let part = attributes(tuple).into_iter().find(|(kind, _)| *kind == TUPLE_PROTO)?.1;
    attributes(part).into_iter().find(|(kind, _)| *kind == PROTO_NUM)?.1.first().copied()
}

fn addresses_of(tuple: &[u8]) -> Vec<IpAddr> {
    let ip = attributes(tuple).into_iter().find(|(kind, _)| *kind == TUPLE_IP);
    let parts = ip.map(|(_, body)| attributes(body)).unwrap_or_default();
    parts.into_iter().filter_map(|(_, bytes)| address(bytes)).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
