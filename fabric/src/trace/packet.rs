//! A packet as rules see it: its fields by nft's names.

use base::units::Mac;
use std::net::IpAddr;

/// The first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source_mac: Mac,
    pub target_mac: Mac,
    pub source: IpAddr,
    pub target: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Of protocols with ports: the source's and the target's.
    pub ports: Option<(u16, u16)>,
    /// The target was translated on this node.
    pub translated: bool,
    pub mark: u32,
    /// The devices by which it came into this place and leaves it, as far as is known yet.
    pub came: String,
    pub leaves: String,
}

/// How far it may go.
const HOPS: u8 = 64;
/// Echo request of ICMP and ICMPv6.
const ECHO: (u8, u8) = (8, 128);

impl Packet {
    fn v6(&self) -> bool {
        self.target.is_ipv6()
    }

    /// A field; none when this packet has none such. An unknown field is an error: a rule is never misread.
    pub fn field(&self, name: &str) -> Result<Option<String>, String> {
        let ports = |of: u8, which: fn((u16, u16)) -> u16| {
            self.ports.filter(|_| of == 0 || self.protocol == of).map(which).map(|port| port.to_string())
        };
        let four = |a: IpAddr| a.is_ipv4().then(|| a.to_string());
        let six = |a: IpAddr| a.is_ipv6().then(|| a.to_string());
        let echo = |protocol: u8, kind: u8| (self.protocol == protocol).then(|| kind.to_string());
        Ok(match name {
            "iifname" => Some(self.came.clone()),
            "oifname" => Some(self.leaves.clone()),
            "ether saddr" => Some(self.source_mac.to_string()),
            "ether daddr" => Some(self.target_mac.to_string()),
            "ether type" => Some(if self.v6() { "ip6" } else { "ip" }.to_string()),
            "ip saddr" => four(self.source),
            "ip daddr" => four(self.target),
            "ip6 saddr" => six(self.source),
            "ip6 daddr" => six(self.target),
            "ip protocol" => (!self.v6()).then(|| self.protocol.to_string()),
            "meta l4proto" => Some(self.protocol.to_string()),
            "meta nfproto" => Some(if self.v6() { "ipv6" } else { "ipv4" }.to_string()),
            "meta pkttype" => Some("host".to_string()),
            "ip ttl" => (!self.v6()).then(|| HOPS.to_string()),
            "ip6 hoplimit" => self.v6().then(|| HOPS.to_string()),
            "ip hdrlength" => (!self.v6()).then(|| "5".to_string()),
            "meta mark" => Some(self.mark.to_string()),
            "th sport" => ports(0, |p| p.0),
            "th dport" => ports(0, |p| p.1),
            "udp sport" => ports(17, |p| p.0),
            "udp dport" => ports(17, |p| p.1),
            "tcp sport" => ports(6, |p| p.0),
            "tcp dport" => ports(6, |p| p.1),
            "tcp flags" => ports(6, |_| 0).map(|_| "syn".to_string()),
            "icmp type" => echo(1, ECHO.0),
            "icmpv6 type" => echo(58, ECHO.1),
            "icmp code" => echo(1, 0),
            "icmpv6 code" => echo(58, 0),
            "icmp id" => None,
            "ct state" => Some("new".to_string()),
            "ct direction" => Some("original".to_string()),
            "ct status" => Some(if self.translated { "dnat" } else { "" }.to_string()),
            arp if arp.starts_with("arp ") => None,
            // Inside of what an ICMP error quotes, or of neighbour discovery.
            raw if raw.starts_with('@') => None,
            unknown => return Err(format!("the field '{unknown}' is not known to the trace")),
        })
    }
}
