//! Ways outside from several hosts: shared source addresses, floating addresses, forwarded ports. Needs root; says so
//! without.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use common::hosts::*;
use common::*;
use std::net::{SocketAddr, TcpListener};

/// A guest on each of three hosts, behind one router.
async fn three(c: &mut Hosts, physical: bool) -> (uuid::Uuid, Router, Vec<Port>) {
    let public = c.external(physical);
    let net = c.network(1, "10.77.0.0/24");
    let router = c.router(1, &[(net, "10.77.0.1/24")], public, 0);
    let ports = (0..3).map(|n| c.port(n, n as u8 + 1, net, &format!("10.77.0.{}", n + 5), &open())).collect();
    (public, router, ports)
}

fn guests(c: &mut Hosts, ports: &[Port]) -> Vec<Guest> {
    let play = |(host, port): (usize, &Port)| {
        let guest = c.guest(host, port);
        guest.route("default", "10.77.0.1");
        guest
    };
    let guests: Vec<Guest> = ports.iter().enumerate().map(play).collect();
    assert!(guests.iter().all(|guest| eventually(|| guest.pings("198.18.77.1"))));
    guests
}

#[test]
fn three_hosts_leave_by_one_address_and_each_gets_its_answers() {
    run_hosts(3, async |c| {
        let (_, _, ports) = three(c, true).await;
        c.sync().await;
        let guests = guests(c, &ports);
        let listener = c.world.inside(|| TcpListener::bind("198.18.77.1:7001").unwrap());
        serve_ports(listener);
        for (n, guest) in guests.iter().enumerate() {
            let (first, last) = SnatShare::block(n as u16);
            for _ in 0..5 {
                let seen = guest.seen_by("198.18.77.1", 7001);
                let seen: SocketAddr = seen.parse().unwrap_or_else(|_| panic!("host {n}: '{seen}'"));
                assert_eq!(seen.ip(), address("198.18.77.11"));
                assert!((first..=last).contains(&seen.port()), "{seen} is of the block of host {n}");
            }
            assert!(guest.pings("198.18.77.1"), "an echo's identifier is as a port, host {n}");
            assert!(guest.pings_with("198.18.77.1", 4000), "fragments are put together, host {n}");
            assert!(guest.is_refused("198.18.77.1", 9), "errors find their node, host {n}");
        }
        assert!(c.world.pings("198.18.77.11"), "the owner answers for the address");
        let strays = c.world.inside(|| talk("198.18.77.11:5000".parse().unwrap()));
        assert_eq!(strays, None, "nobody asked for it, and it goes nowhere");
        for host in 0..3 {
            c.at(host).restart().await;
        }
        c.sync().await;
        for host in 0..3 {
            assert_eq!(c.at(host).fabric().last_steps(), [""; 0]);
        }
        assert!(guests.iter().all(|guest| guest.pings("198.18.77.1")));
    });
}

#[test]
fn an_owner_that_changes_takes_the_address_along() {
    run_hosts(3, async |c| {
        let (public, _, ports) = three(c, true).await;
        c.sync().await;
        let guests = guests(c, &ports);
        assert!(c.world.pings("198.18.77.11") && guests.iter().all(|guest| guest.pings("198.18.77.1")));
        let net = ports[0].network;
        c.router(1, &[(net, "10.77.0.1/24")], public, 2);
        c.sync().await;
        assert!(guests.iter().all(|guest| guest.pings("198.18.77.1")));
        assert!(c.world.pings("198.18.77.11"));
    });
}

#[test]
fn a_floating_address_is_on_its_servers_node() {
    run_hosts(3, async |c| {
        let (public, router, ports) = three(c, true).await;
        let other = c.network(2, "10.77.0.0/24");
        let second = c.router(2, &[(other, "10.77.0.1/24")], public, 2);
        let foreign = c.port(2, 4, other, "10.77.0.5", &open());
        c.float(0, &ports[0], "198.18.77.20", router.id, public);
        c.float(1, &ports[1], "198.18.77.21", router.id, public);
        c.float(2, &foreign, "198.18.77.24", second.id, public);
        c.sync().await;
        let guests = guests(c, &ports);
        let foreign = c.guest(2, &foreign);
        foreign.route("default", "10.77.0.1");
        for guest in guests.iter().chain([&foreign]) {
            guest.serve(7);
        }
        assert!(eventually(|| foreign.pings("198.18.77.1")));
        floating(&guests, &foreign);
        let before = c.carried(0) + c.carried(2);
        let to = "198.18.77.21:7".parse().unwrap();
        assert_eq!(c.world.inside(|| talk(to)).as_deref(), Some("198.18.77.1"), "from outside");
        assert_eq!(c.carried(0) + c.carried(2), before, "by its own node alone");
        let listener = c.world.inside(|| TcpListener::bind("198.18.77.1:7001").unwrap());
        serve(listener);
        assert_eq!(guests[1].seen_by("198.18.77.1", 7001), "198.18.77.21", "and out by it");
        c.float(1, &ports[1], "198.18.77.29", router.id, public);
        c.sync().await;
        assert!(!c.world.pings("198.18.77.21") && c.world.pings("198.18.77.29"));
    });
}

