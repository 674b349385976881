//! A process that we may have started in an earlier life: named by pid and start time, so that another process that
//! has the pid by now is never taken for it.

use base::Result;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// How often a process is looked at while its end is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks from the machine's boot to the process's start.
    pub start: u64,
}

impl Process {
    /// None: no such process, or a dead one that nobody has waited for.
    pub fn of(pid: i32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        start_of(&stat).map(|start| Process { pid, start })
    }

    pub fn alive(self) -> bool {
        Process::of(self.pid) == Some(self)
    }

    /// Ends it at once.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Asks it to end.
    pub fn terminate(self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Nothing happens to a later process with its pid: the start time is compared when the descriptor, which names
    /// one process for ever, is open already.
    fn signal(self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if self.alive() {
            // It may end between the two lines, which is as good.
            let _ = pidfd_send_signal(descriptor, signal);
        }
        Ok(())
    }

    /// Waits for its end; false when it has not come in time.
    pub async fn gone(self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.alive() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }
}

/// The start time in a line of `/proc/PID/stat`; the name in it may have blanks and brackets.
fn start_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Which life of the machine this is: a new one after each boot.
pub fn boot_id() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

/// Processes that work in a directory below `root`: guests that were started and not yet written down.
pub fn working_below(root: &std::path::Path) -> Vec<Process> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let below =
        |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(root));
    pids.filter(below).filter_map(Process::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_read_after_any_name() {
        let rest = "1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(start_of(&format!("7 (a) S (b)) S {rest}")), Some(4242));
        assert_eq!(start_of(&format!("7 (a) Z {rest}")), None);
        assert_eq!(start_of(""), None);
    }

    #[tokio::test]
    async fn another_process_with_the_pid_is_not_touched() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        Process { start: process.start + 1, ..process }.kill().unwrap();
        assert!(process.alive());
        process.kill().unwrap();
        assert!(process.gone(Duration::from_secs(5)).await);
        child.wait().unwrap();
    }
}
