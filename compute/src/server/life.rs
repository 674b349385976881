//! The life of a server, as pure decisions.
//!
//! ```text
//! create -> BUILD -> ACTIVE <-> SHUTOFF        any -> ERROR (a fault, or the node failed)
//!             |        |-> REBOOT, HARD_REBOOT -> ACTIVE
//!             v        v
//!           ERROR   (deleting) -> gone
//! ```

use super::{Observed, Phase, Server};
use base::node::{Power, VmState};
use base::{Error, Result};

/// What the API shows: status, vm_state, task_state, power_state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub status: &'static str,
    pub vm_state: &'static str,
    pub task: Option<&'static str>,
    /// 0 none, 1 running, 3 paused, 4 shut down, 6 crashed.
    pub power: u8,
}

const fn show(status: &'static str, vm_state: &'static str, task: Option<&'static str>, power: u8) -> Status {
    Status { status, vm_state, task, power }
}

pub fn status_of(server: &Server) -> Status {
    let settled = decide(Seen {
        desired: server.desired,
        observed: server.observed,
        reboots: server.reboots,
        hard: server.reboot_hard,
        launched: server.launched.is_some(),
        fault: server.fault.is_some(),
    });
    match server.phase {
        Phase::Settled => settled,
        Phase::Deleting => Status { task: Some("deleting"), ..settled },
    }
}

/// What the status follows from.
struct Seen {
    desired: Power,
    observed: Option<Observed>,
    reboots: u64,
    hard: bool,
    launched: bool,
    fault: bool,
}

fn decide(of: Seen) -> Status {
    if of.fault {
        return show("ERROR", "error", None, 0);
    }
    let Some(seen) = of.observed else { return show("BUILD", "building", Some("spawning"), 0) };
    let pending = seen.reboots < of.reboots;
    match (of.desired, seen.state) {
        (_, VmState::Failed) => show("ERROR", "error", None, 6),
        (_, VmState::Paused) => show("PAUSED", "paused", None, 3),
        (_, VmState::Building) if !of.launched => show("BUILD", "building", Some("spawning"), 0),
        (Power::On, VmState::Running) if !pending => show("ACTIVE", "active", None, 1),
        (Power::On, VmState::Running) if of.hard => show("HARD_REBOOT", "active", Some("rebooting_hard"), 1),
        (Power::On, VmState::Running) => show("REBOOT", "active", Some("rebooting"), 1),
        (Power::On, VmState::Building | VmState::Stopped) => {
            show("SHUTOFF", "stopped", Some("powering-on"), 4)
        }
        (Power::Off, VmState::Running | VmState::Building) => {
            show("ACTIVE", "active", Some("powering-off"), 1)
        }
        (Power::Off, VmState::Stopped) => show("SHUTOFF", "stopped", None, 4),
    }
}

/// What a new observation does to what is wanted: a guest that shut itself down stays down.
pub fn wanted_after(desired: Power, before: Option<Observed>, now: Observed, reboots: u64) -> Power {
    let was_running = before.is_some_and(|o| o.state == VmState::Running);
    match (desired, now.state) {
        (Power::On, VmState::Stopped) if was_running && now.reboots >= reboots => Power::Off,
        (Power::On | Power::Off, _) => desired,
    }
}

/// Errors: `Conflict` in Nova's words when an action is not for this state.
pub fn allowed(server: &Server, action: &str, states: &[&str]) -> Result<()> {
    let now = status_of(server);
    let refuse = |what: String| {
        Err(Error::conflict(format!("Cannot '{action}' instance {} while it is in {what}", server.id)))
    };
    match now.task {
        Some(task) => refuse(format!("task_state {task}")),
        None if states.contains(&now.vm_state) => Ok(()),
        None => refuse(format!("vm_state {}", now.vm_state)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use VmState::*;

    fn check(desired: Power, seen: Option<(VmState, u64)>, reboots: u64, launched: bool, expect: &str) {
        let observed = seen.map(|(state, reboots)| Observed { state, reboots });
        let got = decide(Seen { desired, observed, reboots, hard: false, launched, fault: false });
        assert_eq!(format!("{} {}", got.status, got.task.unwrap_or("-")), expect);
    }

    #[test]
    fn the_status_follows_from_wish_and_sight() {
        check(Power::On, None, 0, false, "BUILD spawning");
        check(Power::On, Some((Building, 0)), 0, false, "BUILD spawning");
        check(Power::On, Some((Running, 0)), 0, true, "ACTIVE -");
        check(Power::On, Some((Running, 0)), 1, true, "REBOOT rebooting");
        check(Power::On, Some((Building, 0)), 1, true, "SHUTOFF powering-on");
        check(Power::Off, Some((Running, 0)), 0, true, "ACTIVE powering-off");
        check(Power::Off, Some((Stopped, 0)), 0, true, "SHUTOFF -");
        check(Power::On, Some((Stopped, 0)), 1, true, "SHUTOFF powering-on");
        check(Power::On, Some((Failed, 0)), 0, true, "ERROR -");
    }

    #[test]
    fn a_guest_that_shut_itself_down_stays_down() {
        let at = |state, reboots| Observed { state, reboots };
        assert_eq!(wanted_after(Power::On, Some(at(Running, 0)), at(Stopped, 0), 0), Power::Off);
        assert_eq!(wanted_after(Power::On, Some(at(Running, 0)), at(Stopped, 0), 1), Power::On);
        assert_eq!(wanted_after(Power::On, Some(at(Building, 0)), at(Stopped, 0), 0), Power::On);
    }
}
