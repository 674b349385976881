//! A world for one test: a namespace that plays the host, guests as namespaces behind real taps, and a document to
//! change. Everything goes when it is dropped. Names and cloud ids are of this process and test.

#![allow(dead_code, clippy::unwrap_used)]

pub mod hosts;
pub mod raw;

use base::node::*;
use base::units::Mac;
use fabric::{Fabric, Listener, Responder, Servers, Settings};
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use uuid::Uuid;

static COUNT: AtomicU32 = AtomicU32::new(1);

/// Runs a test in a host of its own, or says why not. `FABRIC_TEST_ON_HOST=1` takes the real one: see it work there.
pub fn run<F: AsyncFnOnce(&mut World) + Send + 'static>(test: F) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: packets in namespaces need root");
        return;
    }
    let host = Namespace::new("host");
    let entered = File::open(host.path()).unwrap();
    let done = on_thread(move || {
        setns(&entered, CloneFlags::CLONE_NEWNET).unwrap();
        block_on(async {
            let mut world = World::new().await;
            test(&mut world).await;
            drop(world.fabric.take());
        });
    });
    drop(host);
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// A thread of its own, as it may end in another namespace.
fn on_thread(work: impl FnOnce() + Send + 'static) -> std::thread::Result<()> {
    std::thread::spawn(work).join()
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(test);
}

pub struct Namespace(pub String);

