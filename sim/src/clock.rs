//! The simulation's clocks: they move only when told. One set a thread, as a simulation has one thread.

use base::Timestamp;
use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static MONOTONIC: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static WALL: Cell<i64> = const { Cell::new(0) };
}

/// Some day in 2026.
const START_SECS: i64 = 1_780_000_000;

pub fn reset() {
    MONOTONIC.set(Duration::ZERO);
    WALL.set(START_SECS * 1_000_000);
}

/// For `store::Options::monotonic`.
pub fn monotonic() -> Duration {
    MONOTONIC.get()
}

/// For `store::Options::clock`.
pub fn wall() -> Timestamp {
    Timestamp(WALL.get())
}

pub fn pass(time: Duration) {
    MONOTONIC.set(MONOTONIC.get() + time);
    WALL.set(WALL.get() + time.as_micros() as i64);
}

/// The wall clock is set, as operators and NTP do.
pub fn set_wall_by(secs: i64) {
    WALL.set(WALL.get() + secs * 1_000_000);
}
