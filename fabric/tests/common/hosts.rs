//! Several hosts of one cloud: each a namespace with a fabric, joined by a wire. They share `/run/netns`, so each has
//! a cloud id of its own; tunnels meet by their port, which is one for all.

use super::*;

/// The device of a host to the wire, and its MTU.
pub const UP: &str = "up0";
const MTU: u32 = 1550;

pub struct Host {
    pub ns: Namespace,
    pub world: Option<World>,
}

pub struct Hosts {
    pub hosts: Vec<Host>,
    /// Joins the hosts by a bridge.
    pub wire: Namespace,
    home: File,
}

/// Runs a test with `count` hosts, or says why not.
pub fn run_hosts<F: AsyncFnOnce(&mut Hosts) + Send + 'static>(count: usize, test: F) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: packets in namespaces need root");
        return;
    }
    let done = on_thread(move || {
        block_on(async {
            let mut hosts = Hosts::new(count).await;
            test(&mut hosts).await;
        });
    });
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// No packets but those that are asked for.
pub fn quiet(ns: &Namespace) {
    sh(&["ip", "netns", "exec", &ns.0, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
}

pub fn vtep(host: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, host as u8 + 1])
}

impl Hosts {
    async fn new(count: usize) -> Hosts {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        let wire = Namespace::new("wire");
        quiet(&wire);
        wire.ip("link add wire0 type bridge mcast_snooping 0");
        wire.ip("link set wire0 up");
        let first = new_cloud();
        let mut hosts = Hosts { hosts: Vec::new(), wire, home };
        for n in 0..count {
            let ns = Namespace::new("host");
            ns.ip(&format!(
                "link add {UP} mtu {MTU} type veth peer name host{n} mtu {MTU} netns {}",
                hosts.wire.0
            ));
            quiet(&ns);
            ns.ip(&format!("addr add {}/24 dev {UP}", vtep(n)));
            ns.ip(&format!("link set {UP} address 02:00:00:00:01:0{n} up"));
            for other in (0..count).filter(|other| *other != n) {
                let neighbour = format!("{} lladdr 02:00:00:00:01:0{other}", vtep(other));
                ns.ip(&format!("neigh add {neighbour} dev {UP} nud permanent"));
            }
            hosts.wire.ip(&format!("link set host{n} master wire0 up"));
            let port = format!("host{n}");
            let station = format!("02:00:00:00:01:0{n}");
            sh(&["bridge", "-n", &hosts.wire.0, "fdb", "add", &station, "dev", &port, "master", "static"]);
            hosts.hosts.push(Host { ns, world: None });
            hosts.enter(n);
            let cloud = if n == 0 { first } else { new_cloud() };
            let vxlan_port = fabric::vxlan_port(first);
            let world = World::with(Settings { node_address: vtep(n), vxlan_port, ..settings(cloud) }).await;
            hosts.hosts[n].world = Some(world);
        }
        hosts
    }

    fn enter(&self, host: usize) {
        let file = File::open(self.hosts[host].ns.path()).unwrap();
        setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// A host, with this thread in it.
    pub fn at(&mut self, host: usize) -> &mut World {
        self.enter(host);
        self.hosts[host].world.as_mut().unwrap()
    }

    /// Puts a section into the documents of all hosts.
    pub fn put(&mut self, section: Section) {
        for host in &mut self.hosts {
            host.world.as_mut().unwrap().put(section.clone());
        }
    }

    pub fn network(&mut self, n: u8, cidr: &str) -> Uuid {
        let network = network(n, cidr);
        let id = network.id;
        self.put(Section::Network(network));
        id
    }

    /// A port on a host, that all know as a member of its network.
    pub fn port(&mut self, host: usize, n: u8, network: Uuid, address: &str, rules: &RuleSet) -> Port {
        let port = self.at(host).port(n, network, address, rules);
        let addresses = port.fixed.iter().map(|fixed| fixed.address).collect();
        let member = Member { mac: port.mac, addresses, vtep: Some(vtep(host)), name: String::new() };
        self.member(network, port.id, Some(member));
        port
    }

    /// Sets or removes a member of a network everywhere.
    pub fn member(&mut self, network: Uuid, port: Uuid, member: Option<Member>) {
        for host in &mut self.hosts {
            let world = host.world.as_mut().unwrap();
            let key = SectionKey::Members(network);
            let mut members = match world.document.sections.get(&key) {
                Some(Section::Members(members)) => members.clone(),
                _ => Members { network, ports: BTreeMap::new() },
            };
            match &member {
                Some(member) => drop(members.ports.insert(port, member.clone())),
                None => drop(members.ports.remove(&port)),
            }
            world.put(Section::Members(members));
        }
    }

    pub async fn sync(&mut self) {
        for host in 0..self.hosts.len() {
            self.at(host).sync().await;
        }
    }

    pub fn guest(&mut self, host: usize, port: &Port) -> Guest {
        self.at(host).guest(port)
    }

    /// Packets that a host has sent and received by its uplink.
    pub fn carried(&self, host: usize) -> u64 {
        let read = |what: &str| {
            let path = format!("/sys/class/net/{UP}/statistics/{what}");
            sh(&["ip", "netns", "exec", &self.hosts[host].ns.0, "cat", &path]).trim().parse::<u64>().unwrap()
        };
        read("rx_packets") + read("tx_packets")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in 0..self.hosts.len() {
            self.enter(host);
            drop(self.hosts[host].world.take());
        }
        setns(&self.home, CloneFlags::CLONE_NEWNET).unwrap();
    }
}
