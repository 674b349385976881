//! Whether a process that does not answer works, or stands still. From `/proc/PID/stat`.

/// What the kernel says of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// It runs, or waits for a processor.
    runs: bool,
    /// It was stopped by a signal or a debugger.
    stopped: bool,
    /// CPU time so far.
    ticks: u64,
}

impl Pulse {
    /// None: there is no such process.
    pub fn of(pid: u32) -> Option<Pulse> {
        Pulse::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Pulse> {
        // Behind the name, which may hold anything: the state, then user and system ticks as fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let state = *fields.first()?;
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Pulse { runs: state == "R", stopped: matches!(state, "T" | "t"), ticks })
    }

    /// It has done something since `before`, or would if it had a processor.
    pub fn works_since(self, before: Option<Pulse>) -> bool {
        !self.stopped && (self.runs || before.is_none_or(|before| before.ticks != self.ticks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(state: &str, ticks: u64) -> Pulse {
        let stat = format!("7 (a) name) {state} 1 7 7 0 -1 4194560 1 0 0 0 {ticks} 5 0 0 20 0 9 0 100");
        Pulse::parse(&stat).unwrap()
    }

    #[test]
    fn a_process_works_while_it_runs_or_uses_time_and_is_not_stopped() {
        let check = |now: Pulse, before: Pulse, expect| {
            assert_eq!(now.works_since(Some(before)), expect, "{now:?} after {before:?}");
        };
        check(pulse("S", 10), pulse("S", 10), false);
        check(pulse("S", 11), pulse("S", 10), true);
        check(pulse("R", 10), pulse("S", 10), true);
        check(pulse("T", 11), pulse("S", 10), false);
        check(pulse("D", 10), pulse("D", 10), false);
        assert!(Pulse::of(std::process::id()).is_some_and(|now| now.works_since(None)));
        assert_eq!(Pulse::of(u32::MAX), None);
    }
}
