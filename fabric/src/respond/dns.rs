//! Names for guests: those of their own network from the document, everything else asked of the node's own servers.
//!
//! A port is known by its name, and as `host-10-0-0-5`, in the network's domain (`DOMAIN` where it has none) and alone.
//! Reverse questions are answered for its addresses. What is not known here is passed on as it came, over UDP or TCP
//! like the question, to the servers of the node's `/etc/resolv.conf`, one after the other; so EDNS and whatever comes
//! after it work.
//!
//! Pure; `forward` asks others.
//! Source: RFC 1035, RFC 7766 (TCP), openstack/neutron (`dns_domain`, `host-` names).

use crate::plan::Sections;
use base::node::{Members, Network};
use simple_dns::rdata::{A, AAAA, OPT, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// Of networks without a domain of their own. Source: neutron's `dns_domain`.
pub const DOMAIN: &str = "openstacklocal";
pub const PORT: u16 = 53;
const TTL_SECS: u32 = 30;
/// What a client takes that does not say. Source: RFC 1035 section 4.2.1.
const PLAIN_UDP_MAX: usize = 512;
/// What we take. Source: DNS flag day 2020.
pub const UDP_MAX: u16 = 1232;

/// The names of a network, in lower case and without the last dot.
#[derive(Debug, Default, PartialEq)]
pub struct Zone {
    domain: String,
    addresses: HashMap<String, Vec<IpAddr>>,
    names: HashMap<IpAddr, String>,
}

pub type Zones = BTreeMap<Uuid, Zone>;

pub fn zones(s: &Sections) -> Zones {
    let none = Members::default();
    let zone = |network: &Network| zone(network, s.members.get(&network.id).copied().unwrap_or(&none));
    s.networks.iter().map(|(id, network)| (*id, zone(network))).collect()
}

/// The domain of a network.
pub fn domain(network: &Network) -> String {
    let own = network.dns_domain.trim_end_matches('.').to_ascii_lowercase();
    if own.is_empty() { DOMAIN.to_string() } else { own }
}

fn zone(network: &Network, members: &Members) -> Zone {
    let mut zone = Zone { domain: domain(network), ..Zone::default() };
    for member in members.ports.values() {
        for address in &member.addresses {
            let plain = plain(*address);
            let name = if member.name.is_empty() { plain.clone() } else { member.name.to_ascii_lowercase() };
            if name != plain {
                zone.addresses.entry(plain).or_default().push(*address);
            }
            zone.names.insert(*address, format!("{name}.{}", zone.domain));
            zone.addresses.entry(name).or_default().push(*address);
        }
    }
    zone
}

fn plain(address: IpAddr) -> String {
    format!("host-{}", address.to_string().replace(['.', ':'], "-"))
}

/// What becomes of a question.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Reply(Vec<u8>),
    /// Not ours to know.
    Forward,
    /// No question at all.
    Nothing,
}

/// `udp`: the answer must fit what the client takes, or say that it was cut.
pub fn answer(zones: &Zones, network: Uuid, packet: &[u8], udp: bool) -> Answer {
    let Some(zone) = zones.get(&network) else { return Answer::Nothing };
    let Ok(request) = Packet::parse(packet) else { return Answer::Nothing };
    let [question] = request.questions.as_slice() else { return Answer::Nothing };
    if request.has_flags(PacketFlag::RESPONSE) || request.opcode() != OPCODE::StandardQuery {
        return Answer::Nothing;
    }
    if !matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY) {
        return Answer::Forward;
    }
    let name = question.qname.to_string().to_ascii_lowercase();
    let found = match known(zone, &name, question.qtype) {
        Known::Records(records) => records,
        Known::Absent => return reply(&request, Vec::new(), RCODE::NameError, udp),
        Known::Elsewhere => return Answer::Forward,
    };
    let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL_SECS, data);
    reply(&request, found.into_iter().map(record).collect(), RCODE::NoError, udp)
}

