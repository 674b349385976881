//! Frames written into taps by hand: DHCP conversations, and what a guest may not say. Needs root; says so without.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use base::units::Mac;
use common::raw::*;
use common::*;
use dhcproto::v4::{self, DhcpOption, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use std::net::Ipv4Addr;
use std::time::Duration;

#[test]
fn spoofed_frames_end_at_the_tap() {
    run(async |w| {
        let net = w.network(1, "10.81.0.0/24");
        let everything = rules_in(&[rule(Direction::Ingress, false, None, None, Remote::Any)]);
        let (a, b) = (w.port(1, net, "10.81.0.5", &everything), w.port(2, net, "10.81.0.6", &everything));
        w.sync().await;
        let (mut a, mut b) = (Raw::new(w, &a), Raw::new(w, &b));
        let (own, other): (Ipv4Addr, Ipv4Addr) = ([10, 81, 0, 5].into(), [10, 81, 0, 9].into());
        let target: Ipv4Addr = [10, 81, 0, 6].into();
        let mac = a.mac;
        let talk =
            |from, sport: u16, dport: u16, text: &str| udp((from, sport), (target, dport), text.as_bytes());
        let good = |a: &mut Raw| a.send(EVERYONE, 0x0800, &talk(own, 1000, 2000, "honest"));
        assert!(passes(&mut a, &mut b, good, b"honest"));
        let claim = |a: &mut Raw| a.send(EVERYONE, 0x0806, &arp(2, mac, own, target));
        assert!(passes(&mut a, &mut b, claim, &[10, 81, 0, 5]), "ARP of its own");
        let mut refused = |what: &str, send: &dyn Fn(&mut Raw), marker: &[u8]| {
            assert!(!passes(&mut a, &mut b, send, marker), "{what}");
        };
        refused("source", &|a| a.send(EVERYONE, 0x0800, &talk(other, 1, 2, "source")), b"source");
        refused("ARP", &|a| a.send(EVERYONE, 0x0806, &arp(2, mac, other, target)), &other.octets());
        let stranger = Mac([0xfa, 0x16, 0x3e, 9, 9, 9]);
        refused("MAC", &|a| a.send_as(stranger, EVERYONE, 0x0800, &talk(own, 1, 2, "mac")), b"mac");
        let inner = arp(2, stranger, own, target);
        refused("MAC inside of ARP", &|a| a.send(EVERYONE, 0x0806, &inner), &stranger.0);
        refused("DHCP server", &|a| a.send(EVERYONE, 0x0800, &talk(own, 67, 68, "offer")), b"offer");
        refused("other protocols", &|a| a.send(EVERYONE, 0x88cc, b"\0\0neighbour"), b"neighbour");
        let mut advert = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
        advert.extend(mac.link_local().octets());
        advert.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        advert.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        refused("RA", &|a| a.send(EVERYONE, 0x86dd, &advert), &[134, 0, 0, 0, 64]);
        let advertise = |target: std::net::Ipv6Addr| {
            let mut claim = vec![0x60, 0, 0, 0, 0, 32, 58, 255];
            claim.extend(mac.link_local().octets());
            claim.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            claim.extend([136, 0, 0, 0, 0x20, 0, 0, 0]);
            claim.extend(target.octets());
            claim.extend([2, 1]);
            claim.extend(mac.0);
            // Sum of addresses, length, protocol and message.
            let sum =
                claim[8..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]) as u32).sum::<u32>();
            let sum = sum + 32 + 58;
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            claim[42..44].copy_from_slice(&sum.to_be_bytes());
            claim
        };
        let stolen: std::net::Ipv6Addr = "fd00:81::9".parse().unwrap();
        refused("advertised target", &|a| a.send(EVERYONE, 0x86dd, &advertise(stolen)), &stolen.octets());
        let own = mac.link_local();
        let honest = |a: &mut Raw| a.send(EVERYONE, 0x86dd, &advertise(own));
        assert!(passes(&mut a, &mut b, honest, &own.octets()), "its own may be advertised");
    });
}

