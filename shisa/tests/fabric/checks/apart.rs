//! Networks that must not meet, and addresses that move.

use super::ensure;
use crate::Outcome;
use crate::guest::{ECHO, Guest};
use crate::hosts::{slow, until};
use crate::packets::{ARP, EVERYONE, Raw, arp, mac};
use crate::town::{SOON, Town, net, open, router};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Two guests of another project with the addresses of two of ours.
pub fn overlapping(town: &mut Town) -> Outcome {
    let api = town.project("twin")?;
    let twin = net(&api, "blue", "10.1.0.0/24")?;
    router(&api, "twin", &town.outside, &[&twin], json!({}))?;
    let group = open(&api)?;
    let of = |guest: &Guest| json!({"security_groups": [group], "fixed_ips": [{"ip_address": guest.address().to_string()}]});
    let one = town.guest_of(&api, "twin1", 0, &twin, of(&town.blues[0]))?;
    let two = town.guest_of(&api, "twin2", 1, &twin, of(&town.blues[1]))?;
    let ours = town.blues[2].address();
    let twins = until(SOON, || one.asks(two.address(), ECHO));
    let blues = town.blues[0].asks(town.blues[1].address(), ECHO);
    // Who stands there without a link is known to be the one that is meant.
    two.space.ip("link set eth0 down");
    let (lost, still) = (one.asks(two.address(), ECHO), town.blues[0].asks(town.blues[1].address(), ECHO));
    let across = one.pings(ours);
    town.remove(one)?;
    town.remove(two)?;
    let apart = lost.is_err() && still.is_ok() && !across;
    let seen = format!(
        "twins {:?}, ours {:?}; one twin unplugged: twins {lost:?}, ours {still:?}; {ours} from there: {across}",
        twins?, blues?
    );
    ensure(apart, seen)
}

/// From an announcement until the address is reached at its new place.
const MOVED_MAX: Duration = Duration::from_secs(1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 250);

/// Takes the address, and says so to all.
fn claim(guest: &Guest) {
    guest.space.ip(&format!("addr add {VIP}/32 dev eth0"));
    announce(guest);
}

fn announce(guest: &Guest) {
    let mut raw = Raw::on(&guest.space, "eth0");
    raw.send(EVERYONE, mac(guest), ARP, &arp(1, mac(guest), VIP, VIP));
}

/// How long until someone is answered by the address.
fn answered(from: &Guest) -> Outcome<Duration> {
    let begin = Instant::now();
    let one = || from.space.run(&format!("ping -n -c 1 -W 0.2 {VIP}")).map(|_| begin.elapsed());
    until(SOON, one)
}

/// From the first host to the second and back, as others on the third and behind the router see it.
pub fn vip(town: &mut Town) -> Outcome {
    let port = json!({"allowed_address_pairs": [{"ip_address": VIP.to_string()}]});
    let (one, two) =
        (town.guest("vip1", 0, &town.blue, port.clone())?, town.guest("vip2", 1, &town.blue, port)?);
    claim(&one);
    let first = answered(&town.blues[2]);
    one.space.ip(&format!("addr del {VIP}/32 dev eth0"));
    claim(&two);
    let (there, routed) = (answered(&town.blues[2]), answered(&town.greens[0]));
    two.space.ip(&format!("addr del {VIP}/32 dev eth0"));
    claim(&one);
    let back = answered(&town.blues[2]);
    town.remove(one)?;
    town.remove(two)?;
    let seen = format!("first {first:?}, moved {there:?}, routed {routed:?}, back {back:?}");
    let fast = [there, routed, back].into_iter().all(|moved| moved.is_ok_and(|t| t < MOVED_MAX * slow()));
    ensure(fast && first.is_ok(), seen)
}
