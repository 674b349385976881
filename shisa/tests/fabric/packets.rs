//! Frames that a guest's own Linux would not send, and a look at what arrives.

use crate::guest::Guest;
use crate::space::Space;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

pub type Mac = [u8; 6];
pub const EVERYONE: Mac = [0xff; 6];
pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;

/// The whole of a device's frames, both ways.
pub struct Raw(File);

impl Raw {
    pub fn on(space: &Space, device: &str) -> Raw {
        Raw(space.inside(|| open(device)).unwrap())
    }

    pub fn send(&mut self, to: Mac, from: Mac, kind: u16, body: &[u8]) {
        let frame = [&to[..], &from, &kind.to_be_bytes(), body].concat();
        self.0.write_all(&frame).unwrap();
    }

    /// The next frame that has these bytes, within `wait`.
    pub fn sees(&mut self, marker: &[u8], wait: Duration) -> bool {
        let end = Instant::now() + wait;
        let mut frame = [0; 4096];
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left.as_millis() as i32).unwrap();
            if poll(&mut fds, timeout).unwrap() == 0 {
                return false;
            }
            let length = self.0.read(&mut frame).unwrap_or(0);
            if frame[..length].windows(marker.len()).any(|part| part == marker) {
                return true;
            }
        }
        false
    }
}

fn open(device: &str) -> nix::Result<File> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: a plain system call; what it returns is ours alone.
    let fd = nix::errno::Errno::result(unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all.into())
    })?;
    // SAFETY: see above.
    let file = unsafe { File::from_raw_fd(fd) };
    // SAFETY: an all-zero `sockaddr_ll` is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = if_nametoindex(device)? as i32;
    // SAFETY: the descriptor is open and the address lives through the call.
    let bound = unsafe {
        libc::bind(file.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    };
    nix::errno::Errno::result(bound)?;
    Ok(file)
}

pub fn mac(guest: &Guest) -> Mac {
    let bytes: Vec<u8> = guest.mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// The address that a MAC makes in `fe80::/64`.
pub fn link_local(m: Mac) -> Ipv6Addr {
    let word = |a: u8, b: u8| u16::from_be_bytes([a, b]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(m[0] ^ 2, m[1]), word(m[2], 0xff), word(0xfe, m[3]), word(m[4], m[5]))
}

/// Operation 1 asks, 2 answers.
pub fn arp(operation: u8, mac: Mac, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &own.octets(), &[0; 6], &target.octets()].concat()
}

pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), body: &[u8]) -> Vec<u8> {
    let length = body.len() as u16;
    let mut head = [&[0x45, 0][..], &(28 + length).to_be_bytes(), &[0, 1, 0, 0, 64, 17, 0, 0]].concat();
    head.extend([from.0.octets(), to.0.octets()].concat());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [from.1, to.1, 8 + length, 0] {
        head.extend(word.to_be_bytes());
    }
    head.extend(body);
    head
}

/// To all on the link. The first of `body` is the type.
pub fn icmp6(from: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let length = (body.len() as u16).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0], &length, &[0, 0, 0, 58], body].concat();
    let mut body = body.to_vec();
    body[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    [&[0x60, 0, 0, 0][..], &length, &[58, 255], &from.octets(), &to.octets(), &body].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