/// What goes back when nobody that was asked has answered.
pub fn failure(packet: &[u8]) -> Option<Vec<u8>> {
    match reply(&Packet::parse(packet).ok()?, Vec::new(), RCODE::ServerFailure, false) {
        Answer::Reply(bytes) => Some(bytes),
        Answer::Forward | Answer::Nothing => None,
    }
}

fn reply(request: &Packet, answers: Vec<ResourceRecord>, code: RCODE, udp: bool) -> Answer {
    let mut reply = Packet::new_reply(request.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if code != RCODE::ServerFailure {
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    }
    if request.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *reply.rcode_mut() = code;
    reply.questions.clone_from(&request.questions);
    reply.answers = answers;
    let mut room = PLAIN_UDP_MAX;
    if let Some(theirs) = request.opt() {
        room = room.max(theirs.udp_packet_size.into());
        *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: UDP_MAX, version: 0 });
    }
    if udp && reply.build_bytes_vec_compressed().is_ok_and(|bytes| bytes.len() > room) {
        reply.answers.clear();
        reply.set_flags(PacketFlag::TRUNCATION);
    }
    reply.build_bytes_vec_compressed().map_or(Answer::Nothing, Answer::Reply)
}

enum Known {
    /// None: the name is there without such a record.
    Records(Vec<RData<'static>>),
    Absent,
    Elsewhere,
}

fn known(zone: &Zone, name: &str, kind: QTYPE) -> Known {
    if let Some(address) = reversed(name) {
        return match zone.names.get(&address) {
            Some(name) => {
                Known::Records(pointer(name).into_iter().filter(|_| asks(kind, TYPE::PTR)).collect())
            }
            None => Known::Elsewhere,
        };
    }
    let label = name.strip_suffix(&zone.domain).and_then(|rest| rest.strip_suffix('.'));
    match zone.addresses.get(label.unwrap_or(name)) {
        Some(addresses) => Known::Records(addresses.iter().filter_map(|a| address(*a, kind)).collect()),
        // Nobody else knows single labels; a name in the domain may be one that its owner publishes elsewhere.
        None if !name.contains('.') => Known::Absent,
        None => Known::Elsewhere,
    }
}

fn asks(kind: QTYPE, of: TYPE) -> bool {
    kind == QTYPE::ANY || kind == QTYPE::TYPE(of)
}

fn address(address: IpAddr, kind: QTYPE) -> Option<RData<'static>> {
    match address {
        IpAddr::V4(a) => asks(kind, TYPE::A).then(|| RData::A(A { address: a.into() })),
        IpAddr::V6(a) => asks(kind, TYPE::AAAA).then(|| RData::AAAA(AAAA { address: a.into() })),
    }
}

fn pointer(name: &str) -> Option<RData<'static>> {
    Some(RData::PTR(PTR(Name::new(name).ok()?.into_owned())))
}

