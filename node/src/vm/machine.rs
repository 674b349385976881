//! The QEMU of one guest: its command line, and its start in a session of its own.
//!
//! All files are named relative to the guest's directory, where QEMU works: paths stay short enough for sockets, and
//! need no escapes. The serial console goes to a socket and, appended, to `CONSOLE`; appending lets us cut the file
//! under QEMU's hands.

use super::disk::{CONFIG, EPHEMERAL, ROOT, SWAP};
use super::plan::{Guest, Nic};
use super::probe::Acceleration;
use super::process::Process;
use base::{Error, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};
use uuid::Uuid;

pub const MONITOR: &str = "qmp";
pub const CONSOLE: &str = "console.log";
/// The translation cache of a small guest; a larger one gets `TB_MIB_LARGE`. QEMU's own choice would be a GiB.
const TB_MIB: u64 = 32;
const TB_MIB_LARGE: u64 = 128;
const SMALL_MIB: u64 = 512;

/// What a guest is started with.
pub struct Start<'a> {
    pub guest: &'a Guest,
    pub acceleration: Acceleration,
    /// Names of the disks that are there.
    pub disks: Vec<&'static str>,
    /// In the order of the NICs.
    pub taps: Vec<(&'a Nic, OwnedFd)>,
}

/// The id of a NIC's device in QEMU.
pub fn device(port: Uuid) -> String {
    format!("nic-{port}")
}

/// The port of a device of QEMU; None for other devices.
pub fn port_of(device: &str) -> Option<Uuid> {
    Uuid::try_parse(device.strip_prefix("nic-")?).ok()
}

pub fn network(port: Uuid) -> String {
    format!("net-{port}")
}

/// The device of a NIC, as `device_add` and `-device` take it.
pub fn nic(nic: &Nic) -> Value {
    json!({
        "driver": "virtio-net-pci",
        "id": device(nic.port.id),
        "netdev": network(nic.port.id),
        "mac": nic.port.mac.to_string(),
        "host_mtu": nic.mtu,
        "romfile": "",
    })
}

fn accelerate(acceleration: Acceleration, memory_mib: u64) -> String {
    let tb = if memory_mib <= SMALL_MIB { TB_MIB } else { TB_MIB_LARGE };
    match acceleration {
        Acceleration::Kvm => "kvm".into(),
        Acceleration::Tcg => format!("tcg,tb-size={tb}"),
    }
}

/// A block node and its device. `boot`: the machine boots from it.
fn disk(name: &str, boot: bool) -> [String; 4] {
    let node = name.split('.').next().unwrap_or(name);
    let format = if name.ends_with(".qcow2") { "qcow2" } else { "raw" };
    let read_only = name == CONFIG;
    let file = json!({ "driver": "file", "filename": name, "discard": "unmap" });
    let block = json!({
        "driver": format, "node-name": node, "read-only": read_only, "discard": "unmap", "file": file,
    });
    let mut device = json!({ "driver": "virtio-blk-pci", "id": format!("disk-{node}"), "drive": node });
    if boot {
        device["bootindex"] = json!(1);
    }
    ["-blockdev".into(), block.to_string(), "-device".into(), device.to_string()]
}

/// QEMU's command line.
pub fn arguments(start: &Start) -> Vec<String> {
    let vm = &start.guest.vm;
    let cpu = match start.acceleration {
        Acceleration::Kvm => "host",
        Acceleration::Tcg => "max",
    };
    let id = vm.id;
    let product = "manufacturer=OpenStack Foundation,product=OpenStack Compute";
    let fixed = [
        ("-name", format!("guest={id}")),
        ("-uuid", id.to_string()),
        ("-machine", "pc,usb=off".into()),
        ("-accel", accelerate(start.acceleration, vm.memory_mib)),
        ("-cpu", cpu.into()),
        ("-smp", vm.vcpus.to_string()),
        ("-m", vm.memory_mib.to_string()),
        ("-smbios", format!("type=1,{product},serial={id},uuid={id},family=Virtual Machine")),
        ("-rtc", "base=utc".into()),
        ("-boot", "strict=on".into()),
        ("-display", "none".into()),
        ("-vga", "std".into()),
        ("-vnc", "unix:vnc".into()),
        ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into()),
        // A guest that powers off leaves QEMU behind, so that this is seen whenever somebody looks.
        ("-action", "reboot=reset,shutdown=pause".into()),
        ("-chardev", format!("socket,id=monitor,path={MONITOR},server=on,wait=off")),
        ("-mon", "chardev=monitor,mode=control".into()),
        (
            "-chardev",
            format!("socket,id=serial,path=serial,server=on,wait=off,logfile={CONSOLE},logappend=on"),
        ),
        ("-device", "isa-serial,chardev=serial".into()),
        ("-object", "rng-random,id=rng,filename=/dev/urandom".into()),
        ("-device", "virtio-rng-pci,rng=rng".into()),
    ];
    let mut all: Vec<String> = vec!["-no-user-config".into(), "-nodefaults".into()];
    all.extend(fixed.into_iter().flat_map(|(option, value)| [option.to_string(), value]));
    all.extend(start.disks.iter().flat_map(|name| disk(name, *name == ROOT)));
    all.extend(start.taps.iter().flat_map(|(nic, tap)| plug(nic, tap.as_raw_fd())));
    all
}

fn plug(card: &Nic, tap: RawFd) -> [String; 4] {
    let tap = format!("tap,id={},fd={tap},vhost=off", network(card.port.id));
    ["-netdev".into(), tap, "-device".into(), nic(card).to_string()]
}

/// The disks of a guest's directory in the order of their devices.
pub fn disks(directory: &Path) -> Vec<&'static str> {
    [ROOT, EPHEMERAL, SWAP, CONFIG].into_iter().filter(|name| directory.join(name).exists()).collect()
}

/// Starts QEMU in `directory` as `owner`, with what it says going to `log`. It outlives us.
pub fn spawn(
    start: &Start,
    directory: &Path,
    owner: Option<(u32, u32)>,
    log: File,
) -> Result<(Child, Process)> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(arguments(start)).current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    let taps: Vec<RawFd> = start.taps.iter().map(|(_, tap)| tap.as_raw_fd()).collect();
    // SAFETY: between fork and exec only system calls are made: no memory is taken, no lock is held. The descriptors
    // are open in the child: `start` owns them until after the fork.
    unsafe { command.pre_exec(move || leave_us(&taps)) };
    let child = command.spawn().map_err(|e| Error::internal("cannot start QEMU").because(e))?;
    let process = child.id().and_then(|pid| Process::of(pid as i32));
    process.map(|process| (child, process)).ok_or_else(|| Error::internal("QEMU ended at once"))
}

/// Its own session, so that no signal to ours reaches it; the taps stay open over exec.
fn leave_us(taps: &[RawFd]) -> std::io::Result<()> {
    rustix::process::setsid()?;
    for tap in taps {
        // SAFETY: as above; the borrow ends with this line.
        let tap = unsafe { std::os::fd::BorrowedFd::borrow_raw(*tap) };
        fcntl_setfd(tap, FdFlags::empty())?;
    }
    Ok(())
}
