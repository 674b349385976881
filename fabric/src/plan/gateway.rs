//! A router's way outside, from one node's point of view: its leg into the external network, floating addresses,
//! forwarded ports, and source addresses that nodes share by blocks of ports.
//!
//! Every node has a leg with a MAC of its own and the floating addresses of its own ports. The owner's has the
//! gateway's addresses too, and its MAC. What comes to the owner and is in another node's block, or for a port that is
//! forwarded on another node, is passed on without state: its mark leads to a table whose one route is that node's leg.
//! Errors are passed on by the packet that they quote. Conntrack puts fragments together before.
//!
//! A node that holds no address asks for next hops as nobody (0.0.0.0), as RFC 5227 has it, so nobody takes it for the
//! gateway. What comes by the leg and would leave by it again without a mark is dropped: it is nobody's.
//!
//! Limits: protocols without ports or identifiers pass only where a node has an address to itself; quoted packets with
//! IP options are not found; IPv6 is routed, not translated.

use super::{METADATA, Sections, table};
use crate::state::{Link, LinkKind, MAIN, Place, Route, Set, Space, Table, leg, leg_port};
use base::node::{FloatingIp, Network, Router, RouterGateway, SnatShare};
use base::units::Mac;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Marks of packets for other nodes start here; the number of the node's hop is added.
const MARK: u32 = 0x1_0000;
/// An address that every leg has: with its last one a device loses its routes. Nobody asks for it.
const STANDING: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const PORTS: &str = "{ tcp, udp, dccp, sctp, udplite }";

/// The gateway of a router as this node has it.
pub struct Gateway<'a> {
    router: &'a Router,
    gateway: &'a RouterGateway,
    node: IpAddr,
    device: String,
    floating: Vec<&'a FloatingIp>,
}

