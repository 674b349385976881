//! Gratuitous ARP: tells a link who has an address now, so that neighbours with an older answer take the new one.
//!
//! Only IPv4; the host's own neighbours of floating addresses are static entries and need no announcement.

use base::Result;
use base::units::Mac;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

/// Announces an address of a device in the calling thread's namespace.
pub fn announce(device: &str, address: IpAddr) -> Result<()> {
    let IpAddr::V4(address) = address else { return Ok(()) };
    let (index, mac) = device_of(device)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    send(&socket, index, &frame(mac, address))?;
    Ok(())
}

/// Announces an address that another has on a device's link, as this device.
pub fn introduce(device: &str, address: IpAddr, other: Mac) -> Result<()> {
    let IpAddr::V4(address) = address else { return Ok(()) };
    let (index, mac) = device_of(device)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    let mut frame = frame(other.0, address);
    frame[6..12].copy_from_slice(&mac);
    send(&socket, index, &frame)?;
    Ok(())
}

/// An ARP request of the address for itself. Source: RFC 5227, section 3.
fn frame(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![0xff; 6];
    out.extend(mac);
    out.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    out.extend(mac);
    out.extend(address.octets());
    out.extend([0; 6]);
    out.extend(address.octets());
    out
}

/// Index and MAC of a device.
fn device_of(device: &str) -> io::Result<(i32, [u8; 6])> {
    let index = nix::net::if_::if_nametoindex(device)? as i32;
    for address in nix::ifaddrs::getifaddrs()?.filter(|a| a.interface_name == device) {
        if let Some(mac) = address.address.and_then(|a| a.as_link_addr()?.addr()) {
            return Ok((index, mac));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn send(socket: &Socket, index: i32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: an all-zero `sockaddr_ll` is a valid one.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = (libc::ETH_P_ARP as u16).to_be();
    to.sll_ifindex = index;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let address = (&raw const to).cast::<libc::sockaddr>();
    // SAFETY: frame and address live through the call and their lengths are theirs.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, address, size) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
