//! The machines: three hosts, the wire between them and the plane (which is in our own namespace), the provider's router
//! with the world behind it, and a wire of a second physical network.

use crate::Outcome;
use crate::guest::echo;
use crate::space::Space;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

pub const HOSTS: usize = 3;
/// The wire of the tunnels carries guests' 1500 bytes and 50 of ours.
const UNDERLAY_MTU: u32 = 1550;
pub const PLANE: &str = "192.0.2.100";
pub const OUTSIDE: &str = "203.0.113";
pub const PROVIDER: &str = "203.0.113.1";
pub const WORLD: &str = "198.51.100.2";
/// An address of the world behind a link that is narrower than all others.
pub const FAR: &str = "198.51.101.2";
pub const FAR_MTU: u32 = 1300;
/// The provider's router on the second physical network.
pub const LAN: &str = "10.9.0";
pub const LAN_ROUTER: &str = "10.9.0.1";

pub fn name(host: usize) -> String {
    format!("h{}", host + 1)
}

pub fn vtep(host: usize) -> String {
    format!("192.0.2.{}", host + 1)
}

/// A host; its node's process may be away.
pub struct Host {
    pub space: Space,
    pub node: Option<Child>,
    state: PathBuf,
    log: PathBuf,
}

pub struct Machines {
    pub hosts: Vec<Host>,
    pub provider: Space,
    pub world: Space,
    _far: Space,
    pub lan: Space,
    _wire: Space,
}

impl Machines {
    /// `work`: a directory for what nodes keep.
    pub fn new(work: &Path) -> Machines {
        let (wire, provider, lan) = (bridge(), bridge(), bridge());
        let here = Space::here();
        here.ip("link set lo up");
        attach(&here, "up0", &wire, "plane", UNDERLAY_MTU);
        here.ip(&format!("addr add {PLANE}/24 dev up0"));
        provider.ip(&format!("addr add {PROVIDER}/24 dev br0"));
        lan.ip(&format!("addr add {LAN_ROUTER}/24 dev br0"));
        echo(&lan);
        echo(&provider);
        let world = behind(&provider, "world", "198.51.100", 1500);
        let far = behind(&provider, "far", "198.51.101", FAR_MTU);
        provider.sysctl("net.ipv4.ip_forward=1");
        let hosts = (0..HOSTS).map(|n| Host::new(n, work, &wire, &provider, &lan)).collect();
        Machines { hosts, provider, world, _far: far, lan, _wire: wire }
    }
}

fn bridge() -> Space {
    let space = Space::new();
    space.ip("link add br0 type bridge mcast_snooping 0");
    space.ip("link set br0 up");
    space
}

fn attach(space: &Space, device: &str, bridge: &Space, port: &str, mtu: u32) {
    space.pair(device, bridge, port, mtu);
    bridge.ip(&format!("link set {port} master br0"));
}

/// A host behind the provider's router, which echoes.
fn behind(provider: &Space, device: &str, net: &str, mtu: u32) -> Space {
    let space = Space::new();
    space.pair("eth0", provider, device, mtu);
    provider.ip(&format!("addr add {net}.1/24 dev {device}"));
    space.ip(&format!("addr add {net}.2/24 dev eth0"));
    space.ip(&format!("route add default via {net}.1"));
    echo(&space);
    space
}

impl Host {
    fn new(n: usize, work: &Path, wire: &Space, provider: &Space, lan: &Space) -> Host {
        let (space, name) = (Space::host(), name(n));
        attach(&space, "up0", wire, &name, UNDERLAY_MTU);
        attach(&space, "ext0", provider, &name, 1500);
        attach(&space, "lan0", lan, &name, 1500);
        space.ip(&format!("addr add {}/24 dev up0", vtep(n)));
        // What tunnels carry is counted, beside what nodes say to their plane.
        for command in [
            "add table inet watch",
            "add chain inet watch in { type filter hook prerouting priority -450 ; }",
            "add chain inet watch out { type filter hook output priority -450 ; }",
            "add rule inet watch in iifname up0 udp dport 20000-29999 counter",
            "add rule inet watch out udp dport 20000-29999 counter",
        ] {
            space.run(&format!("nft {command}")).unwrap();
        }
        Host { space, node: None, state: work.join(&name), log: work.join(format!("{name}.log")) }
    }

    /// Starts its node's process. `token`: a file, for the first time.
    pub fn start(&mut self, n: usize, token: Option<&Path>) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.space.command(&crate::shisa());
        command.arg("node").arg("--state").arg(&self.state);
        if let Some(token) = token {
            command.arg("--token").arg(token).args(["--machine", "simulated", "--fabric"]);
            command.args(["--name", &name(n), "--address", &vtep(n)]);
            command.args(["--physical", "outside=ext0", "--physical", "lan=lan0"]);
        }
        self.node = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// Ends the node's process and nothing else, as a crash would.
    pub fn crash(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill().unwrap();
            node.wait().unwrap();
        }
    }

    /// Ends every process and unplugs every device, as a loss of power would.
    pub fn lose(&mut self) {
        self.crash();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        for pid in processes.filter_map(|entry| entry.file_name().into_string().ok()) {
            if pid.parse::<u32>().is_ok() && self.space.holds(&pid) {
                let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
            }
        }
        for device in ["up0", "ext0", "lan0"] {
            let _ = self.space.run(&format!("ip link del {device}"));
        }
    }

    /// Packets in tunnels, both ways.
    pub fn tunnelled(&self) -> u64 {
        let rules = self.space.run("nft list table inet watch").unwrap();
        let words: Vec<&str> = rules.split_whitespace().collect();
        words.windows(2).filter(|pair| pair[0] == "packets").map(|pair| pair[1].parse::<u64>().unwrap()).sum()
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// How many times longer a wait may take on an emulated machine: `SHISA_FABRIC_SLOW`.
pub fn slow() -> u32 {
    std::env::var("SHISA_FABRIC_SLOW").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Waits until something holds; what it is not in the end.
pub fn until<T>(wait: Duration, mut look: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    let wait = wait * slow();
    let begin = Instant::now();
    loop {
        match look() {
            Err(not) if begin.elapsed() > wait => return Err(not),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            done => return done,
        }
    }
}
