//! What this machine is, as the kernel tells it.

use base::{Error, Result};
use std::path::Path;
use tokio::process::Command;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub struct Hardware {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_gib: u64,
    pub cpu_info: String,
    pub booted: i64,
}

impl Hardware {
    /// `state`: a directory on the file system that has the guests' disks.
    pub fn read(state: &Path) -> Result<Hardware> {
        let disk = rustix::fs::statvfs(state).map_err(std::io::Error::from)?;
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let field = |name: &str| field(&cpus, name, ':').unwrap_or("unknown").to_string();
        let vcpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let stat = std::fs::read_to_string("/proc/stat")?;
        let info = serde_json::json!({
            "arch": std::env::consts::ARCH,
            "model": field("model name"),
            "vendor": field("vendor_id"),
            "topology": { "sockets": 1, "cores": vcpus, "threads": 1 },
            "features": field("flags").split(' ').collect::<Vec<_>>(),
        });
        Ok(Hardware {
            vcpus,
            memory_mib: number(&memory, "MemTotal") * 1024 / MIB,
            disk_gib: disk.f_blocks * disk.f_frsize / GIB,
            cpu_info: info.to_string(),
            booted: number(&stat, "btime") as i64,
        })
    }
}

fn field<'a>(text: &'a str, name: &str, separator: char) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(separator)).map(str::trim)
}

/// The number after a name, whatever is between and behind.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let digits = line.trim_start_matches([':', ' ', '\t']);
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// QEMU's version as 1,000,000 x major + 1,000 x minor + micro.
///
/// Errors: there is no QEMU.
pub async fn qemu_version() -> Result<u64> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().await;
    let output =
        output.map_err(|e| Error::unavailable("this machine has no qemu-system-x86_64").because(e))?;
    Ok(parse_version(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_version(text: &str) -> u64 {
    let version = text.split_once("version ").map_or("", |(_, rest)| rest);
    let version = version.split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap_or_default();
    let part = |n| version.split('.').nth(n).and_then(|part| part.parse::<u64>().ok()).unwrap_or(0);
    part(0) * 1_000_000 + part(1) * 1_000 + part(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_fields_are_read() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright"), 7_002_022);
        assert_eq!(parse_version("QEMU emulator version 10.0.50"), 10_000_050);
        assert_eq!(parse_version("?"), 0);
        assert_eq!(number("MemTotal:       123 kB", "MemTotal"), 123);
        assert_eq!(number("cpu 1\nbtime 77\n", "btime"), 77);
        assert_eq!(field("model name\t: AMD EPYC\n", "model name", ':'), Some("AMD EPYC"));
    }
}
