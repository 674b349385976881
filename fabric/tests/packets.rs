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

#[test]
fn what_calls_cost_is_measured_and_leaves_nothing() {
    run(async |w| {
        w.sync().await;
        let links = || sh(&["ip", "-o", "link"]).lines().count();
        let before = links();
        let costs = fabric::Fabric::costs().await.unwrap();
        assert!(costs.link_us > 0 && costs.rules_us > 0 && costs.namespace_us > 0, "{costs:?}");
        assert_eq!(links(), before);
        assert!(!sh(&["nft", "list", "tables"]).contains("probe"));
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
        let mut r = router(1, &[(one, "10.72.1.1/24"), (two, "10.72.2.1/24")]);
        r.routes = vec![
            ("10.99.0.0/16".parse().unwrap(), address("10.72.2.5")),
            ("10.98.0.0/16".parse().unwrap(), address("10.1.1.1")),
        ];
        b.ns.ip("addr add 10.99.0.1/32 dev eth0");
        r.interfaces[1].mac = mac(99);
        w.put(Section::Router(r.clone()));
        w.sync().await;
        assert!(!a.pings("10.99.0.1"), "not an address that the port may speak as");
        assert!(a.pings("10.72.2.5"), "a changed MAC is learned");
        r.admin_up = false;
        w.put(Section::Router(r.clone()));
        w.sync().await;
        assert!(!a.pings("10.72.2.5"), "down");
        w.sync().await;
        assert_eq!(w.fabric().last_steps(), [""; 0]);
        r.admin_up = true;
        w.put(Section::Router(r));
        w.sync().await;
        assert!(a.pings("10.72.2.5"), "up again");
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
        let members = vec!["10.74.0.5".parse().unwrap()].into();
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
        w.put(Section::Group(Group { id: friends, members: vec!["10.74.0.6".parse().unwrap()].into() }));
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
        a.pairs.push(("::/0".parse().unwrap(), a.mac));
        a.pairs.push(("fd00:75::/64".parse().unwrap(), mac(77)));
        w.put(Section::Port(a.clone()));
        w.sync().await;
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

/// An external network held by the host at its first address.
fn external(w: &mut World, n: u8, cidr: &str) -> uuid::Uuid {
    let mut public = network(n, cidr);
    public.external = true;
    public.subnets[0].dhcp = false;
    let id = public.id;
    w.put(Section::Network(public));
    id
}

fn float(port: &mut Port, floating: &str, router: uuid::Uuid, network: uuid::Uuid) {
    let fixed = port.fixed[0].address;
    port.floating = vec![FloatingIp { floating: address(floating), fixed, router, network }];
}

#[test]
fn floating_addresses_are_reached_from_the_host_and_dark_when_removed() {
    run(async |w| {
        let public = external(w, 9, "198.18.77.0/24");
        let net = w.network(1, "10.77.0.0/24");
        let mut r = router(1, &[(net, "10.77.0.1/24")]);
        r.gateway = Some(gateway(1, public, "198.18.77.10/24", "198.18.77.1"));
        w.put(Section::Router(r.clone()));
        let mut a = w.port(1, net, "10.77.0.5", &open());
        float(&mut a, "198.18.77.20", r.id, public);
        w.put(Section::Port(a.clone()));
        w.sync().await;
        let guest = w.guest(&a);
        guest.route("default", "10.77.0.1");
        guest.serve(7);
        let to = "198.18.77.20:7".parse().unwrap();
        assert_eq!(talk(to).as_deref(), Some("198.18.77.1"), "reached, and it sees the host");
        assert!(host_pings("198.18.77.20"));
        let seen = std::net::TcpListener::bind("198.18.77.1:7001").unwrap();
        serve(seen);
        assert_eq!(
            guest.ns.inside(|| talk("198.18.77.1:7001".parse().unwrap())).as_deref(),
            Some("198.18.77.20")
        );
        let mut open = std::net::TcpStream::connect(to).unwrap();
        a.floating.clear();
        w.put(Section::Port(a.clone()));
        w.sync().await;
        assert!(!host_pings("198.18.77.20"), "dark at once");
        use std::io::Read;
        open.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        let _ = open.read(&mut [0; 64]);
        assert_eq!(
            guest.ns.inside(|| talk("198.18.77.1:7001".parse().unwrap())).as_deref(),
            Some("198.18.77.10")
        );
        r.gateway.as_mut().unwrap().snat = false;
        w.put(Section::Router(r));
        w.sync().await;
        assert!(!guest.pings("198.18.77.1"), "without SNAT nobody knows the way back");
    });
}

fn host_pings(to: &str) -> bool {
    let ping = ["-n", "-c", "2", "-i", "0.2", "-W", "1", to];
    std::process::Command::new("ping").args(ping).output().unwrap().status.success()
}

#[test]
fn floating_addresses_turn_around_in_one_router_and_cross_two() {
    run(async |w| {
        let public = external(w, 9, "198.18.78.0/24");
        let (one, two) = (w.network(1, "10.78.1.0/24"), w.network(2, "10.78.1.0/24"));
        let mut ports = Vec::new();
        for (n, net) in [(1u8, one), (2, two)] {
            let mut r = router(n, &[(net, "10.78.1.1/24")]);
            r.gateway = Some(gateway(n, public, &format!("198.18.78.{}/24", 10 + n), "198.18.78.1"));
            w.put(Section::Router(r));
        }
        for (n, net, fixed, floating, r) in [
            (1, one, "10.78.1.5", Some("198.18.78.21"), 1),
            (2, one, "10.78.1.6", Some("198.18.78.22"), 1),
            (3, one, "10.78.1.7", None, 1),
            (4, two, "10.78.1.5", Some("198.18.78.24"), 2),
        ] {
            let mut port = w.port(n, net, fixed, &open());
            if let Some(floating) = floating {
                float(&mut port, floating, id(4, r), public);
            }
            w.put(Section::Port(port.clone()));
            ports.push(port);
        }
        w.sync().await;
        let guests: Vec<Guest> = ports.iter().map(|port| w.guest(port)).collect();
        for guest in &guests {
            guest.route("default", "10.78.1.1");
            guest.serve(7);
        }
        let sees = |from: usize, to: &str| {
            guests[from].ns.inside(|| talk(std::net::SocketAddr::new(address(to), 7))).unwrap_or_default()
        };
        assert_eq!(sees(0, "198.18.78.21"), "198.18.78.21", "its own");
        assert_eq!(sees(0, "198.18.78.22"), "198.18.78.21", "a neighbour's");
        assert_eq!(sees(2, "198.18.78.21"), "198.18.78.11", "from one without");
        assert_eq!(
            sees(0, "198.18.78.24"),
            "198.18.78.21",
            "behind another router, with the same fixed address"
        );
        assert_eq!(sees(3, "198.18.78.22"), "198.18.78.24", "and back");
        assert_eq!(sees(2, "198.18.78.24"), "198.18.78.11");
    });
}

#[test]
fn metadata_tells_the_network_and_the_source_also_when_they_overlap() {
    run(async |w| {
        let (one, two) = (w.network(1, "10.79.0.0/24"), w.network(2, "10.79.0.0/24"));
        let (a, b) = (w.port(1, one, "10.79.0.5", &open()), w.port(2, two, "10.79.0.5", &open()));
        w.put(Section::Router(router(1, &[(two, "10.79.0.1/24")])));
        w.sync().await;
        for listener in &w.listeners {
            listener.sockets.iter().for_each(|socket| answer(socket, listener.network));
        }
        let guests = [w.guest(&a), w.guest(&b)];
        let asks = |guest: &Guest| guest.ns.inside(|| talk("169.254.169.254:80".parse().unwrap()));
        guests[0].ns.ip("route add 169.254.169.254 dev eth0");
        assert_eq!(asks(&guests[0]), Some(format!("{one} 10.79.0.5")), "without a router");
        guests[1].ns.ip("route add 169.254.169.254 dev eth0");
        assert_eq!(asks(&guests[1]), Some(format!("{two} 10.79.0.5")), "on the link");
        guests[1].ns.ip("route del 169.254.169.254 dev eth0");
        guests[1].route("default", "10.79.0.1");
        assert_eq!(asks(&guests[1]), Some(format!("{two} 10.79.0.5")), "by the gateway");
        assert_eq!(w.fabric().port_of(one, address("10.79.0.5")), Some(a.id));
        assert_eq!(w.fabric().port_of(two, address("10.79.0.5")), Some(b.id));
        assert_eq!(w.listeners.len(), 3);
        w.document.sections.remove(&SectionKey::Router(id(4, 1)));
        w.sync().await;
        assert_eq!(w.listeners.len(), 2, "those of a gone namespace are told");
    });
}

fn answer(socket: &std::net::TcpListener, network: uuid::Uuid) {
    let socket = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut fds =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&socket), nix::poll::PollFlags::POLLIN)];
        while nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(5000u16)).is_ok_and(|n| n > 0) {
            let Ok((mut stream, peer)) = socket.accept() else { return };
            let _ = std::io::Write::write_all(&mut stream, format!("{network} {}", peer.ip()).as_bytes());
        }
    });
}

