//! Addresses that guests announce: virtual ones, which move between ports by their allowed pairs.
//!
//! The tap of each port that has pairs is listened to for gratuitous ARP and unsolicited neighbour advertisements. What
//! is announced and allowed is claimed in the port's report until another port announces it: one of this node, or, once
//! the plane has had this claim, one that the members of the network name instead.
//!
//! The listener stands before the rules, so it looks by itself whether the port may: MAC and address of one pair.
//!
//! A pair may have a MAC of its own, as VRRP's virtual ones: an address announced at it is found at it.
//!
//! Limits: ARP of Ethernet and IPv4; IPv6 without extension headers.

use crate::kernel::Kernel;
use crate::plan::Sections;
use crate::state::{Place, tap};
use base::Result;
use base::node::{Port, claim_id};
use base::units::Mac;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use uuid::Uuid;

const FRAME_MAX: usize = 128;

/// Who claims what on a network.
type Held = BTreeMap<(Uuid, IpAddr), Claim>;

struct Claim {
    holder: Uuid,
    mac: Mac,
    /// The plane says so too.
    known: bool,
}

#[derive(Default)]
pub struct Claims {
    held: Arc<Mutex<Held>>,
    news: Arc<Notify>,
    ears: BTreeMap<Uuid, Ear>,
}

/// The listener at one tap.
struct Ear {
    /// The device as it is now, and what it was told to listen for.
    index: u32,
    pairs: Vec<(IpNet, Mac)>,
    task: AbortHandle,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Claims {
    /// Told when there is another claim.
    pub fn news(&self) -> Arc<Notify> {
        self.news.clone()
    }

    /// The addresses that a port claims, each with the MAC that it was announced at.
    pub fn of(&self, port: Uuid) -> BTreeMap<IpAddr, Mac> {
        let held = lock(&self.held);
        let own = held.iter().filter(|(_, claim)| claim.holder == port);
        own.map(|((_, address), claim)| (*address, claim.mac)).collect()
    }

    /// Listens at the taps that the sections have in these places now. Needs the runtime. What fails is tried again next time.
    pub fn follow(
        &mut self,
        kernel: &Kernel,
        s: &Sections,
        places: &BTreeSet<Place>,
    ) -> Vec<(Place, base::Error)> {
        self.settle(s);
        let wanted: BTreeMap<Uuid, &Port> =
            s.ports.values().filter(|port| !port.pairs.is_empty()).map(|port| (port.id, *port)).collect();
        self.ears.retain(|id, ear| wanted.get(id).is_some_and(|port| port.pairs == ear.pairs));
        let mut failures = Vec::new();
        for port in wanted.into_values().filter(|port| places.contains(&Place::Network(port.network))) {
            if let Err(error) = self.listen(kernel, port) {
                failures.push((Place::Network(port.network), error));
            }
        }
        failures
    }

    /// Takes up what the plane says that ports here hold, as after a restart. Lets go of what ports have no more, and of what the plane, having had the claim, gives to another.
    fn settle(&self, s: &Sections) {
        let mut held = lock(&self.held);
        for port in s.ports.values().filter(|port| !port.pairs.is_empty()) {
            let Some(members) = s.members.get(&port.network) else { continue };
            let macs = port.pairs.iter().map(|(_, mac)| (claim_id(port.id, *mac), *mac));
            for (id, mac) in macs.chain([(port.id, port.mac)]) {
                let more = members.ports.get(&id).into_iter().flat_map(|member| &member.addresses);
                for address in more.filter(|a| port.fixed.iter().all(|fixed| fixed.address != **a)) {
                    let claim = Claim { holder: port.id, mac, known: true };
                    held.entry((port.network, *address)).or_insert(claim);
                }
            }
        }
        held.retain(|(network, address), claim| {
            let port = s.ports.get(&claim.holder);
            let allowed = port.is_some_and(|port| allows(&port.pairs, claim.mac, *address));
            let members = s.members.get(network).map(|members| &members.ports);
            let named = members.into_iter().flatten().find(|(_, member)| member.addresses.contains(address));
            let ids = [claim.holder, claim_id(claim.holder, claim.mac)];
            let ours = named.is_some_and(|(id, _)| ids.contains(id));
            claim.known |= ours;
            allowed && (ours || !claim.known)
        });
    }

    fn listen(&mut self, kernel: &Kernel, port: &Port) -> Result<()> {
        let (name, place) = (tap(port.id), Place::Network(port.network));
        let known = self.ears.get(&port.id).map(|ear| ear.index);
        let opened = kernel.handle(place)?.inside(|| {
            let index = nix::net::if_::if_nametoindex(name.as_str()).map_err(io::Error::from)?;
            let again = known == Some(index);
            Ok((index, if again { None } else { Some(socket(index)?) }))
        })?;
        if let (index, Some(socket)) = opened {
            let heard = Heard { port: port.clone(), held: self.held.clone(), news: self.news.clone() };
            // SAFETY: the socket owns its descriptor, the same one for as long as it lives, and moves in here.
            let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
            let task = tokio::spawn(hear(socket, heard)).abort_handle();
            self.ears.insert(port.id, Ear { index, pairs: port.pairs.clone(), task });
        }
        Ok(())
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn allows(pairs: &[(IpNet, Mac)], mac: Mac, address: IpAddr) -> bool {
    pairs.iter().any(|(net, of)| net.contains(&address) && mac == *of)
}

/// Where a listener tells.
struct Heard {
    port: Port,
    held: Arc<Mutex<Held>>,
    news: Arc<Notify>,
}

impl Heard {
    fn frame(&self, frame: &[u8]) {
        let Some((mac, address)) = announced(frame) else { return };
        let fixed = self.port.fixed.iter().any(|fixed| fixed.address == address);
        if fixed || !allows(&self.port.pairs, mac, address) {
            return;
        }
        let key = (self.port.network, address);
        let mut held = lock(&self.held);
        if held.get(&key).is_none_or(|claim| (claim.holder, claim.mac) != (self.port.id, mac)) {
            held.insert(key, Claim { holder: self.port.id, mac, known: false });
            self.news.notify_one();
        }
    }
}

async fn hear(socket: AsyncFd<Socket>, heard: Heard) {
    let mut frame = [0; FRAME_MAX];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        match ready.try_io(|socket| socket.get_ref().read(&mut frame)) {
            Ok(Ok(length)) => heard.frame(&frame[..length]),
            // The device is gone, or down and soon up again.
            Ok(Err(_)) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            Err(_) => {}
        }
    }
}

/// The address that a frame announces as its sender's, and its sender. Source: RFC 826, RFC 5227, RFC 4861 4.4.
fn announced(frame: &[u8]) -> Option<(Mac, IpAddr)> {
    let mac = Mac(frame.get(6..12)?.try_into().ok()?);
    match frame.get(12..14)? {
        [0x08, 0x06] => {
            let (sender, target) = (frame.get(28..32)?, frame.get(38..42)?);
            let sound = frame.get(14..20)? == [0, 1, 8, 0, 6, 4] && frame.get(22..28)? == mac.0;
            let address = IpAddr::from(<[u8; 4]>::try_from(sender).ok()?);
            (sound && sender == target).then_some((mac, address))
        }
        [0x86, 0xdd] => {
            let unsolicited = *frame.get(54)? == 136 && *frame.get(58)? & 0x40 == 0;
            let target = Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(62..78)?).ok()?);
            unsolicited.then_some((mac, IpAddr::V6(target)))
        }
        _ => None,
    }
}

