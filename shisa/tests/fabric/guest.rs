//! Guests: namespaces with a Linux of their own, whose `eth0` is joined to a port's tap by copying frames.

use crate::Outcome;
use crate::space::Space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Every guest and the world echo here, over TCP and UDP.
pub const ECHO: u16 = 7;
pub const WAIT: Duration = Duration::from_millis(1500);
/// Frames of one direction before the other is looked at.
const BURST: usize = 64;

/// A server with its one port, and the guest that plays it.
pub struct Guest {
    pub name: String,
    pub server: String,
    pub port: String,
    pub mac: String,
    pub host: usize,
    pub addresses: Vec<IpAddr>,
    pub space: Space,
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

/// What there is to know of a guest before it runs.
pub struct Identity {
    pub name: String,
    pub server: String,
    pub port: String,
    pub mac: String,
    pub host: usize,
    pub addresses: Vec<IpAddr>,
    pub mtu: u64,
}

impl Guest {
    /// `place`: where the tap is. The guest has no addresses yet.
    pub fn plug(identity: Identity, place: &Space) -> Outcome<Guest> {
        let tap = format!("tap{}", &identity.port.replace('-', "")[..11]);
        let outer = place.inside(|| open_tap(&tap)).map_err(|e| format!("{tap}: {e}"))?;
        let space = Space::new();
        let inner = space.inside(|| open_tap("eth0")).map_err(|e| e.to_string())?;
        space.sysctl("net.ipv6.conf.eth0.accept_ra=0");
        if identity.addresses.iter().all(IpAddr::is_ipv4) {
            // No packets but those that are asked for.
            space.sysctl("net.ipv6.conf.eth0.disable_ipv6=1");
        }
        space.ip(&format!("link set eth0 address {} mtu {} up", identity.mac, identity.mtu));
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let pump = Some(std::thread::spawn(move || pump(outer, inner, &flag)));
        let Identity { name, server, port, mac, host, addresses, .. } = identity;
        echo(&space);
        Ok(Guest { name, server, port, mac, host, addresses, space, stop, pump })
    }

    /// The first IPv4 address, or IPv6 where it has none.
    pub fn address(&self) -> IpAddr {
        *self.addresses.iter().find(|a| a.is_ipv4()).unwrap_or(&self.addresses[0])
    }

    pub fn pings(&self, to: impl ToString) -> bool {
        pings(&self.space, &to.to_string(), &[])
    }

    pub fn asks(&self, to: impl ToString, port: u16) -> Outcome {
        asks(&self.space, &to.to_string(), port)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.pump.take().map(JoinHandle::join);
    }
}

/// Whether one of three echo requests is answered.
pub fn pings(space: &Space, to: &str, more: &[&str]) -> bool {
    space.run(&format!("ping -n -c 3 -i 0.2 -W 1 {} {to}", more.join(" "))).is_ok()
}

/// Who we are to a TCP echo: `ADDRESS:PORT` as it is seen there.
pub fn asks(space: &Space, to: &str, port: u16) -> Outcome {
    let to = SocketAddr::new(to.parse().map_err(|_| format!("'{to}' is no address"))?, port);
    let mut stream =
        space.inside(|| TcpStream::connect_timeout(&to, WAIT)).map_err(|e| format!("TCP to {to}: {e}"))?;
    stream.set_read_timeout(Some(WAIT)).unwrap();
    line(&mut stream)
}

/// The same over UDP.
pub fn asks_udp(space: &Space, to: &str, port: u16) -> Outcome {
    let to = SocketAddr::new(to.parse().map_err(|_| format!("'{to}' is no address"))?, port);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = space.inside(|| UdpSocket::bind(any)).unwrap();
    exchange(&socket, b"hello\n", to).map(|answer| String::from_utf8_lossy(&answer).trim().to_string())
}

/// One datagram and its answer.
pub fn exchange(socket: &UdpSocket, question: &[u8], to: SocketAddr) -> Outcome<Vec<u8>> {
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let mut answer = [0; 2048];
    let told = socket.send_to(question, to).and_then(|_| socket.recv(&mut answer));
    told.map(|length| answer[..length].to_vec()).map_err(|e| format!("UDP to {to}: {e}"))
}

/// One line of a stream.
pub fn line(stream: &mut TcpStream) -> Outcome {
    let mut said = Vec::new();
    let mut byte = [0];
    while said.last() != Some(&b'\n') {
        match stream.read(&mut byte) {
            Ok(1) => said.push(byte[0]),
            Ok(_) => return Err("the stream ended".into()),
            Err(e) => return Err(format!("reading: {e}")),
        }
    }
    Ok(String::from_utf8_lossy(&said).trim().to_string())
}

/// Answers everyone in a namespace: first who they are, then whatever they say.
pub fn echo(space: &Space) {
    echo_on(space, ECHO);
}

pub fn echo_on(space: &Space, port: u16) {
    let (listener, socket) =
        space.inside(|| (TcpListener::bind(("::", port)).unwrap(), UdpSocket::bind(("::", port)).unwrap()));
    std::thread::spawn(move || {
        while let Ok((stream, from)) = listener.accept() {
            std::thread::spawn(move || answer(stream, from));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{}\n", plain(from)).as_bytes(), from);
        }
    });
}

fn answer(mut stream: TcpStream, from: SocketAddr) {
    let mut buffer = [0; 4096];
    let _ = stream.write_all(format!("{}\n", plain(from)).as_bytes());
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Without the clothes of IPv4 on an IPv6 socket.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

nix::ioctl_write_ptr_bad!(
    set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

fn open_tap(name: &str) -> std::io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and `request` lives through the call.
    unsafe { set_iff(file.as_raw_fd(), &request) }?;
    Ok(file)
}

/// Copies frames both ways until `stop`, or until one end is gone.
fn pump(mut a: File, mut b: File, stop: &AtomicBool) {
    let mut frame = vec![0; 70_000];
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(a.as_fd(), PollFlags::POLLIN), PollFd::new(b.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(100u16)).unwrap_or(0) == 0 {
            continue;
        }
        if !(burst(&mut a, &mut b, &mut frame) && burst(&mut b, &mut a, &mut frame)) {
            return;
        }
    }
}

/// Whether both ends are still there. A frame that the other end does not take is lost, as on a wire.
fn burst(from: &mut File, to: &mut File, frame: &mut [u8]) -> bool {
    for _ in 0..BURST {
        match from.read(frame) {
            Ok(length) => drop(to.write(&frame[..length])),
            Err(e) => {
                return matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
                    || e.raw_os_error() == Some(libc::EIO);
            }
        }
    }
    true
}
