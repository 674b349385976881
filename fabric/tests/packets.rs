//! Real packets between namespaces: what may pass passes, what may not does not. Needs root; says so without.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use common::*;

#[test]
fn neighbours_on_one_subnet_ping_and_a_restart_takes_no_step() {
    run(async |w| {
        let net = w.network(1, "10.71.0.0/24");
        let (a, b) = (w.port(1, net, "10.71.0.5", &open()), w.port(2, net, "10.71.0.6", &open()));
        let report = w.sync().await;
        assert!(report[&a.id].up && report[&b.id].up);
        let (a, b) = (w.guest(&a), w.guest(&b));
        assert!(a.pings("10.71.0.6"));
        assert!(b.pings("10.71.0.5"));
        w.sync().await;
        assert_eq!(w.fabric().last_steps(), [""; 0]);
        w.restart().await;
        w.sync().await;
        assert_eq!(w.fabric().last_steps(), [""; 0]);
    });
}

fn tcp(port: u16, remote: Remote) -> Rule {
    rule(Direction::Ingress, false, Some(6), Some((port, port)), remote)
}

#[test]
fn two_subnets_meet_in_a_router_that_came_later() {
    run(async |w| {
        let (one, two) = (w.network(1, "10.72.1.0/24"), w.network(2, "10.72.2.0/24"));
        let (a, b) = (w.port(1, one, "10.72.1.5", &open()), w.port(2, two, "10.72.2.5", &open()));
        w.sync().await;
        let (a, b) = (w.guest(&a), w.guest(&b));
        a.route("default", "10.72.1.1");
        b.route("default", "10.72.2.1");
        assert!(!a.pings("10.72.2.5"), "there is no router yet");
        w.put(Section::Router(router(1, &[(one, "10.72.1.1/24"), (two, "10.72.2.1/24")])));
        w.sync().await;
        assert!(a.pings("10.72.1.1"), "the gateway answers");
        assert!(a.pings("10.72.2.5"));
        b.serve(7);
        assert!(a.connects("10.72.2.5", 7));
        assert!(!a.connects("10.72.2.5", 9));
        w.document.sections.remove(&SectionKey::Router(id(4, 1)));
        w.sync().await;
        assert!(!a.pings("10.72.2.5"), "the router is gone");
    });
}

#[test]
fn a_network_on_two_routers_reaches_both_sides() {
    run(async |w| {
        let nets = [1, 2, 3].map(|n| w.network(n, &format!("10.73.{n}.0/24")));
        let ports = [1u8, 2, 3].map(|n| w.port(n, nets[n as usize - 1], &format!("10.73.{n}.5"), &open()));
        w.put(Section::Router(router(1, &[(nets[0], "10.73.1.1/24"), (nets[1], "10.73.2.1/24")])));
        w.put(Section::Router(router(2, &[(nets[1], "10.73.2.2/24"), (nets[2], "10.73.3.1/24")])));
        w.sync().await;
        let guests = ports.map(|port| w.guest(&port));
        guests[0].route("default", "10.73.1.1");
        guests[1].route("10.73.1.0/24", "10.73.2.1");
        guests[1].route("10.73.3.0/24", "10.73.2.2");
        guests[2].route("default", "10.73.3.1");
        assert!(guests[0].pings("10.73.2.5"));
        assert!(guests[2].pings("10.73.2.5"));
        assert!(!guests[0].pings("10.73.3.5"), "no route leads there");
    });
}

#[test]
fn rules_decide_who_comes_in_and_removed_ones_end_connections() {
    run(async |w| {
        let net = w.network(1, "10.74.0.0/24");
        let friends = id(8, 1);
        let members = ["10.74.0.5".parse().unwrap()].into();
        w.put(Section::Group(Group { id: friends, members }));
        let guarded = rules_in(&[tcp(80, Remote::Any), tcp(81, Remote::Group(friends))]);
        let (a, b) = (w.port(1, net, "10.74.0.5", &open()), w.port(2, net, "10.74.0.6", &open()));
        let mut c = w.port(3, net, "10.74.0.7", &guarded);
        w.sync().await;
        let (a, b, guest) = (w.guest(&a), w.guest(&b), w.guest(&c));
        for port in [80, 81, 82] {
            guest.serve(port);
        }
        assert!(!a.pings("10.74.0.7"), "echo is not allowed");
        assert!(guest.pings("10.74.0.5"), "answers are");
        assert!(a.connects("10.74.0.7", 80) && b.connects("10.74.0.7", 80));
        assert!(a.connects("10.74.0.7", 81), "a member of the group");
        assert!(!b.connects("10.74.0.7", 81), "not a member");
        assert!(!a.connects("10.74.0.7", 82));
        w.put(Section::Group(Group { id: friends, members: ["10.74.0.6".parse().unwrap()].into() }));
        w.sync().await;
        assert!(!a.connects("10.74.0.7", 81) && b.connects("10.74.0.7", 81), "membership moved");
        c.rules = None;
        w.put(Section::Port(c));
        w.sync().await;
        assert!(!b.connects("10.74.0.7", 80) && !guest.pings("10.74.0.5"), "no rules, no packets");
    });
}

#[test]
fn a_port_speaks_only_as_itself() {
    run(async |w| {
        let net = w.network(1, "10.75.0.0/24");
        let mut a = w.port(1, net, "10.75.0.5", &open());
        let b = w.port(2, net, "10.75.0.6", &open());
        w.sync().await;
        let (guest, _b) = (w.guest(&a), w.guest(&b));
        assert!(guest.pings("10.75.0.6"));
        guest.ns.ip("addr add 10.75.0.9/24 dev eth0");
        let from_other = || {
            let command =
                ["netns", "exec", &guest.ns.0, "ping", "-c1", "-W1", "-I", "10.75.0.9", "10.75.0.6"];
            std::process::Command::new("ip").args(command).output().unwrap().status.success()
        };
        assert!(!from_other(), "an address of another");
        a.pairs.push(("10.75.0.8/30".parse().unwrap(), a.mac));
        w.put(Section::Port(a.clone()));
        w.sync().await;
        assert!(from_other(), "an allowed pair");
        guest.ns.ip("link set eth0 address fa:16:3e:99:99:99");
        assert!(!guest.pings("10.75.0.6"), "a MAC of another");
        a.port_security = false;
        w.put(Section::Port(a));
        w.sync().await;
        assert!(guest.pings("10.75.0.6"), "without port security anything goes");
    });
}

#[test]
fn a_port_that_is_down_or_gone_is_silent() {
    run(async |w| {
        let net = w.network(1, "10.76.0.0/24");
        let (mut a, b) = (w.port(1, net, "10.76.0.5", &open()), w.port(2, net, "10.76.0.6", &open()));
        w.sync().await;
        let (_a, guest) = (w.guest(&a), w.guest(&b));
        assert!(guest.pings("10.76.0.5"));
        a.admin_up = false;
        w.put(Section::Port(a.clone()));
        assert!(!w.sync().await[&a.id].up);
        assert!(!guest.pings("10.76.0.5"));
        w.document.sections.remove(&SectionKey::Port(a.id));
        assert!(!w.sync().await.contains_key(&a.id));
        assert!(w.fabric().open_tap(a.id).is_err());
    });
}
