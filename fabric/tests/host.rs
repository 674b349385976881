//! What the fabric does to its host, and takes back: two clouds side by side, the uplink, `down`. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use base::node::*;
use common::*;
use fabric::Fabric;
use std::io::{Read, Write};
use std::time::Duration;

/// A network behind a router on an external one, with one port that has a floating address.
fn cloud(w: &mut World, n: u8) -> Port {
    let mut public = network(9, &format!("198.18.{n}.0/24"));
    (public.external, public.subnets[0].dhcp) = (true, false);
    let public_id = public.id;
    w.put(Section::Network(public));
    let net = w.network(1, &format!("10.{n}.0.0/24"));
    let mut r = router(1, &[(net, &format!("10.{n}.0.1/24"))]);
    r.gateway = Some(gateway(1, public_id, &format!("198.18.{n}.10/24"), &format!("198.18.{n}.1")));
    w.put(Section::Router(r.clone()));
    let mut a = w.port(1, net, &format!("10.{n}.0.5"), &open());
    a.floating = vec![FloatingIp {
        floating: address(&format!("198.18.{n}.20")),
        fixed: a.fixed[0].address,
        router: r.id,
        network: public_id,
    }];
    w.put(Section::Port(a.clone()));
    a
}

fn ours(cloud: u32) -> Vec<String> {
    let names = sh(&["ip", "netns", "list"]);
    let mine = format!("shisa-{cloud:08x}-");
    names.lines().filter(|name| name.starts_with(&mine)).map(str::to_string).collect()
}

#[test]
fn down_removes_all_of_its_cloud_and_nothing_else() {
    run(async |w| {
        cloud(w, 83);
        w.sync().await;
        sh(&["ip", "link", "add", "foreign0", "type", "veth", "peer", "name", "foreign1"]);
        sh(&["nft", "add table inet other; add table inet shisa; add table bridge shisa"]);
        let mut other = World::new().await;
        cloud(&mut other, 84);
        other.sync().await;
        let theirs = ours(other.cloud);
        assert_eq!((ours(w.cloud).len(), theirs.len()), (3, 3));
        w.listeners.clear();
        drop(w.fabric.take());
        let removed = Fabric::down(&settings(w.cloud)).await.unwrap();
        assert_eq!((removed.namespaces, removed.devices, removed.tables), (3, 1, 0));
        assert_eq!((ours(w.cloud).len(), ours(other.cloud)), (0, theirs));
        let links = sh(&["ip", "-o", "link"]);
        assert!(links.contains("foreign0") && links.contains(&format!("sx{:08x}", other.cloud)), "{links}");
        assert!(!links.contains(&format!("sx{:08x}", w.cloud)), "{links}");
        let tables = sh(&["nft", "list", "tables"]);
        assert_eq!(tables.lines().count(), 3, "{tables}");
        other.sync().await;
        assert_eq!(other.fabric().last_steps(), [""; 0], "the other cloud is untouched");
        assert_eq!(Fabric::down(&settings(w.cloud)).await.unwrap(), fabric::Removed::default());
    });
}

#[test]
fn restarts_lose_no_packet() {
    run(async |w| {
        let port = cloud(w, 89);
        w.sync().await;
        let guest = w.guest(&port);
        guest.route("default", "10.89.0.1");
        let ping = ["netns", "exec", &guest.ns.0, "ping", "-q", "-i", "0.01", "-c", "150", "198.18.89.1"];
        let ping = std::process::Command::new("ip").args(ping).stdout(std::process::Stdio::piped()).spawn();
        for _ in 0..5 {
            w.restart().await;
            w.sync().await;
        }
        let said = ping.unwrap().wait_with_output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(" 0% packet loss"), "{said}");
    });
}

#[test]
fn a_name_left_by_a_crash_is_made_good() {
    run(async |w| {
        let net = w.network(1, "10.88.0.0/24");
        let name = format!("/run/netns/shisa-{:08x}-net-{net}", w.cloud);
        std::fs::write(&name, "").unwrap();
        let port = w.port(1, net, "10.88.0.5", &open());
        assert!(w.sync().await[&port.id].up);
        let lost = format!("/run/netns/shisa-{:08x}-net-{}", w.cloud, id(9, 9));
        std::fs::write(&lost, "").unwrap();
        sh(&["ip", "netns", "del", name.strip_prefix("/run/netns/").unwrap()]);
        let document = w.document.clone();
        let report = w.fabric().check(&document).await.unwrap();
        assert!(report[&port.id].up, "removed by someone, made again");
        w.listeners.clear();
        drop(w.fabric.take());
        Fabric::down(&settings(w.cloud)).await.unwrap();
        assert!(!std::path::Path::new(&lost).exists() && !std::path::Path::new(&name).exists());
    });
}

