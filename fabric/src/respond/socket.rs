//! Sockets bound to a device: what comes by it is answered by it, whatever addresses and routes there are.

use crate::plan::{METADATA, METADATA6};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

const BACKLOG: i32 = 256;
/// All DHCPv6 servers and relays of a link. Source: RFC 8415 section 7.1.
const DHCP6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

fn on(device: &str, domain: Domain, kind: Type, protocol: Protocol) -> Result<Socket> {
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// 169.254.169.254 or fe80::a9fe:a9fe on a device.
fn here(v6: bool, port: u16, index: u32) -> SocketAddr {
    match v6 {
        false => SocketAddr::new(IpAddr::V4(METADATA), port),
        true => SocketAddrV6::new(METADATA6, port, 0, index).into(),
    }
}

fn domain(v6: bool) -> Domain {
    if v6 { Domain::IPV6 } else { Domain::IPV4 }
}

/// A listener on the metadata address.
pub fn tcp(device: &str, index: u32, v6: bool, port: u16) -> Result<std::net::TcpListener> {
    let socket = on(device, domain(v6), Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&here(v6, port, index).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A datagram socket on the metadata address.
pub fn udp(device: &str, index: u32, v6: bool, port: u16) -> Result<std::net::UdpSocket> {
    let socket = on(device, domain(v6), Type::DGRAM, Protocol::UDP)?;
    socket.bind(&here(v6, port, index).into())?;
    if !v6 {
        without_checksums(&socket)?;
    }
    Ok(socket.into())
}

pub fn dhcp4(device: &str) -> Result<std::net::UdpSocket> {
    let socket = on(device, Domain::IPV4, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    without_checksums(&socket)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, super::dhcp4::SERVER_PORT)).into())?;
    Ok(socket.into())
}

pub fn dhcp6(device: &str, index: u32) -> Result<std::net::UdpSocket> {
    let socket = on(device, Domain::IPV6, Type::DGRAM, Protocol::UDP)?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, super::dhcp6::SERVER_PORT)).into())?;
    socket.join_multicast_v6(&DHCP6_SERVERS, index)?;
    Ok(socket.into())
}

pub fn icmp6(device: &str, index: u32) -> Result<std::net::UdpSocket> {
    let socket = on(device, Domain::IPV6, Type::RAW, Protocol::ICMPV6)?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_unicast_hops_v6(255)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    Ok(socket.into())
}

/// Sends UDP without checksum. With one, a tap leaves it to the guest's device, and clients that read frames by
/// themselves see a wrong one and drop the answer.
fn without_checksums(socket: &Socket) -> Result<()> {
    let on: libc::c_int = 1;
    let (value, size) = ((&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the descriptor is open and `on` lives through the call.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, value, size) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
