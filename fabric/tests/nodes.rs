//! Real packets between hosts: one fabric each, a wire between them. Needs root; says so without.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use common::hosts::*;
use common::*;
use std::net::IpAddr;
use std::process::Command;

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
fn a_packet_passes_two_routers_on_the_sending_node() {
    run_hosts(2, async |c| {
        let nets = [1, 2, 3].map(|n| c.network(n, &format!("10.76.{n}.0/24")));
        let a = c.port(0, 1, nets[0], "10.76.1.5", &open());
        let b = c.port(1, 2, nets[2], "10.76.3.5", &open());
        let to = |net: &str, via: &str| (net.parse().unwrap(), address(via));
        let mut first = router(1, &[(nets[0], "10.76.1.1/24"), (nets[1], "10.76.2.1/24")]);
        let mut second = router(2, &[(nets[1], "10.76.2.2/24"), (nets[2], "10.76.3.1/24")]);
        first.routes = vec![to("10.76.3.0/24", "10.76.2.2")];
        second.routes = vec![to("10.76.1.0/24", "10.76.2.1")];
        c.put(Section::Router(first));
        c.put(Section::Router(second));
        c.sync().await;
        let (a, b) = (c.guest(0, &a), c.guest(1, &b));
        a.route("default", "10.76.1.1");
        b.route("default", "10.76.3.1");
        assert!(a.pings("10.76.3.5") && b.pings("10.76.1.5"));
        b.serve(7);
        assert!(a.connects("10.76.3.5", 7));
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

#[test]
fn rules_and_groups_hold_between_hosts_and_cut_what_they_no_longer_allow() {
    run_hosts(2, async |c| {
        let net = c.network(1, "10.74.0.0/24");
        let friends = id(8, 1);
        let group = |member: &str| {
            Section::Group(Group { id: friends, members: [address(member)].into_iter().collect() })
        };
        c.put(group("10.74.0.5"));
        let tcp = |port, remote| rule(Direction::Ingress, false, Some(6), Some((port, port)), remote);
        let guarded = rules_in(&[tcp(80, Remote::Any), tcp(81, Remote::Group(friends))]);
        let (a, b) = (c.port(0, 1, net, "10.74.0.5", &open()), c.port(0, 2, net, "10.74.0.6", &open()));
        let server = c.port(1, 3, net, "10.74.0.7", &guarded);
        let silent = rules(&[]);
        let mute = c.port(1, 4, net, "10.74.0.8", &silent);
        c.sync().await;
        let (a, b) = (c.guest(0, &a), c.guest(0, &b));
        let (guest, mute) = (c.guest(1, &server), c.guest(1, &mute));
        guest.serve(80);
        let listener = guest.ns.inside(|| std::net::TcpListener::bind("0.0.0.0:81").unwrap());
        echo(listener);
        assert!(!a.pings("10.74.0.7"), "echo is not allowed in");
        assert!(guest.pings("10.74.0.5"), "answers are");
        assert!(!mute.pings("10.74.0.5"), "nothing is allowed out");
        assert!(a.connects("10.74.0.7", 80) && b.connects("10.74.0.7", 80));
        assert!(!b.connects("10.74.0.7", 81), "not a member");
        let to = "10.74.0.7:81".parse().unwrap();
        let mut stream = a
            .ns
            .inside(|| std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(1)).unwrap());
        assert!(echoes(&mut stream), "a member of the group, on another node");
        c.put(group("10.74.0.6"));
        c.sync().await;
        assert!(!echoes(&mut stream), "its running connection ends with its membership");
    });
}

fn echo(listener: std::net::TcpListener) {
    use std::io::{Read, Write};
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            let _ = stream.write_all(&byte);
        }
    });
}

fn echoes(stream: &mut std::net::TcpStream) -> bool {
    use std::io::{Read, Write};
    stream.set_read_timeout(Some(std::time::Duration::from_millis(700))).unwrap();
    stream.write_all(&[1]).unwrap();
    stream.read_exact(&mut [0]).is_ok()
}

