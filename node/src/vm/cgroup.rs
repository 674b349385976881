//! Each guest's own control group, in cgroup v2 or in the v1 hierarchies that are there.
//!
//! It weighs guests by their CPUs and counts what they use; it limits no memory, since an overrun of QEMU's own part
//! would kill the guest. A machine without cgroups runs guests all the same.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

const MOUNT: &str = "/sys/fs/cgroup";
const LEAVE_TRIES: u32 = 10;
const LEAVE_EVERY: Duration = Duration::from_millis(20);
const V1: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

fn hierarchies() -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return vec![mount.into()];
    }
    let mut roots: Vec<_> = V1.iter().filter_map(|name| fs::canonicalize(mount.join(name)).ok()).collect();
    roots.dedup();
    roots.retain(|root| root.join("cgroup.procs").exists());
    roots
}

fn cloud_of(root: &Path, cloud: u32) -> PathBuf {
    root.join(format!("shisa-{cloud:08x}"))
}

/// Puts a process, with its threads, into its guest's group.
pub fn join(cloud: u32, vm: Uuid, pid: i32, vcpus: u32) {
    let roots = hierarchies();
    if roots.is_empty() {
        tracing::warn!("this machine has no control groups: guests are not weighed against each other");
    }
    for root in roots {
        let group = cloud_of(&root, cloud).join(vm.to_string());
        if let Err(error) = enter(&group, pid) {
            tracing::warn!("guest {vm} is not in a control group below {}: {error}", root.display());
        }
        weigh(&group, vcpus);
    }
}

fn enter(group: &Path, pid: i32) -> io::Result<()> {
    fs::create_dir_all(group)?;
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

/// Best effort: which of the files there is depends on the version and on what the parent delegates.
fn weigh(group: &Path, vcpus: u32) {
    let shares = u64::from(vcpus.clamp(1, 256)) * 1024;
    let _ = fs::write(group.join("cpu.shares"), shares.to_string());
    let _ = fs::write(group.join("cpu.weight"), (shares * 100 / 1024).min(10_000).to_string());
}

/// Removes a guest's groups. A process that has just ended keeps them busy for a moment; what stays then is empty and
/// does no harm.
pub async fn leave(cloud: u32, vm: Uuid) {
    for root in hierarchies() {
        let group = cloud_of(&root, cloud).join(vm.to_string());
        let busy = |result: io::Result<()>| result.is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy);
        for _ in 0..LEAVE_TRIES {
            if !busy(fs::remove_dir(&group)) {
                break;
            }
            tokio::time::sleep(LEAVE_EVERY).await;
        }
    }
}

/// Removes the cloud's group once its guests are gone.
pub fn remove(cloud: u32) {
    for root in hierarchies() {
        let _ = fs::remove_dir(cloud_of(&root, cloud));
    }
}
