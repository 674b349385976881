//! Real guests under QEMU: from boot to power button, restart of the node, images and faults.
//!
//! Needs qemu-system-x86_64 and the guest image (`guest/build`, or `SHISA_GUEST`).

#![allow(clippy::unwrap_used)]

mod machine;
mod plane;

use base::node::{Image, Power, Section, SectionKey, Vm, VmState};
use machine::{Running, State, put, put_image, qemu_is_missing};
use plane::{Plane, vm};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A guest without image: QEMU runs its firmware.
fn bare(n: u128) -> Vm {
    Vm { memory_mib: 32, ..vm(n) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_reboots_and_stops_by_its_power_button() {
    if qemu_is_missing() {
        return;
    }
    let (state, plane) = (State::new(), Plane::new());
    let image = Uuid::from_u128(7);
    let wish = Vm { image: Some(image), ephemeral_gib: 1, swap_mib: 16, config_drive: true, ..vm(1) };
    put_image(&plane, image);
    put(&plane, wish.clone());
    let begin = Instant::now();
    let running = Running::start(&state, &plane);
    plane.until_state(60, wish.id, VmState::Running).await;
    println!("running after {:?}", begin.elapsed());
    running.says(wish.id, "ssh ready", 1).await;
    println!("ssh ready after {:?}", begin.elapsed());
    // It has its name from the config drive.
    running.says(wish.id, "vm-1 login:", 1).await;

    let begin = Instant::now();
    put(&plane, Vm { reboots: 1, ..wish.clone() });
    plane.until(60, |told| told.vms[&wish.id].reboots == 1).await;
    println!("soft reboot took {:?}", begin.elapsed());
    running.says(wish.id, "ssh ready", 2).await;

    let begin = Instant::now();
    put(&plane, Vm { power: Power::Off, reboots: 1, ..wish.clone() });
    plane.until_state(60, wish.id, VmState::Stopped).await;
    println!("stop took {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(30), "the guest did not hear its power button");
    plane.change(|sections| sections.clear());
    plane.until(30, |told| told.vms.is_empty()).await;
    assert_eq!(std::fs::read_dir(state.path().join("vms")).unwrap().count(), 0);
    running.crash().await;
}

/// Says more than is kept, and powers off.
const CHATTY: &str = "#!/bin/sh
(yes 0123456789 | head -c 700000; echo enough; sleep 7; poweroff) > /dev/ttyS0 2>&1 &
";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_off_by_itself_is_stopped_and_its_console_is_bounded() {
    if qemu_is_missing() {
        return;
    }
    let (state, plane) = (State::new(), Plane::new());
    let image = Uuid::from_u128(7);
    let mut wish = Vm { image: Some(image), config_drive: true, ..vm(1) };
    wish.metadata.user_data = Some(CHATTY.into());
    put_image(&plane, image);
    put(&plane, wish.clone());
    let running = Running::start(&state, &plane);
    running.says(wish.id, "enough", 1).await;
    plane.until_state(60, wish.id, VmState::Stopped).await;
    let console = state.path().join("vms").join(wish.id.to_string()).join("qemu/console.log");
    assert!(console.metadata().unwrap().len() <= 512 * 1024);
    let kept = running.node.console(wish.id, None).unwrap();
    assert!(kept.len() > 256 * 1024 && kept.len() <= 1024 * 1024, "{}", kept.len());
    // It stays off until it is told: a larger count is heard even by a node that missed an `Off` in between.
    put(&plane, Vm { reboots: 1, ..wish.clone() });
    plane.until_state(60, wish.id, VmState::Running).await;
    running.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_adopts_its_guests_and_touches_nothing() {
    if qemu_is_missing() {
        return;
    }
    let (state, plane) = (State::new(), Plane::new());
    let id = bare(1).id;
    put(&plane, bare(1));
    let running = Running::start(&state, &plane);
    plane.until_state(60, id, VmState::Running).await;
    let before = state.run_of(id);
    running.crash().await;
    plane.told.send_modify(|told| told.vms.clear());
    plane.away.send_replace(true);
    let running = Running::start(&state, &plane);
    tokio::time::sleep(Duration::from_millis(300)).await;
    plane.away.send_replace(false);
    plane.until_state(60, id, VmState::Running).await;
    assert_eq!(state.run_of(id), before);

    let hard = Vm { reboots: 1, reboot_hard: true, ..bare(1) };
    put(&plane, hard.clone());
    plane.until(60, |told| told.vms[&id].state == VmState::Running && told.vms[&id].reboots == 1).await;
    assert_ne!(state.run_of(id)["process"], before["process"]);

    let pid = state.run_of(id)["process"]["pid"].as_i64().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let failed = plane.until_state(60, id, VmState::Failed).await;
    assert!(failed.fault.unwrap().starts_with("QEMU ended"));
    put(&plane, Vm { reboots: 2, ..hard });
    plane.until_state(60, id, VmState::Running).await;
    running.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_start_says_why_and_holds_up_no_other() {
    if qemu_is_missing() {
        return;
    }
    let (state, plane) = (State::new(), Plane::new());
    let image = Image { id: Uuid::from_u128(9), format: "raw".into(), size: 10, sha512: "00".into() };
    plane.images.lock().unwrap().insert(image.id, "/proc/version".into());
    plane.change(|sections| _ = sections.insert(SectionKey::Image(image.id), Section::Image(image.clone())));
    put(&plane, Vm { image: Some(image.id), ..bare(1) });
    put(&plane, Vm { image: Some(Uuid::from_u128(10)), ..bare(2) });
    put(&plane, bare(3));
    let running = Running::start(&state, &plane);
    let failed = plane.until_state(60, bare(1).id, VmState::Failed).await;
    assert!(failed.fault.unwrap().contains("checksum"));
    plane.until_state(60, bare(3).id, VmState::Running).await;
    assert_eq!(plane.told.borrow().vms[&bare(2).id].state, VmState::Building);
    running.crash().await;
}
