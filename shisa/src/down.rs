//! `shisa down`: ends everything of one state directory and of no other, also what a crash left.

use crate::cli::Machine;
use crate::progress::say;
use crate::state::{Directory, Ids};
use base::{Error, Result};
use fabric::{Fabric, Removed};
use node::Ending;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// The process that is up may take this long to stop by itself; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(60);
/// A guest may take this long to power off; then it is killed.
pub const ASK_MAX: Duration = Duration::from_secs(10);
const LOOKS_MAX: usize = 4;
const KILL_MAX: Duration = Duration::from_secs(10);

pub async fn run(directory: &Directory, wipe: bool) -> Result<()> {
    let ids = directory.need_ids()?;
    if let Some(running) = directory.running() {
        let process = running.process;
        say(format_args!("stopping process {}", process.pid));
        process.terminate()?;
        if !process.gone(STOP_MAX).await {
            say("it does not stop; killing it");
            process.kill()?;
            if !process.gone(KILL_MAX).await {
                return Err(Error::unavailable(format!("process {} does not end", process.pid)));
            }
        }
    }
    // Nobody starts it again while we clean up.
    let _held = directory.hold()?;
    end(directory, &ids, Ending::Ask(ASK_MAX)).await?;
    directory.note_stopped();
    if wipe {
        directory.wipe()?;
    }
    say(match wipe {
        true => "down; records and files are gone",
        false => "down; the records stay, and `shisa up` starts the servers again",
    });
    Ok(())
}

/// Ends guests and network. Where there are none, as on simulated machines, there is nothing to do.
pub async fn end(directory: &Directory, ids: &Ids, ending: Ending) -> Result<()> {
    if ids.machine == Machine::Simulated {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::unavailable("servers and their network are ended by root only"));
    }
    for node in directory.nodes() {
        node::down(&node, ids.cloud, ending).await?;
    }
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let settings = fabric::Settings {
        cloud: ids.cloud,
        node_address: address,
        vxlan_port: fabric::vxlan_port(ids.cloud),
        uplink: None,
        physical: BTreeMap::new(),
    };
    // A step that was cut off may have made something while the first look was taken.
    for _ in 0..LOOKS_MAX {
        if Fabric::down(&settings).await? == Removed::default() {
            break;
        }
    }
    Ok(())
}
