//! What moves a lane: two threads in production, single steps in a simulation.
//!
//! One thread runs transactions, the other appends and renews, so that a slow disk never holds up running. `Steps` does
//! the same on the caller's thread, one thing at a time, in the order that the caller draws from its seed.

use crate::engine::{Append, Engine};
use crate::lane::{Job, Lane};
use crate::lease::{RENEW_MS, Sign};
use base::Result;
use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two tries of a batch whose outcome is unknown.
const AGAIN_MS: u64 = 20;

pub(crate) enum Message {
    Job(Job),
    Appended(Duration, Append),
    Renewed(Duration, Result<bool>),
    Close,
}

type Batches = mpsc::Receiver<std::sync::Arc<crate::engine::Batch>>;

/// Starts both threads.
pub(crate) fn start(
    lane: Lane,
    engine: Box<dyn Engine>,
    messages: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
) -> Result<JoinHandle<()>> {
    let (appender, batches) = mpsc::channel();
    let (epoch, clock) = (lane.epoch(), lane.options.monotonic);
    let writer = std::thread::Builder::new()
        .name("append".into())
        .spawn(move || append_all(engine, epoch, clock, batches, messages))?;
    let thread = std::thread::Builder::new().name("lane".into()).spawn(move || {
        run(lane, inbox, appender);
        let _ = writer.join();
    })?;
    Ok(thread)
}

fn append_all(
    mut engine: Box<dyn Engine>,
    epoch: u64,
    clock: fn() -> Duration,
    batches: Batches,
    done: mpsc::Sender<Message>,
) {
    let alone = engine.alone();
    let mut counter = 0;
    loop {
        let next = match alone {
            true => batches.recv().map_err(RecvTimeoutError::from),
            false => batches.recv_timeout(Duration::from_millis(RENEW_MS)),
        };
        let sent = clock();
        let news = match next {
            Ok(batch) => Message::Appended(sent, engine.append(&batch)),
            Err(RecvTimeoutError::Timeout) => {
                counter += 1;
                Message::Renewed(sent, engine.renew(epoch, counter))
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let unknown = matches!(news, Message::Appended(_, Append::Unknown(_)));
        if done.send(news).is_err() {
            break;
        }
        if unknown {
            std::thread::sleep(Duration::from_millis(AGAIN_MS));
        }
    }
    engine.close();
}

fn run(
    mut lane: Lane,
    inbox: mpsc::Receiver<Message>,
    appender: mpsc::Sender<std::sync::Arc<crate::engine::Batch>>,
) {
    let mut held = VecDeque::new();
    let mut closing = false;
    loop {
        let message = match held.pop_front() {
            Some(job) if !lane.is_full() => Some(Message::Job(job)),
            other => {
                other.into_iter().for_each(|job| held.push_front(job));
                match inbox.try_recv() {
                    Ok(message) => Some(message),
                    Err(TryRecvError::Disconnected) => break,
                    Err(TryRecvError::Empty) => {
                        lane.dispatch();
                        send(&mut lane, &appender);
                        if closing && !lane.is_busy() {
                            break;
                        }
                        match wait(&lane, &inbox) {
                            Ok(message) => Some(message),
                            Err(RecvTimeoutError::Timeout) => None,
                            Err(RecvTimeoutError::Disconnected) => break,
                        }
                    }
                }
            }
        };
        match message {
            Some(Message::Job(job)) if lane.is_full() => held.push_back(job),
            Some(Message::Job(job)) => lane.take(job),
            Some(Message::Appended(sent, outcome)) => {
                lane.appended(sent, outcome);
                lane.dispatch();
            }
            Some(Message::Renewed(sent, outcome)) => lane.renewed(sent, outcome),
            Some(Message::Close) => closing = true,
            None => lane.tick(),
        }
        if lane.is_batch_full() {
            lane.dispatch();
        }
        send(&mut lane, &appender);
    }
    lane.close();
}

fn send(lane: &mut Lane, appender: &mpsc::Sender<std::sync::Arc<crate::engine::Batch>>) {
    if let Some(batch) = lane.take_batch()
        && appender.send(batch).is_err()
    {
        lane.appended(Duration::ZERO, Append::Refused("the engine's thread has ended".into()));
    }
}

/// Waits for a message; no longer than the lease holds while somebody waits for the engine.
fn wait(lane: &Lane, inbox: &mpsc::Receiver<Message>) -> Result<Message, RecvTimeoutError> {
    match lane.lease.left().filter(|left| lane.is_busy() && *left < Duration::MAX) {
        Some(left) if left > Duration::ZERO => inbox.recv_timeout(left),
        Some(_) | None => inbox.recv().map_err(RecvTimeoutError::from),
    }
}

/// A lane without threads: nothing happens but by a call. For simulations, which decide what happens next.
pub struct Steps {
    lane: Lane,
    engine: Box<dyn Engine>,
    inbox: mpsc::Receiver<Message>,
    counter: u64,
    /// An append that has ended, and of which the lane does not know yet.
    ended: Option<(Duration, Append)>,
}

impl Steps {
    pub(crate) fn new(lane: Lane, engine: Box<dyn Engine>, inbox: mpsc::Receiver<Message>) -> Steps {
        Steps { lane, engine, inbox, counter: 0, ended: None }
    }

    /// Runs the transaction that waits longest. False: none waits, or none fits.
    pub fn run_one(&mut self) -> bool {
        if self.lane.is_full() {
            return false;
        }
        match self.inbox.try_recv() {
            Ok(Message::Job(job)) => self.lane.take(job),
            Ok(Message::Appended(..) | Message::Renewed(..) | Message::Close) | Err(_) => return false,
        }
        true
    }

    /// Lets the engine append what is open or has to be tried again. False: there is nothing, or one is under way.
    pub fn append(&mut self) -> bool {
        self.lane.dispatch();
        let Some(batch) = self.lane.take_batch() else { return false };
        self.ended = Some((self.lane.lease.now(), self.engine.append(&batch)));
        true
    }

    /// Tells the lane how the append ended. False: there was none.
    pub fn appended(&mut self) -> bool {
        let Some((sent, outcome)) = self.ended.take() else { return false };
        self.lane.appended(sent, outcome);
        true
    }

    pub fn renew(&mut self) {
        self.counter += 1;
        let sent = self.lane.lease.now();
        let outcome = self.engine.renew(self.lane.epoch(), self.counter);
        self.lane.renewed(sent, outcome);
    }

    /// Lets the lane look at the clock.
    pub fn tick(&mut self) {
        self.lane.tick();
    }

    pub fn sign(&mut self) -> Result<Sign> {
        self.engine.sign()
    }
}
