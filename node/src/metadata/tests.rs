use super::*;
use base::node::{
    Document, FixedIp, FloatingIp, GuestMetadata, Network, Port, Power, Section, SectionKey, Subnet, Vm,
};
use uuid::Uuid;

pub fn guest_id() -> Uuid {
    "11111111-2222-3333-4444-555555555555".parse().unwrap()
}

pub fn network_id() -> Uuid {
    Uuid::from_u128(0xa)
}

/// A document with one guest that has one port of this address, on a network with and one without DHCP.
pub fn document(address: &str) -> Document {
    let subnet = |n, cidr: &str, dhcp| Subnet {
        id: Uuid::from_u128(n),
        cidr: cidr.parse().unwrap(),
        gateway: Some("10.1.0.1".parse().unwrap()),
        dhcp,
        dns: vec!["9.9.9.9".parse().unwrap()],
        routes: vec![("10.8.0.0/16".parse().unwrap(), "10.1.0.8".parse().unwrap())],
        ipv6_ra: None,
        ipv6_address: None,
    };
    let network = Network {
        id: network_id(),
        vni: 7,
        mtu: 1450,
        external: false,
        physical: None,
        router: None,
        subnets: vec![subnet(1, "10.0.0.0/24", true), subnet(2, "10.1.0.0/24", false)],
        dns_domain: String::new(),
    };
    let fixed = |n, address: &str| FixedIp { subnet: Uuid::from_u128(n), address: address.parse().unwrap() };
    let port = Port {
        id: Uuid::from_u128(0xb),
        network: network.id,
        vm: Some(guest_id()),
        mac: "fa:16:3e:00:00:01".parse().unwrap(),
        admin_up: true,
        fixed: vec![fixed(1, address), fixed(2, "10.1.0.5")],
        pairs: vec![],
        port_security: true,
        rules: None,
        floating: vec![FloatingIp {
            floating: "192.0.2.7".parse().unwrap(),
            fixed: address.parse().unwrap(),
            router: Uuid::nil(),
            network: Uuid::nil(),
        }],
        dhcp_options: vec![],
        name: String::new(),
    };
    let metadata = GuestMetadata {
        name: "vm 1".into(),
        hostname: "vm-1".into(),
        project: "p".repeat(32),
        availability_zone: "nova".into(),
        public_keys: [("laptop".to_string(), "ssh-ed25519 AAAA me".to_string())].into(),
        meta: [("role".to_string(), "db".to_string())].into(),
        admin_pass: Some("hush".into()),
        security_groups: vec!["default".into(), "web".into()],
        flavor: "m1.tiny".into(),
        ..GuestMetadata::default()
    };
    let vm = Vm {
        id: guest_id(),
        power: Power::On,
        reboots: 0,
        reboot_hard: false,
        vcpus: 1,
        memory_mib: 64,
        root_gib: 1,
        ephemeral_gib: 0,
        swap_mib: 64,
        image: Some(Uuid::from_u128(0xc << 96)),
        ports: vec![port.id],
        config_drive: true,
        metadata,
        maintenance: None,
    };
    let sections = [
        (SectionKey::Vm(vm.id), Section::Vm(vm)),
        (SectionKey::Port(port.id), Section::Port(port)),
        (SectionKey::Network(network.id), Section::Network(network)),
    ];
    Document { sections: sections.into(), ..Document::default() }
}

fn guest() -> Guest {
    Guest::of(&document("10.0.0.5"), guest_id()).unwrap()
}

fn text(files: &Files, path: &str) -> String {
    String::from_utf8(lookup(files, path).unwrap_or_else(|| panic!("no {path}"))).unwrap()
}

#[test]
fn the_openstack_tree() {
    let files = files(&guest(), Via::Service, b"seed");
    let check = |path: &str, expect: Value| {
        assert_eq!(serde_json::from_str::<Value>(&text(&files, path)).unwrap(), expect);
    };
    let meta = json!({
        "uuid": "11111111-2222-3333-4444-555555555555", "name": "vm 1", "hostname": "vm-1", "launch_index": 0,
        "availability_zone": "nova", "project_id": "pppppppppppppppppppppppppppppppp",
        "random_seed": "c2VlZA==", "devices": [], "dedicated_cpus": [],
        "keys": [{ "name": "laptop", "type": "ssh", "data": "ssh-ed25519 AAAA me" }],
        "public_keys": { "laptop": "ssh-ed25519 AAAA me" }, "meta": { "role": "db" },
    });
    check("/openstack/latest/meta_data.json", meta.clone());
    check("/openstack/2013-10-17/meta_data.json", meta);
    let (link, network) = ("tap00000000-00", "00000000-0000-0000-0000-00000000000a");
    check(
        "/openstack/latest/network_data.json",
        json!({
            "links": [{ "id": link, "vif_id": "00000000-0000-0000-0000-00000000000b", "type": "tap",
                        "mtu": 1450, "ethernet_mac_address": "fa:16:3e:00:00:01" }],
            "networks": [
                { "id": "network0", "link": link, "network_id": network, "type": "ipv4_dhcp" },
                { "id": "network1", "link": link, "network_id": network, "type": "ipv4",
                  "ip_address": "10.1.0.5", "netmask": "255.255.255.0",
                  "services": [{ "type": "dns", "address": "9.9.9.9" }],
                  "routes": [
                      { "network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1" },
                      { "network": "10.8.0.0", "netmask": "255.255.0.0", "gateway": "10.1.0.8" } ] } ],
            "services": [{ "type": "dns", "address": "9.9.9.9" }],
        }),
    );
    assert_eq!(lookup(&files, "/openstack/1999-01-01/meta_data.json"), None);
    assert_eq!(lookup(&files, "/openstack/latest/user_data"), None);
    assert!(text(&files, "/openstack").ends_with("2020-10-14\nlatest"));
    let expect = "maintenance.json\nmeta_data.json\nnetwork_data.json\nvendor_data.json\nvendor_data2.json";
    assert_eq!(text(&files, "/openstack/latest/"), expect);
}

