//! What processes use, as the kernel counts it.

use crate::Result;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};

/// The processes of one cloud.
#[derive(Clone)]
pub enum Processes {
    One(u32),
    /// One and all that it started, and so on.
    Tree(u32),
    /// By their leaders; with all that started in them, also what has left the session.
    Sessions(Vec<u32>),
}

impl Processes {
    /// Seconds of CPU that they have used, those that have ended not counted.
    pub fn cpu(&self) -> Result<f64> {
        match self {
            Processes::One(pid) => cpu(*pid),
            Processes::Tree(_) | Processes::Sessions(_) => {
                Ok(self.members()?.into_iter().filter_map(|p| cpu(p).ok()).sum())
            }
        }
    }

    /// MiB of memory that they have for themselves.
    pub fn memory(&self) -> Result<f64> {
        match self {
            Processes::One(pid) => memory(*pid),
            Processes::Tree(_) | Processes::Sessions(_) => {
                Ok(self.members()?.into_iter().filter_map(|p| memory(p).ok()).sum())
            }
        }
    }

    /// By pid.
    pub fn members(&self) -> Result<Vec<u32>> {
        match self {
            Processes::One(pid) => Ok(vec![*pid]),
            Processes::Tree(root) => members(|pid, _| pid == *root),
            Processes::Sessions(leaders) => members(|_, session| leaders.contains(&session)),
        }
    }
}

/// Seconds of CPU a process has used, all threads together. Not in steps of 10 ms, as `/proc` has it.
pub fn cpu(pid: u32) -> Result<f64> {
    let time = clock_gettime(clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// MiB of memory a process has for itself.
pub fn memory(pid: u32) -> Result<f64> {
    let text = read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    Ok(pss.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// The processes that are meant by pid and session, and all that they started.
fn members(meant: impl Fn(u32, u32) -> bool) -> Result<Vec<u32>> {
    let mut all = BTreeMap::new();
    for entry in read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some((pid, stat)) = pid.and_then(|p| Some((p, read_to_string(format!("/proc/{p}/stat")).ok()?)))
        else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let field = |n: usize| rest.split(' ').nth(n).and_then(|field| field.parse::<u32>().ok());
        if let (Some(parent), Some(session)) = (field(1), field(3)) {
            all.insert(pid, (parent, session));
        }
    }
    let mut found: Vec<u32> = all.keys().copied().filter(|pid| meant(*pid, all[pid].1)).collect();
    loop {
        let more = |(pid, (parent, _)): (&u32, &(u32, u32))| {
            (found.contains(parent) && !found.contains(pid)).then_some(*pid)
        };
        let more: Vec<u32> = all.iter().filter_map(more).collect();
        if more.is_empty() {
            return Ok(found);
        }
        found.extend(more);
    }
}
