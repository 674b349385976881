//! Flows that are known, between hosts: they arrive as by the whole way, and end with what allowed them. Needs root; says
//! so without.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use common::hosts::*;
use common::raw::*;
use common::*;
use std::net::Ipv4Addr;
use std::time::Duration;
use uuid::Uuid;

const FROM: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 82, 1, 5), 1000);
const TO: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 82, 2, 5), 2000);

/// What went past the router of a host's network; none where its kernel knows no flows.
fn straight(c: &mut Hosts, host: usize, net: Uuid) -> Option<u64> {
    let ns = format!("shisa-{:08x}-net-{net}", c.at(host).cloud);
    let told =
        std::process::Command::new("ip").args(["-n", &ns, "-j", "-s", "link", "show", "direct0"]).output();
    let told = told.unwrap();
    let read = || serde_json::from_slice::<serde_json::Value>(&told.stdout).unwrap();
    told.status.success().then(|| read()[0]["stats64"]["tx"]["packets"].as_u64().unwrap())
}

/// Whether a datagram of the flow arrives, from the receiver's router and with one hop less.
fn arrives(a: &mut Raw, b: &mut Raw, text: &str) -> bool {
    a.send(mac(144), 0x0800, &udp(FROM, TO, text.as_bytes()));
    let ours = |frame: &[u8]| frame.ends_with(text.as_bytes());
    let Some(frame) = b.receive(Duration::from_millis(500), ours) else { return false };
    assert_eq!(frame[..12], [b.mac.0, mac(145).0].concat(), "to its port, from its router's leg");
    assert_eq!(frame[22], 63, "a hop less");
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]) as u32).sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the sum of the header");
    true
}

fn datagrams() -> RuleSet {
    rules_in(&[rule(Direction::Ingress, false, Some(17), Some((2000, 2000)), Remote::Any)])
}

#[test]
fn a_known_flow_between_subnets_goes_straight_and_ends_with_what_allowed_it() {
    run_hosts(2, async |c| {
        let (one, two) = (c.network(1, "10.82.1.0/24"), c.network(2, "10.82.2.0/24"));
        c.put(Section::Router(router(1, &[(one, "10.82.1.1/24"), (two, "10.82.2.1/24")])));
        let from = c.port(0, 1, one, "10.82.1.5", &open());
        let beside = c.port(0, 3, one, "10.82.1.6", &open());
        let to = c.port(1, 2, two, "10.82.2.5", &datagrams());
        c.sync().await;
        let (mut a, mut b) = (Raw::new(c.at(0), &from), Raw::new(c.at(1), &to));
        let mut other = Raw::new(c.at(0), &beside);
        let before = straight(c, 0, one);
        println!("flows go straight on this kernel: {}", before.is_some());
        assert!(arrives(&mut a, &mut b, "first"));
        assert_eq!(straight(c, 0, one), before, "the first packet takes the whole way");
        assert!(arrives(&mut a, &mut b, "second") && arrives(&mut a, &mut b, "third"));
        assert_eq!(straight(c, 0, one), before.map(|n| n + 2), "it is known now");

        let said = |from, text: &str| udp(from, TO, text.as_bytes());
        let strange = |a: &mut Raw| a.send(mac(144), 0x0800, &said(([10, 82, 1, 6].into(), 1000), "source"));
        assert!(!passes(&mut a, &mut b, strange, b"source"), "the source of another port");
        let strange = |a: &mut Raw| a.send_as(mac(3), mac(144), 0x0800, &said(FROM, "mac"));
        assert!(!passes(&mut a, &mut b, strange, b"mac"), "the MAC of another port");
        let strange = |a: &mut Raw| a.send_as(mac(1), mac(144), 0x0800, &said(FROM, "thief"));
        assert!(!passes(&mut other, &mut b, strange, b"thief"), "another port's flow");
        let mut last = said(FROM, "last");
        // The sum of the header stays right.
        (last[8], last[10]) = (1, last[10].wrapping_add(63));
        a.send(mac(144), 0x0800, &last);
        let exceeded = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 11;
        assert!(a.receive(Duration::from_millis(500), exceeded).is_some(), "its last hop is told");

        c.sync().await;
        for host in [0, 1] {
            assert_eq!(c.at(host).fabric().last_steps(), [""; 0]);
            c.at(host).restart().await;
        }
        c.sync().await;
        for host in [0, 1] {
            assert_eq!(c.at(host).fabric().last_steps(), [""; 0], "a new process finds all as it should be");
        }
        assert!(arrives(&mut a, &mut b, "fourth") && arrives(&mut a, &mut b, "fifth"));
        for (host, n, net, address, usual) in
            [(1, 2, two, "10.82.2.5", datagrams()), (0, 1, one, "10.82.1.5", open())]
        {
            c.at(host).port(n, net, address, &rules(&[]));
            c.sync().await;
            assert!(!arrives(&mut a, &mut b, "sixth"), "without its rule on host {host}");
            c.at(host).port(n, net, address, &usual);
            c.sync().await;
            assert!(arrives(&mut a, &mut b, "seventh") && arrives(&mut a, &mut b, "eighth"));
        }
        c.member(two, to.id, None);
        c.sync().await;
        assert_eq!(straight(c, 0, one), None, "nobody is there any more");
        assert!(!arrives(&mut a, &mut b, "ninth"));
        c.sync().await;
        assert_eq!(c.at(0).fabric().last_steps(), [""; 0]);
    });
}
