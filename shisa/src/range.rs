//! The range of the first external network: one that no route of the host and no other running cloud has.
//!
//! The host's routes tell what is in use; a range that is not in the kernel yet is claimed by an abstract socket of its
//! name, which ends with the process and is per network namespace, as routes are.

use base::{Error, Result};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// No other cloud on this machine takes the range for as long as this lives.
pub struct Claim {
    _socket: UnixListener,
}

/// `172.24.N.0/24`
fn candidate(n: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(172, 24, n, 0), 24).expect("24 is a prefix length")
}

/// A free range; each cloud starts to look at another one.
pub fn choose(cloud: u32) -> Result<(Ipv4Net, Claim)> {
    let routes = routes()?;
    let free = |range: &Ipv4Net| !routes.iter().any(|route| overlap(route, range));
    let candidates = (0..=255u8).map(|n| candidate(n.wrapping_add(cloud as u8))).filter(free);
    candidates.into_iter().find_map(|range| claim(range).ok().map(|claim| (range, claim))).ok_or_else(|| {
        Error::unavailable(
            "no range of 172.24.0.0/16 is free for the external network: routes of this machine have all",
        )
    })
}

/// Claims the range of a cloud that starts again.
///
/// Errors: `Conflict` when another one that is up has it.
pub fn claim(range: Ipv4Net) -> Result<Claim> {
    let address = SocketAddr::from_abstract_name(format!("shisa-range-{range}"))?;
    let taken = |e| {
        Error::conflict(format!("another cloud that is up on this machine has the range {range}")).because(e)
    };
    Ok(Claim { _socket: UnixListener::bind_addr(&address).map_err(taken)? })
}

fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn routes() -> Result<Vec<Ipv4Net>> {
    // A kernel without it has no IPv4.
    Ok(parse(&std::fs::read_to_string("/proc/net/route").unwrap_or_default()))
}

/// The destinations in `/proc/net/route`, the default route left out. Addresses are hex numbers of the host's order.
fn parse(text: &str) -> Vec<Ipv4Net> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (destination, mask) = (address(fields.get(1)?)?, address(fields.get(7)?)?);
        let net = Ipv4Net::with_netmask(destination, mask).ok()?;
        (net.prefix_len() > 0).then_some(net)
    };
    text.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t000418AC\t00000000\t0001\t0\t0\t0\t00FCFFFF\t0\t0\t0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read_and_ranges_beside_them_are_free() {
        let routes = parse(ROUTES);
        let shown: Vec<String> = routes.iter().map(Ipv4Net::to_string).collect();
        assert_eq!(shown, ["192.168.2.0/24", "172.24.4.0/22"]);
        let free = |n| !routes.iter().any(|route| overlap(route, &candidate(n)));
        assert!(free(3) && !free(4) && !free(7) && free(8));
    }

    #[test]
    fn a_range_is_claimed_once() {
        let range = "172.24.0.0/29".parse().unwrap();
        let first = claim(range).unwrap();
        assert!(claim(range).err().unwrap().message().contains("another cloud"));
        drop(first);
        claim(range).unwrap();
    }
}
