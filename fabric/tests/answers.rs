//! What guests ask their node: DNS over UDP and TCP, DHCPv6, metadata over IPv6. Needs root; says so without.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use common::*;
use dhcproto::v6::{self, DhcpOption, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(2);

fn question(name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(0x4242);
    let name = Name::new(name).unwrap();
    packet.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().unwrap()
}

/// The first address of an answer, or its code.
fn told(answer: &[u8]) -> Result<Ipv4Addr, RCODE> {
    let packet = Packet::parse(answer).unwrap();
    match packet.answers.first().map(|record| &record.rdata) {
        Some(RData::A(a)) => Ok(a.address.into()),
        _ => Err(packet.rcode()),
    }
}

/// Asks by UDP; none without an answer in time.
fn by_udp(guest: &Guest, server: &str, name: &str) -> Option<Result<Ipv4Addr, RCODE>> {
    guest.ns.inside(|| {
        let server = server_at(server);
        let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.send_to(&question(name), server).unwrap();
        let mut answer = [0; 2048];
        let length = socket.recv(&mut answer).ok()?;
        Some(told(&answer[..length]))
    })
}

fn by_tcp(guest: &Guest, server: &str, name: &str) -> Option<Result<Ipv4Addr, RCODE>> {
    guest.ns.inside(|| {
        let mut stream = TcpStream::connect_timeout(&server_at(server), WAIT).ok()?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let question = question(name);
        stream.write_all(&(question.len() as u16).to_be_bytes()).unwrap();
        stream.write_all(&question).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).ok()?;
        Some(told(&answer))
    })
}

/// Port 53 of an address; a link-local one is on `eth0`. Inside of the guest's namespace.
fn server_at(address: &str) -> SocketAddr {
    match address.parse().unwrap() {
        std::net::IpAddr::V4(v4) => (v4, 53).into(),
        std::net::IpAddr::V6(v6) => SocketAddrV6::new(v6, 53, 0, eth0()).into(),
    }
}

/// Waits until the guest may use its link-local address.
fn settled(guest: &Guest) {
    for _ in 0..100 {
        let own = sh(&["ip", "-6", "-n", &guest.ns.0, "addr", "show", "dev", "eth0", "scope", "link"]);
        if own.contains("fe80") && !own.contains("tentative") {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no link-local address");
}

fn eth0() -> u32 {
    nix::net::if_::if_nametoindex("eth0").unwrap()
}

/// A name server outside that knows one address for everything.
fn outside(address: Ipv4Addr) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let listener = std::net::TcpListener::bind(at).unwrap();
    let reply = move |question: &[u8]| {
        let request = Packet::parse(question).unwrap();
        let mut reply = Packet::new_reply(request.id());
        let name = request.questions[0].qname.clone();
        let data = RData::A(A { address: address.into() });
        reply.answers.push(ResourceRecord::new(name, CLASS::IN, 5, data));
        reply.build_bytes_vec().unwrap()
    };
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            socket.send_to(&reply(&packet[..length]), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            let answer = reply(&question);
            stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    at
}

#[test]
fn names_of_the_network_are_answered_by_udp_and_tcp_and_others_asked_outside() {
    run(async |w| {
        let net = w.network(1, "10.90.0.0/24");
        let (mut a, b) = (w.port(1, net, "10.90.0.5", &open()), w.port(2, net, "10.90.0.6", &open()));
        a.fixed.push(FixedIp { subnet: a.fixed[0].subnet, address: "fd00:90::5".parse().unwrap() });
        w.put(Section::Port(a.clone()));
        let member = |port: &Port, name: &str| Member {
            mac: port.mac,
            addresses: vec![port.fixed[0].address],
            vtep: None,
            name: name.into(),
        };
        let ports = vec![(a.id, member(&a, "web")), (b.id, member(&b, "db"))].into();
        w.put(Section::Members(Members { network: net, ports }));
        w.resolve_by(outside([192, 0, 2, 9].into()));
        w.sync().await;
        let guest = w.guest(&a);
        settled(&guest);
        guest.ns.ip("route add 169.254.169.254 dev eth0");
        let db = Some(Ok([10, 90, 0, 6].into()));
        for (server, name, expect) in [
            ("169.254.169.254", "db.example.org", db),
            ("fe80::a9fe:a9fe", "db", db),
            ("169.254.169.254", "debian.org", Some(Ok([192, 0, 2, 9].into()))),
            ("169.254.169.254", "nobody", Some(Err(RCODE::NameError))),
        ] {
            assert_eq!(by_udp(&guest, server, name), expect, "UDP {server} {name}");
            assert_eq!(by_tcp(&guest, server, name), expect, "TCP {server} {name}");
        }
        w.listeners.clear();
        drop(w.fabric.take());
        assert_eq!(by_udp(&guest, "169.254.169.254", "db"), db, "without the fabric, which may start again");
        w.responder.take();
        assert_eq!(by_udp(&guest, "169.254.169.254", "db"), None, "without the responder");
    });
}

/// Asks all DHCPv6 servers of the link.
fn dhcp6(guest: &Guest, kind: MessageType, more: Vec<DhcpOption>) -> Option<v6::Message> {
    let mut request = v6::Message::new(kind);
    request.opts_mut().insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 1]));
    let ia = v6::IANA { id: 1, t1: 0, t2: 0, opts: Default::default() };
    request.opts_mut().insert(DhcpOption::IANA(ia));
    more.into_iter().for_each(|option| request.opts_mut().insert(option));
    guest.ns.inside(|| {
        let servers: Ipv6Addr = "ff02::1:2".parse().unwrap();
        let socket = UdpSocket::bind("[::]:546").unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.send_to(&request.to_vec().unwrap(), SocketAddrV6::new(servers, 547, 0, eth0())).unwrap();
        let mut answer = [0; 2048];
        let length = socket.recv(&mut answer).ok()?;
        Some(v6::Message::decode(&mut Decoder::new(&answer[..length])).unwrap())
    })
}

