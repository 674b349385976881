//! The lease: until when an owner may answer, and when a candidate may take over.
//!
//! A row with epoch and counter, judged by monotonic clocks only. The owner counts from when it *sent* what was
//! confirmed and stops `MARGIN` early; a candidate counts from when it *saw* the last sign of life. So the owner is
//! silent before anybody else speaks, however late messages are.
//!
//! ```text
//! held --LEASE - MARGIN without a confirmation--> lapsed --a confirmation under the same epoch--> held
//! held, lapsed --refused: another epoch, or the engine lost what was answered--> lost
//! ```
//!
//! While lapsed nothing is answered, but the batch in flight goes on: the engine's guard by epoch decides about it.

use crate::log::Revision;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A candidate takes over when it saw no sign of life for this long.
pub const LEASE_MS: u64 = 600;
/// The owner stops answering this long before its lease ends.
pub const MARGIN_MS: u64 = 100;
/// An idle owner renews this often; an append that is done at the first try renews too.
pub const RENEW_MS: u64 = 150;

/// The owner's side, shared by the lane and those who read.
pub(crate) struct Lease {
    clock: fn() -> Duration,
    /// Microseconds of the clock.
    until: AtomicU64,
}

impl Lease {
    /// Not held until the engine confirmed that it was taken.
    pub fn new(clock: fn() -> Duration) -> Lease {
        Lease { clock, until: AtomicU64::new(0) }
    }

    pub fn now(&self) -> Duration {
        (self.clock)()
    }

    /// The engine confirmed what was sent at `sent`.
    pub fn confirmed(&self, sent: Duration) {
        self.until.fetch_max(end(sent), Ordering::AcqRel);
    }

    pub fn lost(&self) {
        self.until.store(0, Ordering::Release);
    }

    pub fn holds(&self) -> bool {
        self.left() > Duration::ZERO
    }

    /// How long it still holds.
    pub fn left(&self) -> Duration {
        if cfg!(feature = "break-fence") && self.until.load(Ordering::Acquire) > 0 {
            return Duration::from_millis(LEASE_MS);
        }
        Duration::from_micros(self.until.load(Ordering::Acquire)).saturating_sub(self.now())
    }
}

fn end(sent: Duration) -> u64 {
    (sent + Duration::from_millis(LEASE_MS - MARGIN_MS)).as_micros() as u64
}

/// What shows that an owner lives: it changes with each renewal and each append, so nothing else confirms a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    pub epoch: u64,
    pub counter: u64,
    /// The newest that is durable.
    pub revision: Revision,
    /// What the owner called itself when it took the lease.
    pub owner: String,
    /// The owner has laid the lease down.
    pub free: bool,
}

/// Who waits for an owner to fall silent.
#[derive(Default)]
pub struct Candidate {
    last: Option<(Sign, Duration)>,
}

impl Candidate {
    /// Whether the owner's lease is over, given what was read at `now` of the monotonic clock.
    pub fn may_take(&mut self, sign: &Sign, now: Duration) -> bool {
        match &self.last {
            // Laid down, or never taken.
            _ if sign.free || sign.epoch == 0 => true,
            Some((last, since)) if last == sign => now - *since >= Duration::from_millis(LEASE_MS),
            Some(_) | None => {
                self.last = Some((sign.clone(), now));
                false
            }
        }
    }
}

/// Time since the machine started, its sleep included: an owner that slept must know.
pub(crate) fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_silent_before_a_candidate_takes_over() {
        fn at(ms: u64) -> Duration {
            Duration::from_millis(ms)
        }
        let lease = Lease::new(|| at(1_499));
        assert!(!lease.holds(), "nobody took it");
        lease.confirmed(at(1_000));
        assert!(lease.holds());
        let lease = Lease::new(|| at(1_500));
        lease.confirmed(at(1_000));
        assert!(!lease.holds(), "the margin has begun");
        lease.confirmed(at(1_001));
        assert!(lease.holds());
        lease.lost();
        assert!(!lease.holds());

        let sign = Sign { epoch: 1, counter: 7, revision: 9, ..Sign::default() };
        let mut candidate = Candidate::default();
        assert!(!candidate.may_take(&sign, at(5_000)));
        assert!(!candidate.may_take(&sign, at(5_599)));
        assert!(candidate.may_take(&sign, at(5_600)));
        assert!(!candidate.may_take(&Sign { counter: 8, ..sign.clone() }, at(5_601)), "it lives");
        assert!(
            !candidate.may_take(&Sign { counter: 8, revision: 10, ..sign.clone() }, at(6_300)),
            "an append is a sign"
        );
        assert!(candidate.may_take(&Sign { free: true, ..sign.clone() }, at(6_301)), "it was laid down");
        assert!(candidate.may_take(&Sign::default(), at(6_302)), "nobody ever owned it");
    }
}
