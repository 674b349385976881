//! What the door counts: requests, failures, how long mutations were held.

use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;

/// Answers whose times are remembered.
const TIMES_MAX: usize = 10_000;

#[derive(Default)]
pub struct Figures {
    requests: AtomicU64,
    /// 5xx, whoever they came from.
    failed: watch::Sender<u64>,
    /// Sent to a plane more than once.
    again: AtomicU64,
    held: AtomicU64,
    held_max_micros: AtomicU64,
    /// Microseconds of the last answers, oldest first.
    times: Mutex<std::collections::VecDeque<u32>>,
}

/// What was counted since it was taken last, on its way to whoever sums it up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Taken {
    requests: u64,
    failed: u64,
    again: u64,
    held: u64,
    held_max_micros: u64,
    times: Vec<u32>,
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
        if failed {
            self.failed.send_modify(|n| *n += 1);
        }
        let mut times = self.times.lock().expect("no holder panics");
        if times.len() >= TIMES_MAX {
            times.pop_front();
        }
        times.push_back(time.as_micros().try_into().unwrap_or(u32::MAX));
    }

    /// Takes all that was counted, and begins anew.
    pub(super) fn take(&self) -> Taken {
        let mut failed = 0;
        if *self.failed.borrow() > 0 {
            self.failed.send_modify(|n| failed = std::mem::take(n));
        }
        Taken {
            requests: self.requests.swap(0, Relaxed),
            failed,
            again: self.again.swap(0, Relaxed),
            held: self.held.swap(0, Relaxed),
            held_max_micros: self.held_max_micros.swap(0, Relaxed),
            times: self.times.lock().expect("no holder panics").drain(..).collect(),
        }
    }

    /// Sums up what another one has counted.
    pub(super) fn add(&self, taken: Taken) {
        self.requests.fetch_add(taken.requests, Relaxed);
        self.again.fetch_add(taken.again, Relaxed);
        self.held.fetch_add(taken.held, Relaxed);
        self.held_max_micros.fetch_max(taken.held_max_micros, Relaxed);
        let mut times = self.times.lock().expect("no holder panics");
        times.extend(taken.times);
        let over = times.len().saturating_sub(TIMES_MAX);
        times.drain(..over);
        drop(times);
        // Whoever waits for failures looks at the rest, too.
        if taken.failed > 0 {
            self.failed.send_modify(|n| *n += taken.failed);
        }
    }

    /// Failures so far, as they come.
    pub fn failures(&self) -> watch::Receiver<u64> {
        self.failed.subscribe()
    }

    /// Within what 99 of 100 of the last `answers` were answered, in milliseconds; none while fewer are remembered.
    pub fn p99_ms_of(&self, answers: usize) -> Option<f64> {
        let mut times: Vec<u32> = {
            let times = self.times.lock().expect("no holder panics");
            let skipped = times.len().checked_sub(answers.min(TIMES_MAX))?;
            times.iter().skip(skipped).copied().collect()
        };
        times.sort_unstable();
        times.get(times.len() * 99 / 100).map(|micros| f64::from(*micros) / 1000.0)
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
            failed: *self.failed.borrow(),
            again: self.again.load(Relaxed),
            held: self.held.load(Relaxed),
            held_max_ms: self.held_max_micros.load(Relaxed) as f64 / 1000.0,
            p99_ms: f64::from(p99) / 1000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_the_last_answers_are_theirs_alone() {
        let figures = Figures::default();
        (0..100).for_each(|_| figures.answered(false, Duration::from_millis(500)));
        (0..50).for_each(|n| figures.answered(n == 0, Duration::from_millis(2)));
        assert_eq!(figures.p99_ms_of(50), Some(2.0));
        assert_eq!(figures.p99_ms_of(150), Some(500.0));
        assert_eq!(figures.p99_ms_of(151), None);
        assert_eq!((*figures.failures().borrow(), figures.tell().requests), (1, 150));
    }

    #[test]
    fn what_is_taken_is_summed_up_elsewhere() {
        let (counted, summed) = (Figures::default(), Figures::default());
        for round in 1..=3 {
            (0..TIMES_MAX).for_each(|n| counted.answered(n == 0, Duration::from_millis(round)));
            counted.held(Duration::from_millis(7 * round));
            summed.add(counted.take());
            assert_eq!(counted.take(), Taken::default());
        }
        let told = summed.tell();
        assert_eq!((told.requests, told.failed, told.held), (3 * TIMES_MAX as u64, 3, 3));
        assert_eq!((told.held_max_ms, told.p99_ms), (21.0, 3.0));
    }
}
