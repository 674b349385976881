//! DHCPv4 for guests: what a port is leased is read from the document, so the answer to a request needs no memory and
//! a restart is free. Pure; `respond` has the sockets.
//!
//! A server is told its fixed address and nothing else; others on the link are not answered. The server id is the
//! metadata address, the same on every network and node, so a renewal finds an answer wherever it is sent.
//! A guest with several NICs gets its default route from the first whose subnet has a gateway.
//!
//! Deliberately absent: relays (`giaddr`).
//! Source: RFC 2131, RFC 2132, RFC 3442.

use crate::plan::{METADATA, Sections};
use base::node::{Port, Subnet};
use base::units::Mac;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Decodable, Decoder, Encodable};
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use uuid::Uuid;

pub const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// A day, as Neutron's default.
const LEASE_SECS: u32 = 86_400;
/// An option of a port's own: at most this long.
const OPTION_MAX: usize = 1024;

/// What a port is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub address: Ipv4Addr,
    /// Next server, in the fixed part.
    pub next_server: Ipv4Addr,
    pub options: BTreeMap<u8, Vec<u8>>,
}

/// By network and MAC.
pub type Leases = BTreeMap<(Uuid, Mac), Lease>;

pub fn leases(s: &Sections) -> Leases {
    let ports = s.ports.values().filter(|port| port.admin_up);
    ports.filter_map(|port| Some(((port.network, port.mac), lease(s, port)?))).collect()
}

/// The subnet and address that a port is leased by DHCP.
fn leased<'a>(s: &Sections<'a>, port: &Port) -> Option<(&'a Subnet, Ipv4Addr)> {
    let network = s.networks.get(&port.network)?;
    port.fixed.iter().find_map(|fixed| match fixed.address {
        IpAddr::V4(address) => {
            let subnet = network.subnets.iter().find(|subnet| subnet.id == fixed.subnet && subnet.dhcp)?;
            Some((subnet, address))
        }
        IpAddr::V6(_) => None,
    })
}

fn gateway(subnet: &Subnet) -> Option<Ipv4Addr> {
    match subnet.gateway? {
        IpAddr::V4(gateway) => Some(gateway),
        IpAddr::V6(_) => None,
    }
}

/// Whether this port is the one that gives its guest the default route.
fn leads(s: &Sections, port: &Port) -> bool {
    let Some(vm) = port.vm.and_then(|vm| s.vms.get(&vm)) else { return true };
    let known = vm.ports.iter().filter_map(|id| s.ports.get(id));
    let mut able = known.filter(|port| leased(s, port).is_some_and(|(subnet, _)| gateway(subnet).is_some()));
    able.next().is_none_or(|first| first.id == port.id)
}

fn lease(s: &Sections, port: &Port) -> Option<Lease> {
    let (subnet, address) = leased(s, port)?;
    let network = s.networks.get(&port.network)?;
    let IpNet::V4(cidr) = subnet.cidr else { return None };
    let router = gateway(subnet).filter(|_| leads(s, port));
    let mtu = u16::try_from(network.mtu).unwrap_or(u16::MAX);
    let mut options = BTreeMap::from([
        (1, cidr.netmask().octets().to_vec()),
        (12, hostname(s, port, address).into_bytes()),
        (26, mtu.to_be_bytes().to_vec()),
        (28, cidr.broadcast().octets().to_vec()),
        (121, routes(subnet, router)),
    ]);
    options.extend(router.map(|router| (3, router.octets().to_vec())));
    let mut servers: Vec<u8> = subnet.dns.iter().filter_map(four).flat_map(|a| a.octets()).collect();
    if subnet.dns.is_empty() {
        servers.extend(METADATA.octets());
    }
    let domain = super::dns::domain(network).into_bytes();
    options.extend([(6, servers), (15, domain)].into_iter().filter(|(_, value)| !value.is_empty()));
    let mut lease = Lease { address, next_server: Ipv4Addr::UNSPECIFIED, options };
    for extra in port.dhcp_options.iter().filter(|extra| !extra.v6) {
        own_option(&mut lease, &extra.name, &extra.value);
    }
    Some(lease)
}