impl<'a> Gateway<'a> {
    pub fn of(s: &Sections<'a>, router: &'a Router, node: IpAddr) -> Option<Gateway<'a>> {
        let gateway = router.gateway.as_ref()?;
        let floating = floating(s, router).collect();
        Some(Gateway { router, gateway, node, device: leg(gateway.port, true), floating })
    }

    fn owns(&self) -> bool {
        self.gateway.owner == Some(self.node)
    }

    pub fn mac(&self) -> Mac {
        self.gateway.mac_at(self.node)
    }

    /// Addresses that this node answers for.
    pub fn addresses(&self) -> BTreeSet<IpNet> {
        let mut out: BTreeSet<IpNet> = self.floating.iter().map(|f| IpNet::from(f.floating)).collect();
        out.insert(IpNet::from(IpAddr::V4(STANDING)));
        if self.owns() {
            out.extend(self.gateway.addresses.iter().copied());
            out.extend(self.router.forwards.iter().map(|forward| IpNet::from(forward.floating)));
        }
        let shared = |a: &IpAddr| self.gateway.addresses.iter().any(|net| net.addr() == *a);
        out.extend(self.share().map(|s| s.address).filter(|a| !shared(a)).map(IpNet::from));
        out
    }

    /// Addresses that the host reaches by this node's leg: those above, and the gateway's for what comes back.
    pub fn reached(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.addresses();
        let all = own.into_iter().chain(self.gateway.addresses.iter().copied()).map(|net| net.addr());
        all.filter(|address| *address != IpAddr::V4(STANDING))
    }

    pub fn leg(&self, network: &Network) -> Link {
        let peer = (Place::Network(network.id), leg_port(self.gateway.port));
        Link {
            kind: LinkKind::Veth { peer },
            mac: Some(self.mac()),
            mtu: Some(network.mtu),
            up: self.router.admin_up,
            master: None,
            port: None,
            addresses: self.addresses(),
        }
    }

    /// The networks on the leg's link.
    pub fn links(&self) -> impl Iterator<Item = IpNet> {
        self.gateway.addresses.iter().map(IpNet::trunc)
    }

    /// Without an address of these networks the kernel does not know that they are on the link.
    pub fn routes(&self) -> BTreeSet<Route> {
        if self.owns() || !self.router.admin_up {
            return BTreeSet::new();
        }
        let route = |to| Route { table: MAIN, to, via: None, device: Some(self.device.clone()) };
        self.links().map(route).collect()
    }

    /// Whether what turns around in the router always takes an address outside, so that answers come back to it.
    pub fn turns_around(&self) -> bool {
        self.share().is_some()
    }

    /// What this node's guests leave by.
    fn share(&self) -> Option<SnatShare> {
        let ours = self.gateway.shares.iter().find(|share| share.vtep == self.node).copied();
        let first = self.gateway.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
        let alone = self.gateway.shares.is_empty() && self.owns();
        ours.or(first.filter(|_| alone).map(|address| SnatShare {
            vtep: self.node,
            address,
            ports: (0, u16::MAX),
        }))
    }

    /// The nodes that the owner passes packets on to, with the number of each: its last two bytes as a link-local
    /// address. A hash, so that it stays while others come and go.
    fn hops(&self) -> BTreeMap<IpAddr, u16> {
        let mut out = BTreeMap::new();
        if !self.owns() {
            return out;
        }
        let sharing = self.gateway.shares.iter().map(|share| share.vtep);
        let forwarding = self.router.forwards.iter().filter_map(|forward| forward.vtep);
        let others: BTreeSet<IpAddr> = sharing.chain(forwarding).filter(|vtep| *vtep != self.node).collect();
        let mut taken: BTreeSet<u16> = [METADATA, STANDING].map(last_two).into();
        for vtep in others {
            let start = (crate::state::fnv([vtep.to_string()]) % 65_000) as u16 + 1;
            let free = (start..).chain(1..start).find(|n| taken.insert(*n)).unwrap_or(start);
            out.insert(vtep, free);
        }
        out
    }

    /// Routes, rules and neighbours of the hops, and the tables of the router.
    pub fn translate(&self, space: &mut Space) {
        for (vtep, number) in self.hops() {
            let [high, low] = number.to_be_bytes();
            let address = IpAddr::V4(Ipv4Addr::new(169, 254, high, low));
            let mark = MARK + u32::from(number);
            space.marks.insert(mark);
            let (to, via) = (super::routing::default_of(address), Some(address));
            space.routes.insert(Route { table: mark, to, via, device: Some(self.device.clone()) });
            space.neighbours.insert((self.device.clone(), address), self.gateway.mac_at(vtep));
        }
        space.tables.insert("arp shisa".to_string(), self.questions());
    }

    /// Without an address of its own a node asks as nobody.
    fn questions(&self) -> Table {
        let mut base = Vec::new();
        if !self.owns() {
            base.push("chain ask { type filter hook output priority 0; policy accept; }".to_string());
            let ask = format!("oifname \"{}\" arp operation request", self.device);
            base.push(format!("rule ask {ask} arp saddr ip set 0.0.0.0"));
        }
        table(base, BTreeMap::new()).seal()
    }

    fn fill(&self, sets: &mut BTreeMap<String, Set>) {
        let mut insert = |set: &str, key: Vec<String>, value: String| {
            if let Some(set) = sets.get_mut(set) {
                set.elements.insert(key, value);
            }
        };
        for f in self.floating.iter().filter(|f| f.floating.is_ipv4() && f.fixed.is_ipv4()) {
            insert("fip_in", vec![f.floating.to_string()], f.fixed.to_string());
            insert("fip_out", vec![f.fixed.to_string()], f.floating.to_string());
        }
        let hops = self.hops();
        let mark = |vtep: &IpAddr| hops.get(vtep).map(|number| (MARK + u32::from(*number)).to_string());
        for share in self.gateway.shares.iter().filter(|share| self.is_shared(share.address)) {
            let Some(mark) = mark(&share.vtep) else { continue };
            for set in ["steer", "steer_id"] {
                insert(set, vec![share.address.to_string(), range(share.ports)], mark.clone());
            }
        }
        for forward in &self.router.forwards {
            let kind = if forward.protocol == 6 { "tcp" } else { "udp" };
            if forward.vtep == Some(self.node) {
                let ports =
                    (forward.ports.0..=forward.ports.1).zip(forward.fixed_ports.0..=forward.fixed_ports.1);
                for (from, to) in ports {
                    let key = vec![forward.floating.to_string(), from.to_string()];
                    insert(&format!("forward_{kind}"), key, format!("{} . {to}", forward.fixed));
                }
            }
            let Some(mark) = forward.vtep.as_ref().and_then(mark) else { continue };
            let key = vec![forward.floating.to_string(), range(forward.ports)];
            insert(&format!("steer_{kind}"), key.clone(), mark.clone());
            insert("steer_id", key, mark);
        }
    }

    fn is_shared(&self, address: IpAddr) -> bool {
        self.gateway.addresses.iter().any(|net| net.addr() == address)
    }

    /// What is another node's is marked, and not tracked here unless it comes from inside.
    fn steering(&self) -> Vec<String> {
        let out = &self.device;
        let quoted = "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,136,8";
        [
            "chain steer { type filter hook prerouting priority -300; policy accept; }".to_string(),
            "rule steer meta mark set ip daddr . tcp dport map @steer_tcp".to_string(),
            "rule steer meta mark set ip daddr . udp dport map @steer_udp".to_string(),
            format!("rule steer meta l4proto {PORTS} meta mark set ip daddr . th dport map @steer"),
            "rule steer icmp type echo-reply meta mark set ip daddr . icmp id map @steer_id".to_string(),
            format!("rule steer {quoted} {{ 6, 17, 33, 132, 136 }} meta mark set ip daddr . @th,224,16 map @steer_id"),
            format!("rule steer {quoted} 1 meta mark set ip daddr . @th,256,16 map @steer_id"),
            format!("rule steer iifname \"{out}\" meta mark != 0 notrack"),
        ]
        .into()
    }

    /// Whose address packets take on their way out, and when they turn around.
    fn sources(&self) -> Vec<String> {
        let out = format!("oifname \"{}\"", self.device);
        let turned = format!("iifname != \"{0}\" oifname != \"{0}\" ct status dnat", self.device);
        let mut rules = vec![format!("{out} snat ip to ip saddr map @fip_out")];
        if self.gateway.snat && !cfg!(feature = "break-snat") {
            rules.extend(self.share().into_iter().flat_map(|share| snat(&out, &share)));
            rules.push(format!("{out} meta nfproto ipv4 drop"));
        }
        rules.push(format!("{turned} snat ip to ip saddr map @fip_out"));
        rules.extend(self.share().into_iter().flat_map(|share| snat(&turned, &share)));
        rules
    }

    /// Sizes of TCP segments fit the way outside also where nobody tells that they do not.
    fn forwarding(&self) -> Vec<String> {
        let out = &self.device;
        let clamp = "tcp flags syn / syn,rst tcp option maxseg size set rt mtu";
        [
            "chain forward { type filter hook forward priority 0; policy accept; }".to_string(),
            format!("rule forward iifname \"{out}\" oifname \"{out}\" meta mark 0 drop"),
            format!("rule forward iifname \"{out}\" {clamp}"),
            format!("rule forward oifname \"{out}\" {clamp}"),
        ]
        .into()
    }
}

