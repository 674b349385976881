//! Between hosts, in a network and by a router.

use super::ensure;
use crate::Outcome;
use crate::guest::{ECHO, Guest};
use crate::town::Town;

/// Echo and TCP; who we were seen as.
fn meets(from: &Guest, to: &Guest) -> Outcome {
    let (pings, seen) = (from.pings(to.address()), from.asks(to.address(), ECHO));
    let what = format!("{} to {}: echo {pings}, TCP {seen:?}", from.name, to.name);
    ensure(pings && seen.is_ok_and(|seen| seen.starts_with(&from.address().to_string())), what)
}

pub fn same_subnet(town: &mut Town) -> Outcome {
    let [one, two, ..] = &town.blues[..] else { return Err("no guests".into()) };
    Ok([meets(one, two)?, meets(two, one)?].join(", "))
}

pub fn routed(town: &mut Town) -> Outcome {
    let (blue, green) = (&town.blues[0], &town.greens[0]);
    Ok([meets(blue, green)?, meets(green, blue)?].join(", "))
}

pub fn third_host(town: &mut Town) -> Outcome {
    let third = &town.machines.hosts[2];
    let before = third.tunnelled();
    same_subnet(town)?;
    routed(town)?;
    let third = &town.machines.hosts[2];
    let (between, control) = (third.tunnelled() - before, third.tunnelled());
    // It has guests in both networks, and its counter counts.
    meets(&town.blues[0], &town.blues[2])?;
    let counted = town.machines.hosts[2].tunnelled() - control;
    ensure(between == 0 && counted > 0, format!("{between} packets, {counted} when it was meant"))
}
