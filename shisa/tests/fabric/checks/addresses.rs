//! What guests are told of themselves: by DHCP, router advertisements and DHCPv6.

use super::ensure;
use crate::Outcome;
use crate::guest::{Guest, pings};
use crate::hosts::until;
use crate::space::Space;
use crate::town::{Net, SOON, Town, net_with, with};
use dhcproto::v6::{DhcpOption, IANA, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(2);

/// What a real client is leased: the variables that its script gets.
pub fn lease(guest: &Guest) -> Outcome<BTreeMap<String, String>> {
    let script = "/run/work/lease.sh";
    std::fs::write(script, "#!/bin/sh\nenv\n").unwrap();
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said =
        guest.space.run(&format!("busybox udhcpc -i eth0 -f -q -n -t 5 -T 1 -O mtu -O dns -s {script}"))?;
    Ok(said.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect())
}

pub fn dhcp(town: &mut Town) -> Outcome {
    let open = json!({"security_groups": [town.open]});
    let guest = town.bare_guest_of(&town.api, "dhcp", 2, &town.blue, open)?;
    let lease = lease(&guest);
    let address = guest.address().to_string();
    town.remove(guest)?;
    let lease = lease?;
    let told = |key: &str| lease.get(key).map(String::as_str).unwrap_or("nothing");
    let (ip, router, mtu) = (told("ip"), told("router"), told("mtu"));
    ensure(
        (ip, router, mtu) == (&address, "10.1.0.1", "1450"),
        format!("{ip}, router {router}, MTU {mtu}; it is {address}"),
    )
}

pub fn mtu_too_large(town: &mut Town) -> Outcome {
    match town.api.make("network", json!({"name": "wide", "mtu": 1501})) {
        Ok(made) => Err(format!("a network of MTU {}", made["mtu"])),
        Err(refused) => ensure(refused.contains(" 400 "), refused.chars().take(160).collect::<String>()),
    }
}

/// A network of IPv6 alone behind the router of all.
fn six(town: &Town, name: &str, cidr: &str, mode: &str) -> Outcome<Net> {
    let subnet = json!({"ip_version": 6, "cidr": cidr, "ipv6_ra_mode": mode, "ipv6_address_mode": mode});
    let net = net_with(&town.api, json!({"name": name}), subnet)?;
    let path = format!("/v2.0/routers/{}/add_router_interface", town.router);
    town.api.put(&path, json!({"subnet_id": net.subnet}))?;
    Ok(net)
}

/// A guest that takes what routers advertise.
fn advertised(town: &Town, name: &str, host: usize, net: &Net, port: Value) -> Outcome<Guest> {
    let port = with(json!({"security_groups": [town.open]}), port);
    let guest = town.bare_guest_of(&town.api, name, host, net, port)?;
    guest.space.sysctl("net.ipv6.conf.eth0.accept_ra=2");
    // It asks for a router when its device comes up.
    guest.space.ip("link set eth0 down");
    guest.space.ip("link set eth0 up");
    Ok(guest)
}

fn echoed(space: &Space, to: &str) -> Outcome {
    until(SOON, || {
        let echo = pings(space, to, &[]);
        ensure(echo, format!("echo of {to} is {echo}"))
    })
}

fn has(space: &Space, address: IpAddr) -> Outcome {
    until(SOON, || {
        let all = space.run("ip -6 -o addr show dev eth0 scope global")?;
        let found =
            all.lines().find(|line| line.contains(&format!(" {address}/")) && !line.contains("tentative"));
        found.map(|_| address.to_string()).ok_or(format!("not {address}: {all}"))
    })
}

pub fn slaac(town: &mut Town) -> Outcome {
    let (one, two) =
        (six(town, "six", "fd00:6::/64", "slaac")?, six(town, "sixth", "fd00:66::/64", "slaac")?);
    let guests = [
        advertised(town, "six1", 0, &one, json!({}))?,
        advertised(town, "six2", 1, &one, json!({}))?,
        advertised(town, "six3", 2, &two, json!({}))?,
    ];
    let told = guests.iter().map(|guest| has(&guest.space, guest.address())).collect::<Outcome<Vec<_>>>()?;
    let mtu = guests[0].space.run("cat /proc/sys/net/ipv6/conf/eth0/mtu")?;
    let meets = |to: &Guest| echoed(&guests[0].space, &to.address().to_string());
    let (beside, routed) = (meets(&guests[1]), meets(&guests[2]));
    for guest in guests {
        town.remove(guest)?;
    }
    let seen = format!("{told:?}, MTU {}, echo between hosts {beside:?}, routed {routed:?}", mtu.trim());
    ensure(beside.is_ok() && routed.is_ok() && mtu.trim() == "1450", seen)
}

pub fn dhcp6(town: &mut Town) -> Outcome {
    let net = six(town, "stateful", "fd00:7::/64", "dhcpv6-stateful")?;
    let guest = advertised(town, "stateful", 1, &net, json!({}))?;
    let outcome = leased6(&guest);
    town.remove(guest)?;
    outcome
}

fn leased6(guest: &Guest) -> Outcome {
    until(SOON, || {
        let own = guest.space.run("ip -6 -o addr show dev eth0 scope link")?;
        ensure(own.contains("fe80") && !own.contains("tentative"), "no link-local address yet")
    })?;
    let route = until(SOON, || {
        let routes = guest.space.run("ip -6 route show default")?;
        ensure(routes.contains("via fe80"), format!("default routes: {routes}"))
    })?;
    let offer = until(SOON, || ask(&guest.space, MessageType::Solicit, None))?;
    let server = offer.opts().get(OptionCode::ServerId).cloned();
    let reply = ask(&guest.space, MessageType::Request, server)?;
    let leased = address(&reply).ok_or("no address")?;
    guest.space.ip(&format!("addr add {leased}/128 dev eth0 nodad"));
    let echo = echoed(&guest.space, "fd00:7::1");
    let seen = format!("{leased} of {:?}, {}, {echo:?}", guest.addresses, route.trim());
    ensure(guest.addresses == [IpAddr::V6(leased)] && echo.is_ok(), seen)
}

/// Asks all servers of the link.
fn ask(space: &Space, kind: MessageType, server: Option<DhcpOption>) -> Outcome<Message> {
    let mut request = Message::new(kind);
    request.opts_mut().insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 1]));
    request.opts_mut().insert(DhcpOption::IANA(IANA { id: 1, t1: 0, t2: 0, opts: Default::default() }));
    server.into_iter().for_each(|server| request.opts_mut().insert(server));
    let servers: Ipv6Addr = "ff02::1:2".parse().unwrap();
    space.inside(|| {
        let socket = UdpSocket::bind("[::]:546").map_err(|e| e.to_string())?;
        socket.set_read_timeout(Some(WAIT)).unwrap();
        let to = SocketAddrV6::new(servers, 547, 0, if_nametoindex("eth0").unwrap());
        let mut answer = [0; 2048];
        let told = socket.send_to(&request.to_vec().unwrap(), to).and_then(|_| socket.recv(&mut answer));
        let length = told.map_err(|e| format!("{kind:?}: {e}"))?;
        Message::decode(&mut Decoder::new(&answer[..length])).map_err(|e| e.to_string())
    })
}

fn address(message: &Message) -> Option<Ipv6Addr> {
    let Some(DhcpOption::IANA(ia)) = message.opts().get(OptionCode::IANA) else { return None };
    match ia.opts.get(OptionCode::IAAddr) {
        Some(DhcpOption::IAAddr(address)) => Some(address.addr),
        _ => None,
    }
}
