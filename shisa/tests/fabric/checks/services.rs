//! What nodes answer their guests: names and metadata.

use super::ensure;
use crate::Outcome;
use crate::guest::{Guest, WAIT, exchange};
use crate::hosts::{slow, until};
use crate::space::Space;
use crate::town::{SOON, Town, net_with};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const NODE: &str = "169.254.169.254";
const NODE6: &str = "fe80::a9fe:a9fe";

/// A question for an IPv4 address.
fn question(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat());
    let head = [0x42, 0x42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    head.into_iter().chain(labels).chain([0, 0, 1, 0, 1]).collect()
}

/// The address that an answer ends with.
fn told(answer: &[u8]) -> Outcome<Ipv4Addr> {
    let (code, count) = (answer.get(3).map(|b| b & 15), answer.get(7).copied());
    match (code, count, answer.last_chunk::<4>()) {
        (Some(0), Some(1..), Some(address)) => Ok(Ipv4Addr::from(*address)),
        _ => Err(format!("code {code:?} with {count:?} answers")),
    }
}

fn by_udp(space: &Space, name: &str) -> Outcome<Ipv4Addr> {
    let socket = space.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    told(&exchange(&socket, &question(name), SocketAddr::new(NODE.parse().unwrap(), 53))?)
}

fn by_tcp(space: &Space, name: &str) -> Outcome<Ipv4Addr> {
    let to = SocketAddr::new(NODE.parse().unwrap(), 53);
    let asked = || {
        let mut stream = space.inside(|| TcpStream::connect_timeout(&to, WAIT))?;
        stream.set_read_timeout(Some(WAIT))?;
        let question = question(name);
        stream.write_all(&[&(question.len() as u16).to_be_bytes()[..], &question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    told(&asked().map_err(|e: std::io::Error| format!("TCP to {to}: {e}"))?)
}

/// Two guests with names, on two hosts.
fn named<T>(town: &mut Town, work: impl FnOnce(&mut Town, &Guest, &Guest) -> Outcome<T>) -> Outcome<T> {
    let port = |name: &str| json!({"dns_name": name, "security_groups": [town.open]});
    let asks = town.guest("asks", 0, &town.blue, port("asks"))?;
    let web = town.guest("web", 1, &town.blue, port("web"))?;
    asks.space.ip(&format!("route replace {NODE} dev eth0"));
    let outcome = work(town, &asks, &web);
    town.remove(asks)?;
    town.remove(web)?;
    outcome
}

fn answers(asked: Outcome<Ipv4Addr>, expect: &Guest) -> Outcome {
    ensure(asked.as_ref().is_ok_and(|a| IpAddr::V4(*a) == expect.address()), format!("{asked:?}"))
}

pub fn dns_udp(town: &mut Town) -> Outcome {
    named(town, |_, asks, web| until(SOON, || answers(by_udp(&asks.space, "web"), web)))
}

pub fn dns_tcp(town: &mut Town) -> Outcome {
    named(town, |_, asks, web| until(SOON, || answers(by_tcp(&asks.space, "web"), web)))
}

/// Asks without a pause while the node's process is away, and while it comes back.
pub fn dns_through_crash(town: &mut Town) -> Outcome {
    named(town, |town, asks, web| {
        until(SOON, || answers(by_udp(&asks.space, "web"), web))?;
        town.machines.hosts[0].crash();
        let begin = Instant::now();
        let (mut good, mut bad) = (0, Vec::new());
        let mut back = false;
        while begin.elapsed() < Duration::from_secs(4) * slow() {
            if !back && begin.elapsed() > Duration::from_secs(2) * slow() {
                town.machines.hosts[0].start(0, None);
                back = true;
            }
            for asked in [by_udp(&asks.space, "web"), by_tcp(&asks.space, "web")] {
                answers(asked, web).map_or_else(|not| bad.push(not), |_| good += 1);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure(good > 50 && bad.is_empty(), format!("{good} answers, {} failed {:?}", bad.len(), bad.first()))
    })
}

/// What a guest is told of itself.
fn metadata(space: &Space, at: SocketAddr) -> Outcome<Value> {
    let asked = || {
        let mut stream = space.inside(|| TcpStream::connect_timeout(&at, WAIT))?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.write_all(b"GET /openstack/latest/meta_data.json HTTP/1.0\r\nhost: metadata\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().map_err(|e: std::io::Error| format!("TCP to {at}: {e}"))?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body).map_err(|_| format!("no JSON: {answer}"))
}

fn is_told(guest: &Guest, at: SocketAddr) -> Outcome {
    until(SOON, || {
        let told = metadata(&guest.space, at)?;
        ensure(
            told["uuid"] == guest.server.as_str(),
            format!("{} is told it is {}, {}", guest.name, told["name"], told["uuid"]),
        )
    })
}

pub fn metadata4(town: &mut Town) -> Outcome {
    let at = SocketAddr::new(NODE.parse().unwrap(), 80);
    Ok(town.blues.iter().map(|guest| is_told(guest, at)).collect::<Outcome<Vec<_>>>()?.join(", "))
}

pub fn metadata6(town: &mut Town) -> Outcome {
    let subnet = json!({"ip_version": 6, "cidr": "fd00:8::/64", "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"});
    let net = net_with(&town.api, json!({"name": "metadata"}), subnet)?;
    let guest =
        town.bare_guest_of(&town.api, "metadata", 1, &net, json!({"security_groups": [town.open]}))?;
    let told = until(SOON, || {
        let eth0 = guest.space.inside(|| if_nametoindex("eth0")).unwrap();
        is_told(&guest, SocketAddrV6::new(NODE6.parse().unwrap(), 80, 0, eth0).into())
    });
    town.remove(guest)?;
    told
}
