//! Security groups.

use super::ensure;
use crate::Outcome;
use crate::cloud::text;
use crate::guest::{ECHO, Guest, WAIT, line};
use crate::hosts::until;
use crate::space::Space;
use crate::town::{SOON, Town, rule};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

pub fn group(town: &Town, name: &str) -> Outcome {
    Ok(text(&town.api.make("security_group", json!({"name": name}))?["id"]))
}

/// A rule for echo over TCP.
pub fn tcp(more: Value) -> Value {
    crate::town::with(json!({"protocol": "tcp", "port_range_min": ECHO, "port_range_max": ECHO}), more)
}

/// Waits until a guest is reached by TCP, or not any more.
fn reached(from: &Guest, to: &Guest, expect: bool) -> Outcome {
    until(SOON, || {
        let seen = from.asks(to.address(), ECHO);
        ensure(seen.is_ok() == expect, format!("{} to {}: {seen:?}", from.name, to.name))
    })
}

/// A guest of a group of its own on the second host.
pub fn guarded<T>(
    town: &mut Town,
    name: &str,
    work: impl FnOnce(&mut Town, &Guest, &str) -> Outcome<T>,
) -> Outcome<T> {
    let group = group(town, name)?;
    let guest = town.guest(name, 1, &town.blue, json!({"security_groups": [group]}))?;
    let outcome = work(town, &guest, &group);
    town.remove(guest)?;
    outcome
}

pub fn inward(town: &mut Town) -> Outcome {
    guarded(town, "inward", |town, guest, group| {
        let blue = &town.blues[0];
        let (out, echo) = (reached(guest, blue, true)?, blue.pings(guest.address()));
        let closed = reached(blue, guest, false)?;
        rule(&town.api, group, tcp(json!({})))?;
        let opened = reached(blue, guest, true)?;
        let still = blue.pings(guest.address());
        ensure(!echo && !still, format!("{out}; {closed}, echo {echo}; with a rule {opened}, echo {still}"))
    })
}

pub fn outward(town: &mut Town) -> Outcome {
    guarded(town, "outward", |town, guest, group| {
        let (blue, rules) =
            (&town.blues[0], town.api.get(&format!("/v2.0/security-group-rules?security_group_id={group}"))?);
        let before = reached(guest, blue, true)?;
        for one in rules["security_group_rules"].as_array().into_iter().flatten() {
            town.api.delete(&format!("/v2.0/security-group-rules/{}", text(&one["id"])))?;
        }
        let closed = reached(guest, blue, false)?;
        rule(&town.api, group, tcp(json!({})))?;
        let answers = reached(blue, guest, true)?;
        rule(
            &town.api,
            group,
            tcp(json!({"direction": "egress", "remote_ip_prefix": format!("{}/32", blue.address())})),
        )?;
        let (one, other) = (reached(guest, blue, true)?, guest.asks(town.blues[2].address(), ECHO));
        ensure(
            other.is_err(),
            format!(
                "{before}; without rules {closed}; answers go: {answers}; to one alone: {one}, {other:?}"
            ),
        )
    })
}

pub fn remote_group(town: &mut Town) -> Outcome {
    let friends = group(town, "friends")?;
    guarded(town, "remote", |town, guest, group| {
        rule(&town.api, group, tcp(json!({"remote_group_id": friends})))?;
        let friend = &town.blues[2];
        let member = |groups: Value| {
            town.api
                .put(&format!("/v2.0/ports/{}", friend.port), json!({"port": {"security_groups": groups}}))
                .map(drop)
        };
        member(json!([town.open, friends]))?;
        let inside = reached(friend, guest, true)?;
        let outside = town.blues[0].asks(guest.address(), ECHO);
        member(json!([town.open]))?;
        let left = reached(friend, guest, false)?;
        ensure(outside.is_err(), format!("member {inside}; other {outside:?}; left {left}"))
    })
}

/// Many flows, as it takes one packet at the wrong moment for one to go on.
const FLOWS: usize = 8;
const ANSWER_MAX: Duration = Duration::from_millis(400);

/// A connection that has said who it is.
pub fn flow(from: &Space, to: IpAddr) -> Outcome<TcpStream> {
    let to = SocketAddr::new(to, ECHO);
    let flow = from.inside(|| TcpStream::connect_timeout(&to, WAIT));
    let mut flow = flow.map_err(|e| e.to_string())?;
    flow.set_read_timeout(Some(WAIT)).unwrap();
    line(&mut flow)?;
    flow.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    Ok(flow)
}

/// Whether a line is answered.
pub fn talks(flow: &mut TcpStream) -> bool {
    flow.write_all(b"still there\n").is_ok() && line(flow).is_ok()
}

pub fn removed_rule(town: &mut Town) -> Outcome {
    guarded(town, "removed", |town, guest, group| {
        let id = rule(&town.api, group, tcp(json!({})))?;
        reached(&town.blues[0], guest, true)?;
        let mut flows =
            (0..FLOWS).map(|_| flow(&town.blues[0].space, guest.address())).collect::<Outcome<Vec<_>>>()?;
        ensure(flows.iter_mut().all(talks), "the flows talk before")?;
        town.api.delete(&format!("/v2.0/security-group-rules/{id}"))?;
        until(SOON, || {
            let going = flows.iter_mut().map(talks).filter(|talks| *talks).count();
            ensure(going == 0, format!("{going} of {FLOWS} flows go on"))
        })?;
        Ok(format!("{FLOWS} flows ended; a new one: {}", reached(&town.blues[0], guest, false)?))
    })
}
