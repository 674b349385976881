//! The sockets that answer guests: DHCP and metadata on each network's bridge, metadata and router advertisements on
//! each leg of a router.
//!
//! A post is a device of a namespace as it is now; one made again under the same name is another post. Its sockets are
//! bound to the device, so a connection to the metadata address tells its network whatever addresses overlap, and
//! answers leave by the device they came from without a route. Tasks end when their post is gone.

use crate::dhcp::{self, Leases};
use crate::kernel::Kernel;
use crate::plan::{METADATA, Sections};
use crate::ra;
use crate::state::{BRIDGE, Place, leg};
use arc_swap::ArcSwap;
use base::{Error, Result};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use uuid::Uuid;

const METADATA_PORT: u16 = 80;
const BACKLOG: i32 = 256;
const PACKET_MAX: usize = 2048;

/// A device of a namespace, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Post {
    pub place: Place,
    pub device: String,
    index: u32,
    inode: u64,
}

/// Metadata sockets that came and went since they were last asked for.
#[derive(Default)]
pub struct Listeners {
    pub opened: Vec<Listener>,
    /// Close these: an open socket keeps a removed namespace alive.
    pub closed: Vec<Post>,
}

/// A socket on 169.254.169.254:80 that guests of one network reach.
pub struct Listener {
    pub post: Post,
    pub network: Uuid,
    pub socket: TcpListener,
}

/// A post that is wanted: its network, and what its router says there.
struct Wanted {
    network: Uuid,
    advertisement: Option<Vec<u8>>,
}

#[derive(Default)]
pub struct Responders {
    leases: Arc<ArcSwap<Leases>>,
    posts: BTreeMap<Post, (Option<Vec<u8>>, JoinSet<()>)>,
    listeners: Listeners,
}

impl Responders {
    pub fn listeners(&mut self) -> Listeners {
        std::mem::take(&mut self.listeners)
    }

    /// Follows the document and the devices as they are. Needs the runtime. What fails is tried again next time.
    pub fn follow(&mut self, kernel: &Kernel, s: &Sections) -> Vec<(Place, Error)> {
        self.leases.store(Arc::new(dhcp::leases(s)));
        let wanted = wanted(kernel, s);
        let here: BTreeSet<&Post> = wanted.keys().collect();
        let gone: Vec<Post> = self.posts.keys().filter(|post| !here.contains(post)).cloned().collect();
        for post in gone {
            self.posts.remove(&post);
            self.listeners.opened.retain(|listener| listener.post != post);
            self.listeners.closed.push(post);
        }
        let mut failures = Vec::new();
        for (post, wanted) in wanted {
            let place = post.place;
            let done = match self.posts.get(&post) {
                None => self.man(kernel, post, wanted),
                Some((said, _)) if *said != wanted.advertisement => self.say_else(kernel, post, wanted),
                Some(_) => Ok(()),
            };
            failures.extend(done.err().map(|error| (place, error)));
        }
        failures
    }

    fn say_else(&mut self, kernel: &Kernel, post: Post, wanted: Wanted) -> Result<()> {
        let tasks = self.tasks(kernel, &post, &wanted)?;
        self.posts.insert(post, (wanted.advertisement, tasks));
        Ok(())
    }

    fn man(&mut self, kernel: &Kernel, post: Post, wanted: Wanted) -> Result<()> {
        let device = post.device.clone();
        let socket = kernel.handle(post.place)?.inside(|| Ok(metadata_socket(&device)?))?;
        let tasks = self.tasks(kernel, &post, &wanted)?;
        self.listeners.opened.push(Listener { post: post.clone(), network: wanted.network, socket });
        self.posts.insert(post, (wanted.advertisement, tasks));
        Ok(())
    }

