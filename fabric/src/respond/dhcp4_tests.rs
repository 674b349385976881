//! Leases as tables: who gets the default route, and what options of a port's own become.

use super::*;
use base::node::*;

fn id(n: u8) -> Uuid {
    Uuid::from_u128(n as u128)
}

/// A guest with a NIC on each of these subnets, by whether they have a gateway; the routers it is told.
fn check_routers(gateways: &[bool], expect: &[bool]) {
    let mut document = Document::default();
    let mut ports = Vec::new();
    for (n, with) in (1u8..).zip(gateways) {
        let port: Port = serde_json::from_value(serde_json::json!({
            "id": id(100 - n), "network": id(n), "vm": id(50), "mac": format!("fa:16:3e:00:00:{n:02x}"),
            "admin_up": true, "fixed": [{"subnet": id(n), "address": format!("10.{n}.0.5")}], "pairs": [],
            "port_security": true, "rules": null, "floating": [], "dhcp_options": [],
        }))
        .unwrap();
        let network: Network = serde_json::from_value(serde_json::json!({
            "id": id(n), "vni": 1, "mtu": 1450, "external": false, "router": null,
            "dns_domain": "", "subnets": [{"id": id(n), "cidr": format!("10.{n}.0.0/24"),
                "gateway": with.then(|| format!("10.{n}.0.1")), "dhcp": true, "dns": [], "routes": [],
                "ipv6_ra": null, "ipv6_address": null}],
        }))
        .unwrap();
        ports.push(port.id);
        document.sections.insert(SectionKey::Port(port.id), Section::Port(port));
        document.sections.insert(SectionKey::Network(network.id), Section::Network(network));
    }
    let vm: Vm = serde_json::from_value(serde_json::json!({
        "id": id(50), "power": "on", "reboots": 0, "reboot_hard": false, "vcpus": 1, "memory_mib": 1, "root_gib": 1,
        "ephemeral_gib": 0, "swap_mib": 0, "image": null, "ports": ports, "config_drive": false,
        "metadata": GuestMetadata { hostname: "web".into(), ..GuestMetadata::default() },
    }))
    .unwrap();
    document.sections.insert(SectionKey::Vm(vm.id), Section::Vm(vm));
    let leases = leases(&Sections::of(&document));
    let told: Vec<bool> = leases.values().map(|lease| lease.options.contains_key(&3)).collect();
    assert_eq!(told, expect, "{gateways:?}");
    assert!(leases.values().all(|lease| lease.options[&12] == b"web"));
    let default = |lease: &Lease| lease.options[&121].len() > 9;
    assert_eq!(leases.values().map(default).collect::<Vec<_>>(), expect, "option 121 says the same");
}

#[test]
fn the_first_nic_with_a_gateway_gives_the_default_route() {
    check_routers(&[true], &[true]);
    check_routers(&[true, true], &[true, false]);
    check_routers(&[false, true, true], &[false, true, false]);
    check_routers(&[false], &[false]);
}

fn check_option(name: &str, value: &str, expect: Option<(u8, &[u8])>) {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut lease = Lease { address: none, next_server: none, options: BTreeMap::new() };
    own_option(&mut lease, name, value);
    let got = lease.options.iter().next().map(|(code, bytes)| (*code, bytes.as_slice()));
    assert_eq!(got, expect, "{name} {value:?}");
}

#[test]
fn own_options_are_written_by_their_kind() {
    check_option("mtu", "9000", Some((26, &[0x23, 0x28])));
    check_option("26", "9000", Some((26, &[0x23, 0x28])));
    check_option("option:ntp-server", "10.0.0.1, 10.0.0.2", Some((42, &[10, 0, 0, 1, 10, 0, 0, 2])));
    check_option("ntp-server", "pool.example", None);
    check_option("bootfile-name", "a\nb", Some((67, b"a\nb")));
    check_option("time-offset", "-3600", Some((2, &[0xff, 0xff, 0xf1, 0xf0])));
    check_option("224", "10.0.0.1", Some((224, &[10, 0, 0, 1])));
    check_option("224", "0a:0b", Some((224, &[10, 11])));
    check_option("224", "text", Some((224, b"text")));
    check_option("51", "1", None);
    check_option("nonsense", "1", None);
}
