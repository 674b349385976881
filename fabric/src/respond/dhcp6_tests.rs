//! Conversations of RFC 8415 as tables.

use super::*;
use base::node::{Document, Network, Section, SectionKey};
use dhcproto::v6::ORO;

const MAC: &str = "fa:16:3e:00:00:05";

fn with(mode: &str, dns: &[&str]) -> (Leases, Ipv6Addr) {
    let id = |n: u8| Uuid::from_u128(n.into());
    let port: Port = serde_json::from_value(serde_json::json!({
        "id": id(3), "network": id(1), "vm": null, "mac": MAC, "admin_up": true,
        "fixed": [{"subnet": id(2), "address": "2001:db8::5"}], "pairs": [], "port_security": true, "rules": null,
        "floating": [], "dhcp_options": [{"name": "bootfile-url", "value": "http://b/", "v6": true}],
    }))
    .unwrap();
    let network: Network = serde_json::from_value(serde_json::json!({
        "id": id(1), "vni": 1, "mtu": 1450, "external": false, "router": null, "dns_domain": "example.org.",
        "subnets": [{"id": id(2), "cidr": "2001:db8::/64", "gateway": "2001:db8::1", "dhcp": true, "dns": dns,
            "routes": [], "ipv6_ra": mode, "ipv6_address": mode}],
    }))
    .unwrap();
    let from = port.mac.link_local();
    let sections = [
        (SectionKey::Port(port.id), Section::Port(port)),
        (SectionKey::Network(network.id), Section::Network(network)),
    ];
    let document = Document { sections: sections.into(), ..Document::default() };
    (leases(&Sections::of(&document)), from)
}

fn message(kind: MessageType, server: Option<&[u8]>, address: Option<&str>) -> Message {
    let mut out = Message::new_with_id(kind, [1, 2, 3]);
    out.opts_mut().insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 9]));
    if let Some(server) = server {
        out.opts_mut().insert(DhcpOption::ServerId(server.to_vec()));
    }
    if kind != MessageType::InformationRequest {
        let mut ia = IANA { id: 7, t1: 0, t2: 0, opts: Default::default() };
        if let Some(address) = address {
            let addr = address.parse().unwrap();
            let named = IAAddr { addr, preferred_life: 1, valid_life: 1, opts: Default::default() };
            ia.opts.insert(DhcpOption::IAAddr(named));
        }
        out.opts_mut().insert(DhcpOption::IANA(ia));
    }
    out.opts_mut().insert(DhcpOption::ORO(ORO { opts: Vec::new() }));
    out
}

/// Kind, addresses with their valid time, and the status of an answer; outside or inside of an association.
type Told = (MessageType, Vec<(String, u32)>, Option<Status>);

fn ask(mode: &str, request: &Message) -> Option<Told> {
    let (leases, from) = with(mode, &[]);
    let bytes = answer(&leases, Uuid::from_u128(1), from, &request.to_vec().unwrap())?;
    let reply = Message::decode(&mut Decoder::new(&bytes)).unwrap();
    assert_eq!(reply.xid(), [1, 2, 3]);
    assert_eq!(reply.opts().get(OptionCode::ServerId), Some(&DhcpOption::ServerId(DUID.to_vec())));
    let (mut addresses, mut status) = (Vec::new(), None);
    let inner = reply.opts().iter().flat_map(|option| match option {
        DhcpOption::IANA(ia) => ia.opts.iter().cloned().collect(),
        other => vec![other.clone()],
    });
    for option in inner {
        match option {
            DhcpOption::IAAddr(a) => addresses.push((a.addr.to_string(), a.valid_life)),
            DhcpOption::StatusCode(code) => status = Some(code.status),
            _ => {}
        }
    }
    addresses.sort_by_key(|(_, valid)| std::cmp::Reverse(*valid));
    Some((reply.msg_type(), addresses, status))
}

fn own() -> Vec<(String, u32)> {
    vec![("2001:db8::5".to_string(), VALID_SECS)]
}

#[test]
fn a_stateful_client_is_told_its_address() {
    let stateful = "dhcpv6-stateful";
    let check =
        |request: &Message, expect: Option<Told>| assert_eq!(ask(stateful, request), expect, "{request:?}");
    use MessageType::*;
    check(&message(Solicit, None, None), Some((Advertise, own(), None)));
    let mut rapid = message(Solicit, None, None);
    rapid.opts_mut().insert(DhcpOption::RapidCommit);
    check(&rapid, Some((Reply, own(), None)));
    check(&message(Request, Some(&DUID), Some("2001:db8::5")), Some((Reply, own(), None)));
    let both = [own(), vec![("2001:db8::9".to_string(), 0)]].concat();
    check(&message(Renew, Some(&DUID), Some("2001:db8::9")), Some((Reply, both, None)));
    check(&message(Rebind, None, Some("2001:db8::5")), Some((Reply, own(), None)));
    check(&message(Confirm, None, Some("2001:db8::5")), Some((Reply, vec![], Some(Status::Success))));
    check(&message(Confirm, None, Some("2001:db8::9")), Some((Reply, vec![], Some(Status::NotOnLink))));
    check(&message(Confirm, None, None), None);
    check(&message(Release, Some(&DUID), Some("2001:db8::5")), Some((Reply, vec![], Some(Status::Success))));
    // For another server, and without what a message must name.
    check(&message(Request, Some(&[9]), None), None);
    check(&message(Request, None, None), None);
    check(&message(Solicit, Some(&DUID), None), None);
    check(&message(Advertise, Some(&DUID), None), None);
}

#[test]
fn a_stateless_client_is_told_options_only() {
    let information = message(MessageType::InformationRequest, None, None);
    assert_eq!(ask("dhcpv6-stateless", &information), Some((MessageType::Reply, vec![], None)));
    let solicit = message(MessageType::Solicit, None, None);
    let none = Some((MessageType::Advertise, vec![], Some(Status::NoAddrsAvail)));
    assert_eq!(ask("dhcpv6-stateless", &solicit), none);
    assert_eq!(ask("slaac", &information), None);
}

#[test]
fn options_are_the_subnets_and_the_ports_own() {
    let (own, from) = with("dhcpv6-stateful", &[]);
    let lease = &own[&(Uuid::from_u128(1), from)];
    assert_eq!(lease.options[&DNS_SERVERS], METADATA6.octets());
    assert_eq!(lease.options[&DOMAIN_LIST], b"\x07example\x03org\0");
    assert_eq!(lease.options[&59], b"http://b/");
    let (theirs, from) = with("dhcpv6-stateful", &["9.9.9.9", "2620:fe::fe"]);
    let server: Ipv6Addr = "2620:fe::fe".parse().unwrap();
    assert_eq!(theirs[&(Uuid::from_u128(1), from)].options[&DNS_SERVERS], server.octets());
}