/// The address that a reverse name is of.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<u8> = digits.split('.').rev().map(str::parse).collect::<Result<_, _>>().ok()?;
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(parts).ok()?).into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<u8> =
        digits.split('.').rev().map(|n| u8::from_str_radix(n, 16)).collect::<Result<_, _>>().ok()?;
    if nibbles.len() != 32 || nibbles.iter().any(|n| *n > 15) {
        return None;
    }
    let bytes: Vec<u8> = nibbles.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::node::Member;
    use simple_dns::Question;

    fn here() -> Zones {
        let network: Network = serde_json::from_value(serde_json::json!({
            "id": Uuid::nil(), "vni": 1, "mtu": 1450, "external": false, "router": null, "subnets": [],
            "dns_domain": "Example.ORG.",
        }))
        .unwrap();
        let member = |name: &str, addresses: &[&str]| Member {
            mac: "fa:16:3e:00:00:01".parse().unwrap(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            vtep: None,
            name: name.into(),
        };
        let ports = [
            (Uuid::from_u128(1), member("Web", &["10.0.0.5", "2001:db8::5"])),
            (Uuid::from_u128(2), member("", &["10.0.0.6"])),
        ];
        let members = Members { network: network.id, ports: ports.into_iter().collect() };
        [(network.id, zone(&network, &members))].into()
    }

    /// The code and the records of the answer to one question; none when it is passed on.
    fn ask(name: &str, kind: TYPE) -> Option<(RCODE, Vec<String>)> {
        let mut packet = Packet::new_query(7);
        let question =
            Question::new(Name::new(name).unwrap(), QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false);
        packet.questions.push(question);
        match answer(&here(), Uuid::nil(), &packet.build_bytes_vec().unwrap(), true) {
            Answer::Reply(bytes) => {
                let reply = Packet::parse(&bytes).unwrap();
                assert!(reply.id() == 7 && reply.questions.len() == 1);
                let text = |record: &ResourceRecord| match &record.rdata {
                    RData::A(a) => Ipv4Addr::from(a.address).to_string(),
                    RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
                    RData::PTR(name) => name.0.to_string(),
                    other => format!("{other:?}"),
                };
                Some((reply.rcode(), reply.answers.iter().map(text).collect()))
            }
            Answer::Forward => None,
            Answer::Nothing => panic!("{name} is a question"),
        }
    }

    fn check(name: &str, kind: TYPE, expect: Option<(RCODE, &[&str])>) {
        let got = ask(name, kind);
        let got = got.as_ref().map(|(code, all)| (*code, all.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(got, expect.map(|(code, all)| (code, all.to_vec())), "{name}");
    }

    #[test]
    fn own_names_are_answered_and_others_passed_on() {
        check("web.example.org", TYPE::A, Some((RCODE::NoError, &["10.0.0.5"])));
        check("WEB", TYPE::AAAA, Some((RCODE::NoError, &["2001:db8::5"])));
        check("web", TYPE::MX, Some((RCODE::NoError, &[])));
        check("host-10-0-0-6.example.org", TYPE::A, Some((RCODE::NoError, &["10.0.0.6"])));
        check("host-10-0-0-5", TYPE::A, Some((RCODE::NoError, &["10.0.0.5"])));
        check("5.0.0.10.in-addr.arpa", TYPE::PTR, Some((RCODE::NoError, &["web.example.org"])));
        let six = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        check(six, TYPE::PTR, Some((RCODE::NoError, &["web.example.org"])));
        check("nobody", TYPE::A, Some((RCODE::NameError, &[])));
        check("www.example.org", TYPE::A, None);
        check("7.0.0.10.in-addr.arpa", TYPE::PTR, None);
        check("debian.org", TYPE::A, None);
    }

    #[test]
    fn an_answer_that_does_not_fit_says_so() {
        let mut zones = here();
        let many = (0..=255).map(|n| Ipv4Addr::new(10, 0, 1, n).into()).collect();
        zones.get_mut(&Uuid::nil()).unwrap().addresses.insert("many".into(), many);
        let mut packet = Packet::new_query(7);
        let name = Name::new("many").unwrap();
        packet.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
        let bytes = packet.build_bytes_vec().unwrap();
        for (udp, expect) in [(true, (true, 0)), (false, (false, 256))] {
            let Answer::Reply(bytes) = answer(&zones, Uuid::nil(), &bytes, udp) else { panic!("no reply") };
            let reply = Packet::parse(&bytes).unwrap();
            assert_eq!((reply.has_flags(PacketFlag::TRUNCATION), reply.answers.len()), expect);
        }
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let mut reply = Packet::new_reply(1);
        reply.questions.push(Question::new(
            Name::new("web").unwrap(),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        for bytes in [Vec::new(), vec![0; 11], vec![0xff; 600], reply.build_bytes_vec().unwrap()] {
            assert_eq!(answer(&here(), Uuid::nil(), &bytes, true), Answer::Nothing);
        }
    }
}
