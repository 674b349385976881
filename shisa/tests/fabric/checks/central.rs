//! Routers in one place, and a physical network that all hosts are on.

use super::ensure;
use crate::Outcome;
use crate::guest::{ECHO, Guest};
use crate::hosts::{HOSTS, LAN, LAN_ROUTER, WORLD, until};
use crate::town::{Net, SOON, Town, net, net_with, router};
use serde_json::json;

/// Two networks behind a central router, with guests on the second and third host.
pub struct Central {
    pub router: String,
    pub gateway: String,
    pub one: Guest,
    pub two: Guest,
}

impl Central {
    pub fn make(town: &Town, name: &str, third: u8) -> Outcome<Central> {
        let nets = [
            net(&town.api, name, &format!("10.{third}.1.0/24"))?,
            net(&town.api, name, &format!("10.{third}.2.0/24"))?,
        ];
        let all: Vec<&Net> = nets.iter().collect();
        let more = json!({"distributed": false});
        let (router, gateway) = router(&town.api, name, &town.outside, &all, more)?;
        let one = town.guest(&format!("{name}-one"), 1, &nets[0], json!({}))?;
        let two = town.guest(&format!("{name}-two"), 2, &nets[1], json!({}))?;
        Ok(Central { router, gateway, one, two })
    }

    /// The hosts on which the router is.
    pub fn at(&self, town: &Town) -> Vec<usize> {
        let has = |host: &usize| {
            let names = town.machines.hosts[*host].space.run("ls /run/netns");
            names.is_ok_and(|names| names.contains(&format!("-router-{}", self.router)))
        };
        (0..HOSTS).filter(has).collect()
    }

    /// From subnet to subnet, and out by the gateway's address.
    pub fn works(&self) -> Outcome {
        let (routed, out) = (self.one.asks(self.two.address(), ECHO), self.one.asks(WORLD, ECHO));
        let by_gateway = out.as_ref().is_ok_and(|seen| seen.starts_with(&format!("{}:", self.gateway)));
        ensure(routed.is_ok() && by_gateway, format!("routed {routed:?}, out {out:?} by {}", self.gateway))
    }

    pub fn remove(self, town: &Town) -> Outcome<()> {
        town.remove(self.one)?;
        town.remove(self.two)
    }
}

pub fn works(town: &mut Town) -> Outcome {
    let central = Central::make(town, "central", 30)?;
    let outcome = until(SOON, || central.works());
    let at = central.at(town);
    central.remove(town)?;
    ensure(
        at.len() == 1,
        format!("it is on host {:?}; {}", at.iter().map(|n| n + 1).collect::<Vec<_>>(), outcome?),
    )
}

/// Packets between three pairs of guests, each with a TCP connection at least; what others say late is less.
const OWN_MIN: u64 = 9;

pub fn physical(town: &mut Town) -> Outcome {
    let network = json!({"name": "lan", "provider:network_type": "flat", "provider:physical_network": "lan"});
    let pool = json!([{"start": format!("{LAN}.50"), "end": format!("{LAN}.99")}]);
    let subnet = json!({"ip_version": 4, "cidr": format!("{LAN}.0/24"), "gateway_ip": LAN_ROUTER, "allocation_pools": pool});
    let lan = net_with(&town.api, network, subnet)?;
    let guests = (0..HOSTS)
        .map(|n| town.guest(&format!("lan{}", n + 1), n, &lan, json!({})))
        .collect::<Outcome<Vec<_>>>()?;
    let lease = super::addresses::lease(&guests[1]);
    let before: u64 = town.machines.hosts.iter().map(|host| host.tunnelled()).sum();
    let outcome = until(SOON, || {
        let pairs = [(0, 1), (1, 2), (2, 0)].map(|(a, b)| guests[a].asks(guests[b].address(), ECHO));
        let router: Vec<Outcome> = guests.iter().map(|guest| guest.asks(LAN_ROUTER, ECHO)).collect();
        let all = pairs.iter().chain(&router).all(Outcome::is_ok);
        ensure(all, format!("between hosts {pairs:?}, the provider's router {router:?}"))
    });
    let tunnelled = town.machines.hosts.iter().map(|host| host.tunnelled()).sum::<u64>() - before;
    let inward = crate::guest::asks(&town.machines.lan, &guests[2].address().to_string(), ECHO);
    let leased = lease.is_ok_and(|lease| lease.get("ip") == Some(&guests[1].address().to_string()));
    for guest in guests {
        town.remove(guest)?;
    }
    let seen = format!(
        "{}; {tunnelled} packets in tunnels, in from the provider {inward:?}, leased {leased}",
        outcome?
    );
    ensure(tunnelled < OWN_MIN && inward.is_ok() && leased, seen)
}