/// Hears ARP and neighbour advertisements that a device receives.
fn socket(index: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    filter(&socket)?;
    // SAFETY: an all-zero `sockaddr_ll` is a valid one.
    let mut on: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    on.sll_family = libc::AF_PACKET as u16;
    on.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    on.sll_ifindex = index as i32;
    let (address, size) = ((&raw const on).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
    // SAFETY: the address lives through the call and its length is its own.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), address, size) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Frames that the device sends (to the guest) are not taken, nor any others but the two kinds.
fn filter(socket: &Socket) -> io::Result<()> {
    let load = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let (half, byte) =
        (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, libc::BPF_LD | libc::BPF_B | libc::BPF_ABS);
    // SKF_AD_OFF + SKF_AD_PKTTYPE.
    let kind_of_packet = -0x1000_i32 as u32 + 4;
    let mut program = [
        load(byte, kind_of_packet),
        jump(libc::PACKET_OUTGOING as u32, 8, 0),
        load(half, 12),
        jump(0x0806, 5, 0),
        jump(0x86dd, 0, 5),
        load(byte, 20),
        jump(58, 0, 3),
        load(byte, 54),
        jump(136, 0, 1),
        load(libc::BPF_RET | libc::BPF_K, FRAME_MAX as u32),
        load(libc::BPF_RET | libc::BPF_K, 0),
    ];
    let all = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let (value, size) = ((&raw const all).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
    // SAFETY: the program lives through the call, in which the kernel copies it.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value, size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announcements_are_heard() {
        let mac = [2, 0, 0, 0, 0, 9];
        let arp = |sender: [u8; 4], target: [u8; 4]| {
            let head = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac].concat();
            [&head[..], &sender, &[0; 6], &target].concat()
        };
        let own = [10, 0, 0, 9];
        assert_eq!(announced(&arp(own, own)), Some((Mac(mac), IpAddr::from(own))));
        assert_eq!(announced(&arp(own, [10, 0, 0, 1])), None, "a question");
        let mut other = arp(own, own);
        other[22] = 7;
        assert_eq!(announced(&other), None, "for another MAC");
        assert_eq!(announced(&arp(own, own)[..30]), None, "cut short");
    }
}
