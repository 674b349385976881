//! What a guest may not say. Each lie goes beside a truth that arrives, to a guest that all may reach.

use super::ensure;
use crate::Outcome;
use crate::packets::{ARP, EVERYONE, IPV4, IPV6, Mac, Raw, arp, icmp6, link_local, mac, udp};
use crate::town::Town;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const STRANGER: Mac = [0xfa, 0x16, 0x3e, 9, 9, 9];
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 240);
const WAIT: Duration = Duration::from_millis(600);

/// Who lies, to whom.
struct Scene {
    own: Ipv4Addr,
    mac: Mac,
    target: Ipv4Addr,
}

/// A frame, and what to know it by.
struct Frame {
    from: Mac,
    kind: u16,
    body: Vec<u8>,
    marker: Vec<u8>,
}

impl Frame {
    fn udp(from: Mac, own: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &str) -> Frame {
        Frame { from, kind: IPV4, body: udp(own, to, text.as_bytes()), marker: text.into() }
    }

    fn arp(scene: &Scene, mac: Mac, own: Ipv4Addr) -> Frame {
        Frame {
            from: scene.mac,
            kind: ARP,
            body: arp(2, mac, own, scene.target),
            marker: [&mac[..], &own.octets()].concat(),
        }
    }
}

fn drops(town: &mut Town, frames: impl FnOnce(&Scene) -> (Frame, Frame)) -> Outcome {
    let open = json!({"port_security_enabled": false, "security_groups": []});
    let sink = town.guest("sink", 1, &town.blue, open)?;
    let outcome = told(town, &sink, frames);
    town.remove(sink)?;
    outcome
}

fn told(town: &Town, sink: &crate::guest::Guest, frames: impl FnOnce(&Scene) -> (Frame, Frame)) -> Outcome {
    let liar = &town.blues[0];
    let (IpAddr::V4(own), IpAddr::V4(target)) = (liar.address(), sink.address()) else {
        return Err("no IPv4".into());
    };
    let (truth, lie) = frames(&Scene { own, mac: mac(liar), target });
    let (mut from, mut to) = (Raw::on(&liar.space, "eth0"), Raw::on(&sink.space, "eth0"));
    let mut arrives = |frame: &Frame| {
        from.send(EVERYONE, frame.from, frame.kind, &frame.body);
        to.sees(&frame.marker, WAIT)
    };
    let (truth, lie) = (arrives(&truth), arrives(&lie));
    ensure(truth && !lie, format!("the truth arrived: {truth}, the lie: {lie}"))
}

fn honest(s: &Scene) -> Frame {
    Frame::udp(s.mac, (s.own, 1000), (s.target, 2000), "honest words")
}

pub fn source_mac(town: &mut Town) -> Outcome {
    drops(town, |s| (honest(s), Frame::udp(STRANGER, (s.own, 1000), (s.target, 2000), "of a stranger")))
}

pub fn source_address(town: &mut Town) -> Outcome {
    drops(town, |s| (honest(s), Frame::udp(s.mac, (OTHER, 1000), (s.target, 2000), "of another")))
}

pub fn arp_address(town: &mut Town) -> Outcome {
    drops(town, |s| (Frame::arp(s, s.mac, s.own), Frame::arp(s, s.mac, OTHER)))
}

pub fn arp_mac(town: &mut Town) -> Outcome {
    drops(town, |s| (Frame::arp(s, s.mac, s.own), Frame::arp(s, STRANGER, s.own)))
}

pub fn dhcp_server(town: &mut Town) -> Outcome {
    drops(town, |s| (honest(s), Frame::udp(s.mac, (s.own, 67), (s.target, 68), "an offer")))
}

/// The truth is an echo request from the same address.
pub fn router_advertisement(town: &mut Town) -> Outcome {
    drops(town, |s| {
        let frame = |body: &[u8], text: &str| Frame {
            from: s.mac,
            kind: IPV6,
            body: icmp6(link_local(s.mac), &[body, text.as_bytes()].concat()),
            marker: text.into(),
        };
        let advert = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        (frame(&[128, 0, 0, 0, 0, 1, 0, 1], "is one there"), frame(&advert, "a false router"))
    })
}