impl Namespace {
    pub fn new(role: &str) -> Namespace {
        let name = format!("sxt-{}-{}-{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        sh(&["ip", "netns", "add", &name]);
        sh(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        Namespace(name)
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    pub fn ip(&self, arguments: &str) {
        let all: Vec<&str> = ["ip", "-n", &self.0].into_iter().chain(arguments.split(' ')).collect();
        sh(&all);
    }

    /// Whether one of a few echo requests is answered within a second each.
    pub fn pings(&self, to: &str) -> bool {
        let ping = ["netns", "exec", &self.0, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", to];
        Command::new("ip").args(ping).output().unwrap().status.success()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// Whether something becomes so within some seconds: bridges take frames some time after a device's carrier.
pub fn eventually(mut is: impl FnMut() -> bool) -> bool {
    for _ in 0..20 {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    false
}

pub fn sh(command: &[&str]) -> String {
    let out = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub struct World {
    pub cloud: u32,
    pub settings: Settings,
    pub document: Document,
    pub fabric: Option<Fabric>,
    pub listeners: Vec<Listener>,
    /// What answers guests, beside the fabric as on a node.
    pub responder: Option<Responder>,
    /// In the place of `/etc/resolv.conf`.
    resolv: tempfile::NamedTempFile,
}

impl World {
    pub async fn new() -> World {
        World::with(settings(new_cloud())).await
    }

    pub async fn with(settings: Settings) -> World {
        let fabric = Fabric::open(settings.clone()).await.unwrap();
        let cloud = settings.cloud;
        let resolv = tempfile::NamedTempFile::new().unwrap();
        let responder = Some(Responder::new(cloud, Servers(resolv.path().into())));
        World {
            cloud,
            settings,
            document: Document::default(),
            fabric: Some(fabric),
            listeners: Vec::new(),
            responder,
            resolv,
        }
    }

    /// Names the server that DNS questions are passed on to.
    pub fn resolve_by(&self, server: std::net::SocketAddr) {
        std::fs::write(self.resolv.path(), format!("nameserver {server}\n")).unwrap();
    }

    pub fn fabric(&mut self) -> &mut Fabric {
        self.fabric.as_mut().unwrap()
    }

    /// A sync, and a second one that has nothing left to do.
    pub async fn sync(&mut self) -> BTreeMap<Uuid, PortReport> {
        let report = self.sync_once().await;
        let document = self.document.clone();
        let fabric = self.fabric();
        assert_eq!(fabric.check(&document).await.unwrap(), report);
        assert_eq!(fabric.last_steps(), [""; 0]);
        report
    }

    async fn sync_once(&mut self) -> BTreeMap<Uuid, PortReport> {
        let document = self.document.clone();
        let report = match self.fabric().sync(&document).await {
            Ok(report) => report,
            Err(e) => panic!("{} {:?}", e.chain(), self.fabric().last_failures()),
        };
        let fabric = self.fabric();
        assert_eq!(fabric.last_failures(), [], "{:#?}", fabric.last_steps());
        let changed = self.fabric().metadata_listeners();
        self.listeners.retain(|listener| !changed.closed.contains(&listener.post));
        self.listeners.extend(changed.opened);
        if let Some(responder) = &mut self.responder {
            let failures = responder.follow(&document);
            assert!(failures.is_empty() && responder.complete(&document), "{failures:?}");
        }
        report
    }

    /// Ends this fabric and opens another on what it left.
    pub async fn restart(&mut self) {
        self.listeners.clear();
        drop(self.fabric.take());
        self.fabric = Some(Fabric::open(self.settings.clone()).await.unwrap());
    }

    pub fn put(&mut self, section: Section) {
        let key = match &section {
            Section::Vm(x) => SectionKey::Vm(x.id),
            Section::Port(x) => SectionKey::Port(x.id),
            Section::Network(x) => SectionKey::Network(x.id),
            Section::Members(x) => SectionKey::Members(x.network),
            Section::Router(x) => SectionKey::Router(x.id),
            Section::Group(x) => SectionKey::Group(x.id),
            Section::Rules(x) => SectionKey::Rules(x.hash()),
            Section::Image(x) => SectionKey::Image(x.id),
        };
        self.document.sections.insert(key, section);
    }

    pub fn network(&mut self, n: u8, cidr: &str) -> Uuid {
        let network = network(n, cidr);
        let id = network.id;
        self.put(Section::Network(network));
        id
    }

    /// A port with the given address, on rules `rules`.
    pub fn port(&mut self, n: u8, network: Uuid, address: &str, rules: &RuleSet) -> Port {
        self.put(Section::Rules(rules.clone()));
        let port = port(n, network, address, Some(rules.hash()));
        self.put(Section::Port(port.clone()));
        port
    }

    /// Plays the guest of a port.
    pub fn guest(&mut self, port: &Port) -> Guest {
        let tap = self.fabric().open_tap(port.id).unwrap();
        let guest = Guest::new(tap, port);
        self.until_forwarding(port);
        assert!(eventually(|| self.legs_forward()));
        guest
    }

    /// Whether the ends of pairs in bridges take frames already.
    fn legs_forward(&self) -> bool {
        let networks = self.document.sections.keys().filter_map(|key| match key {
            SectionKey::Network(id) => Some(fabric::Place::Network(*id)),
            _ => None,
        });
        let names = networks.filter_map(|place| place.name(self.cloud));
        let mut links =
            names.map(|ns| sh(&["ip", "-n", &ns, "-d", "-o", "link", "show", "type", "veth", "up"]));
        links.all(|links| {
            let slaves = links.lines().filter(|line| line.contains("bridge_slave"));
            slaves.filter(|line| line.contains("LOWER_UP")).all(|line| line.contains("state forwarding"))
        })
    }

    /// A bridge takes frames of a port some time after its carrier.
    fn until_forwarding(&self, port: &Port) {
        let ns = format!("shisa-{:08x}-net-{}", self.cloud, port.network);
        let tap = fabric::state::tap(port.id);
        for _ in 0..100 {
            if sh(&["ip", "-n", &ns, "-d", "link", "show", &tap]).contains("state forwarding") {
                return;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        panic!("{tap} does not forward");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.listeners.clear();
        drop((self.fabric.take(), self.responder.take()));
        let settings = self.settings.clone();
        let here = File::open("/proc/thread-self/ns/net").unwrap();
        let thread = std::thread::spawn(move || {
            setns(&here, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(Fabric::down(&settings)).unwrap();
        });
        thread.join().unwrap();
    }
}

pub fn new_cloud() -> u32 {
    0xf000_0000 | (std::process::id() << 8) & 0x0fff_ff00 | COUNT.fetch_add(1, Ordering::Relaxed) & 0xff
}

pub fn settings(cloud: u32) -> Settings {
    Settings {
        cloud,
        node_address: "127.0.0.1".parse().unwrap(),
        vxlan_port: fabric::vxlan_port(cloud),
        uplink: None,
        physical: Default::default(),
    }
}

pub fn id(kind: u8, n: u8) -> Uuid {
    Uuid::from_u128((kind as u128) << 120 | (n as u128) << 112 | 7)
}

pub fn mac(n: u8) -> Mac {
    Mac([0xfa, 0x16, 0x3e, 0, 0, n])
}

pub fn network(n: u8, cidr: &str) -> Network {
    let cidr: IpNet = cidr.parse().unwrap();
    let gateway = cidr.hosts().next();
    let subnet = Subnet {
        id: id(2, n),
        cidr,
        gateway,
        dhcp: true,
        dns: vec!["9.9.9.9".parse().unwrap()],
        routes: Vec::new(),
        ipv6_ra: cidr.addr().is_ipv6().then_some(Ipv6Mode::Slaac),
        ipv6_address: cidr.addr().is_ipv6().then_some(Ipv6Mode::Slaac),
    };
    Network {
        id: id(1, n),
        vni: n.into(),
        mtu: 1450,
        external: false,
        physical: None,
        router: None,
        subnets: vec![subnet],
        dns_domain: "example.org.".to_string(),
    }
}

pub fn port(n: u8, network: Uuid, address: &str, rules: Option<u64>) -> Port {
    let subnet = Uuid::from_u128((2u128 << 120) | network.as_u128() & !(0xff << 120));
    Port {
        id: id(3, n),
        network,
        vm: None,
        mac: mac(n),
        admin_up: true,
        fixed: vec![FixedIp { subnet, address: address.parse().unwrap() }],
        pairs: Vec::new(),
        port_security: true,
        rules,
        floating: Vec::new(),
        dhcp_options: Vec::new(),
        name: String::new(),
    }
}

/// A router with a leg of the first address on each network.
pub fn router(n: u8, legs: &[(Uuid, &str)]) -> Router {
    let interface = |(i, (network, address)): (usize, &(Uuid, &str))| RouterInterface {
        port: id(5, n * 16 + i as u8),
        network: *network,
        mac: mac(128 + n * 16 + i as u8),
        addresses: vec![address.parse().unwrap()],
    };
    let interfaces = legs.iter().enumerate().map(interface).collect();
    Router {
        id: id(4, n),
        admin_up: true,
        interfaces,
        gateway: None,
        routes: Vec::new(),
        central: false,
        forwards: Vec::new(),
    }
}

pub fn gateway(n: u8, network: Uuid, address: &str, hop: &str) -> RouterGateway {
    RouterGateway {
        port: id(6, n),
        network,
        mac: mac(64 + n),
        addresses: vec![address.parse().unwrap()],
        next_hops: vec![hop.parse().unwrap()],
        snat: true,
        owner: Some("127.0.0.1".parse().unwrap()),
        shares: Vec::new(),
    }
}

pub fn rule(
    direction: Direction,
    v6: bool,
    protocol: Option<u8>,
    ports: Option<(u16, u16)>,
    remote: Remote,
) -> Rule {
    Rule { direction, v6, protocol, min: ports.map(|p| p.0), max: ports.map(|p| p.1), remote }
}

pub fn rules(rules: &[Rule]) -> RuleSet {
    let mut rules = rules.to_vec();
    rules.sort();
    RuleSet { rules, stateful: true }
}

/// Everything out; in what is asked for.
pub fn rules_in(inward: &[Rule]) -> RuleSet {
    let mut all = vec![
        rule(Direction::Egress, false, None, None, Remote::Any),
        rule(Direction::Egress, true, None, None, Remote::Any),
    ];
    all.extend(inward.iter().cloned());
    rules(&all)
}

/// Everything out, echo in.
pub fn open() -> RuleSet {
    rules_in(&[
        rule(Direction::Ingress, false, Some(1), None, Remote::Any),
        rule(Direction::Ingress, true, Some(58), None, Remote::Any),
        rule(Direction::Ingress, false, Some(6), Some((7, 7)), Remote::Any),
    ])
}

/// A namespace whose `eth0` is joined to a tap by copying frames.
pub struct Guest {
    pub ns: Namespace,
    stop: Arc<AtomicBool>,
    pump: Option<std::thread::JoinHandle<()>>,
}

impl Guest {
    fn new(tap: OwnedFd, port: &Port) -> Guest {
        let ns = Namespace::new("guest");
        let inner = ns.inside(|| own_tap("eth0"));
        if !port.fixed.is_empty() && port.fixed.iter().all(|fixed| fixed.address.is_ipv4()) {
            hosts::quiet(&ns);
        }
        ns.ip(&format!("link set eth0 address {} mtu 1450 up", port.mac));
        for fixed in &port.fixed {
            let length = if fixed.address.is_ipv4() { 24 } else { 64 };
            let nodad = if fixed.address.is_ipv6() { " nodad" } else { "" };
            ns.ip(&format!("addr add {}/{length} dev eth0{nodad}", fixed.address));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let pump = std::thread::spawn(move || pump(File::from(tap), inner, &flag));
        Guest { ns, stop, pump: Some(pump) }
    }

    pub fn route(&self, to: &str, via: &str) {
        self.ns.ip(&format!("route add {to} via {via}"));
    }

    pub fn pings(&self, to: &str) -> bool {
        self.ns.pings(to)
    }

    /// Echoes on a TCP port until the guest goes.
    pub fn serve(&self, port: u16) {
        let listener = self.ns.inside(|| std::net::TcpListener::bind(("0.0.0.0", port)).unwrap());
        serve(listener);
    }

    /// Who a server says is asking it.
    pub fn seen_by(&self, to: &str, port: u16) -> String {
        let to = std::net::SocketAddr::new(to.parse().unwrap(), port);
        self.ns.inside(|| talk(to)).unwrap_or_default()
    }

    /// Whether a datagram to a closed port is told to be so.
    pub fn is_refused(&self, to: &str, port: u16) -> bool {
        self.ns.inside(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
            socket.connect((to, port)).unwrap();
            let _ = socket.send(b"hello");
            let answer = socket.recv(&mut [0; 8]);
            answer.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        })
    }

    /// Whether an echo of this many bytes comes back.
    pub fn pings_with(&self, to: &str, bytes: u32) -> bool {
        let size = bytes.to_string();
        let ping =
            ["netns", "exec", &self.ns.0, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-s", &size, to];
        Command::new("ip").args(ping).output().unwrap().status.success()
    }

    pub fn connects(&self, to: &str, port: u16) -> bool {
        let to = std::net::SocketAddr::new(to.parse().unwrap(), port);
        self.ns.inside(|| talk(to).is_some())
    }
}

/// Tells who asks, with the port.
pub fn serve_ports(listener: std::net::TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|p| p.to_string()).unwrap_or_default();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

/// Who the other side of an echo is said to be: the server answers with the address it saw.
pub fn talk(to: std::net::SocketAddr) -> Option<String> {
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_millis(900)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

pub fn serve(listener: std::net::TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|p| p.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.pump.take().map(|pump| pump.join());
    }
}

nix::ioctl_write_ptr_bad!(
    set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

fn own_tap(name: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and `request` lives through the call.
    unsafe { set_iff(file.as_raw_fd(), &request) }.unwrap();
    file
}

fn pump(mut a: File, mut b: File, stop: &AtomicBool) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut frame = vec![0; 70_000];
    while !stop.load(Ordering::Relaxed) {
        let (one, two) = (a.as_fd(), b.as_fd());
        let mut fds = [PollFd::new(one, PollFlags::POLLIN), PollFd::new(two, PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50u16)).unwrap_or(0) == 0 {
            continue;
        }
        let ready = fds.map(|fd| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLIN)));
        if ready[0] {
            copy(&mut a, &mut b, &mut frame);
        }
        if ready[1] {
            copy(&mut b, &mut a, &mut frame);
        }
        if !ready[0] && !ready[1] {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn copy(from: &mut File, to: &mut File, frame: &mut [u8]) {
    if let Ok(length) = from.read(frame) {
        let _ = to.write(&frame[..length]);
    }
}

/// Writes a frame out of a device of this namespace.
pub fn send_frame(device: &str, frame: &[u8]) {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))).unwrap();
    // SAFETY: an all-zero `sockaddr_ll` is a valid one.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap() as i32;
    let (address, size) = ((&raw const to).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
    // SAFETY: frame and address live through the call and their lengths are theirs.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, address, size) };
    assert!(sent > 0, "{}", std::io::Error::last_os_error());
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
