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
    /// The first address of `OUTSIDE`, on a physical network that all hosts have a device to.
    pub world: Namespace,
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

/// The range and the name of the physical network.
pub const OUTSIDE: &str = "198.18.77.0/24";
pub const PHYSICAL: &str = "public";

impl Hosts {
    async fn new(count: usize) -> Hosts {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        let wire = Namespace::new("wire");
        quiet(&wire);
        wire.ip("link add wire0 type bridge mcast_snooping 0");
        wire.ip("link set wire0 up");
        let world = Namespace::new("world");
        quiet(&world);
        world.ip("link add wire1 type bridge mcast_snooping 0");
        world.ip("addr add 198.18.77.1/24 dev wire1");
        world.ip("link set wire1 up");
        let first = new_cloud();
        let mut hosts = Hosts { hosts: Vec::new(), wire, world, home };
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
            ns.ip(&format!("link add ext0 type veth peer name ext{n} netns {}", hosts.world.0));
            hosts.world.ip(&format!("link set ext{n} master wire1 up"));
            hosts.hosts.push(Host { ns, world: None });
            hosts.enter(n);
            let cloud = if n == 0 { first } else { new_cloud() };
            let vxlan_port = fabric::vxlan_port(first);
            let physical = [(PHYSICAL.to_string(), "ext0".to_string())].into();
            let with = Settings { node_address: vtep(n), vxlan_port, physical, ..settings(cloud) };
            let world = World::with(with).await;
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

    /// The external network, on the physical one or held by each host.
    pub fn external(&mut self, physical: bool) -> Uuid {
        let mut public = network(9, OUTSIDE);
        public.external = true;
        public.physical = physical.then(|| PHYSICAL.to_string());
        public.subnets[0].dhcp = false;
        let id = public.id;
        self.put(Section::Network(public));
        id
    }

    /// A router whose gateway is 198.18.77.(10 + n), with a block for each host, owned by one.
    pub fn router(&mut self, n: u8, legs: &[(Uuid, &str)], public: Uuid, owner: usize) -> Router {
        let mut router = router(n, legs);
        let own: IpAddr = IpAddr::from([198, 18, 77, 10 + n]);
        let mut outside = gateway(n, public, &format!("{own}/24"), "198.18.77.1");
        outside.owner = Some(vtep(owner));
        let share = |n: usize| SnatShare { vtep: vtep(n), address: own, ports: SnatShare::block(n as u16) };
        outside.shares = (0..self.hosts.len()).map(share).collect();
        router.gateway = Some(outside);
        self.put(Section::Router(router.clone()));
        router
    }

    /// Gives a port of a host a floating address.
    pub fn float(&mut self, host: usize, port: &Port, floating: &str, router: Uuid, network: Uuid) {
        let (floating, fixed) = (address(floating), port.fixed[0].address);
        let mut port = port.clone();
        port.floating = vec![FloatingIp { floating, fixed, router, network }];
        self.at(host).put(Section::Port(port));
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
                _ => Members { network, ..Members::default() },
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
