//! The checks, in the order in which they run: those that take something down are last.

mod east_west;
mod groups;
mod outside;
mod spoof;

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
    short("floating-in", "the world reaches a guest by its floating address and is seen as itself", outside::floating_in),
    short("floating-out", "a guest is seen outside as its floating address", outside::floating_out),
    long("floating-ends", "a removed floating address is silent, its guest leaves by the gateway's", outside::floating_ends),
    long("hairpin", "own and neighbour's floating addresses, on this host and another", outside::hairpin),
    long("hairpin-other-router", "floating addresses behind another router, on this host and another", outside::hairpin_other_router),
    short("snat", "three hosts at once by the gateway's address, each with a block of ports", outside::snat),
    long("snat-udp-icmp", "UDP by the gateway's address, and echo, from three hosts", outside::snat_udp_icmp),
    short("port-forwarding", "three ports of one address lead to guests on three hosts, another nowhere", outside::forwarding),
    short("group-inward", "nothing comes in without a rule, answers do, with a rule what it says", groups::inward),
    long("group-outward", "nothing goes out without a rule, answers do, with a rule what it says", groups::outward),
    short("group-remote", "members of the remote group come in, others and former ones do not", groups::remote_group),
    short("group-removed-rule", "an established flow is cut", groups::removed_rule),
    long("spoof-mac", "dropped", spoof::source_mac),
    short("spoof-ip", "dropped", spoof::source_address),
    long("spoof-arp-ip", "dropped", spoof::arp_address),
    long("spoof-arp-mac", "dropped", spoof::arp_mac),
    long("spoof-dhcp-server", "dropped", spoof::dhcp_server),
    long("spoof-ra", "dropped", spoof::router_advertisement),
];

/// What was seen, or that it should not have been.
pub fn ensure(holds: bool, seen: impl Into<String>) -> Outcome {
    if holds { Ok(seen.into()) } else { Err(seen.into()) }
}
