//! DHCPv6 for guests, stateful and stateless: like `dhcp4`, read from the document and remembered nowhere. Pure.
//!
//! A client is known by its link-local address, which the guard at its tap holds to its MAC; a port without port
//! security that uses another is not answered. A server answers every message that RFC 8415 has for one: Solicit
//! (with Rapid Commit too), Request, Confirm, Renew, Rebind, Release, Decline, Information-request.
//!
//! Deliberately absent: temporary addresses, prefix delegation, relays, unicast to the server.
//! Source: RFC 8415, RFC 3646 (DNS).

use crate::plan::{METADATA6, Sections};
use base::node::{Ipv6Mode, Port};
use dhcproto::v6::{
    DhcpOption, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode, UnknownOption,
};
use dhcproto::{Decodable, Decoder, Encodable};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use uuid::Uuid;

pub const SERVER_PORT: u16 = 547;
/// A day, as for IPv4.
const VALID_SECS: u32 = 86_400;
const PREFERRED_SECS: u32 = 43_200;
/// Our DUID: by link-layer address (3) of type 27 (EUI-64), the metadata address's interface id. The same on every
/// node, as the address is, so a renewal finds an answer wherever its server moved.
const DUID: [u8; 12] = [0, 3, 0, 27, 0, 0, 0, 0, 0xa9, 0xfe, 0xa9, 0xfe];
const DNS_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;
const OPTION_MAX: usize = 1024;

/// What a port is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// None: only options, the address comes by SLAAC.
    pub address: Option<Ipv6Addr>,
    pub options: BTreeMap<u16, Vec<u8>>,
}

/// By network and the port's link-local address.
pub type Leases = BTreeMap<(Uuid, Ipv6Addr), Lease>;

pub fn leases(s: &Sections) -> Leases {
    let ports = s.ports.values().filter(|port| port.admin_up);
    ports.filter_map(|port| Some(((port.network, port.mac.link_local()), lease(s, port)?))).collect()
}

fn lease(s: &Sections, port: &Port) -> Option<Lease> {
    let network = s.networks.get(&port.network)?;
    let on = port.fixed.iter().filter_map(|fixed| match fixed.address {
        IpAddr::V6(address) => {
            let subnet = network.subnets.iter().find(|subnet| subnet.id == fixed.subnet && subnet.dhcp)?;
            Some((subnet, subnet.ipv6_address.filter(|mode| *mode != Ipv6Mode::Slaac)?, address))
        }
        IpAddr::V4(_) => None,
    });
    let on: Vec<_> = on.collect();
    let stateful = on.iter().find(|(_, mode, _)| *mode == Ipv6Mode::Dhcpv6Stateful);
    let (subnet, ..) = stateful.or(on.first())?;
    let six = |address: &IpAddr| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    };
    let mut servers: Vec<Ipv6Addr> = subnet.dns.iter().filter_map(six).collect();
    if subnet.dns.is_empty() {
        servers.push(METADATA6);
    }
    let mut options = BTreeMap::new();
    options.insert(DNS_SERVERS, servers.iter().flat_map(Ipv6Addr::octets).collect());
    options.insert(DOMAIN_LIST, domain(&network.dns_domain));
    options.extend(port.dhcp_options.iter().filter(|extra| extra.v6).filter_map(|o| own(&o.name, &o.value)));
    options.retain(|_, value: &mut Vec<u8>| !value.is_empty());
    Some(Lease { address: stateful.map(|(.., address)| *address), options })
}

/// A name in DNS's wire form; empty for none, and for one that cannot be written so.
fn domain(name: &str) -> Vec<u8> {
    let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
    if labels.iter().any(|label| label.is_empty() || label.len() > 63) {
        return Vec::new();
    }
    let wire = labels.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    wire.chain([0]).collect()
}

/// Options by dnsmasq's names. Source: dnsmasq `--help dhcp6`.
const NAMES: [(&str, u16); 6] = [
    ("sip-server", 22),
    ("dns-server", 23),
    ("domain-search", 24),
    ("nis-server", 27),
    ("sntp-server", 31),
    ("bootfile-url", 59),
];

/// An extra option of a port; what cannot be read is left out.
fn own(name: &str, value: &str) -> Option<(u16, Vec<u8>)> {
    let name = name.strip_prefix("option6:").unwrap_or(name);
    let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, code)| *code);
    let code = known.or_else(|| name.parse().ok()).filter(|code| !(1..=20).contains(code))?;
    let addresses: Result<Vec<Ipv6Addr>, _> =
        value.split(',').map(|part| part.trim().trim_matches(['[', ']']).parse()).collect();
    let bytes = match (addresses, code) {
        (Ok(addresses), _) => addresses.iter().flat_map(Ipv6Addr::octets).collect(),
        (Err(_), DOMAIN_LIST) => value.split(',').flat_map(|name| domain(name.trim())).collect(),
        (Err(_), _) => value.as_bytes().to_vec(),
    };
    (bytes.len() <= OPTION_MAX).then_some((code, bytes))
}