#[test]
fn a_connection_by_a_removed_floating_address_ends_at_once() {
    run(async |w| {
        let mut port = cloud(w, 85);
        w.sync().await;
        let guest = w.guest(&port);
        guest.route("default", "10.85.0.1");
        let listener = guest.ns.inside(|| std::net::TcpListener::bind("0.0.0.0:7").unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(&byte);
            }
        });
        let mut stream = std::net::TcpStream::connect("198.18.85.20:7").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        let mut echo = |byte: Option<u8>| {
            if let Some(byte) = byte {
                stream.write_all(&[byte]).unwrap();
            }
            let mut back = [0];
            stream.read_exact(&mut back).ok().map(|()| back[0])
        };
        assert_eq!(echo(Some(1)), Some(1));
        w.port(2, id(1, 1), "10.85.0.6", &rules_in(&[]));
        w.sync().await;
        assert_eq!(echo(Some(2)), Some(2), "another port's coming changes nothing");
        let narrow = rules_in(&[rule(Direction::Ingress, false, Some(6), Some((7, 8)), Remote::Any)]);
        change_rules(w, &mut port, &narrow).await;
        assert_eq!(echo(Some(3)), Some(3), "other rules that still allow it");
        change_rules(w, &mut port, &rules_in(&[])).await;
        assert_eq!(echo(Some(4)), None, "rules that do not");
        change_rules(w, &mut port, &narrow).await;
        assert!((0..8).any(|_| echo(None) == Some(4)), "allowed again, it goes on");
        assert_eq!(echo(Some(5)), Some(5));
        port.floating.clear();
        w.put(Section::Port(port));
        w.sync().await;
        assert_eq!(echo(Some(6)), None, "the address is gone");
    });
}

async fn change_rules(w: &mut World, port: &mut Port, rules: &RuleSet) {
    w.put(Section::Rules(rules.clone()));
    port.rules = Some(rules.hash());
    w.put(Section::Port(port.clone()));
    w.sync().await;
}

#[test]
fn an_uplink_carries_external_ranges_and_is_left_as_it_was() {
    run(async |w| {
        let world = Namespace::new("world");
        sh(&["ip", "link", "add", "up85", "type", "veth", "peer", "name", "eth0", "netns", &world.0]);
        sh(&["ip", "addr", "add", "192.0.2.2/24", "dev", "up85"]);
        sh(&["ip", "link", "set", "up85", "up"]);
        world.ip("addr add 192.0.2.1/24 dev eth0");
        world.ip("link set eth0 up");
        let mut with = settings(w.cloud);
        with.uplink = Some("up85".to_string());
        w.fabric = Some(Fabric::open(with).await.unwrap());
        let port = cloud(w, 86);
        w.sync().await;
        let guest = w.guest(&port);
        guest.route("default", "10.86.0.1");
        assert!(guest.pings("192.0.2.1"));
        let read = || sh(&["cat", "/proc/sys/net/ipv4/conf/up85/forwarding"]);
        assert_eq!(read(), "1\n");
        assert_eq!(sh(&["cat", "/proc/sys/net/ipv4/ip_forward"]), "0\n");
        w.sync().await;
        assert_eq!(w.fabric().last_steps(), [""; 0]);
        w.restart().await;
        w.sync().await;
        assert_eq!(read(), "0\n", "the uplink was taken from the settings");
        assert!(!guest.pings("192.0.2.1"));
        let mut with = settings(w.cloud);
        with.uplink = Some("up85".to_string());
        w.listeners.clear();
        w.fabric = Some(Fabric::open(with).await.unwrap());
        w.sync().await;
        drop(guest);
        w.listeners.clear();
        drop(w.fabric.take());
        let removed = Fabric::down(&settings(w.cloud)).await.unwrap();
        assert_eq!((removed.uplink.as_deref(), removed.tables), (Some("up85"), 1));
        assert_eq!(read(), "0\n");
        assert_eq!(sh(&["nft", "list", "tables"]), "");
    });
}

