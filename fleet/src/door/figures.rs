//! What the door counts: requests, failures, how long mutations were held.

use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Answers whose times are remembered.
const TIMES_MAX: usize = 10_000;

#[derive(Default)]
pub struct Figures {
    requests: AtomicU64,
    /// 5xx, whoever they came from.
    failed: AtomicU64,
    /// Sent to a plane more than once.
    again: AtomicU64,
    held: AtomicU64,
    held_max_micros: AtomicU64,
    /// Microseconds of the last answers, oldest first.
    times: Mutex<std::collections::VecDeque<u32>>,
}

/// The figures so far; `since` gives those of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub requests: u64,
    pub failed: u64,
    pub again: u64,
    /// Mutations that waited for a switch.
    pub held: u64,
    /// The longest that one waited since the last `forget`.
    pub held_max_ms: f64,
    /// Of the last `TIMES_MAX` answers.
    pub p99_ms: f64,
}

impl Told {
    /// Counts since an earlier telling; maxima and times stay as they are.
    pub fn since(self, earlier: Told) -> Told {
        Told {
            requests: self.requests - earlier.requests,
            failed: self.failed - earlier.failed,
            again: self.again - earlier.again,
            held: self.held - earlier.held,
            ..self
        }
    }
}

impl Figures {
    pub(super) fn held(&self, time: Duration) {
        self.held.fetch_add(1, Relaxed);
        self.held_max_micros.fetch_max(time.as_micros() as u64, Relaxed);
    }

    pub(super) fn again(&self) {
        self.again.fetch_add(1, Relaxed);
    }

    pub(super) fn answered(&self, failed: bool, time: Duration) {
        self.requests.fetch_add(1, Relaxed);
        self.failed.fetch_add(failed.into(), Relaxed);
        let mut times = self.times.lock().expect("no holder panics");
        if times.len() >= TIMES_MAX {
            times.pop_front();
        }
        times.push_back(time.as_micros().try_into().unwrap_or(u32::MAX));
    }

    /// Maxima and times begin anew.
    pub fn forget(&self) {
        self.held_max_micros.store(0, Relaxed);
        self.times.lock().expect("no holder panics").clear();
    }

    pub fn tell(&self) -> Told {
        let mut times: Vec<u32> = self.times.lock().expect("no holder panics").iter().copied().collect();
        times.sort_unstable();
        let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or(0);
        Told {
            requests: self.requests.load(Relaxed),
            failed: self.failed.load(Relaxed),
            again: self.again.load(Relaxed),
            held: self.held.load(Relaxed),
            held_max_ms: self.held_max_micros.load(Relaxed) as f64 / 1000.0,
            p99_ms: f64::from(p99) / 1000.0,
        }
    }
}
