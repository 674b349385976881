//! To the world and back: floating addresses, shared source addresses, forwarded ports.

use super::ensure;
use crate::Outcome;
use crate::cloud::text;
use crate::guest::{ECHO, Guest, asks, asks_udp, pings};
use crate::hosts::{WORLD, until};
use crate::town::{SOON, Town, net, open, router};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Whether who was seen has this address.
fn is_seen_as(seen: &Outcome, address: &str) -> bool {
    seen.as_ref().is_ok_and(|seen| seen.parse::<SocketAddr>().is_ok_and(|at| at.ip().to_string() == address))
}

/// Asks until it is seen as `expect`, or says what it was.
fn seen_as(from: &Guest, to: &str, expect: &str) -> Outcome {
    until(SOON, || {
        let seen = from.asks(to, ECHO);
        ensure(is_seen_as(&seen, expect), format!("{} at {to} is {seen:?}, to be {expect}", from.name))
    })
}

/// A floating address for as long as the work takes.
fn floating<T>(
    town: &mut Town,
    on: &[usize],
    work: impl FnOnce(&mut Town, &[String]) -> Outcome<T>,
) -> Outcome<T> {
    let made = on.iter().map(|n| town.float(&town.blues[*n])).collect::<Outcome<Vec<_>>>()?;
    let addresses: Vec<String> = made.iter().map(|(_, address)| address.clone()).collect();
    let outcome = work(town, &addresses);
    made.iter().try_for_each(|(id, _)| town.unfloat(id))?;
    outcome
}

pub fn floating_in(town: &mut Town) -> Outcome {
    floating(town, &[1], |town, floating| {
        let ask = || {
            let (seen, echo) = (
                asks(&town.machines.world, &floating[0], ECHO),
                pings(&town.machines.world, &floating[0], &[]),
            );
            ensure(
                echo && is_seen_as(&seen, WORLD),
                format!("the world at {} is {seen:?}, echo {echo}", floating[0]),
            )
        };
        until(SOON, ask)
    })
}

pub fn floating_out(town: &mut Town) -> Outcome {
    floating(town, &[1], |town, floating| seen_as(&town.blues[1], WORLD, &floating[0]))
}

pub fn floating_ends(town: &mut Town) -> Outcome {
    let address = floating(town, &[1], |town, floating| {
        until(SOON, || asks(&town.machines.world, &floating[0], ECHO)).map(|_| floating[0].clone())
    })?;
    let gone = || match asks(&town.machines.world, &address, ECHO) {
        Ok(seen) => Err(format!("{address} still answers {seen}")),
        Err(why) => Ok(why),
    };
    let gone = until(SOON, gone)?;
    Ok(format!("{gone}; {}", seen_as(&town.blues[1], WORLD, &town.gateway)?))
}

pub fn hairpin(town: &mut Town) -> Outcome {
    floating(town, &[0, 1], |town, f| {
        let own = seen_as(&town.blues[0], &f[0], &f[0])?;
        let neighbour = seen_as(&town.blues[0], &f[1], &f[0])?;
        let without = seen_as(&town.blues[2], &f[1], &town.gateway)?;
        Ok([own, neighbour, without].join(", "))
    })
}

/// A second project, with a router and the same addresses as the first.
pub fn hairpin_other_router(town: &mut Town) -> Outcome {
    let api = town.project("red")?;
    let red = net(&api, "red", "10.1.0.0/24")?;
    let (_, gateway) = router(&api, "red", &town.outside, &[&red], json!({}))?;
    let group = open(&api)?;
    let port = json!({"security_groups": [group]});
    let here = town.guest_of(&api, "red1", 0, &red, port.clone())?;
    let there = town.guest_of(&api, "red2", 1, &red, port)?;
    let outcome = floating(town, &[0], |town, f| {
        let (id, address) = town.float(&there)?;
        let seen = [
            seen_as(&here, &f[0], &gateway),
            seen_as(&there, &f[0], &address),
            seen_as(&town.blues[0], &address, &f[0]),
            seen_as(&town.blues[1], &address, &town.gateway),
        ];
        town.unfloat(&id)?;
        Ok(seen.into_iter().collect::<Outcome<Vec<_>>>()?.join(", "))
    });
    town.remove(here)?;
    town.remove(there)?;
    outcome
}

