//! How the engines that ask a server wait for it: input and output on one thread of their own for all, the caller
//! parked until there is an answer or it is too late.
//!
//! So a call may come from any thread, also from one that drives tasks itself, and none hangs longer than its limit.

use crate::lease::LEASE_MS;
use base::{Error, Result};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};

/// A call ends by then, answered or not: what comes later finds the lease over anyway.
pub const CALL_MAX: Duration = Duration::from_millis(LEASE_MS);
/// Of which reaching a host may take this much, and half of any limit making a connection.
pub const CONNECT_MAX: Duration = Duration::from_millis(LEASE_MS / 2);
/// A piece of a load may take this long: whoever loads holds no lease.
pub const LOAD_MAX: Duration = Duration::from_secs(5);

static IO: Mutex<Option<Runtime>> = Mutex::new(None);

/// The thread for input and output, started by the first who asks.
pub fn io() -> Result<Handle> {
    let mut io = IO.lock().expect("no holder panics");
    if let Some(io) = &*io {
        return Ok(io.handle().clone());
    }
    let new = Builder::new_multi_thread().worker_threads(1).thread_name("engine-io").enable_all().build()?;
    Ok(io.insert(new).handle().clone())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

/// What the future gives, unless it takes longer than `max`.
pub fn wait<F: Future>(io: &Handle, max: Duration, future: F) -> Option<F::Output> {
    let _io = io.enter();
    let until = Instant::now() + max;
    // Where the caller is a task itself, its budget would end here, and only be renewed when it returns.
    let mut future = pin!(tokio::task::unconstrained(future));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

/// What a caller is told of a server that did not answer in time.
pub fn late(server: &str) -> Error {
    Error::unavailable(format!("{server} did not answer in time."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(io: &Handle) {
        let (answer, asked) = tokio::sync::oneshot::channel();
        io.spawn(async { answer.send(7).unwrap() });
        assert_eq!(wait(io, CALL_MAX, asked), Some(Ok(7)));
    }

    #[test]
    fn an_answer_is_waited_for_from_anywhere_and_not_too_long() {
        let io = io().unwrap();
        ask(&io);
        assert_eq!(wait(&io, Duration::from_millis(1), std::future::pending::<()>()), None);
        // More often than a task is let run on.
        let task = async move { (0..300).for_each(|_| ask(&io)) };
        Builder::new_current_thread().build().unwrap().block_on(async { tokio::spawn(task).await.unwrap() });
    }
}
