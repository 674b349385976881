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
//!
//! An engine that is too slow makes every owner look silent. Whoever lost the cell while it lived, again and again, waits
//! longer before it takes it back (`Losses`), so that planes do not pass it to and fro for as long as that lasts.

use crate::log::Revision;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A candidate takes over when it saw no sign of life for this long; one that lost the cell lately, see `Losses`.
pub const LEASE_MS: u64 = 600;
/// The owner stops answering this long before its lease ends.
pub const MARGIN_MS: u64 = 100;
/// An idle owner renews this often; an append that is done at the first try renews too.
pub const RENEW_MS: u64 = 150;
/// Two losses further apart than this are not of one cause.
const CALM: Duration = Duration::from_secs(60);
/// A candidate's patience is doubled so often at most: 9.6 s.
const DOUBLINGS_MAX: u32 = 4;

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

/// How often a living process lost the cell of late.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    last: Option<Duration>,
    /// Those since, each within `CALM` of the one before.
    more: u32,
}

impl Losses {
    pub fn note(&mut self, now: Duration) {
        self.more = if self.lately(now) { (self.more + 1).min(DOUBLINGS_MAX) } else { 0 };
        self.last = Some(now);
    }

    /// How long an owner has to be silent.
    pub fn patience(&self, now: Duration) -> Duration {
        let doublings = if self.lately(now) { self.more } else { 0 };
        Duration::from_millis(LEASE_MS << doublings)
    }

    fn lately(&self, now: Duration) -> bool {
        self.last.is_some_and(|last| now.saturating_sub(last) < CALM)
    }
}

/// Who waits for an owner to fall silent.
#[derive(Default)]
pub struct Candidate {
    last: Option<(Sign, Duration)>,
    losses: Losses,
}

impl Candidate {
    pub fn after(losses: Losses) -> Candidate {
        Candidate { last: None, losses }
    }

    /// Whether the owner's lease is over, given what was read at `now` of the monotonic clock.
    pub fn may_take(&mut self, sign: &Sign, now: Duration) -> bool {
        match &self.last {
            // Laid down, or never taken.
            _ if sign.free || sign.epoch == 0 => true,
            Some((last, since)) if last == sign => now - *since >= self.losses.patience(now),
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

    #[test]
    fn who_loses_the_cell_again_and_again_waits_longer_and_forgets_it() {
        fn at(ms: u64) -> Duration {
            Duration::from_millis(ms)
        }
        let mut losses = Losses::default();
        let patience = |losses: &Losses, now: u64| losses.patience(at(now)).as_millis();
        assert_eq!(patience(&losses, 0), 600);
        losses.note(at(1_000));
        assert_eq!(patience(&losses, 1_000), 600, "one loss may have any cause");
        losses.note(at(3_000));
        assert_eq!(patience(&losses, 3_000), 1_200);
        (0..9).for_each(|n| losses.note(at(4_000 + n)));
        assert_eq!(patience(&losses, 5_000), 9_600, "no longer than that");

        let sign = Sign { epoch: 1, counter: 7, ..Sign::default() };
        let mut candidate = Candidate::after(losses.clone());
        assert!(!candidate.may_take(&sign, at(10_000)));
        assert!(!candidate.may_take(&sign, at(19_599)));
        assert!(candidate.may_take(&sign, at(19_600)));
        assert!(
            candidate.may_take(&Sign { free: true, ..sign }, at(10_001)),
            "what is laid down is not waited for"
        );

        assert_eq!(patience(&losses, 64_008), 600, "it was calm since");
        losses.note(at(64_008));
        assert_eq!(patience(&losses, 64_009), 600);
    }
}
