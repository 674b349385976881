//! Seeded simulation: one thread, one source of randomness, clocks that move by hand, and a world that is checked after
//! each step.
//!
//! A [`World`] says what can happen (`step`) and what must hold (`check`). [`run`] drives it from a seed; a failure
//! prints the seed, and `SEED=n cargo test` runs that one again, the same in every step. `SEEDS=n` runs more of them.
//!
//! Deliberately absent: threads, sleeps, the network and the file system. Code under test is stepped (`store::Steps`)
//! or given messages; what it asks of time it asks of [`clock`].

pub mod cell;
pub mod clock;
pub mod engine;
mod random;

pub use random::Random;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::{Context, Poll, Waker};

/// Something that moves in random steps and has invariants.
pub trait World {
    /// Lets one thing happen and says which, for the trace.
    fn step(&mut self, random: &mut Random) -> String;

    /// Panics when an invariant does not hold.
    fn check(&mut self);

    /// Ends the faults and runs until nothing is left to do; panics when that does not come.
    fn settle(&mut self, random: &mut Random);
}

/// Runs the world of each seed for `steps` steps.
pub fn run<W: World>(seeds: u64, steps: usize, new: impl Fn(&mut Random) -> W) {
    let one = variable("SEED");
    let seeds = one.map_or(0..variable("SEEDS").unwrap_or(seeds), |seed| seed..seed + 1);
    for seed in seeds {
        let mut trace = Vec::new();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run_one(seed, steps, &new, &mut trace))) {
            let last = &trace[trace.len().saturating_sub(40)..];
            eprintln!("SEED={seed} failed after step {}:\n{}", trace.len(), last.join("\n"));
            resume_unwind(panic);
        }
    }
}

/// What happened under a seed, a line a step.
pub fn trace<W: World>(seed: u64, steps: usize, new: impl Fn(&mut Random) -> W) -> Vec<String> {
    let mut trace = Vec::new();
    run_one(seed, steps, &new, &mut trace);
    trace
}

fn run_one<W: World>(seed: u64, steps: usize, new: &impl Fn(&mut Random) -> W, trace: &mut Vec<String>) {
    clock::reset();
    let mut random = Random::new(seed);
    let mut world = new(&mut random);
    for _ in 0..steps {
        let what = world.step(&mut random);
        trace.push(what);
        world.check();
    }
    world.settle(&mut random);
    world.check();
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number stands in the variable"))
}

/// Polls once: a simulation has no executor, it asks again after the next step.
pub fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
