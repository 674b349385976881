//! Requests to the kernel over netlink, one at a time: send, read until it is acknowledged.
//!
//! Only this module and its neighbours know netlink; the rest of the crate knows `KernelState` and `Step`.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols};
use std::io;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A socket in the namespace of the thread that made it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A message of an answer: its header's type and what follows.
pub struct Answer {
    pub kind: u16,
    pub body: Vec<u8>,
}

impl Netlink {
    pub fn route() -> io::Result<Netlink> {
        Netlink::new(protocols::NETLINK_ROUTE)
    }

    pub fn netfilter() -> io::Result<Netlink> {
        Netlink::new(protocols::NETLINK_NETFILTER)
    }

    fn new(protocol: isize) -> io::Result<Netlink> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Everything of a kind.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let answers = self.send(message, NLM_F_DUMP)?;
        answers.iter().map(parse).collect()
    }

    /// One thing, when it is there.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        self.send(message, NLM_F_ACK)?.first().map(parse).transpose()
    }

    /// Changes something; `flags` are beyond request and acknowledgement.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags).map(drop)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<Answer>> {
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.exchange(bytes)
    }

    /// A message of another protocol: type, flags and all that follows the header.
    pub fn raw(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Answer>> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        self.exchange(bytes)
    }

    fn exchange(&mut self, mut bytes: Vec<u8>) -> io::Result<Vec<Answer>> {
        self.sequence = self.sequence.wrapping_add(1);
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (packet, _) = self.socket.recv_from_full()?;
            if self.read(&packet, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes the messages of one packet; true when the answer is complete.
    fn read(&self, mut packet: &[u8], answers: &mut Vec<Answer>) -> io::Result<bool> {
        while packet.len() >= HEADER {
            let length = number(packet, 0) as usize;
            let kind = u16::from_ne_bytes([packet[4], packet[5]]);
            if length < HEADER || length > packet.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let body = &packet[HEADER..length];
            if number(packet, 8) == self.sequence {
                match kind {
                    NLMSG_DONE => return Ok(true),
                    NLMSG_ERROR if body.len() >= 4 => return failure(number(body, 0) as i32),
                    kind => answers.push(Answer { kind, body: body.to_vec() }),
                }
            }
            packet = &packet[length.next_multiple_of(4).min(packet.len())..];
        }
        Ok(false)
    }
}

fn failure(code: i32) -> io::Result<bool> {
    if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn parse(answer: &Answer) -> io::Result<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = answer.kind;
    header.length = (HEADER + answer.body.len()) as u32;
    RouteNetlinkMessage::deserialize(&header, &answer.body)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// The attributes of a body, without the flag bits of their types.
pub fn attributes(mut body: &[u8]) -> Vec<(u16, &[u8])> {
    let mut out = Vec::new();
    while body.len() >= 4 {
        let length = u16::from_ne_bytes([body[0], body[1]]) as usize;
        if length < 4 || length > body.len() {
            break;
        }
        out.push((u16::from_ne_bytes([body[2], body[3]]) & 0x3fff, &body[4..length]));
        body = &body[length.next_multiple_of(4).min(body.len())..];
    }
    out
}

/// One attribute, padded.
pub fn attribute(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = ((4 + body.len()) as u16).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(body);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}
