//! What we change of the host for an uplink, and how it is taken back: the forwarding switch of that one device.
//!
//! Its previous value is kept in a file per cloud below `/run`, which a reboot clears with the switch itself. A cloud
//! that shares an uplink with another inherits the value that the other one found, and the last one takes it back.

use base::Result;
use std::fs;
use std::path::{Path, PathBuf};

const FOLDER: &str = "/run/shisa";

/// The device whose forwarding switch a key is; none for our own devices.
pub fn forwarding_of(key: &str, cloud: u32) -> Option<&str> {
    let device = key.strip_prefix("net/ipv4/conf/")?.strip_suffix("/forwarding")?;
    Some(device).filter(|device| !device.starts_with(&format!("sx{cloud:08x}")))
}

fn file(cloud: u32) -> PathBuf {
    Path::new(FOLDER).join(format!("{cloud:08x}.uplink"))
}

/// Keeps the value that the switch has now, unless it is kept already.
pub fn remember(cloud: u32, device: &str) -> Result<()> {
    if read(&file(cloud)).is_some_and(|(kept, _)| kept == device) {
        return Ok(());
    }
    let now = super::read_sysctl(&switch(device)).unwrap_or_default();
    let value = others(cloud).into_iter().find(|(kept, _)| kept == device).map_or(now, |(_, value)| value);
    fs::create_dir_all(FOLDER)?;
    Ok(fs::write(file(cloud), format!("{device} {value}\n"))?)
}

/// Takes the switch back when another device, or none, is the uplink now.
pub fn keep_only(cloud: u32, uplink: Option<&str>) -> Result<()> {
    match read(&file(cloud)) {
        Some((device, _)) if Some(device.as_str()) != uplink => take_back(cloud).map(drop),
        _ => Ok(()),
    }
}

/// Takes the switch back; the device, when there was one.
pub fn take_back(cloud: u32) -> Result<Option<String>> {
    let Some((device, value)) = read(&file(cloud)) else { return Ok(None) };
    if !others(cloud).iter().any(|(kept, _)| *kept == device) {
        let path = format!("/proc/sys/{}", switch(&device));
        if Path::new(&path).exists() {
            fs::write(path, value)?;
        }
    }
    fs::remove_file(file(cloud))?;
    Ok(Some(device))
}

fn switch(device: &str) -> String {
    format!("net/ipv4/conf/{device}/forwarding")
}

fn others(cloud: u32) -> Vec<(String, String)> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| *path != file(cloud)).filter_map(|path| read(&path)).collect()
}

fn read(path: &Path) -> Option<(String, String)> {
    let text = fs::read_to_string(path).ok()?;
    let (device, value) = text.trim().split_once(' ')?;
    Some((device.to_string(), value.to_string()))
}
