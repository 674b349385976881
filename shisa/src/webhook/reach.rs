//! Which addresses a webhook of a server's owner may lead to.
//!
//! Whoever names a URL has us send there, from a machine that reaches what they do not: so public addresses only, and
//! none of the cloud's own, unless the operator allows it.
//!
//! Source: IANA, IPv4 and IPv6 Special-Purpose Address Registries.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Not reached, whatever a name resolves to.
const V4: [(Ipv4Addr, u8); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 52, 193, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved, broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];
/// Of the rest only this is global unicast,
const GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// and of that not what has an IPv4 address in it (Teredo, 6to4), nor what is for documents.
const V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// What an owner's webhook may reach.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// The operator's word, before all else.
    pub allow: Vec<IpNet>,
    /// The cloud's own networks.
    pub own: Vec<IpNet>,
}

impl Reach {
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        within(&self.allow) || (is_public(address) && !within(&self.own) && !is_here(address))
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !V4.iter().any(|(net, bits)| Ipv4Net::new(*net, *bits).is_ok_and(|net| net.contains(&v4)))
        }
        IpAddr::V6(v6) => {
            let within =
                |(net, bits): &(Ipv6Addr, u8)| Ipv6Net::new(*net, *bits).is_ok_and(|net| net.contains(&v6));
            within(&GLOBAL) && !V6.iter().any(within)
        }
    }
}

/// It is this machine's: the kernel would answer it from the address itself. Connecting a datagram socket sends nothing.
fn is_here(address: IpAddr) -> bool {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let from = UdpSocket::bind(any)
        .and_then(|socket| socket.connect(SocketAddr::new(address, 9)).and_then(|()| socket.local_addr()));
    from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reach: &Reach, address: &str, expect: bool) {
        assert_eq!(reach.allows(address.parse().unwrap()), expect, "{address}");
    }

    #[test]
    fn only_public_addresses_are_reached() {
        let reach = Reach::default();
        for address in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2001::1",
            "2002:7f00:1::",
            "2001:db8::1",
            "3fff::1",
            "4000::1",
        ] {
            check(&reach, address, false);
        }
        for address in
            ["9.9.9.9", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "::ffff:9.9.9.9"]
        {
            check(&reach, address, true);
        }
    }

    #[test]
    fn the_clouds_own_networks_are_not_reached_and_what_is_allowed_is() {
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let reach = Reach {
            allow: nets(&["10.9.0.0/16", "9.9.9.9/32"]),
            own: nets(&["9.9.9.0/24", "2606:4700::/32"]),
        };
        check(&reach, "9.9.9.8", false);
        check(&reach, "9.9.9.9", true);
        check(&reach, "2606:4700::1111", false);
        check(&reach, "10.9.1.1", true);
        check(&reach, "::ffff:10.9.1.1", true);
        check(&reach, "10.8.1.1", false);
    }
}