fn four(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

fn hostname(s: &Sections, port: &Port, address: Ipv4Addr) -> String {
    let vm = port.vm.and_then(|vm| s.vms.get(&vm));
    let name = vm.map(|vm| vm.metadata.hostname.clone()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("host-{}", address.to_string().replace('.', "-")))
}

/// Classless static routes: the subnet's, the metadata address on the link, and the default once more, because a
/// client that reads this option does not read option 3.
fn routes(subnet: &Subnet, router: Option<Ipv4Addr>) -> Vec<u8> {
    let mut all: Vec<(Ipv4Net, Ipv4Addr)> = Vec::new();
    for (to, via) in &subnet.routes {
        if let (IpNet::V4(to), IpAddr::V4(via)) = (to, via) {
            all.push((to.trunc(), *via));
        }
    }
    let metadata = Ipv4Net::from(METADATA);
    if all.iter().all(|(to, _)| *to != metadata) {
        all.push((metadata, Ipv4Addr::UNSPECIFIED));
    }
    all.extend(router.map(|router| (Ipv4Net::default(), router)));
    let text = |(to, via): &(Ipv4Net, Ipv4Addr)| {
        let bytes = usize::from(to.prefix_len().div_ceil(8));
        let mut out = vec![to.prefix_len()];
        out.extend(&to.network().octets()[..bytes]);
        out.extend(via.octets());
        out
    };
    all.iter().flat_map(text).collect()
}

/// How the value of an option is written.
#[derive(Clone, Copy)]
enum Form {
    Addresses,
    Text,
    Byte,
    Short,
    Long,
    /// By what it looks like: addresses, hex bytes between colons, or text.
    Guess,
}

/// Options by dnsmasq's names, as the API takes them. Source: dnsmasq `--help dhcp`.
const NAMES: [(&str, u8, Form); 30] = [
    ("netmask", 1, Form::Addresses),
    ("time-offset", 2, Form::Long),
    ("router", 3, Form::Addresses),
    ("dns-server", 6, Form::Addresses),
    ("log-server", 7, Form::Addresses),
    ("lpr-server", 9, Form::Addresses),
    ("hostname", 12, Form::Text),
    ("boot-file-size", 13, Form::Short),
    ("domain-name", 15, Form::Text),
    ("swap-server", 16, Form::Addresses),
    ("root-path", 17, Form::Text),
    ("extension-path", 18, Form::Text),
    ("ip-forward-enable", 19, Form::Byte),
    ("default-ttl", 23, Form::Byte),
    ("mtu", 26, Form::Short),
    ("broadcast", 28, Form::Addresses),
    ("static-route", 33, Form::Addresses),
    ("arp-timeout", 35, Form::Long),
    ("tcp-ttl", 37, Form::Byte),
    ("nis-domain", 40, Form::Text),
    ("nis-server", 41, Form::Addresses),
    ("ntp-server", 42, Form::Addresses),
    ("netbios-ns", 44, Form::Addresses),
    ("netbios-nodetype", 46, Form::Byte),
    ("vendor-class", 60, Form::Text),
    ("tftp-server", 66, Form::Text),
    ("bootfile-name", 67, Form::Text),
    ("smtp-server", 69, Form::Addresses),
    ("tftp-server-address", 150, Form::Addresses),
    ("wpad", 252, Form::Text),
];

/// Options that are ours to say: pad, lease time, message type, server id, end and the like.
const RESERVED: [u8; 8] = [0, 50, 51, 52, 53, 54, 55, 255];

/// An extra option of a port. What cannot be read is left out: the API checks names, the guest must boot.
fn own_option(lease: &mut Lease, name: &str, value: &str) {
    let name = name.strip_prefix("option:").unwrap_or(name);
    if name == "server-ip-address" {
        lease.next_server = value.parse().unwrap_or(lease.next_server);
        return;
    }
    let known = NAMES.iter().find(|(known, code, _)| *known == name || name.parse() == Ok(*code));
    let number = || Some((name.parse::<u8>().ok()?, Form::Guess));
    let Some((code, form)) = known.map(|(_, code, form)| (*code, *form)).or_else(number) else { return };
    let bytes = written(form, value).filter(|bytes| !bytes.is_empty() && bytes.len() <= OPTION_MAX);
    if let (Some(bytes), false) = (bytes, RESERVED.contains(&code)) {
        lease.options.insert(code, bytes);
    }
}

fn written(form: Form, value: &str) -> Option<Vec<u8>> {
    match form {
        Form::Addresses => addresses(value),
        Form::Text => Some(value.as_bytes().to_vec()),
        Form::Byte => Some(vec![value.parse().ok()?]),
        Form::Short => Some(value.parse::<u16>().ok()?.to_be_bytes().to_vec()),
        Form::Long => Some(value.parse::<i64>().ok()?.to_be_bytes()[4..].to_vec()),
        Form::Guess => addresses(value).or_else(|| hex(value)).or_else(|| Some(value.as_bytes().to_vec())),
    }
}

fn addresses(value: &str) -> Option<Vec<u8>> {
    let all: Result<Vec<Ipv4Addr>, _> = value.split(',').map(|part| part.trim().parse()).collect();
    Some(all.ok()?.into_iter().flat_map(|address| address.octets()).collect())
}

fn hex(value: &str) -> Option<Vec<u8>> {
    let parts: Vec<&str> = value.split(':').collect();
    let byte = |part: &&str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
    if parts.len() > 1 { parts.iter().map(byte).collect() } else { None }
}

/// An answer and where it goes.
#[derive(Debug, PartialEq)]
pub struct Reply {
    pub bytes: Vec<u8>,
    pub to: SocketAddrV4,
}

/// The answer to a packet on a network; none when there is nothing to say.
pub fn answer(leases: &Leases, network: Uuid, packet: &[u8]) -> Option<Reply> {
    let request = Message::decode(&mut Decoder::new(packet)).ok()?;
    if request.opcode() != Opcode::BootRequest || !request.giaddr().is_unspecified() {
        return None;
    }
    let mac = Mac(<[u8; 6]>::try_from(request.chaddr()).ok()?);
    let lease = leases.get(&(network, mac))?;
    let kind = kind(&request, lease)?;
    let reply = message(&request, lease, kind);
    Some(Reply { bytes: reply.to_vec().ok()?, to: destination(&request, lease, kind) })
}

fn kind(request: &Message, lease: &Lease) -> Option<MessageType> {
    match request.opts().msg_type()? {
        MessageType::Discover => Some(MessageType::Offer),
        MessageType::Inform => Some(MessageType::Ack),
        MessageType::Request => {
            if let Some(DhcpOption::ServerIdentifier(server)) =
                request.opts().get(OptionCode::ServerIdentifier)
                && *server != METADATA
            {
                return None;
            }
            let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
                Some(DhcpOption::RequestedIpAddress(address)) => *address,
                _ => request.ciaddr(),
            };
            Some(if wanted == lease.address { MessageType::Ack } else { MessageType::Nak })
        }
        _ => None,
    }
}

