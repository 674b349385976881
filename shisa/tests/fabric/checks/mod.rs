//! The checks, in the order in which they run: those that take something down are last.

mod addresses;
mod apart;
mod central;
mod east_west;
mod groups;
mod loss;
mod offload;
mod outside;
mod services;
mod sizes;
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
    short("flowtable", "established flows are carried by it where the kernel has one, and end with their rule and their address", offload::established),
    long("spoof-mac", "dropped", spoof::source_mac),
    short("spoof-ip", "dropped", spoof::source_address),
    long("spoof-arp-ip", "dropped", spoof::arp_address),
    long("spoof-arp-mac", "dropped", spoof::arp_mac),
    long("spoof-dhcp-server", "dropped", spoof::dhcp_server),
    long("spoof-ra", "dropped", spoof::router_advertisement),
    short("dhcp", "a real client is leased its port's address, router and MTU", addresses::dhcp),
    long("mtu-too-large", "400 for a network wider than the underlay carries", addresses::mtu_too_large),
    long("mtu-errors-inward", "guests on three hosts are told of a narrow link behind the translation", sizes::errors_inward),
    long("mtu-errors-outward", "the world is told of a guest's narrower network", sizes::errors_outward),
    long("mtu-without-errors", "TCP through SNAT works while all errors are lost", sizes::without_errors),
    long("slaac", "addresses by advertisement are the ports', and are reached between hosts and routed", addresses::slaac),
    long("dhcpv6", "the port's address, by DHCPv6, with the advertised router", addresses::dhcp6),
    short("dns-udp", "a guest on another host is known by its name", services::dns_udp),
    long("dns-tcp", "a guest on another host is known by its name", services::dns_tcp),
    long("dns-through-crash", "no question without its answer while the node's process is killed and started", services::dns_through_crash),
    short("metadata-ipv4", "each guest is told its own server", services::metadata4),
    long("metadata-ipv6", "a guest without IPv4 is told its own server", services::metadata6),
    short("overlapping-projects", "equal addresses of two projects never meet", apart::overlapping),
    short("vip-move", "an address claimed by ARP is reached at its new place within 1 s", apart::vip),
    long("central-router", "it is on one host, routes between subnets and out", central::works),
    long("physical-network", "guests on three hosts and the provider's router, without tunnels", central::physical),
    long("restarts", "twenty times kill -9 and start of nodes lose no more than a run without", loss::restarts),
    long("plane-lost", "all goes on without a plane, also when a node starts anew meanwhile", loss::plane),
    long("host-lost", "only its own guests are gone; what it did for others moves", loss::host),
];

/// What was seen, or that it should not have been.
pub fn ensure(holds: bool, seen: impl Into<String>) -> Outcome {
    if holds { Ok(seen.into()) } else { Err(seen.into()) }
}