fn request(mac: Mac, kind: MessageType, options: &[DhcpOption]) -> v4::Message {
    let mut message = v4::Message::default();
    message.set_chaddr(&mac.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

/// Sends as a client without address; the answer and who sent it.
fn ask(guest: &mut Raw, message: &v4::Message) -> Option<(v4::Message, Mac, Mac)> {
    let own = message.ciaddr();
    let to = if own.is_unspecified() { Ipv4Addr::BROADCAST } else { Ipv4Addr::new(169, 254, 169, 254) };
    guest.send(EVERYONE, 0x0800, &udp((own, 68), (to, 67), &message.to_vec().unwrap()));
    let is = |frame: &[u8]| frame.len() > 42 && frame[12..14] == [8, 0] && frame[34..38] == [0, 67, 0, 68];
    let frame = guest.receive(Duration::from_millis(1500), is)?;
    assert_eq!(frame[40..42], [0, 0], "no checksum, rather than one that a raw reader finds wrong");
    let mac = |at: usize| Mac(frame[at..at + 6].try_into().unwrap());
    Some((v4::Message::decode(&mut Decoder::new(&frame[42..])).unwrap(), mac(0), mac(6)))
}

#[test]
fn a_guest_is_leased_what_the_document_says_even_without_rules() {
    run(async |w| {
        let mut net = network(1, "10.82.0.0/24");
        net.subnets[0].routes = vec![("10.99.0.0/16".parse().unwrap(), "10.82.0.7".parse().unwrap())];
        let id = net.id;
        w.put(Section::Network(net));
        let mut a = port(1, id, "10.82.0.5", None);
        let extra =
            |name: &str, value: &str| DhcpOption_ { name: name.into(), value: value.into(), v6: false };
        a.dhcp_options = vec![extra("ntp-server", "10.82.0.123"), extra("67", "boot\n66,evil")];
        w.put(Section::Port(a.clone()));
        let b = w.port(2, id, "10.82.0.6", &open());
        w.sync().await;
        let (mut guest, mut neighbour) = (Raw::new(w, &a), Raw::new(w, &b));
        let (offer, to, _) = ask(&mut guest, &request(a.mac, MessageType::Discover, &[])).unwrap();
        assert_eq!((offer.yiaddr(), to), ([10, 82, 0, 5].into(), a.mac));
        let wanted = DhcpOption::RequestedIpAddress([10, 82, 0, 5].into());
        let server = offer.opts().get(OptionCode::ServerIdentifier).unwrap().clone();
        assert_eq!(server, DhcpOption::ServerIdentifier([169, 254, 169, 254].into()));
        let (ack, ..) = ask(&mut guest, &request(a.mac, MessageType::Request, &[wanted, server])).unwrap();
        check_lease(&ack);
        let mut renewal = request(a.mac, MessageType::Request, &[]);
        renewal.set_ciaddr([10, 82, 0, 5]);
        let (renewed, ..) = ask(&mut guest, &renewal).unwrap();
        assert!(renewed.opts().has_msg_type(MessageType::Ack));
        let wrong = DhcpOption::RequestedIpAddress([10, 82, 0, 77].into());
        let (nak, ..) = ask(&mut guest, &request(a.mac, MessageType::Request, &[wrong])).unwrap();
        assert!(nak.opts().has_msg_type(MessageType::Nak));
        let heard = neighbour.receive(Duration::from_millis(100), |frame| frame[..6] == a.mac.0);
        assert!(heard.is_none(), "answers go to the guest alone");
        let mut quiet = network(1, "10.82.0.0/24");
        quiet.subnets[0].dhcp = false;
        w.put(Section::Network(quiet));
        w.sync().await;
        assert!(ask(&mut guest, &request(a.mac, MessageType::Discover, &[])).is_none(), "dhcp=false");
    });
}

use base::node::DhcpOption as DhcpOption_;

fn check_lease(ack: &v4::Message) {
    assert!(ack.opts().has_msg_type(MessageType::Ack));
    let bytes = |code: u8| {
        let option = ack.opts().get(OptionCode::from(code)).unwrap_or_else(|| panic!("option {code}"));
        option.to_vec().unwrap()[2..].to_vec()
    };
    assert_eq!(bytes(1), [255, 255, 255, 0]);
    assert_eq!(bytes(3), [10, 82, 0, 1]);
    assert_eq!(bytes(6), [9, 9, 9, 9]);
    assert_eq!(bytes(12), b"host-10-82-0-5");
    assert_eq!(bytes(15), b"example.org");
    assert_eq!(bytes(26), 1450u16.to_be_bytes());
    assert_eq!(bytes(42), [10, 82, 0, 123]);
    assert_eq!(bytes(51), 86_400u32.to_be_bytes());
    assert_eq!(bytes(67), b"boot\n66,evil");
    let metadata = [32, 169, 254, 169, 254, 0, 0, 0, 0];
    let expect = [&[16, 10, 99, 10, 82, 0, 7][..], &metadata, &[0, 10, 82, 0, 1]].concat();
    assert_eq!(bytes(121), expect);
    assert!(ack.opts().get(OptionCode::from(66)).is_none());
}
