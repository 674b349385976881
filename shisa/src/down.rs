//! `shisa down`: ends everything of one state directory and of no other, also what a crash left.

use crate::cli::Machine;
use crate::nodes;
use crate::progress::say;
use crate::state::{Directory, Ids, Membership};
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
    let kept = Kept::of(directory)?;
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
    nodes::process::ended(directory).await?;
    end(directory, &kept, Ending::Ask(ASK_MAX)).await?;
    directory.note_stopped();
    if wipe {
        directory.wipe()?;
    }
    say(match wipe {
        true => "down; records and files are gone",
        false => "down; what it knows stays, and the next start begins the servers again",
    });
    Ok(())
}

/// What a directory's processes make the kernel keep.
pub struct Kept {
    cloud: u32,
    /// Of some of it there is nothing on simulated machines.
    guests: bool,
    network: bool,
}

impl Kept {
    /// Of a whole cloud, or of a node of one elsewhere.
    ///
    /// Errors: `NotFound` when it is neither.
    pub fn of(directory: &Directory) -> Result<Kept> {
        match directory.membership()? {
            Some(node) => Ok(node.into()),
            None => Ok((&directory.need_ids()?).into()),
        }
    }
}

impl From<&Ids> for Kept {
    fn from(ids: &Ids) -> Kept {
        let real = ids.machine == Machine::Qemu;
        Kept { cloud: ids.cloud, guests: real, network: real }
    }
}

impl From<Membership> for Kept {
    fn from(node: Membership) -> Kept {
        Kept { cloud: node.cloud, guests: node.machine == Machine::Qemu, network: node.has_network() }
    }
}

/// Ends guests and network, as far as there are any.
pub async fn end(directory: &Directory, kept: &Kept, ending: Ending) -> Result<()> {
    if !kept.guests && !kept.network {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::unavailable("servers and their network are ended by root only"));
    }
    for node in directory.nodes().iter().filter(|_| kept.guests) {
        node::down(node, kept.cloud, ending).await?;
    }
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let settings = fabric::Settings {
        cloud: kept.cloud,
        node_address: address,
        vxlan_port: fabric::vxlan_port(kept.cloud),
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