/// The answer to a packet on a network from a link-local address; none when there is nothing to say.
pub fn answer(leases: &Leases, network: Uuid, from: Ipv6Addr, packet: &[u8]) -> Option<Vec<u8>> {
    let request = Message::decode(&mut Decoder::new(packet)).ok()?;
    let lease = leases.get(&(network, from))?;
    let client = match request.opts().get(OptionCode::ClientId) {
        Some(DhcpOption::ClientId(id)) => Some(id.clone()),
        _ => None,
    };
    for_us(&request, client.is_some())?;
    let commits = request.opts().get(OptionCode::RapidCommit).is_some();
    let (kind, grant) = match request.msg_type() {
        MessageType::Solicit if commits => (MessageType::Reply, Grant::Address),
        MessageType::Solicit => (MessageType::Advertise, Grant::Address),
        MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            (MessageType::Reply, Grant::Address)
        }
        MessageType::Confirm => (MessageType::Reply, Grant::Status),
        MessageType::Release | MessageType::Decline => (MessageType::Reply, Grant::Done),
        MessageType::InformationRequest => (MessageType::Reply, Grant::Options),
        _ => return None,
    };
    let mut reply = Message::new_with_id(kind, request.xid());
    let options = reply.opts_mut();
    options.insert(DhcpOption::ServerId(DUID.to_vec()));
    if let Some(client) = client {
        options.insert(DhcpOption::ClientId(client));
    }
    if kind == MessageType::Reply && request.msg_type() == MessageType::Solicit {
        options.insert(DhcpOption::RapidCommit);
    }
    match grant {
        Grant::Address => {
            let wanted = request.opts().get_all(OptionCode::IANA).unwrap_or_default();
            wanted.iter().for_each(|ia| options.insert(granted(lease, ia)));
        }
        Grant::Status => options.insert(DhcpOption::StatusCode(confirmed(lease, &request)?)),
        Grant::Done => options.insert(DhcpOption::StatusCode(status(Status::Success))),
        Grant::Options => {}
    }
    for (code, bytes) in &lease.options {
        let option = UnknownOption::new(OptionCode::from(*code), bytes.clone());
        options.insert(DhcpOption::Unknown(option));
    }
    reply.to_vec().ok()
}

/// What an answer gives beside the options.
enum Grant {
    Address,
    Status,
    Done,
    Options,
}

/// Whether a server is to answer: RFC 8415 section 16 says what a message must and must not name.
fn for_us(request: &Message, client: bool) -> Option<()> {
    let server = match request.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(id)) => Some(id.as_slice() == DUID),
        _ => None,
    };
    let fine = match request.msg_type() {
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => client && server.is_none(),
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
            client && server == Some(true)
        }
        MessageType::InformationRequest => server.unwrap_or(true),
        _ => false,
    };
    fine.then_some(())
}

/// The address in an association that the client named; others in it end at once.
fn granted(lease: &Lease, wanted: &DhcpOption) -> DhcpOption {
    let DhcpOption::IANA(ia) = wanted else { return wanted.clone() };
    let mut out =
        IANA { id: ia.id, t1: PREFERRED_SECS / 2, t2: PREFERRED_SECS / 5 * 4, opts: Default::default() };
    let Some(own) = lease.address else {
        (out.t1, out.t2) = (0, 0);
        out.opts.insert(DhcpOption::StatusCode(status(Status::NoAddrsAvail)));
        return DhcpOption::IANA(out);
    };
    let address = |addr, valid_life, preferred_life| {
        DhcpOption::IAAddr(IAAddr { addr, preferred_life, valid_life, opts: Default::default() })
    };
    out.opts.insert(address(own, VALID_SECS, PREFERRED_SECS));
    let others = named(ia).filter(|addr| *addr != own);
    others.for_each(|addr| out.opts.insert(address(addr, 0, 0)));
    DhcpOption::IANA(out)
}

fn named(ia: &IANA) -> impl Iterator<Item = Ipv6Addr> {
    ia.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(address) => Some(address.addr),
        _ => None,
    })
}

/// Whether every address that the client names is its own; none when it names none.
fn confirmed(lease: &Lease, request: &Message) -> Option<StatusCode> {
    let associations = request.opts().get_all(OptionCode::IANA).unwrap_or_default();
    let mut all = associations
        .iter()
        .flat_map(|option| match option {
            DhcpOption::IANA(ia) => named(ia).collect(),
            _ => Vec::new(),
        })
        .peekable();
    all.peek()?;
    let own = all.all(|address| Some(address) == lease.address);
    Some(status(if own { Status::Success } else { Status::NotOnLink }))
}

fn status(status: Status) -> StatusCode {
    StatusCode { status, msg: String::new() }
}

#[cfg(test)]
#[path = "dhcp6_tests.rs"]
mod tests;