/// A node with 100 routers, 100 networks and 1,000 ports, and a group of 1,000.
fn thousand(w: &mut World) -> Group {
    let friends = Group {
        id: id(8, 1),
        members: (0..1000u16).map(|n| std::net::IpAddr::from([10, 2, (n >> 8) as u8, n as u8])).collect(),
    };
    w.put(Section::Group(friends.clone()));
    for n in 1..=100u8 {
        let net = w.network(n, "10.1.0.0/24");
        let mut r = router(1, &[(net, "10.1.0.1/24")]);
        r.id = id(4, n);
        r.interfaces[0].port = id(5, n);
        w.put(Section::Router(r));
        for p in 0..10u8 {
            let mut port = port(p, net, &format!("10.1.0.{}", 5 + p), None);
            port.id = uuid::Uuid::from_u128((3 << 120) | (n as u128) << 112 | (p as u128) << 104);
            let ssh = rule(Direction::Ingress, false, Some(6), Some((22, 22)), Remote::Any);
            let friendly =
                rule(Direction::Ingress, false, Some(6), Some((80, 80)), Remote::Group(friends.id));
            let set = if n == 1 { rules_in(&[ssh, friendly]) } else { rules_in(&[ssh]) };
            port.rules = Some(set.hash());
            w.put(Section::Rules(set));
            w.put(Section::Port(port));
        }
    }
    friends
}

/// How long a sync takes, told and held to its budget.
async fn measure(w: &mut World, what: &str, budget_ms: u128) {
    let document = w.document.clone();
    let start = std::time::Instant::now();
    w.fabric().sync(&document).await.unwrap();
    let took = start.elapsed();
    println!("{what}: {took:.1?} of {budget_ms} ms, {} steps", w.fabric().last_steps().len());
    assert!(took.as_millis() <= budget_ms, "{what} took {took:?}");
}

/// `make bench-fabric-node`
#[test]
#[ignore = "a measurement"]
fn a_node_with_a_thousand_ports_is_within_its_budgets() {
    run(async |w| {
        let mut friends = thousand(w);
        measure(w, "1,000 ports, 100 routers from nothing", 2000).await;
        w.listeners.clear();
        w.restart().await;
        measure(w, "after a restart", 500).await;
        assert_eq!(w.fabric().last_steps(), [""; 0]);
        friends.members.insert(address("10.2.9.9"));
        w.put(Section::Group(friends));
        measure(w, "a member of a group of 1,000 came", 100).await;
        w.document.sections.remove(&SectionKey::Port(uuid::Uuid::from_u128((3 << 120) | (1 << 112))));
        measure(w, "a port went", 500).await;
    });
}

/// `make bench-fabric-node`
#[test]
#[ignore = "a measurement"]
fn the_cost_of_a_change_beside_many_remote_ports() {
    for remote in [10u32, 100, 1_000, 10_000] {
        run(async move |w| {
            let (crowd, quiet) = (w.network(1, "10.0.0.0/8"), w.network(2, "192.168.0.0/24"));
            w.put(Section::Router(router(1, &[(crowd, "10.0.0.1/8"), (quiet, "192.168.0.1/24")])));
            let member = |n: u32| {
                let [_, b, c, d] = (n + 256).to_be_bytes();
                let (mac, vtep) = (base::units::Mac([2, 0, 0, b, c, d]), Some([192, 0, 2, d.max(1)].into()));
                let addresses = vec![[10, b, c, d].into()];
                (uuid::Uuid::from_u128(n.into()), Member { mac, addresses, vtep, name: String::new() })
            };
            let mut members = Members { network: crowd, ports: (0..remote).map(member).collect() };
            w.put(Section::Members(members.clone()));
            w.port(1, crowd, "10.0.0.5", &open());
            measure(w, &format!("{remote} remote ports: from nothing"), 60_000).await;
            w.port(2, quiet, "192.168.0.6", &open());
            measure(w, &format!("{remote} remote ports: a port on another network"), 200).await;
            w.port(3, crowd, "10.0.0.6", &open());
            measure(w, &format!("{remote} remote ports: a port beside them"), 200).await;
            members.ports.extend([member(remote)]);
            w.put(Section::Members(members));
            measure(w, &format!("{remote} remote ports: one more"), 100).await;
        });
    }
}
