//! The checks, in the order in which they run: those that take something down are last.

mod east_west;

use crate::Outcome;
use crate::town::Town;

pub struct Check {
    pub name: &'static str,
    /// Of the short form, too.
    pub short: bool,
    pub expect: &'static str,
    pub run: fn(&mut Town) -> Outcome,
}

const fn short(name: &'static str, expect: &'static str, run: fn(&mut Town) -> Outcome) -> Check {
    Check { name, short: true, expect, run }
}

const fn long(name: &'static str, expect: &'static str, run: fn(&mut Town) -> Outcome) -> Check {
    Check { name, short: false, expect, run }
}

#[rustfmt::skip]
pub const ALL: &[Check] = &[
    short("same-subnet", "echo and TCP between hosts", east_west::same_subnet),
    short("east-west", "another subnet on another host is reached both ways", east_west::routed),
    short("east-west-third-host", "no tunnelled packet on the third host", east_west::third_host),
];

/// What was seen, or that it should not have been.
pub fn ensure(holds: bool, seen: impl Into<String>) -> Outcome {
    if holds { Ok(seen.into()) } else { Err(seen.into()) }
}