    fn tasks(&self, kernel: &Kernel, post: &Post, wanted: &Wanted) -> Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        let handle = kernel.handle(post.place)?;
        let device = &post.device;
        if matches!(post.place, Place::Network(_)) {
            let socket = UdpSocket::from_std(handle.inside(|| Ok(dhcp_socket(device)?))?.into())?;
            tasks.spawn(answer_dhcp(socket, self.leases.clone(), wanted.network));
        }
        if let Some(message) = wanted.advertisement.clone() {
            let index = post.index;
            let socket = UdpSocket::from_std(handle.inside(|| Ok(icmp_socket(device, index)?))?.into())?;
            tasks.spawn(advertise(socket, message, index));
        }
        Ok(tasks)
    }
}

fn wanted(kernel: &Kernel, s: &Sections) -> BTreeMap<Post, Wanted> {
    let mut devices: BTreeMap<Place, Vec<(String, Wanted)>> = BTreeMap::new();
    for &network in s.networks.keys() {
        let wanted = Wanted { network, advertisement: None };
        devices.insert(Place::Network(network), vec![(BRIDGE.to_string(), wanted)]);
    }
    for router in s.routers.values().filter(|router| router.admin_up) {
        let legs = router.interfaces.iter().filter_map(|interface| {
            let network = s.networks.get(&interface.network)?;
            let advertisement = ra::advertisement(network, interface);
            Some((leg(interface.port, false), Wanted { network: network.id, advertisement }))
        });
        devices.insert(Place::Router(router.id), legs.collect());
    }
    let mut out = BTreeMap::new();
    for (place, devices) in devices {
        let Ok(handle) = kernel.handle(place) else { continue };
        let names: Vec<String> = devices.iter().map(|(name, _)| name.clone()).collect();
        let index = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).ok();
        let Ok(indexes) = handle.inside(|| Ok(names.iter().map(index).collect::<Vec<_>>())) else { continue };
        for ((device, wanted), index) in devices.into_iter().zip(indexes) {
            if let Some(index) = index {
                out.insert(Post { place, device, index, inode: handle.inode() }, wanted);
            }
        }
    }
    out
}

fn metadata_socket(device: &str) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((METADATA, METADATA_PORT)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn dhcp_socket(device: &str) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    without_checksums(&socket)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, dhcp::SERVER_PORT)).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends UDP without checksum. With one, a tap leaves it to the guest's device, and clients that read frames by
/// themselves see a wrong one and drop the answer.
fn without_checksums(socket: &Socket) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    let (value, size) = ((&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the descriptor is open and `on` lives through the call.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, value, size) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn icmp_socket(device: &str, index: u32) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_unicast_hops_v6(255)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A send that fails is the guest's to repeat.
async fn answer_dhcp(socket: UdpSocket, leases: Arc<ArcSwap<Leases>>, network: Uuid) {
    let mut packet = [0; PACKET_MAX];
    loop {
        let Ok((length, _)) = socket.recv_from(&mut packet).await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        if let Some(reply) = dhcp::answer(&leases.load(), network, &packet[..length]) {
            let to: SocketAddrV4 = reply.to;
            if let Err(cause) = socket.send_to(&reply.bytes, to).await {
                tracing::debug!(%network, %to, %cause, "a DHCP answer was not sent");
            }
        }
    }
}

/// At once, every `ra::EVERY`, and when a host asks.
async fn advertise(socket: UdpSocket, message: Vec<u8>, index: u32) {
    let everyone = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
    let mut packet = [0; PACKET_MAX];
    let mut timer = tokio::time::interval(ra::EVERY);
    loop {
        let to = tokio::select! {
            _ = timer.tick() => everyone,
            asked = socket.recv_from(&mut packet) => match asked {
                Ok((length, SocketAddr::V6(host))) if length > 0 && packet[0] == 133 => {
                    if host.ip().is_unspecified() { everyone } else { host }
                }
                Ok(_) => continue,
                Err(_) => {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        if let Err(cause) = socket.send_to(&message, to).await {
            tracing::debug!(%to, %cause, "a router advertisement was not sent");
        }
    }
}