/// Each guest asks several times at once with the others; the blocks that its source ports were of.
pub fn snat(town: &mut Town) -> Outcome {
    for guest in &town.blues {
        seen_as(guest, WORLD, &town.gateway)?;
    }
    let all = |guest: &Guest| (0..8).map(|_| guest.asks(WORLD, ECHO)).collect::<Outcome<Vec<_>>>();
    let seen: Vec<Outcome<Vec<String>>> = std::thread::scope(|scope| {
        let asking: Vec<_> = town.blues.iter().map(|guest| scope.spawn(move || all(guest))).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut blocks = Vec::new();
    for (guest, seen) in town.blues.iter().zip(seen) {
        let seen: Vec<SocketAddr> = seen?.iter().filter_map(|s| s.parse().ok()).collect();
        let strange = seen.iter().find(|at| at.ip().to_string() != town.gateway);
        ensure(strange.is_none(), format!("{} was seen as {strange:?}, not {}", guest.name, town.gateway))?;
        blocks.push(seen.iter().map(|at| at.port() / 2048).collect::<BTreeSet<u16>>());
    }
    let distinct: BTreeSet<&u16> = blocks.iter().flatten().collect();
    let alone = blocks.iter().all(|of_host| of_host.len() == 1) && distinct.len() == blocks.len();
    ensure(alone, format!("24 connections from {}, blocks of 2048 ports by host {blocks:?}", town.gateway))
}

pub fn snat_udp_icmp(town: &mut Town) -> Outcome {
    let one = |guest: &Guest| {
        let (udp, echo) = (asks_udp(&guest.space, WORLD, ECHO), guest.pings(WORLD));
        ensure(echo && is_seen_as(&udp, &town.gateway), format!("{}: UDP {udp:?}, echo {echo}", guest.name))
    };
    Ok(town.blues.iter().map(|guest| until(SOON, || one(guest))).collect::<Outcome<Vec<_>>>()?.join(", "))
}

pub fn forwarding(town: &mut Town) -> Outcome {
    let made = town.api.make("floatingip", json!({"floating_network_id": town.outside}))?;
    let (id, address) = (text(&made["id"]), text(&made["floating_ip_address"]));
    let forwards = format!("/v2.0/floatingips/{id}/port_forwardings");
    let forward = |(n, guest): (usize, &Guest)| {
        let body = json!({"port_forwarding": {
            "protocol": "tcp", "external_port": 2200 + n, "internal_port": ECHO, "internal_port_id": guest.port,
            "internal_ip_address": guest.address().to_string(),
        }});
        Ok(text(&town.api.call("POST", &forwards, body)?["port_forwarding"]["id"]))
    };
    let made = town.blues.iter().enumerate().map(forward).collect::<Outcome<Vec<_>>>()?;
    let outcome = forwarded(town, &address);
    made.iter().try_for_each(|forward| town.api.delete(&format!("{forwards}/{forward}")))?;
    town.unfloat(&id)?;
    outcome
}

fn forwarded(town: &Town, address: &str) -> Outcome {
    let one = |port: u16| {
        let seen = until(SOON, || asks(&town.machines.world, address, port))?;
        ensure(is_seen_as(&Ok(seen.clone()), WORLD), format!("{port}: the world is {seen}"))
    };
    let world = (2200..2203).map(one).collect::<Outcome<Vec<_>>>()?.join(", ");
    let inside = until(SOON, || town.blues[2].asks(address, 2201))?;
    let other = asks(&town.machines.world, address, 2203);
    ensure(other.is_err(), format!("{world}, from inside {inside}, another port {other:?}"))
}