#[test]
fn ipv6_is_advertised_routed_and_filtered() {
    run(async |w| {
        let (one, two) = (w.network(1, "fd00:80:1::/64"), w.network(2, "fd00:80:2::/64"));
        let own = |n: u8, net: u16| {
            mac(n).slaac(std::net::Ipv6Addr::new(0xfd00, 0x80, net, 0, 0, 0, 0, 0)).to_string()
        };
        let a = w.port(1, one, &own(1, 1), &open());
        let b = w.port(2, two, &own(2, 2), &rules_in(&[]));
        w.put(Section::Router(router(1, &[(one, "fd00:80:1::1/64"), (two, "fd00:80:2::1/64")])));
        w.sync().await;
        let (mut a, mut b) = (a, b);
        (a.fixed, b.fixed) = (Vec::new(), Vec::new());
        let (a, b) = (w.guest(&a), w.guest(&b));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(8);
        while !b.pings(&own(1, 1)) {
            assert!(std::time::Instant::now() < deadline, "{}", sh(&["ip", "-n", &b.ns.0, "-6", "addr"]));
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(!a.pings(&own(2, 2)), "echo is not allowed in");
    });
}

#[test]
fn a_floating_address_that_moves_is_found_by_other_routers() {
    run(async |w| {
        let public = external(w, 9, "198.18.87.0/24");
        let mut guests = Vec::new();
        let mut ports = Vec::new();
        for n in [1u8, 2, 3] {
            let net = w.network(n, &format!("10.87.{n}.0/24"));
            let mut r = router(n, &[(net, &format!("10.87.{n}.1/24"))]);
            r.gateway = Some(gateway(n, public, &format!("198.18.87.{}/24", 10 + n), "198.18.87.1"));
            w.put(Section::Router(r));
            ports.push(w.port(n, net, &format!("10.87.{n}.5"), &open()));
        }
        float(&mut ports[0], "198.18.87.20", id(4, 1), public);
        w.put(Section::Port(ports[0].clone()));
        w.sync().await;
        for (port, n) in ports.iter().zip(1..) {
            let guest = w.guest(port);
            guest.route("default", &format!("10.87.{n}.1"));
            guests.push(guest);
        }
        assert!(guests[2].pings("198.18.87.20"));
        ports[0].floating.clear();
        float(&mut ports[1], "198.18.87.20", id(4, 2), public);
        w.put(Section::Port(ports[0].clone()));
        w.put(Section::Port(ports[1].clone()));
        w.sync().await;
        guests[1].serve(7);
        assert!(eventually(|| guests[2].seen_by("198.18.87.20", 7) == "198.18.87.13"));
    });
}
