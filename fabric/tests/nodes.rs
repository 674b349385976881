//! Real packets between hosts: one fabric each, a wire between them. Needs root; says so without.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use common::hosts::*;
use common::*;

#[test]
fn neighbours_on_two_hosts_meet_and_no_third_sees_them() {
    run_hosts(3, async |c| {
        let net = c.network(1, "10.71.0.0/24");
        let ports = [c.port(0, 1, net, "10.71.0.5", &open()), c.port(1, 2, net, "10.71.0.6", &open())];
        c.port(2, 3, net, "10.71.0.7", &open());
        c.sync().await;
        let (a, b) = (c.guest(0, &ports[0]), c.guest(1, &ports[1]));
        let before = c.carried(2);
        assert!(a.pings("10.71.0.6") && b.pings("10.71.0.5"));
        b.serve(7);
        assert!(a.connects("10.71.0.6", 7));
        assert_eq!(c.carried(2), before, "ARP is answered on the node and frames go to one node");
        assert!(!a.pings("10.71.0.99"));
        assert!(c.carried(2) > before, "a question for an unknown address goes to each node with a member");
        c.at(0).restart().await;
        c.sync().await;
        assert_eq!(c.at(0).fabric().last_steps(), [""; 0]);
        assert!(a.pings("10.71.0.6"));
    });
}

#[test]
fn two_subnets_meet_on_the_sending_node_and_no_third_sees_them() {
    run_hosts(3, async |c| {
        let (one, two) = (c.network(1, "10.72.1.0/24"), c.network(2, "10.72.2.0/24"));
        let a = c.port(0, 1, one, "10.72.1.5", &open());
        let b = c.port(1, 2, two, "10.72.2.5", &open());
        let third = [c.port(2, 3, one, "10.72.1.6", &open()), c.port(2, 4, two, "10.72.2.6", &open())];
        c.put(Section::Router(router(1, &[(one, "10.72.1.1/24"), (two, "10.72.2.1/24")])));
        c.sync().await;
        let (a, b, third) = (c.guest(0, &a), c.guest(1, &b), c.guest(2, &third[1]));
        a.route("default", "10.72.1.1");
        b.route("default", "10.72.2.1");
        third.route("default", "10.72.2.1");
        let before = c.carried(2);
        assert!(a.pings("10.72.2.5") && b.pings("10.72.1.5"));
        b.serve(7);
        assert!(a.connects("10.72.2.5", 7) && !a.connects("10.72.2.5", 9));
        assert_eq!(c.carried(2), before);
        for (host, net) in [(0, one), (1, two), (0, two), (1, one)] {
            let ns = format!("shisa-{:08x}-net-{net}", c.at(host).cloud);
            let known = sh(&["bridge", "-n", &ns, "fdb", "show", "dev", "vxlan0"]);
            assert!(
                !known.contains(&mac(144).to_string()) && !known.contains(&mac(145).to_string()),
                "{known}"
            );
        }
        assert!(third.pings("10.72.1.5") && a.pings("10.72.2.6"));
        let vni = sh(&["ip", "netns", "exec", &c.hosts[0].ns.0, "nft", "list", "ruleset"]);
        assert!(vni.contains("notrack"), "{vni}");
    });
}

#[test]
fn ipv6_meets_between_hosts_in_a_network_and_by_a_router() {
    run_hosts(3, async |c| {
        let (one, two) = (c.network(1, "fd00:73:1::/64"), c.network(2, "fd00:73:2::/64"));
        let a = c.port(0, 1, one, "fd00:73:1::5", &open());
        let b = c.port(1, 2, one, "fd00:73:1::6", &open());
        let far = c.port(1, 3, two, "fd00:73:2::6", &open());
        c.put(Section::Router(router(1, &[(one, "fd00:73:1::1/64"), (two, "fd00:73:2::1/64")])));
        c.sync().await;
        let (a, _b, far) = (c.guest(0, &a), c.guest(1, &b), c.guest(1, &far));
        assert!(a.pings("fd00:73:1::6"));
        a.route("fd00:73:2::/64", "fd00:73:1::1");
        far.route("fd00:73:1::/64", "fd00:73:2::1");
        assert!(a.pings("fd00:73:2::6"));
    });
}
