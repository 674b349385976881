//! Addresses: pools of a subnet, which are free, and how ranges and CIDRs lie to each other. All pure.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address as a number of its family.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a) as u128,
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The address of `n` in the family of `like`.
pub fn address(n: u128, like: &IpNet) -> IpAddr {
    match like {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(n as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(n)),
    }
}

/// First and last address that a host may have. A /31, /32, /127 or /128 uses all of its addresses.
pub fn usable(cidr: &IpNet) -> (u128, u128) {
    let (first, last) = (number(cidr.network()), number(cidr.broadcast()));
    match cidr {
        IpNet::V4(net) if net.prefix_len() < 31 => (first + 1, last - 1),
        IpNet::V6(net) if net.prefix_len() < 127 => (first + 1, last),
        IpNet::V4(_) | IpNet::V6(_) => (first, last),
    }
}

/// The gateway that a subnet gets when nobody names one: its first usable address.
pub fn default_gateway(cidr: &IpNet) -> IpAddr {
    address(usable(cidr).0, cidr)
}

/// The pools that a subnet gets when nobody names any: everything usable but the gateway.
pub fn default_pools(cidr: &IpNet, gateway: Option<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
    let (first, last) = usable(cidr);
    let at = |a, b| (address(a, cidr), address(b, cidr));
    match gateway.map(number).filter(|g| (first..=last).contains(g)) {
        None => vec![at(first, last)],
        Some(g) => {
            let mut pools = Vec::new();
            if g > first {
                pools.push(at(first, g - 1));
            }
            if g < last {
                pools.push(at(g + 1, last));
            }
            pools
        }
    }
}

/// Draws before the pools are searched one by one.
const DRAWS: usize = 10;
/// Addresses looked at in such a search; a pool with this many taken in a row counts as full.
const SEARCH_MAX: u128 = 70_000;

/// A free address of the pools: drawn at random first, then the lowest. None: all are taken.
pub fn pick(
    cidr: &IpNet,
    pools: &[(IpAddr, IpAddr)],
    mut random: impl FnMut() -> u128,
    taken: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let sizes: Vec<u128> = pools.iter().map(|(a, b)| (number(*b) - number(*a)).saturating_add(1)).collect();
    let total = sizes.iter().fold(0u128, |a, b| a.saturating_add(*b));
    if total == 0 {
        return None;
    }
    for _ in 0..DRAWS {
        let mut n = random() % total;
        for ((first, _), size) in pools.iter().zip(&sizes) {
            if n < *size {
                let drawn = address(number(*first) + n, cidr);
                if !taken(drawn) {
                    return Some(drawn);
                }
                break;
            }
            n -= size;
        }
    }
    let all = pools.iter().flat_map(|(a, b)| number(*a)..=number(*b));
    all.take(SEARCH_MAX as usize).map(|n| address(n, cidr)).find(|a| !taken(*a))
}

/// Whether an address lies in one of the pools.
pub fn in_pools(pools: &[(IpAddr, IpAddr)], address: IpAddr) -> bool {
    pools.iter().any(|(a, b)| a.is_ipv4() == address.is_ipv4() && (*a..=*b).contains(&address))
}

pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The first prefix of `length` within `prefixes` that overlaps none of `used`.
pub fn carve(prefixes: &[IpNet], length: u8, used: &[IpNet]) -> Option<IpNet> {
    prefixes.iter().find_map(|prefix| {
        let mut candidates = match prefix {
            IpNet::V4(net) => IpNet::V4(*net).subnets(length).ok()?,
            IpNet::V6(net) => IpNet::V6(*net).subnets(length).ok()?,
        };
        candidates.by_ref().take(SEARCH_MAX as usize).find(|c| !used.iter().any(|u| overlap(c, u)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pools(cidr: &str, gateway: Option<&str>) -> String {
        let gateway = gateway.map(|g| g.parse().unwrap());
        let pools = default_pools(&cidr.parse().unwrap(), gateway);
        pools.iter().map(|(a, b)| format!("{a}-{b}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn pools_leave_out_the_gateway_and_the_ends() {
        assert_eq!(pools("10.0.0.0/24", Some("10.0.0.1")), "10.0.0.2-10.0.0.254");
        assert_eq!(pools("10.0.0.0/24", Some("10.0.0.254")), "10.0.0.1-10.0.0.253");
        assert_eq!(pools("10.0.0.0/29", Some("10.0.0.3")), "10.0.0.1-10.0.0.2 10.0.0.4-10.0.0.6");
        assert_eq!(pools("10.0.0.0/24", None), "10.0.0.1-10.0.0.254");
        assert_eq!(pools("10.0.0.0/31", None), "10.0.0.0-10.0.0.1");
        assert_eq!(pools("2001:db8::/64", Some("2001:db8::1")), "2001:db8::2-2001:db8::ffff:ffff:ffff:ffff");
    }

    #[test]
    fn prefixes_are_carved_beside_each_other() {
        let from = ["10.0.0.0/30".parse().unwrap(), "10.1.0.0/16".parse().unwrap()];
        let first = carve(&from, 24, &[]).unwrap();
        assert_eq!(first.to_string(), "10.1.0.0/24");
        assert_eq!(carve(&from, 24, &[first]).unwrap().to_string(), "10.1.1.0/24");
        assert_eq!(carve(&from[..1], 29, &[]), None);
    }

    proptest! {
        #[test]
        fn every_free_address_is_found_once(seed in any::<u64>()) {
            let cidr: IpNet = "192.0.2.0/27".parse().unwrap();
            let pools = default_pools(&cidr, Some("192.0.2.9".parse().unwrap()));
            let mut taken = BTreeSet::new();
            let mut state = seed as u128;
            for _ in 0..29 {
                let random = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1); state >> 3 };
                let drawn = pick(&cidr, &pools, random, |a| taken.contains(&a)).unwrap();
                prop_assert!(in_pools(&pools, drawn) && taken.insert(drawn));
            }
            prop_assert_eq!(pick(&cidr, &pools, || 0, |a| taken.contains(&a)), None);
        }
    }
}