fn last_two(address: Ipv4Addr) -> u16 {
    let [_, _, high, low] = address.octets();
    u16::from_be_bytes([high, low])
}

/// Translation to a share: of everything when it has the address to itself, else of what has ports or identifiers.
fn snat(when: &str, share: &SnatShare) -> Vec<String> {
    let SnatShare { address, ports, .. } = share;
    if ports.0 <= 1 && ports.1 == u16::MAX {
        return vec![format!("{when} meta nfproto ipv4 snat ip to {address}")];
    }
    let to = format!("snat ip to {address}:{}", range(*ports));
    let proto = format!("{when} meta nfproto ipv4 meta l4proto {PORTS} {to}");
    vec![proto, format!("{when} ip protocol icmp {to}")]
}

fn range(ports: (u16, u16)) -> String {
    if ports.0 == ports.1 { ports.0.to_string() } else { format!("{}-{}", ports.0, ports.1) }
}

/// The floating addresses on this node that a router translates.
fn floating<'a>(s: &Sections<'a>, router: &Router) -> impl Iterator<Item = &'a FloatingIp> + use<'a> {
    let (id, network) = (router.id, router.gateway.as_ref().map(|gateway| gateway.network));
    let all: Vec<&'a FloatingIp> = s.floating_of(id).collect();
    all.into_iter().filter(move |f| Some(f.network) == network)
}

const MAPS: [(&str, &str); 8] = [
    ("fip_in", "type ipv4_addr : ipv4_addr"),
    ("fip_out", "type ipv4_addr : ipv4_addr"),
    ("forward_tcp", "type ipv4_addr . inet_service : ipv4_addr . inet_service"),
    ("forward_udp", "type ipv4_addr . inet_service : ipv4_addr . inet_service"),
    ("steer", "typeof ip daddr . th dport : meta mark; flags interval"),
    ("steer_id", "typeof ip daddr . icmp id : meta mark; flags interval"),
    ("steer_tcp", "typeof ip daddr . tcp dport : meta mark; flags interval"),
    ("steer_udp", "typeof ip daddr . udp dport : meta mark; flags interval"),
];

/// The table of a router's namespace.
pub fn translation(gateway: Option<&Gateway>) -> Table {
    let set =
        |(name, of): &(&str, &str)| (name.to_string(), Set { of: of.to_string(), elements: BTreeMap::new() });
    let Some(gateway) = gateway else { return table(Vec::new(), BTreeMap::new()).seal() };
    let mut maps: BTreeMap<String, Set> = MAPS.iter().map(set).collect();
    gateway.fill(&mut maps);
    let mut base = gateway.steering();
    base.extend([
        "chain pre { type nat hook prerouting priority -100; policy accept; }".to_string(),
        "chain post { type nat hook postrouting priority 100; policy accept; }".to_string(),
        "rule pre dnat ip to ip daddr . tcp dport map @forward_tcp".to_string(),
        "rule pre dnat ip to ip daddr . udp dport map @forward_udp".to_string(),
        "rule pre dnat ip to ip daddr map @fip_in".to_string(),
    ]);
    base.extend(gateway.sources().into_iter().map(|rule| format!("rule post {rule}")));
    base.extend(gateway.forwarding());
    table(base, maps).seal()
}
