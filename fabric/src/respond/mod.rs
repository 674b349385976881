//! What answers guests: DHCPv4, DHCPv6 and DNS on each network's bridge, router advertisements on each leg of a
//! router. Stateless: everything comes from the document, so a restart is free and no lease needs to be released.
//!
//! `Responder` follows the document beside the fabric, in the same process or in one of its own: then guests are
//! answered through any restart of the node. It changes nothing in the kernel. The metadata sockets (`metadata`) are
//! the fabric's own, since who serves them is the node.
//!
//! Limits: `FORWARDS_MAX` DNS questions on their way and `CONNECTIONS_MAX` TCP connections per network and family.

pub mod dhcp4;
pub mod dhcp6;
pub mod dns;
mod forward;
pub mod metadata;
mod posts;
mod ra;
mod socket;

pub use forward::Servers;
pub use posts::Post;

use crate::kernel::netns;
use crate::plan::Sections;
use crate::state::Place;
use arc_swap::ArcSwap;
use base::node::Document;
use base::{Error, Result};
use dns::{Answer, Zones};
use posts::{Stand, open, posts};
use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

const PACKET_MAX: usize = 2048;
const FORWARDS_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 16;
/// A TCP connection without a question for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

/// What the document says, as those who answer read it.
#[derive(Default)]
struct Book {
    four: dhcp4::Leases,
    six: dhcp6::Leases,
    names: Zones,
}

/// The answers of one node. Drop it, and guests are not answered any more.
pub struct Responder {
    cloud: u32,
    servers: Servers,
    book: Arc<ArcSwap<Book>>,
    manned: BTreeMap<Post, (Option<Vec<u8>>, JoinSet<()>)>,
}

impl Responder {
    /// `cloud` is the short id in the names of the namespaces; `servers` are asked what is not known here.
    pub fn new(cloud: u32, servers: Servers) -> Responder {
        Responder { cloud, servers, book: Arc::default(), manned: BTreeMap::new() }
    }

    /// Follows the document and the devices as they are. Needs the runtime. What fails is tried again next time.
    pub fn follow(&mut self, document: &Document) -> Vec<(Place, Error)> {
        let s = Sections::of(document);
        let book = Book { four: dhcp4::leases(&s), six: dhcp6::leases(&s), names: dns::zones(&s) };
        self.book.store(Arc::new(book));
        let posts = posts(self.cloud, &s);
        self.manned.retain(|post, _| posts.contains_key(post));
        let mut failures = Vec::new();
        for (post, stand) in posts {
            let says =
                stand.leg.zip(s.networks.get(&stand.network)).and_then(|(leg, n)| ra::advertisement(n, leg));
            if self.manned.get(&post).is_some_and(|(said, _)| *said == says) {
                continue;
            }
            match self.man(&post, &stand, says.clone()) {
                Ok(tasks) => drop(self.manned.insert(post, (says, tasks))),
                Err(error) => failures.push((post.place, error)),
            }
        }
        failures
    }

    /// Whether each bridge and leg of the document is there and answered.
    pub fn complete(&self, document: &Document) -> bool {
        self.manned.len() == posts::wanted(&Sections::of(document))
    }

    fn man(&self, post: &Post, stand: &Stand, says: Option<Vec<u8>>) -> Result<JoinSet<()>> {
        let (device, index) = (post.device.as_str(), post.index);
        let mut tasks = JoinSet::new();
        let namespace = open(self.cloud, post.place)?;
        if stand.leg.is_none() {
            let sockets = netns::inside(namespace, || {
                let dns = [false, true].map(|v6| {
                    let tcp = socket::tcp(device, index, v6, dns::PORT)?;
                    Ok::<_, Error>((socket::udp(device, index, v6, dns::PORT)?, tcp))
                });
                Ok((socket::dhcp4(device)?, socket::dhcp6(device, index)?, dns))
            });
            let (four, six, dns) = sockets?;
            tasks.spawn(answer_dhcp4(UdpSocket::from_std(four)?, self.book.clone(), stand.network));
            tasks.spawn(answer_dhcp6(UdpSocket::from_std(six)?, self.book.clone(), stand.network));
            for sockets in dns {
                let (udp, tcp) = sockets?;
                let desk =
                    Desk { book: self.book.clone(), network: stand.network, servers: self.servers.clone() };
                tasks.spawn(answer_dns_udp(UdpSocket::from_std(udp)?, desk.clone()));
                tasks.spawn(answer_dns_tcp(TcpListener::from_std(tcp)?, desk));
            }
        } else if let Some(message) = says {
            let socket = netns::inside(namespace, || Ok(socket::icmp6(device, index)?))?;
            tasks.spawn(advertise(UdpSocket::from_std(socket)?, message, index));
        }
        Ok(tasks)
    }
}