#[test]
fn the_ec2_tree() {
    let files = files(&guest(), Via::Service, b"seed");
    let check = |path: &str, expect: &str| assert_eq!(text(&files, path), expect, "{path}");
    check("/latest/", "meta-data/");
    check(
        "/latest/meta-data/",
        "ami-id\nami-launch-index\nami-manifest-path\nblock-device-mapping/\nevents/\nhostname\ninstance-action\n\
         instance-id\ninstance-type\nlocal-hostname\nlocal-ipv4\nplacement/\npublic-hostname\npublic-ipv4\n\
         public-keys/\nreservation-id\nsecurity-groups",
    );
    check("/2009-04-04/meta-data/instance-id", "i-11111111");
    check("/latest/meta-data/ami-id", "ami-0000000c");
    check("/latest/meta-data/local-ipv4", "10.0.0.5");
    check("/latest/meta-data/public-ipv4", "192.0.2.7");
    check("/latest/meta-data/placement/", "availability-zone");
    check("/latest/meta-data/public-keys/", "0=laptop");
    check("/latest/meta-data/public-keys/0/", "openssh-key");
    check("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA me");
    check("/latest/meta-data/security-groups", "default\nweb");
    check("/latest/meta-data/block-device-mapping/", "ami\nroot\nswap");
    check("/latest/meta-data/block-device-mapping/swap", "/dev/vdb");
    assert!(text(&files, "/").starts_with("1.0\n"));
}

#[test]
fn maintenance_is_told_by_the_service_alone() {
    let mut guest = guest();
    let told = |guest: &Guest, path: &str| {
        let files = files(guest, Via::Service, b"seed");
        serde_json::from_str::<Value>(&text(&files, path)).unwrap()
    };
    let (openstack, ec2) =
        ("/openstack/latest/maintenance.json", "/latest/meta-data/events/maintenance/scheduled");
    assert_eq!((told(&guest, openstack), told(&guest, ec2)), (json!([]), json!([])));
    guest.vm.maintenance = Some(base::node::Maintenance {
        event: Uuid::from_u128(0x1234_5678_9abc_def0 << 64),
        started: false,
        not_before: base::Timestamp::parse("2019-01-21T09:00:43Z").unwrap(),
        not_after: base::Timestamp::parse("2019-01-21T09:17:23Z"),
        reason: "new \"disks\"".into(),
    });
    assert_eq!(
        told(&guest, openstack),
        json!([{"id": "12345678-9abc-def0-0000-000000000000", "state": "scheduled", "code": "instance-stop",
            "description": "new \"disks\"", "not_before": "2019-01-21T09:00:43Z", "not_after": "2019-01-21T09:17:23Z"}])
    );
    assert_eq!(
        told(&guest, ec2),
        json!([{"EventId": "instance-event-123456789abcdef00", "State": "active", "Code": "instance-stop",
            "Description": "new \"disks\"", "NotBefore": "21 Jan 2019 09:00:43 GMT",
            "NotAfter": "21 Jan 2019 09:17:23 GMT"}])
    );
    let files = files(&guest, Via::Service, b"seed");
    assert_eq!(text(&files, "/latest/meta-data/events/"), "maintenance/");
    assert!(lookup(&files, "/2009-04-04/meta-data/events/maintenance/scheduled").is_some());
    let m = guest.vm.maintenance.as_mut().unwrap();
    (m.started, m.not_after) = (true, None);
    let event = &told(&guest, openstack)[0];
    assert_eq!((&event["state"], event.get("not_after")), (&json!("started"), None));
    assert!(told(&guest, ec2)[0].get("NotAfter").is_none());
    let drive = iso::tests::read(&config_drive(&guest).unwrap(), true);
    assert!(drive.keys().all(|path| !path.contains("maintenance")));
}

#[test]
fn the_config_drive_has_both_trees_the_password_and_user_data() {
    let mut guest = guest();
    guest.vm.metadata.user_data = Some(b"#!/bin/sh\n".to_vec());
    let image = config_drive(&guest).unwrap();
    let files = iso::tests::read(&image, true);
    let meta: Value = serde_json::from_slice(&files["openstack/latest/meta_data.json"]).unwrap();
    assert_eq!((&meta["hostname"], &meta["admin_pass"]), (&json!("vm-1"), &json!("hush")));
    assert_eq!(files["openstack/2018-08-27/user_data"], b"#!/bin/sh\n");
    let ec2: Value = serde_json::from_slice(&files["ec2/latest/meta-data.json"]).unwrap();
    assert_eq!(ec2["instance-id"], "i-11111111");
    assert!(files.contains_key("openstack/latest/network_data.json"));
}
