//! The end of a node: all its guests and its responder, ended from outside of its process, also after a crash.

use crate::host::{files, guests_of};
use crate::vm::life::{Files, Run};
use crate::vm::plan::Machine;
use crate::vm::process::{self, Process};
use crate::vm::qmp::Qmp;
use crate::{file, responder, vm};
use base::{Error, Result};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a killed guest may take to end.
const KILL_MAX: Duration = Duration::from_secs(10);
/// How often a guest is looked at that was asked to power off.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How guests are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By their power buttons; those that take longer than this are killed.
    Ask(Duration),
    Kill,
}

/// Ends all guests whose files are below `state`, and removes what the kernel kept for them. Disks stay, and guests
/// that are still wanted are started by the next `run`. No node may be running there.
///
/// Errors: a guest that does not end.
pub async fn down(state: &Path, cloud: u32, ending: Ending) -> Result<()> {
    responder::end(state).await?;
    let guests = guests_of(state)?;
    if let Ending::Ask(limit) = ending {
        let mut asked: JoinSet<_> =
            guests.iter().map(|id| tokio::time::timeout(limit, powered_off(files(state, *id)))).collect();
        while let Some(outcome) = asked.join_next().await {
            if let Ok(Ok(Err(error))) = outcome {
                tracing::info!("a guest could not be asked to power off: {}", error.chain());
            }
        }
    }
    let mut processes = Vec::new();
    for id in &guests {
        let run = file::read_json::<Run>(&files(state, *id).run())?;
        processes.extend(
            run.filter(|run| process::boot_id().is_ok_and(|boot| boot == run.boot)).map(|run| run.process),
        );
    }
    // Those that were started just before we died, and not written down.
    if let Ok(state) = std::fs::canonicalize(state) {
        processes.extend(process::working_below(&state.join("vms")));
    }
    killed(&processes).await?;
    for id in guests {
        forget(&files(state, id))?;
        vm::cgroup::leave(cloud, id).await;
    }
    vm::cgroup::remove(cloud);
    Ok(())
}

/// Presses the power button of a guest that runs, and waits until it has powered off.
async fn powered_off(files: Files) -> Result<()> {
    let Machine::Running { .. } = files.glance()?.machine else { return Ok(()) };
    let monitor = Qmp::connect(&files.qemu(), vm::machine::MONITOR).await?;
    monitor.run("system_powerdown", json!({})).await?;
    while monitor.run("query-status", json!({})).await?["status"] == "running" {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn killed(processes: &[Process]) -> Result<()> {
    for process in processes {
        process.kill()?;
    }
    for process in processes {
        if !process.gone(KILL_MAX).await {
            return Err(Error::unavailable(format!("process {} does not end", process.pid)));
        }
    }
    Ok(())
}

/// That a guest had powered off by itself is kept.
fn forget(files: &Files) -> Result<()> {
    if file::read_json::<Run>(&files.run())?.is_some_and(|run| run.ended) {
        return Ok(());
    }
    for name in [vm::machine::MONITOR, "serial", "vnc"] {
        file::remove(&files.qemu().join(name))?;
    }
    file::remove(&files.run())
}