/// A packet and whom it is from; a socket that fails is asked again a little later.
async fn receive(socket: &UdpSocket, packet: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(packet).await {
            Ok(received) => return received,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// An answer that is not sent is the guest's to ask for again.
async fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr, what: &str) {
    if let Err(cause) = socket.send_to(bytes, to).await {
        tracing::debug!(%to, %cause, "{what} was not sent");
    }
}

async fn answer_dhcp4(socket: UdpSocket, book: Arc<ArcSwap<Book>>, network: Uuid) {
    let mut packet = [0; PACKET_MAX];
    loop {
        let (length, _) = receive(&socket, &mut packet).await;
        if let Some(reply) = dhcp4::answer(&book.load().four, network, &packet[..length]) {
            let to: SocketAddrV4 = reply.to;
            send(&socket, &reply.bytes, to.into(), "a DHCP answer").await;
        }
    }
}

async fn answer_dhcp6(socket: UdpSocket, book: Arc<ArcSwap<Book>>, network: Uuid) {
    let mut packet = [0; PACKET_MAX];
    loop {
        let (length, from) = receive(&socket, &mut packet).await;
        let SocketAddr::V6(client) = from else { continue };
        if let Some(reply) = dhcp6::answer(&book.load().six, network, *client.ip(), &packet[..length]) {
            send(&socket, &reply, from, "a DHCPv6 answer").await;
        }
    }
}

/// What those who answer DNS on one network need.
#[derive(Clone)]
struct Desk {
    book: Arc<ArcSwap<Book>>,
    network: Uuid,
    servers: Servers,
}

impl Desk {
    async fn answer(&self, question: &[u8], udp: bool) -> Option<Vec<u8>> {
        let answer = dns::answer(&self.book.load().names, self.network, question, udp);
        match answer {
            Answer::Reply(bytes) => Some(bytes),
            Answer::Nothing => None,
            Answer::Forward => self.servers.ask(question, udp).await.or_else(|| dns::failure(question)),
        }
    }
}

async fn answer_dns_udp(socket: UdpSocket, desk: Desk) {
    let (socket, places) = (Arc::new(socket), Arc::new(Semaphore::new(FORWARDS_MAX)));
    let mut waiting = JoinSet::new();
    let mut packet = [0; PACKET_MAX];
    loop {
        let (length, from) = receive(&socket, &mut packet).await;
        while waiting.try_join_next().is_some() {}
        // One too many is dropped, as a full queue would; the guest asks again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (socket, desk, question) = (socket.clone(), desk.clone(), packet[..length].to_vec());
        waiting.spawn(async move {
            let _place = place;
            if let Some(answer) = desk.answer(&question, true).await {
                send(&socket, &answer, from, "a DNS answer").await;
            }
        });
    }
}

async fn answer_dns_tcp(listener: TcpListener, desk: Desk) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while open.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                open.spawn(async move {
                    let _place = place;
                    converse(stream, desk).await;
                });
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Question after question, until the guest ends it or is silent for too long.
async fn converse(mut stream: TcpStream, desk: Desk) {
    while let Ok(Ok(question)) = tokio::time::timeout(IDLE_MAX, forward::read(&mut stream)).await {
        let Some(answer) = desk.answer(&question, false).await else { return };
        if forward::write(&mut stream, &answer).await.is_err() {
            return;
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
            (length, from) = receive(&socket, &mut packet) => match from {
                SocketAddr::V6(host) if length > 0 && packet[0] == 133 => {
                    if host.ip().is_unspecified() { everyone } else { host }
                }
                _ => continue,
            },
        };
        send(&socket, &message, to.into(), "a router advertisement").await;
    }
}
