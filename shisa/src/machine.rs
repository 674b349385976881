//! What this machine must have to be a node, said before anything is touched.

use crate::cli::Machine;
use base::{Error, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Programs that a node runs, with the package that brings each.
const PROGRAMS: [(&str, &str); 3] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils"), ("nft", "nftables")];
/// Where programs are looked for beyond the path: a user's path may lack the last.
const FOLDERS: &str = "/usr/sbin:/sbin";
/// User ids of guests: 4,096 clouds of 65,536 guests, above what systemd gives to containers.
const GUEST_UIDS: u32 = 0x7000_0000;

/// The machine that was asked for, or that the cloud has, or that can be had here.
///
/// Errors: what this machine lacks for it, or that the cloud has another.
pub fn choose(asked: Option<Machine>, had: Option<Machine>) -> Result<Machine> {
    if let (Some(asked), Some(had)) = (asked, had)
        && asked != had
    {
        return Err(Error::conflict(format!(
            "this cloud's machine is {had:?} and cannot become {asked:?}; give the other one its own --state",
        )));
    }
    let machine = match asked.or(had) {
        Some(machine) => machine,
        None if lacks().is_none() => Machine::Qemu,
        None => Machine::Simulated,
    };
    match (machine, lacks()) {
        (Machine::Qemu, Some(lack)) => {
            Err(Error::unavailable(format!("the machine qemu {lack}; --machine simulated needs none of it")))
        }
        (Machine::Qemu, None) | (Machine::Simulated, _) => Ok(machine),
    }
}

/// What is missing here for the machine `qemu`, first things first.
pub fn lacks() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    if let Some((program, package)) = PROGRAMS.iter().find(|(program, _)| find(program).is_none()) {
        return Some(format!("needs the program {program} (Debian package {package})"));
    }
    let tun = Path::new("/dev/net/tun");
    (!tun.exists()).then(|| "needs /dev/net/tun (`modprobe tun`)".into())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = format!("{path}:{FOLDERS}");
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The first user id of the cloud's guests; none where they could not reach their files or the ids are not ours.
pub fn guest_uids(cloud: u32, state: &Path) -> Option<u32> {
    let first = GUEST_UIDS + (cloud % 0x1000) * 0x1_0000;
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let open = |folder: &Path| folder.metadata().is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
    (mapped(&map, first) && state.ancestors().all(open)).then_some(first)
}

/// Whether a map of user ids has 65,536 from `first` on.
fn mapped(map: &str, first: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let first = u64::from(first);
        matches!(numbers[..], [inside, _, count] if inside <= first && first + 0x1_0000 <= inside + count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_keeps_its_machine() {
        let error = choose(Some(Machine::Qemu), Some(Machine::Simulated)).unwrap_err();
        assert!(error.message().contains("is Simulated and cannot become Qemu"), "{error}");
        assert_eq!(choose(None, Some(Machine::Simulated)).unwrap(), Machine::Simulated);
    }

    #[test]
    fn guests_get_ids_only_where_the_map_has_them() {
        assert!(mapped("         0          0 4294967295\n", 0x7abc_0000));
        assert!(!mapped("         0     100000      65536\n", 0x7abc_0000));
        assert!(!mapped("", 0));
    }
}