/// Who sees whom by floating addresses, on one node and between nodes.
fn floating(guests: &[Guest], foreign: &Guest) {
    assert_eq!(guests[0].seen_by("198.18.77.20", 7), "198.18.77.20", "its own");
    assert_eq!(guests[0].seen_by("198.18.77.21", 7), "198.18.77.20", "a neighbour's on another node");
    assert_eq!(guests[2].seen_by("198.18.77.21", 7), "198.18.77.11", "without one, by the shared address");
    assert_eq!(guests[0].seen_by("198.18.77.24", 7), "198.18.77.20", "of another router on another node");
    assert_eq!(foreign.seen_by("198.18.77.21", 7), "198.18.77.24", "and back");
    assert_eq!(guests[2].seen_by("198.18.77.20", 7), "198.18.77.11", "on the owner's node");
    assert_eq!(guests[2].seen_by("198.18.77.24", 7), "198.18.77.11", "of another router on this node");
}

#[test]
fn floating_addresses_meet_where_each_host_holds_the_gateway() {
    run_hosts(3, async |c| {
        let (public, router, ports) = three(c, false).await;
        let other = c.network(2, "10.77.0.0/24");
        let second = c.router(2, &[(other, "10.77.0.1/24")], public, 2);
        let foreign = c.port(2, 4, other, "10.77.0.5", &open());
        c.float(0, &ports[0], "198.18.77.20", router.id, public);
        c.float(1, &ports[1], "198.18.77.21", router.id, public);
        c.float(2, &foreign, "198.18.77.24", second.id, public);
        c.sync().await;
        let guests = guests(c, &ports);
        let foreign = c.guest(2, &foreign);
        foreign.route("default", "10.77.0.1");
        for guest in guests.iter().chain([&foreign]) {
            guest.serve(7);
        }
        assert!(eventually(|| foreign.pings("198.18.77.1")));
        floating(&guests, &foreign);
        for (host, guest) in guests.iter().enumerate() {
            let listener = c.hosts[host].ns.inside(|| TcpListener::bind("198.18.77.1:7001").unwrap());
            serve(listener);
            let expect = ["198.18.77.20", "198.18.77.21", "198.18.77.11"][host];
            assert_eq!(guest.seen_by("198.18.77.1", 7001), expect, "each host is its guests' gateway");
        }
        let to = "198.18.77.21:7".parse().unwrap();
        assert_eq!(c.hosts[1].ns.inside(|| talk(to)).as_deref(), Some("198.18.77.1"));
    });
}

#[test]
fn forwarded_ports_end_on_the_node_of_the_fixed_address() {
    run_hosts(3, async |c| {
        let (_, mut router, ports) = three(c, true).await;
        let forward = |port: u16, host: usize| PortForward {
            floating: address("198.18.77.30"),
            protocol: 6,
            ports: (port, port),
            fixed: ports[host].fixed[0].address,
            fixed_ports: (7, 7),
            vtep: Some(vtep(host)),
        };
        router.forwards = vec![forward(2200, 0), forward(2201, 1), forward(2202, 2)];
        c.put(Section::Router(router.clone()));
        c.sync().await;
        let guests = guests(c, &ports);
        guests.iter().for_each(|guest| guest.serve(7));
        for port in [2200, 2201, 2202] {
            let to = SocketAddr::new(address("198.18.77.30"), port);
            assert_eq!(c.world.inside(|| talk(to)).as_deref(), Some("198.18.77.1"), "port {port}");
            for (n, guest) in guests.iter().enumerate() {
                assert_eq!(guest.seen_by("198.18.77.30", port), "198.18.77.11", "host {n} to {port}");
            }
        }
        assert!(!guests[1].connects("198.18.77.30", 2203));
        router.forwards.clear();
        c.put(Section::Router(router));
        c.sync().await;
        assert_eq!(c.world.inside(|| talk("198.18.77.30:2201".parse().unwrap())), None);
    });
}
