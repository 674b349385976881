//! What moves a cell: threads in production, single steps in a simulation.
//!
//! ```text
//! follower --takes the cell--> owner --lays it down, or another took it--> follower
//! owner --the engine lost what it had confirmed--> ended
//! ```
//!
//! One thread follows, or runs transactions while the cell is owned; then another appends and renews, so that a slow
//! disk never holds up running. `Steps` does the owner's part on the caller's thread, one thing at a time, in the order
//! that the caller draws from its seed.

use crate::engine::{Append, Batch, Engine};
use crate::follow::Follower;
use crate::lane::{Job, Lane, Lost, Shared, not_owner};
use crate::lease::{Losses, RENEW_MS, Sign};
use base::Result;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, atomic::Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Between two tries of a batch whose outcome is unknown.
const AGAIN: Duration = Duration::from_millis(20);
/// A follower that nobody asks looks this often.
const FOLLOW_EVERY: Duration = Duration::from_millis(5);
/// A follower whose engine fails asks again after this.
const FAILED_EVERY: Duration = Duration::from_millis(50);

pub(crate) enum Message {
    Job(Job),
    Appended(Duration, Append),
    Renewed(Duration, Result<bool>),
    /// Answered when the published state has all that was durable when this was sent.
    Current(oneshot::Sender<()>),
    /// Whether to take the cell when it may be taken.
    StandBy(bool),
    /// The process that owned the cell under this epoch has ended.
    Died(u64),
    /// Lay the lease down once what waits is done.
    Release(oneshot::Sender<Result<()>>),
    Close,
}

/// What a process is to its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Follower,
    /// Under this epoch.
    Owner(u64),
    /// It was closed, or its engine lost what was confirmed.
    Ended,
}

/// The cell's thread: what it waits for and what it tells.
pub(crate) struct Life {
    pub inbox: mpsc::Receiver<Message>,
    pub messages: mpsc::Sender<Message>,
    pub role: watch::Sender<Role>,
    /// Reads that wait for the published state to be current.
    pub currents: Vec<oneshot::Sender<()>>,
    pub losses: Losses,
}

/// Starts the thread; `owner` says whether the follower has just taken the cell.
pub(crate) fn start(follower: Follower, life: Life, owner: bool) -> Result<JoinHandle<()>> {
    Ok(std::thread::Builder::new().name("cell".into()).spawn(move || live(follower, life, owner))?)
}

fn live(mut follower: Follower, mut life: Life, mut owner: bool) {
    let shared = follower.shared.clone();
    loop {
        if !owner {
            life.role.send_replace(Role::Follower);
            if follow(&mut follower, &mut life).is_break() {
                follower.engine.close();
                break;
            }
        }
        let (lane, engine) = follower.into_lane();
        life.role.send_replace(Role::Owner(lane.epoch()));
        match own(lane, engine, &mut life, &shared) {
            Some(next) => follower = next,
            None => break,
        }
        owner = false;
    }
    life.role.send_replace(Role::Ended);
    shared.lease.lost();
    shared.published.close();
}

