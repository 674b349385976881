//! Router advertisements: what a router says of the IPv6 subnets on one of its legs. Pure; `respond` has the sockets.
//!
//! A subnet without an RA mode is not advertised, and a leg without advertised subnets stays silent.
//! Source: RFC 4861 section 4.2, RFC 8106 (DNS), openstack/neutron `ipv6_ra_mode`.

use base::node::{Ipv6Mode, Network, RouterInterface, Subnet};
use ipnet::{IpNet, Ipv6Net};
use std::net::IpAddr;
use std::time::Duration;

/// Between two unasked advertisements.
pub const EVERY: Duration = Duration::from_secs(60);
/// For the router, its prefixes' preference and its DNS servers.
const LIFETIME_SECS: u16 = 1800;
const VALID_SECS: u32 = 86_400;
const PREFERRED_SECS: u32 = 14_400;

/// The ICMPv6 message for a leg (without checksum: the kernel writes it); none when there is nothing to say.
pub fn advertisement(network: &Network, interface: &RouterInterface) -> Option<Vec<u8>> {
    let here = |subnet: &&Subnet| interface.addresses.iter().any(|a| subnet.cidr.contains(&a.addr()));
    let subnets: Vec<(&Subnet, Ipv6Net, Ipv6Mode)> = network
        .subnets
        .iter()
        .filter(here)
        .filter_map(|subnet| match subnet.cidr {
            IpNet::V6(cidr) => Some((subnet, cidr.trunc(), subnet.ipv6_ra?)),
            IpNet::V4(_) => None,
        })
        .collect();
    if subnets.is_empty() {
        return None;
    }
    let managed = subnets.iter().any(|(_, _, mode)| *mode == Ipv6Mode::Dhcpv6Stateful);
    let other = managed || subnets.iter().any(|(_, _, mode)| *mode == Ipv6Mode::Dhcpv6Stateless);
    let flags = (managed as u8) << 7 | (other as u8) << 6;
    let mut out = vec![134, 0, 0, 0, 64, flags];
    out.extend(LIFETIME_SECS.to_be_bytes());
    out.extend([0; 8]);
    out.extend([1, 1]);
    out.extend(interface.mac.0);
    out.extend([5, 1, 0, 0]);
    out.extend(network.mtu.to_be_bytes());
    for (subnet, cidr, mode) in subnets {
        prefix(&mut out, cidr, mode);
        servers(&mut out, subnet);
    }
    Some(out)
}

/// On the link; for SLAAC and stateless DHCPv6 also to make addresses from.
fn prefix(out: &mut Vec<u8>, cidr: Ipv6Net, mode: Ipv6Mode) {
    let autonomous = mode != Ipv6Mode::Dhcpv6Stateful && cidr.prefix_len() == 64;
    out.extend([3, 4, cidr.prefix_len(), 0x80 | (autonomous as u8) << 6]);
    out.extend(VALID_SECS.to_be_bytes());
    out.extend(PREFERRED_SECS.to_be_bytes());
    out.extend([0; 4]);
    out.extend(cidr.network().octets());
}

fn servers(out: &mut Vec<u8>, subnet: &Subnet) {
    let six = |address: &IpAddr| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    };
    let servers: Vec<_> = subnet.dns.iter().filter_map(six).take(8).collect();
    if !servers.is_empty() {
        out.extend([25, 1 + 2 * servers.len() as u8, 0, 0]);
        out.extend(u32::from(LIFETIME_SECS).to_be_bytes());
        out.extend(servers.iter().flat_map(|server| server.octets()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn check(mode: Option<Ipv6Mode>, expect: Option<(u8, u8)>) {
        let subnet = Subnet {
            id: Uuid::nil(),
            cidr: "2001:db8:1::/64".parse().unwrap(),
            gateway: Some("2001:db8:1::1".parse().unwrap()),
            dhcp: true,
            dns: vec!["2001:db8::53".parse().unwrap()],
            routes: Vec::new(),
            ipv6_ra: mode,
            ipv6_address: mode,
        };
        let network = Network {
            id: Uuid::nil(),
            vni: 1,
            mtu: 1450,
            external: false,
            physical: None,
            router: None,
            subnets: vec![subnet],
            dns_domain: String::new(),
        };
        let interface = RouterInterface {
            port: Uuid::nil(),
            network: Uuid::nil(),
            mac: "fa:16:3e:00:00:01".parse().unwrap(),
            addresses: vec!["2001:db8:1::1/64".parse().unwrap()],
        };
        let message = advertisement(&network, &interface);
        assert_eq!(message.as_ref().map(|m| (m[5], m[35])), expect, "{mode:?}");
        assert!(message.is_none_or(|m| m.len() == 16 + 8 + 8 + 32 + 24));
    }

    #[test]
    fn flags_follow_the_mode() {
        check(None, None);
        check(Some(Ipv6Mode::Slaac), Some((0, 0xc0)));
        check(Some(Ipv6Mode::Dhcpv6Stateless), Some((0x40, 0xc0)));
        check(Some(Ipv6Mode::Dhcpv6Stateful), Some((0xc0, 0x80)));
    }
}
