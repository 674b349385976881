//! One API under load, from this machine.

use crate::{Connection, Processes, Request, Result};
use serde_json::Value;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// No operation is repeated for longer.
pub const RUN_MAX: Duration = Duration::from_secs(8);
/// Nor is anything waited for.
pub const WAIT_MAX: Duration = Duration::from_secs(180);

/// Where requests go, by whom, and what answers them.
#[derive(Clone)]
pub struct Target {
    pub authority: String,
    pub token: String,
    pub processes: Processes,
}

/// What came of a load.
pub struct Run {
    pub connections: usize,
    /// Shortest first.
    pub times: Vec<Duration>,
    /// Answers to `POST`.
    pub bodies: Vec<Vec<u8>>,
    pub begin: Instant,
    pub wall: Duration,
    /// Seconds of CPU: of the target before it, of the target for it, and of this process.
    pub before: f64,
    pub server: f64,
    pub client: f64,
}

impl Target {
    pub fn call(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut connection = Connection::open(&self.authority)?;
        connection.call(&self.token, &Request::new(method, path, body))?;
        Ok(serde_json::from_slice(connection.body())?)
    }

    /// Repeats an operation up to `count` times, or for as long as is allowed.
    pub fn run(
        &self,
        connections: usize,
        count: usize,
        ask: impl Fn(usize) -> Request + Sync,
    ) -> Result<Run> {
        self.spread(connections, count, RUN_MAX, ask)
    }

    /// Repeats an operation `count` times.
    pub fn whole(
        &self,
        connections: usize,
        count: usize,
        ask: impl Fn(usize) -> Request + Sync,
    ) -> Result<Run> {
        self.spread(connections, count, WAIT_MAX, ask)
    }

    /// Repeats an operation up to `count` times, or until `max` is over.
    pub fn spread<F>(&self, connections: usize, count: usize, max: Duration, ask: F) -> Result<Run>
    where
        F: Fn(usize) -> Request + Sync,
    {
        let next = AtomicUsize::new(0);
        let barrier = Barrier::new(connections + 1);
        let worker = || -> Result<_> {
            let connection = Connection::open(&self.authority);
            barrier.wait();
            let (mut connection, begin) = (connection?, Instant::now());
            let (mut times, mut bodies) = (Vec::new(), Vec::new());
            while begin.elapsed() < max {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    break;
                }
                let request = ask(n);
                let sent = Instant::now();
                connection.call(&self.token, &request)?;
                times.push(sent.elapsed());
                if request.method == "POST" {
                    bodies.push(connection.body().to_vec());
                }
            }
            Ok((times, bodies))
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..connections).map(|_| scope.spawn(worker)).collect();
            let before = self.processes.cpu();
            let own = own_cpu();
            barrier.wait();
            let (before, own, begin) = (before?, own?, Instant::now());
            let (mut times, mut bodies) = (Vec::new(), Vec::new());
            for worker in workers {
                let (more_times, more_bodies) = worker.join().map_err(|_| "a client panicked")??;
                times.extend(more_times);
                bodies.extend(more_bodies);
            }
            let wall = begin.elapsed();
            let server = self.processes.cpu()? - before;
            let client = own_cpu()? - own;
            times.sort_unstable();
            Ok(Run { connections, times, bodies, begin, wall, before, server, client })
        })
    }
}

fn own_cpu() -> Result<f64> {
    Processes::One(std::process::id()).cpu()
}

impl Run {
    /// The ids of what was made.
    pub fn ids(&self, kind: &str) -> Result<Vec<String>> {
        self.bodies.iter().map(|body| crate::id(&serde_json::from_slice(body)?, kind)).collect()
    }

    /// The time, in ms, that so many of a hundred did not exceed.
    pub fn at(&self, part: usize) -> f64 {
        let last = self.times.len().saturating_sub(1);
        self.times.get((self.times.len() * part / 100).min(last)).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    }

    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.wall.as_secs_f64()
    }
}