fn leased(message: &v6::Message) -> Option<Ipv6Addr> {
    let Some(DhcpOption::IANA(ia)) = message.opts().get(OptionCode::IANA) else { return None };
    match ia.opts.get(OptionCode::IAAddr) {
        Some(DhcpOption::IAAddr(address)) => Some(address.addr),
        _ => None,
    }
}

#[test]
fn a_guest_is_told_its_ipv6_address_and_a_closed_port_too() {
    run(async |w| {
        let mut net = network(1, "fd00:91::/64");
        let stateful = Some(Ipv6Mode::Dhcpv6Stateful);
        (net.subnets[0].ipv6_ra, net.subnets[0].ipv6_address) = (stateful, stateful);
        let net_id = net.id;
        w.put(Section::Network(net));
        // Without any rule: DHCP is allowed all the same.
        let port = w.port(1, net_id, "fd00:91::5", &rules(&[]));
        w.sync().await;
        let guest = w.guest(&port);
        settled(&guest);
        let offer = dhcp6(&guest, MessageType::Solicit, vec![]).expect("an answer");
        assert_eq!(offer.msg_type(), MessageType::Advertise);
        assert_eq!(leased(&offer), Some("fd00:91::5".parse().unwrap()));
        let server = offer.opts().get(OptionCode::ServerId).unwrap().clone();
        let reply = dhcp6(&guest, MessageType::Request, vec![server]).expect("an answer");
        assert_eq!((reply.msg_type(), leased(&reply)), (MessageType::Reply, leased(&offer)));
    });
}

#[test]
fn metadata_answers_over_ipv6() {
    run(async |w| {
        let net = w.network(1, "fd00:92::/64");
        let own = mac(1).slaac("fd00:92::".parse().unwrap()).to_string();
        let port = w.port(1, net, &own, &open());
        w.sync().await;
        let sockets: Vec<_> =
            w.listeners.iter().flat_map(|l| &l.sockets).map(|s| s.try_clone().unwrap()).collect();
        assert_eq!(sockets.len(), 2);
        for socket in sockets {
            socket.set_nonblocking(false).unwrap();
            serve(socket);
        }
        let guest = w.guest(&port);
        settled(&guest);
        let metadata: Ipv6Addr = "fe80::a9fe:a9fe".parse().unwrap();
        let seen = guest.ns.inside(|| talk(SocketAddrV6::new(metadata, 80, 0, eth0()).into()));
        assert_eq!(seen, Some(port.mac.link_local().to_string()), "who asks is known by its own address");
    });
}
