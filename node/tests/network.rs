//! A real guest on a real network of the node: address, metadata, and a card plugged and pulled while it runs.
//!
//! Needs root, QEMU, nft and the guest image.

#![allow(clippy::unwrap_used)]

mod machine;
mod plane;

use base::node::{
    Direction, FixedIp, Network, Port, Remote, Rule, RuleSet, Section, SectionKey, Subnet, Vm, VmState,
};
use machine::{Running, State, put, put_image, qemu_is_missing};
use plane::{Plane, vm};
use uuid::Uuid;

const NETWORK: Uuid = Uuid::from_u128(0x20);
const SUBNET: Uuid = Uuid::from_u128(0x21);

fn network() -> Network {
    let subnet = Subnet {
        id: SUBNET,
        cidr: "10.77.0.0/24".parse().unwrap(),
        gateway: None,
        dhcp: true,
        dns: vec![],
        routes: vec![],
        ipv6_ra: None,
        ipv6_address: None,
    };
    Network {
        id: NETWORK,
        vni: 4242,
        mtu: 1450,
        external: false,
        physical: None,
        router: None,
        subnets: vec![subnet],
        dns_domain: String::new(),
    }
}

/// What the guest does of itself.
const SCRIPT: &str = "#!/bin/sh
exec > /dev/console 2>&1
ip -4 -o addr show eth0
echo mtu=$(cat /sys/class/net/eth0/mtu)
curl -s -X POST -d c2VjcmV0 http://169.254.169.254/openstack/latest/password
(
    card=/sys/class/net/eth1
    while ! [ -e $card ]; do sleep 1; done; echo plugged $(cat $card/address)
    while [ -e $card ]; do sleep 1; done; echo pulled
    while ! [ -e $card ]; do sleep 1; done; echo again $(cat $card/address)
) &
";

/// Everything out, nothing in.
fn rules() -> RuleSet {
    let rule = Rule {
        direction: Direction::Egress,
        v6: false,
        protocol: None,
        min: None,
        max: None,
        remote: Remote::Any,
    };
    RuleSet { rules: vec![rule], stateful: true }
}

fn port(n: u8, vm: Uuid) -> Port {
    Port {
        id: Uuid::from_u128(u128::from(n) << 96 | 0x30),
        network: NETWORK,
        vm: Some(vm),
        mac: format!("fa:16:3e:77:00:{n:02x}").parse().unwrap(),
        admin_up: true,
        fixed: vec![FixedIp { subnet: SUBNET, address: [10, 77, 0, n].into() }],
        pairs: vec![],
        port_security: true,
        rules: Some(rules().hash()),
        floating: vec![],
        dhcp_options: vec![],
        name: String::new(),
    }
}

fn plug(plane: &Plane, vm: &mut Vm, port: Port) {
    vm.ports.push(port.id);
    plane.change(|sections| {
        sections.insert(SectionKey::Port(port.id), Section::Port(port));
        sections.insert(SectionKey::Vm(vm.id), Section::Vm(vm.clone()));
    });
}

/// Takes the kernel's part away when the test ends; the guests have ended before.
struct Net(fabric::Settings);

impl Drop for Net {
    fn drop(&mut self) {
        let settings = self.0.clone();
        let down = move || {
            tokio::runtime::Runtime::new()
                .unwrap()
                .block_on(async move { fabric::Fabric::down(&settings).await })
        };
        std::thread::spawn(down).join().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_its_address_its_metadata_and_another_card() {
    if qemu_is_missing() {
        return;
    }
    let plane = Plane::new();
    let state = State::new();
    let _net = Net(fabric::Settings {
        cloud: state.1,
        node_address: [127, 0, 0, 1].into(),
        vxlan_port: fabric::vxlan_port(state.1),
        uplink: None,
        physical: Default::default(),
    });
    let image = Uuid::from_u128(7);
    let mut wish = Vm { image: Some(image), ..vm(1) };
    let id = wish.id;
    wish.metadata.user_data = Some(SCRIPT.into());
    put_image(&plane, image);
    plane.change(|sections| {
        sections.insert(SectionKey::Network(NETWORK), Section::Network(network()));
        sections.insert(SectionKey::Rules(rules().hash()), Section::Rules(rules()));
    });
    plug(&plane, &mut wish, port(5, id));
    let running = Running::start_with(&state, &plane, true);
    plane.until_state(60, wish.id, VmState::Running).await;
    plane.until(10, |told| told.ports.get(&wish.ports[0]) == Some(&true)).await;
    running.says(wish.id, "ssh ready", 1).await;
    // It has no config drive: its name came from the metadata service.
    running.says(wish.id, "vm-1 login:", 1).await;

    running.says(id, "inet 10.77.0.5/24", 1).await;
    running.says(id, "mtu=1450", 1).await;
    plane.until(20, |told| told.vms[&id].password.as_deref() == Some("c2VjcmV0")).await;

    plug(&plane, &mut wish, port(6, id));
    plane.until(30, |told| told.ports.get(&wish.ports[1]) == Some(&true)).await;
    running.says(id, "plugged fa:16:3e:77:00:06", 1).await;
    wish.ports.pop();
    put(&plane, wish.clone());
    running.says(id, "pulled", 1).await;
    plug(&plane, &mut wish, port(6, id));
    running.says(id, "again fa:16:3e:77:00:06", 1).await;
    running.crash().await;
    drop(state);
}