fn message(request: &Message, lease: &Lease, kind: MessageType) -> Message {
    let inform = request.opts().has_msg_type(MessageType::Inform);
    let refused = kind == MessageType::Nak;
    let mut out = Message::default();
    out.set_opcode(Opcode::BootReply).set_htype(request.htype()).set_xid(request.xid());
    out.set_flags(request.flags()).set_chaddr(request.chaddr());
    let options = out.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(METADATA));
    if refused {
        return out;
    }
    for (code, bytes) in &lease.options {
        options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(*code), bytes.clone())));
    }
    if !inform {
        options.insert(DhcpOption::AddressLeaseTime(LEASE_SECS));
        options.insert(DhcpOption::Renewal(LEASE_SECS / 2));
        options.insert(DhcpOption::Rebinding(LEASE_SECS / 8 * 7));
        out.set_yiaddr(lease.address);
    }
    out.set_ciaddr(request.ciaddr()).set_siaddr(lease.next_server);
    out
}

/// The client's address when it has one; else the leased one, whose MAC is a static neighbour; else everyone.
fn destination(request: &Message, lease: &Lease, kind: MessageType) -> SocketAddrV4 {
    let address = match (request.ciaddr(), kind) {
        (_, MessageType::Nak) => Ipv4Addr::BROADCAST,
        (own, _) if !own.is_unspecified() => own,
        _ if request.flags().broadcast() => Ipv4Addr::BROADCAST,
        _ => lease.address,
    };
    SocketAddrV4::new(address, CLIENT_PORT)
}

#[cfg(test)]
#[path = "dhcp4_tests.rs"]
mod tests;