#[test]
fn a_port_that_moves_to_another_host_is_found_there() {
    run_hosts(3, async |c| {
        let (one, two) = (c.network(1, "10.75.1.0/24"), c.network(2, "10.75.2.0/24"));
        c.put(Section::Router(router(1, &[(one, "10.75.1.1/24"), (two, "10.75.2.1/24")])));
        let near = c.port(0, 1, one, "10.75.1.5", &open());
        let far = c.port(0, 2, two, "10.75.2.5", &open());
        let moving = c.port(1, 3, one, "10.75.1.6", &open());
        c.sync().await;
        let (near, far) = (c.guest(0, &near), c.guest(0, &far));
        far.route("default", "10.75.2.1");
        let guest = c.guest(1, &moving);
        guest.route("default", "10.75.1.1");
        assert!(near.pings("10.75.1.6") && far.pings("10.75.1.6"));
        drop(guest);
        c.at(1).document.sections.remove(&SectionKey::Port(moving.id));
        let moved = c.port(2, 3, one, "10.75.1.6", &open());
        c.sync().await;
        let guest = c.guest(2, &moved);
        guest.route("default", "10.75.1.1");
        assert!(near.pings("10.75.1.6") && far.pings("10.75.1.6"));
    });
}

#[test]
fn a_central_router_is_reached_on_its_node() {
    run_hosts(2, async |c| {
        let (one, two) = (c.network(1, "10.76.1.0/24"), c.network(2, "10.76.2.0/24"));
        let a = c.port(1, 1, one, "10.76.1.5", &open());
        let b = c.port(1, 2, two, "10.76.2.5", &open());
        let mut central = router(1, &[(one, "10.76.1.1/24"), (two, "10.76.2.1/24")]);
        central.central = true;
        for interface in &central.interfaces {
            let addresses = interface.addresses.iter().map(|net| net.addr()).collect();
            let (mac, name) = (interface.mac, String::new());
            let leg = Member { mac, addresses, vtep: Some(vtep(0)), name };
            c.member(interface.network, interface.port, Some(leg));
        }
        c.at(0).put(Section::Router(central));
        c.sync().await;
        let (a, b) = (c.guest(1, &a), c.guest(1, &b));
        a.route("default", "10.76.1.1");
        b.route("default", "10.76.2.1");
        let before = c.carried(0);
        assert!(a.pings("10.76.2.5"));
        assert!(c.carried(0) >= before + 4, "there and back by the router's node");
    });
}

/// Takes claims into the members, as the plane does. Returns whether the port claims the address.
async fn claims(c: &mut Hosts, host: usize, port: &Port, others: &[&Port]) -> bool {
    let vip = address("10.77.1.100");
    let world = c.at(host);
    let (news, document) = (world.fabric().news(), world.document.clone());
    let told = tokio::time::timeout(std::time::Duration::from_secs(2), news.notified()).await;
    let report = c.at(host).fabric().sync(&document).await.unwrap();
    let claimed = told.is_ok() && report[&port.id].claims.contains(&vip);
    let virtual_mac = report[&port.id].macs.get(&vip).copied();
    let mut member = |port: &Port, host: usize, more: &[IpAddr]| {
        let mut addresses = vec![port.fixed[0].address];
        addresses.extend(more);
        let (mac, name) = (port.mac, String::new());
        c.member(port.network, port.id, Some(Member { mac, addresses, vtep: Some(vtep(host)), name }));
    };
    for (n, other) in others.iter().enumerate() {
        member(other, n, &[]);
    }
    let Some(mac) = virtual_mac else {
        member(port, host, &[vip]);
        c.sync().await;
        return claimed;
    };
    for other in others {
        c.member(port.network, claim_id(other.id, mac), None);
    }
    let (addresses, name) = (vec![vip], String::new());
    let virtual_one = Member { mac, addresses, vtep: Some(vtep(host)), name };
    c.member(port.network, claim_id(port.id, mac), Some(virtual_one));
    c.sync().await;
    claimed
}

#[test]
fn a_virtual_address_follows_its_announcements_between_hosts() {
    virtual_address_follows(None);
}

