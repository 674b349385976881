//! Packets that are too large for some part of their way.

use super::ensure;
use crate::Outcome;
use crate::guest::{ECHO, Guest, WAIT, line};
use crate::hosts::{FAR, FAR_MTU, WORLD, until};
use crate::space::Space;
use crate::town::{SOON, Town};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const BYTES: usize = 300_000;

/// Whether a large echo request is answered by an error that says what would fit.
fn told(space: &Space, to: &str, size: u32, expect: u32) -> Outcome {
    let said =
        space.run(&format!("ping -n -c 2 -i 0.3 -W 1 -M do -s {size} {to}")).unwrap_or_else(|said| said);
    let line = said.lines().find(|line| line.to_lowercase().contains("mtu")).unwrap_or("no error").trim();
    let fits = line.contains(&format!("mtu = {expect}")) || line.contains(&format!("mtu={expect}"));
    ensure(fits, format!("to {to}: {line}"))
}

/// Guests on all hosts are told of the narrow link behind the translation.
pub fn errors_inward(town: &mut Town) -> Outcome {
    let one = |guest: &Guest| {
        until(SOON, || ensure(guest.pings(FAR), format!("{} does not reach {FAR}", guest.name)))?;
        let outcome = told(&guest.space, FAR, 1400, FAR_MTU);
        guest.space.ip("route flush cache");
        outcome
    };
    Ok(town.blues.iter().map(one).collect::<Outcome<Vec<_>>>()?.join(", "))
}

/// The world is told that guests' networks are narrower than its own.
pub fn errors_outward(town: &mut Town) -> Outcome {
    let (id, address) = town.float(&town.blues[1])?;
    let outcome = until(SOON, || told(&town.machines.world, &address, 1472, town.blue.mtu as u32));
    town.machines.world.ip("route flush cache");
    town.unfloat(&id)?;
    outcome
}

/// Sends much and reads it back.
fn carries(space: &Space, to: &str) -> Outcome {
    let to = SocketAddr::new(to.parse().unwrap(), ECHO);
    let mut stream =
        space.inside(|| TcpStream::connect_timeout(&to, WAIT)).map_err(|e| format!("TCP to {to}: {e}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    line(&mut stream)?;
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stream.write_all(&vec![b'x'; BYTES]));
        let mut back = vec![0; BYTES];
        let read = reader.read_exact(&mut back);
        let _ = reader.shutdown(std::net::Shutdown::Both);
        read.map(|()| format!("{BYTES} bytes to {to} and back")).map_err(|e| format!("{to}: {e}"))
    })
}

/// The provider loses all errors, and a guest does not know that its network is narrow.
pub fn without_errors(town: &mut Town) -> Outcome {
    let provider = &town.machines.provider;
    for command in [
        "add table inet blocked",
        "add chain inet blocked errors { type filter hook prerouting priority 0 ; }",
        "add rule inet blocked errors icmp type destination-unreachable drop",
    ] {
        provider.run(&format!("nft {command}"))?;
    }
    let guest = &town.blues[2];
    until(SOON, || carries(&guest.space, WORLD))?;
    let usual = carries(&guest.space, WORLD);
    guest.space.ip("link set eth0 mtu 1500");
    let wide = carries(&guest.space, WORLD);
    guest.space.ip(&format!("link set eth0 mtu {}", town.blue.mtu));
    provider.run("nft delete table inet blocked")?;
    Ok(format!("{}; by a guest of MTU 1500: {}", usual?, wide?))
}
