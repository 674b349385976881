//! The lane: one thread that runs transactions in order, and one that makes their batches durable.
//!
//! There is no timer. What arrives while a batch is being made durable is the next batch, and runs meanwhile on the
//! unpublished state. Every answer, errors too, waits for the batches it could have read. A batch that the engine
//! refuses ends the lane: this process no longer owns the cell.

use crate::engine::{Append, Batch, Engine};
use crate::log::{Cause, Change, Entry};
use crate::record::{Derived, Schema};
use crate::state::State;
use crate::tx::Tx;
use crate::watch::Published;
use crate::{BATCH_MAX, Options, TX_BYTES_MAX, TX_RECORDS_MAX};
use base::secret::{Cipher, with_cipher};
use base::{Error, Result};
use sha2::{Digest, Sha256};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

pub(crate) enum Message {
    Job(Job),
    Appended(Append),
    Close,
}

type Boxed = Box<dyn Any + Send>;
type Run = Box<dyn Fn(&mut Tx) -> Result<Boxed> + Send>;
type Answer = Box<dyn FnOnce(Result<Boxed>) + Send>;

/// A transaction that waits for its turn.
pub(crate) struct Job {
    cause: Cause,
    run: Run,
    answer: Answer,
}

impl Job {
    pub fn new<T, F>(cause: Cause, f: F, answer: tokio::sync::oneshot::Sender<Result<T>>) -> Job
    where
        T: Send + 'static,
        F: Fn(&mut Tx) -> Result<T> + Send + 'static,
    {
        Job {
            cause,
            run: Box::new(move |tx| f(tx).map(|value| Box::new(value) as Boxed)),
            answer: Box::new(move |result| {
                let typed = result.map(|b| *b.downcast::<T>().expect("the job made it"));
                // The caller may have gone away; what it asked for is done all the same.
                let _ = answer.send(typed);
            }),
        }
    }
}

/// Transactions that become durable together, and who waits for them.
#[derive(Default)]
struct Open {
    entries: Vec<Arc<Entry>>,
    bodies: Vec<Vec<u8>>,
    answers: Vec<(Answer, Result<Boxed>)>,
    state: Option<State>,
}

struct Lane {
    schema: Arc<Schema>,
    cipher: Arc<dyn Cipher>,
    options: Options,
    working: State,
    derived: Vec<Box<dyn Derived>>,
    published: Arc<Published>,
    waiting: Arc<AtomicUsize>,
    drawn: u64,
    open: Open,
    in_flight: Option<Open>,
    appender: mpsc::Sender<Batch>,
    lost: bool,
}

/// Starts both threads.
pub(crate) fn start(
    engine: Box<dyn Engine>,
    state: State,
    derived: Vec<Box<dyn Derived>>,
    published: Arc<Published>,
    cipher: Arc<dyn Cipher>,
    options: Options,
    waiting: Arc<AtomicUsize>,
) -> Result<(mpsc::Sender<Message>, JoinHandle<()>)> {
    let (messages, inbox) = mpsc::channel();
    let (appender, batches) = mpsc::channel();
    let done = messages.clone();
    let writer =
        std::thread::Builder::new().name("append".into()).spawn(move || append_all(engine, batches, done))?;
    let lane = Lane {
        schema: state.schema.clone(),
        cipher,
        options,
        working: state,
        derived,
        published,
        waiting,
        drawn: 0,
        open: Open::default(),
        in_flight: None,
        appender,
        lost: false,
    };
    let thread = std::thread::Builder::new().name("lane".into()).spawn(move || {
        lane.run(inbox);
        let _ = writer.join();
    })?;
    Ok((messages, thread))
}

fn append_all(mut engine: Box<dyn Engine>, batches: mpsc::Receiver<Batch>, done: mpsc::Sender<Message>) {
    for batch in batches {
        let outcome = engine.append(&batch);
        if done.send(Message::Appended(outcome)).is_err() {
            break;
        }
    }
    engine.close();
}

impl Lane {
    fn run(mut self, inbox: mpsc::Receiver<Message>) {
        let mut held = VecDeque::new();
        let mut closing = false;
        loop {
            let full = self.open.answers.len() >= BATCH_MAX && self.in_flight.is_some();
            let message = match held.pop_front().filter(|_| !full) {
                Some(job) => Message::Job(job),
                None if closing && self.in_flight.is_none() => break,
                None => match inbox.try_recv() {
                    Ok(message) => message,
                    Err(mpsc::TryRecvError::Disconnected) => break,
                    Err(mpsc::TryRecvError::Empty) => {
                        self.dispatch();
                        if closing && self.in_flight.is_none() {
                            break;
                        }
                        match inbox.recv() {
                            Ok(message) => message,
                            Err(mpsc::RecvError) => break,
                        }
                    }
                },
            };
            match message {
                Message::Job(job) if full => held.push_back(job),
                Message::Job(job) => self.take(job),
                Message::Appended(outcome) => {
                    self.appended(outcome);
                    self.dispatch();
                }
                Message::Close => closing = true,
            }
            if self.open.answers.len() >= BATCH_MAX {
                self.dispatch();
            }
        }
    }