/// Follows until the cell is taken, or closed (break).
fn follow(follower: &mut Follower, life: &mut Life) -> ControlFlow<()> {
    let mut pause = FOLLOW_EVERY;
    let mut failing = false;
    loop {
        if life.currents.is_empty() {
            match life.inbox.recv_timeout(pause) {
                Ok(message) => heard(follower, life, message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            }
        }
        while let Ok(message) = life.inbox.try_recv() {
            heard(follower, life, message)?;
        }
        let looked = follower.catch_up().and_then(|sign| {
            life.currents.drain(..).for_each(told);
            Ok(follower.standing_by && follower.take(&sign)?)
        });
        match looked {
            Ok(true) => return ControlFlow::Continue(()),
            Ok(false) => (pause, failing) = (FOLLOW_EVERY, false),
            Err(error) => {
                if !failing {
                    tracing::warn!("the store cannot be followed, it is asked again: {}", error.chain());
                }
                (pause, failing) = (FAILED_EVERY, true);
                life.currents.retain(|asked| !asked.is_closed());
                std::thread::sleep(FOLLOW_EVERY);
            }
        }
    }
}

/// Whoever asked may have gone away.
fn told(asked: oneshot::Sender<()>) {
    let _ = asked.send(());
}

fn heard(follower: &mut Follower, life: &mut Life, message: Message) -> ControlFlow<()> {
    match message {
        Message::Job(job) => {
            follower.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            job.refuse(not_owner());
        }
        Message::Current(asked) => life.currents.push(asked),
        Message::StandBy(yes) => follower.standing_by = yes,
        Message::Died(epoch) => follower.died = Some(epoch),
        Message::Release(done) => drop(done.send(Err(not_owner()))),
        // Of a time as the owner that is over.
        Message::Appended(..) | Message::Renewed(..) => {}
        Message::Close => return ControlFlow::Break(()),
    }
    ControlFlow::Continue(())
}

/// How a time as the owner ended.
enum Ended {
    Closed,
    Released(oneshot::Sender<Result<()>>),
    Lost(Lost),
}

/// Owns until the lease is laid down or lost; then the follower that goes on.
fn own(lane: Lane, engine: Box<dyn Engine>, life: &mut Life, shared: &Arc<Shared>) -> Option<Follower> {
    let (appender, batches) = mpsc::channel();
    let (epoch, messages) = (lane.epoch(), life.messages.clone());
    let clock = shared.options.monotonic;
    let writer = std::thread::Builder::new()
        .name("append".into())
        .spawn(move || append_all(engine, epoch, clock, batches, messages));
    let Ok(writer) = writer.map_err(|e| tracing::error!("no thread for the engine: {e}")) else {
        return None;
    };
    let (lane, ended) = run(lane, life, appender);
    let Ok(mut engine) = writer.join().map_err(|_| tracing::error!("the engine's thread panicked")) else {
        return None;
    };
    let derived = lane.into_derived();
    match ended {
        Ended::Released(done) => {
            let released = engine.release(epoch).map(drop);
            let follower = Follower::after(shared.clone(), engine, derived, life.losses.clone());
            life.role.send_replace(Role::Follower);
            let _ = done.send(released);
            Some(follower)
        }
        Ended::Lost(Lost::Taken) => {
            life.losses.note(clock());
            Some(Follower::after(shared.clone(), engine, None, life.losses.clone()))
        }
        Ended::Lost(Lost::Broken) => None,
        Ended::Closed => {
            // A candidate need not wait for a lease that nobody renews.
            if let Err(error) = engine.release(epoch) {
                tracing::warn!("the lease could not be laid down: {}", error.chain());
            }
            engine.close();
            None
        }
    }
}

/// Appends and renews until there is nobody to append for; gives the engine back.
fn append_all(
    mut engine: Box<dyn Engine>,
    epoch: u64,
    clock: fn() -> Duration,
    batches: mpsc::Receiver<Arc<Batch>>,
    done: mpsc::Sender<Message>,
) -> Box<dyn Engine> {
    let (mut counter, mut renewed) = (0, Duration::ZERO);
    loop {
        let due = (renewed + Duration::from_millis(RENEW_MS)).saturating_sub(clock());
        let next = batches.recv_timeout(due);
        let sent = clock();
        let news = match next {
            Ok(batch) => Message::Appended(sent, engine.append(&batch)),
            Err(RecvTimeoutError::Timeout) => {
                counter += 1;
                Message::Renewed(sent, engine.renew(epoch, counter))
            }
            Err(RecvTimeoutError::Disconnected) => return engine,
        };
        let unknown = matches!(news, Message::Appended(_, Append::Unknown(_)));
        // An append that is done at the first try renews, too.
        renewed = if unknown { renewed } else { sent };
        if done.send(news).is_err() {
            return engine;
        }
        if unknown {
            std::thread::sleep(AGAIN);
        }
    }
}

fn run(mut lane: Lane, life: &mut Life, appender: mpsc::Sender<Arc<Batch>>) -> (Lane, Ended) {
    let mut held = VecDeque::new();
    let mut ending: Option<Ended> = None;
    let ended = loop {
        if let Some(lost) = lane.lost() {
            break Ended::Lost(lost);
        }
        if lane.lease().holds() {
            life.currents.drain(..).for_each(told);
        }
        let message = match held.pop_front() {
            Some(job) if !lane.is_full() => Some(Message::Job(job)),
            other => {
                other.into_iter().for_each(|job| held.push_front(job));
                match life.inbox.try_recv() {
                    Ok(message) => Some(message),
                    Err(TryRecvError::Disconnected) => break Ended::Closed,
                    Err(TryRecvError::Empty) => {
                        lane.dispatch();
                        send(&mut lane, &appender);
                        if !lane.is_busy()
                            && let Some(ended) = ending.take()
                        {
                            break ended;
                        }
                        match wait(&lane, &life.inbox) {
                            Ok(message) => Some(message),
                            Err(RecvTimeoutError::Timeout) => None,
                            Err(RecvTimeoutError::Disconnected) => break Ended::Closed,
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
                send(&mut lane, &appender);
                lane.answer();
            }
            Some(Message::Renewed(sent, outcome)) => lane.renewed(sent, outcome),
            Some(Message::Current(asked)) => life.currents.push(asked),
            Some(Message::Release(done)) => ending = Some(Ended::Released(done)),
            Some(Message::Close) => ending = Some(Ended::Closed),
            Some(Message::StandBy(_) | Message::Died(_)) => {}
            None => lane.tick(),
        }
        if lane.is_batch_full() {
            lane.dispatch();
        }
        send(&mut lane, &appender);
    };
    // From here on nothing is answered from this process's own knowledge.
    lane.lease().lost();
    held.into_iter().for_each(|job| lane.take(job));
    (lane, ended)
}

fn send(lane: &mut Lane, appender: &mpsc::Sender<Arc<Batch>>) {
    if let Some(batch) = lane.take_batch()
        && appender.send(batch).is_err()
    {
        // Refused, so nothing is to be answered.
        lane.appended(Duration::ZERO, Append::Refused("the engine's thread has ended".into()));
    }
}

/// Waits for a message; no longer than the lease holds while somebody waits for the engine.
fn wait(lane: &Lane, inbox: &mpsc::Receiver<Message>) -> Result<Message, RecvTimeoutError> {
    match lane.lease().left() {
        left if lane.is_busy() && left > Duration::ZERO => inbox.recv_timeout(left),
        _ => inbox.recv().map_err(RecvTimeoutError::from),
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
            Ok(Message::Job(job)) => {
                self.lane.take(job);
                true
            }
            // The other messages are of cells with threads.
            Ok(_) | Err(_) => false,
        }
    }

    /// Lets the engine append what is open or has to be tried again. False: there is nothing, or one is under way.
    pub fn append(&mut self) -> bool {
        self.lane.dispatch();
        let Some(batch) = self.lane.take_batch() else { return false };
        self.ended = Some((self.lane.lease().now(), self.engine.append(&batch)));
        true
    }

    /// Tells the lane how the append ended. False: there was none.
    pub fn appended(&mut self) -> bool {
        let Some((sent, outcome)) = self.ended.take() else { return false };
        self.lane.appended(sent, outcome);
        self.lane.answer();
        true
    }

    pub fn renew(&mut self) {
        self.counter += 1;
        let sent = self.lane.lease().now();
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
