//! The simulated machine from end to end, on a plane in memory.

#![allow(clippy::unwrap_used)]

mod plane;

use base::node::{Power, Section, SectionKey, VmState};
use node::{Node, Settings, Simulated};
use plane::{Plane, vm};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

fn start(plane: &Arc<Plane>, n: u128, delay: Duration) -> (Node, tokio::task::JoinHandle<()>) {
    let kind = Simulated { delay, ..Simulated::default() };
    let address = Ipv4Addr::LOCALHOST.into();
    let node = Node::new(Settings::simulated(&format!("node-{n}"), Uuid::from_u128(n), address, kind));
    let (run, link) = (node.clone(), plane.link());
    (node, tokio::spawn(async move { run.run(link, std::future::pending()).await.unwrap() }))
}

fn put(plane: &Plane, vm: base::node::Vm) {
    plane.change(|sections| _ = sections.insert(SectionKey::Vm(vm.id), Section::Vm(vm)));
}

#[tokio::test]
async fn follows_the_document_and_tells_changes_only() {
    let plane = Plane::new();
    put(&plane, vm(1));
    let (node, task) = start(&plane, 1, Duration::ZERO);
    let id = Uuid::from_u128(1);
    plane.until_state(5, id, VmState::Running).await;
    assert!(node.console(id, Some(1)).unwrap().contains("login"));
    assert!(node.console(Uuid::from_u128(9), None).is_err());
    put(&plane, base::node::Vm { power: Power::Off, ..vm(1) });
    plane.until_state(5, id, VmState::Stopped).await;
    put(&plane, base::node::Vm { reboots: 3, ..vm(1) });
    assert_eq!(plane.until_state(5, id, VmState::Running).await.reboots, 3);
    plane.change(|sections| sections.clear());
    let told = plane.until(5, |told| told.vms.is_empty()).await;
    assert_eq!(told.generation, plane.document.borrow().generation);
    assert!(told.hello.is_some() && told.reports < 10);
    task.abort();
}

#[tokio::test]
async fn works_on_while_the_plane_is_away_and_tells_it_later() {
    let plane = Plane::new();
    put(&plane, vm(1));
    let (_, task) = start(&plane, 1, Duration::from_millis(50));
    let id = Uuid::from_u128(1);
    plane.until_state(5, id, VmState::Building).await;
    plane.away.send_replace(true);
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(plane.told.borrow().vms[&id].state, VmState::Building);
    plane.away.send_replace(false);
    plane.until_state(5, id, VmState::Running).await;
    task.abort();
}

#[tokio::test]
async fn a_thousand_nodes_with_ten_guests_each_fit_in_one_process() {
    let plane = Plane::new();
    plane.change(|sections| {
        sections.extend((0..10).map(|n| (SectionKey::Vm(Uuid::from_u128(n)), Section::Vm(vm(n)))));
    });
    let nodes: Vec<_> = (0..1000).map(|n| start(&plane, n, Duration::ZERO)).collect();
    plane.until(60, |told| told.reports >= 1000 && told.vms.len() == 10).await;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident_mib = statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / 1_048_576;
    println!("{resident_mib} MiB are resident");
    assert!(resident_mib < 300);
    nodes.iter().for_each(|(_, task)| task.abort());
}