    /// Runs one transaction on the unpublished state.
    fn take(&mut self, job: Job) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.lost {
            return (job.answer)(Err(Error::unavailable("This process no longer owns the cell; try again.")));
        }
        let result = self.transact(&job);
        if self.open.entries.is_empty() && self.in_flight.is_none() {
            return (job.answer)(result);
        }
        self.open.answers.push((job.answer, result));
    }

    fn transact(&mut self, job: &Job) -> Result<Boxed> {
        let now = (self.options.clock)().max(self.working.time);
        let seed = self.draw();
        if self.options.twice {
            self.rehearse(job, now, seed);
        }
        let mut tx = Tx::begin(self.working.clone(), &mut self.derived, now, seed);
        let value = match catch_unwind(AssertUnwindSafe(|| (job.run)(&mut tx))) {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                tx.abort();
                return Err(error);
            }
            Err(panic) => {
                tx.abort();
                return Err(Error::internal("the transaction panicked").because(panic_text(&panic)));
            }
        };
        if tx.changes.len() > TX_RECORDS_MAX {
            tx.abort();
            return Err(Error::too_large(format!("The change is larger than {TX_RECORDS_MAX} records.")));
        }
        let (mut state, changes) = tx.finish();
        if changes.is_empty() {
            return Ok(value);
        }
        state.revision += 1;
        state.time = now;
        let entry = Entry {
            revision: state.revision,
            epoch: state.epoch,
            time: now,
            seed,
            cause: job.cause.clone(),
            changes,
        };
        match self.encode(&entry, &state) {
            Ok(body) => {
                self.open.bodies.push(body);
                self.open.entries.push(Arc::new(entry));
                self.open.state = Some(state.clone());
                self.working = state;
                Ok(value)
            }
            Err(error) => {
                self.revert(&entry.changes);
                Err(error)
            }
        }
    }

    fn encode(&self, entry: &Entry, state: &State) -> Result<Vec<u8>> {
        let body = with_cipher(&self.cipher, || {
            entry.written(&self.schema, |slot, key| state.tables[slot].unknown(key))?.to_bytes()
        })?;
        if body.len() > TX_BYTES_MAX {
            return Err(Error::too_large(format!("The change is larger than {TX_BYTES_MAX} bytes.")));
        }
        Ok(body)
    }

    fn revert(&mut self, changes: &[Change]) {
        for change in changes.iter().rev() {
            for derived in &mut self.derived {
                let plain = |i: &Option<crate::record::Image>| i.clone();
                let (before, after) = (plain(&change.before), plain(&change.after));
                derived.changed(
                    change.kind,
                    after.as_deref().map(|i| i as _),
                    before.as_deref().map(|i| i as _),
                );
            }
        }
    }

    /// Runs the transaction once to see whether it does the same the next time.
    fn rehearse(&mut self, job: &Job, now: base::Timestamp, seed: u128) {
        let first = self.trial(job, now, seed);
        let second = self.trial(job, now, seed);
        assert!(
            first == second,
            "the transaction {} is not deterministic:\n{first:?}\n{second:?}",
            job.cause.route
        );
    }

    /// The changes a run would make, as text; none when it fails.
    fn trial(&mut self, job: &Job, now: base::Timestamp, seed: u128) -> Option<Vec<String>> {
        let mut tx = Tx::begin(self.working.clone(), &mut self.derived, now, seed);
        let ended = catch_unwind(AssertUnwindSafe(|| (job.run)(&mut tx)));
        let text = match ended {
            Ok(Ok(_)) => Some(
                tx.changes
                    .iter()
                    .map(|c| {
                        let image = c
                            .after
                            .as_ref()
                            .map(|i| with_cipher(&self.cipher, || (self.schema.kinds[c.slot].encode)(&**i)));
                        format!("{} {} {:?}", c.kind, c.key, image.map(|v| v.map(|v| v.to_string()).ok()))
                    })
                    .collect(),
            ),
            Ok(Err(_)) | Err(_) => None,
        };
        tx.abort();
        text
    }

    fn draw(&mut self) -> u128 {
        self.drawn += 1;
        let hash =
            Sha256::new().chain_update(self.options.seed).chain_update(self.drawn.to_be_bytes()).finalize();
        u128::from_be_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes"))
    }

    /// Hands what is open to the engine, unless it is busy.
    fn dispatch(&mut self) {
        if self.in_flight.is_some() {
            return;
        }
        let mut open = std::mem::take(&mut self.open);
        if open.entries.is_empty() {
            open.answers.into_iter().for_each(|(answer, result)| answer(result));
            return;
        }
        let bodies = std::mem::take(&mut open.bodies);
        let entries = open.entries.iter().cloned().zip(bodies).collect();
        let batch = Batch { epoch: self.working.epoch, previous: open.entries[0].revision - 1, entries };
        self.in_flight = Some(open);
        if self.appender.send(batch).is_err() {
            self.appended(Append::Refused("the engine's thread has ended".into()));
        }
    }

    fn appended(&mut self, outcome: Append) {
        let Some(batch) = self.in_flight.take() else { return };
        match outcome {
            Append::Done => {
                self.published.publish(batch.state.expect("a batch with entries has a state"), batch.entries);
                batch.answers.into_iter().for_each(|(answer, result)| answer(result));
            }
            Append::Refused(why) => {
                tracing::error!("the store refused a batch, the lane stops: {why}");
                self.lost = true;
                let open = std::mem::take(&mut self.open);
                for (answer, _) in batch.answers.into_iter().chain(open.answers) {
                    answer(Err(Error::unavailable("The outcome is unknown; look before you try again.")));
                }
            }
        }
    }
}

fn panic_text(panic: &Boxed) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without text".into())
}