#[test]
fn a_virtual_address_at_a_virtual_mac_follows_its_announcements_between_hosts() {
    virtual_address_follows(Some(base::units::Mac([0, 0, 0x5e, 0, 1, 7])));
}

/// `mac`: what the address is announced and used at, where it is not the port's own.
fn virtual_address_follows(virtual_mac: Option<base::units::Mac>) {
    run_hosts(3, async move |c| {
        let (one, two) = (c.network(1, "10.77.1.0/24"), c.network(2, "10.77.2.0/24"));
        c.put(Section::Router(router(1, &[(one, "10.77.1.1/24"), (two, "10.77.2.1/24")])));
        let mut ports = [c.port(0, 1, one, "10.77.1.5", &open()), c.port(1, 2, one, "10.77.1.6", &open())];
        for (host, port) in ports.iter_mut().enumerate() {
            // With a virtual MAC the guest still answers from its own.
            let macs = virtual_mac.into_iter().chain([port.mac]);
            port.pairs = macs.map(|mac| ("10.77.1.100/32".parse().unwrap(), mac)).collect();
            c.at(host).put(Section::Port(port.clone()));
        }
        let near = c.port(2, 3, one, "10.77.1.7", &open());
        let far = c.port(2, 4, two, "10.77.2.7", &open());
        c.sync().await;
        let guests = [c.guest(0, &ports[0]), c.guest(1, &ports[1])];
        let (near, far) = (c.guest(2, &near), c.guest(2, &far));
        far.route("default", "10.77.2.1");
        for guest in &guests {
            guest.route("default", "10.77.1.1");
            guest.serve(7);
        }
        for (holder, other) in [(0, 1), (1, 0)] {
            let (device, length) = virtual_mac.map_or(("eth0", 24), |_| ("vrrp", 32));
            let _ = Command::new("ip")
                .args(["-n", &guests[other].ns.0, "addr", "del", "10.77.1.100/24", "dev", device])
                .output();
            if let Some(mac) = virtual_mac {
                let _ = Command::new("ip").args(["-n", &guests[other].ns.0, "link", "del", "vrrp"]).output();
                let add = format!("link add link eth0 name vrrp address {mac} type macvlan mode private");
                guests[holder].ns.ip(&add);
                guests[holder].ns.ip("link set vrrp up");
            }
            guests[holder].ns.ip(&format!("addr add 10.77.1.100/{length} dev {device}"));
            let at = virtual_mac.unwrap_or(ports[holder].mac);
            guests[holder].ns.inside(|| garp(at, [10, 77, 1, 100]));
            assert!(claims(c, holder, &ports[holder], &[&ports[0], &ports[1]]).await, "claim of {holder}");
            assert!(near.connects("10.77.1.100", 7), "on its subnet, from {holder}");
            assert!(far.connects("10.77.1.100", 7), "by a router, from {holder}");
            let before = c.carried(other);
            assert!(near.pings("10.77.1.100"));
            assert_eq!(c.carried(other), before, "its frames go to the one that has it");
        }
        guests[0].ns.inside(|| garp(ports[0].mac, [10, 77, 1, 99]));
        guests[0].ns.inside(|| garp(mac(99), [10, 77, 1, 100]));
        let news = c.at(0).fabric().news();
        let told = tokio::time::timeout(std::time::Duration::from_millis(500), news.notified()).await;
        assert!(told.is_err(), "no pair has this address, or this MAC");
        c.at(1).restart().await;
        let document = c.at(1).document.clone();
        let report = c.at(1).fabric().sync(&document).await.unwrap();
        let held = &report[&ports[1].id].claims;
        assert_eq!(*held, [address("10.77.1.100")].into(), "a new process goes on with what the plane says");
        let macs = report[&ports[1].id].macs.values().copied().collect::<Vec<_>>();
        assert_eq!(macs, virtual_mac.into_iter().collect::<Vec<_>>());
    });
}

/// Says out of `eth0` that a MAC has an address.
fn garp(mac: base::units::Mac, address: [u8; 4]) {
    let mut frame = vec![0xff; 6];
    frame.extend(mac.0);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address);
    frame.extend([0; 6]);
    frame.extend(address);
    send_frame("eth0", &frame);
}
