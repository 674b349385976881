//! The lane: the one writer of a cell, as a state machine without threads or IO; `drive` moves it.
//!
//! There is no timer. What arrives while a batch is being made durable is the next batch, and runs meanwhile on the
//! unpublished state. Every answer, errors too, waits for the batches it could have read.
//!
//! A batch ends as done, refused or unknown. Unknown: the same batch is appended again, and the engine's guard lets it
//! through once. If the lease ends first, those who wait hear that the outcome is unknown; the batch goes on, since
//! only the engine can say what became of it. Refused, or an engine that lost what was answered, ends the lane: this
//! process no longer owns the cell. An engine without room changes nothing: what ran is taken back, and the lane goes
//! on.

use crate::engine::{Append, Batch, Limits};
use crate::lease::Lease;
use crate::log::{Cause, Change, Encoded, Entry, Revision};
use crate::record::{Derived, Schema};
use crate::state::State;
use crate::tx::Tx;
use crate::watch::Published;
use crate::{Options, TX_BYTES_MAX, TX_RECORDS_MAX};
use base::secret::{Cipher, with_cipher};
use base::{Error, Result, Timestamp};
use sha2::{Digest, Sha256};
use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

type Boxed = Box<dyn Any + Send>;
type Run = Box<dyn Fn(&mut Tx) -> Result<Boxed> + Send>;
type Answer = Box<dyn FnOnce(Result<Boxed>) + Send>;

/// A transaction that waits for its turn.
pub(crate) struct Job {
    cause: Cause,
    /// Up to where the request knew what was done for its mutation; nothing when it has none.
    until: Option<Revision>,
    run: Run,
    answer: Answer,
}

impl Job {
    /// Answers without running it.
    pub fn refuse(self, error: Error) {
        (self.answer)(Err(error));
    }

    pub fn new<T, F>(
        cause: Cause,
        until: Option<Revision>,
        f: F,
        answer: tokio::sync::oneshot::Sender<Result<T>>,
    ) -> Job
    where
        T: Send + 'static,
        F: Fn(&mut Tx) -> Result<T> + Send + 'static,
    {
        Job {
            cause,
            until,
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
    entries: Vec<(Arc<Entry>, Encoded)>,
    bytes: usize,
    answers: Vec<(Answer, Result<Boxed>)>,
    /// For whom the entries are.
    mutations: HashSet<String>,
}

/// What the engine has or has not.
struct InFlight {
    batch: Arc<Batch>,
    answers: Vec<(Answer, Result<Boxed>)>,
    mutations: HashSet<String>,
    state: State,
    /// It was appended before, with an unknown outcome.
    again: bool,
}

/// What a cell's lane and its follower share with its handles.
pub(crate) struct Shared {
    pub options: Options,
    pub schema: Arc<Schema>,
    pub cipher: Arc<dyn Cipher>,
    pub published: Published,
    pub lease: Lease,
    /// Callers that wait for the lane.
    pub waiting: AtomicUsize,
}

pub(crate) struct Lane {
    shared: Arc<Shared>,
    limits: Limits,
    working: State,
    derived: Vec<Box<dyn Derived>>,
    drawn: u64,
    open: Open,
    in_flight: Option<InFlight>,
    /// Answers that need wait for nothing any more: the next batch is sent first.
    ready: Vec<(Answer, Result<Boxed>)>,
    /// What the driver shall append next.
    outbox: Option<Arc<Batch>>,
    lost: Option<Lost>,
}

/// Why this process no longer owns the cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Another owner came.
    Taken,
    /// The engine lost what it had confirmed: nothing can go on from there.
    Broken,
}

impl Lane {
    /// `state` is the newest that the engine has, under the epoch that was taken.
    pub fn new(shared: Arc<Shared>, limits: Limits, state: State, derived: Vec<Box<dyn Derived>>) -> Lane {
        Lane {
            shared,
            limits,
            working: state,
            derived,
            drawn: 0,
            open: Open::default(),
            in_flight: None,
            ready: Vec::new(),
            outbox: None,
            lost: None,
        }
    }

    pub fn epoch(&self) -> u64 {
        self.working.epoch
    }

    pub fn lost(&self) -> Option<Lost> {
        self.lost
    }

    pub fn lease(&self) -> &Lease {
        &self.shared.lease
    }

    /// Whether no transaction fits until the batch in flight has ended.
    pub fn is_full(&self) -> bool {
        self.in_flight.is_some() && self.is_batch_full()
    }

    pub fn is_batch_full(&self) -> bool {
        self.open.answers.len() >= self.limits.batch_entries
            || self.open.bytes + TX_BYTES_MAX > self.limits.batch_bytes
    }

    /// Whether a batch is with the engine, or will be.
    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The batch to append now; each is given once, and again when its outcome was unknown.
    pub fn take_batch(&mut self) -> Option<Arc<Batch>> {
        self.outbox.take()
    }

    /// Runs one transaction on the unpublished state.
    pub fn take(&mut self, job: Job) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = self.owns().and_then(|()| self.is_news(&job)) {
            return (job.answer)(Err(error));
        }
        let result = self.transact(&job);
        if self.open.entries.is_empty() && self.in_flight.is_none() {
            return (job.answer)(result);
        }
        self.open.answers.push((job.answer, result));
    }

    fn owns(&self) -> Result<()> {
        match self.lost {
            Some(Lost::Taken) => Err(not_owner()),
            Some(Lost::Broken) => {
                Err(Error::unavailable("The store lost what it had confirmed; the operator has to look."))
            }
            None if !self.shared.lease.holds() => Err(lapsed()),
            None => Ok(()),
        }
    }

    /// A request may wait here, or in a process that has lost the cell, while it is asked again and carried out elsewhere;
    /// when this process owns the cell once more, it is not to be done twice.
    ///
    /// Errors: those on which the door asks again.
    fn is_news(&self, job: &Job) -> Result<()> {
        let Some(until) = job.until.filter(|_| !cfg!(feature = "break-replay")) else { return Ok(()) };
        let mutation = &job.cause.mutation;
        let runs = self.open.mutations.contains(mutation)
            || self.in_flight.as_ref().is_some_and(|flight| flight.mutations.contains(mutation));
        match runs || self.shared.published.is_done_after(mutation, until) {
            true => Err(not_owner()),
            false => Ok(()),
        }
    }

    fn transact(&mut self, job: &Job) -> Result<Boxed> {
        let now = (self.shared.options.clock)().max(self.working.time);
        let seed = self.draw();
        let rehearsed = self.shared.options.twice.then(|| self.rehearse(job, now, seed));
        let mut tx = Tx::begin(&mut self.working, &mut self.derived, now, seed);
        let ended = run(job, &mut tx);
        if let Some(first) = rehearsed {
            let second = told(&self.shared, &ended, &tx.changes);
            if first != second {
                tx.abort();
                let what = format!("The transaction {} is not deterministic.", job.cause.route);
                tracing::error!("{what} First:\n{first}\nthen:\n{second}");
                return Err(Error::internal(what));
            }
        }
        let value = match ended {
            Ok(value) => value,
            Err(error) => {
                tx.abort();
                return Err(error);
            }
        };
        if tx.changes.len() > TX_RECORDS_MAX {
            tx.abort();
            return Err(Error::too_large(format!("The change is larger than {TX_RECORDS_MAX} records.")));
        }
        let (changes, done) = tx.finish();
        if changes.is_empty() {
            return Ok(value);
        }
        let (revision, epoch) = (self.working.revision + 1, self.working.epoch);
        let entry = Entry { revision, epoch, time: now, seed, cause: job.cause.clone(), changes };
        match self.encode(&entry) {
            Ok(encoded) => {
                (self.working.revision, self.working.time) = (revision, now);
                self.open.bytes += encoded.body.len();
                if job.until.is_some() {
                    self.open.mutations.insert(job.cause.mutation.clone());
                }
                self.open.entries.push((Arc::new(entry), encoded));
                Ok(value)
            }
            Err(error) => {
                self.working.undo(done);
                self.revert(&entry.changes);
                Err(error)
            }
        }
    }

    fn encode(&self, entry: &Entry) -> Result<Encoded> {
        let encoded = with_cipher(&self.shared.cipher, || entry.encode(&self.shared.schema))?;
        if encoded.body.len() > TX_BYTES_MAX {
            return Err(Error::too_large(format!("The change is larger than {TX_BYTES_MAX} bytes.")));
        }
        Ok(encoded)
    }

    fn revert(&mut self, changes: &[Change]) {
        for change in changes.iter().rev() {
            change.back(&mut self.derived);
        }
    }

    /// Runs the transaction and takes it back: what it did, to be compared with the run that counts.
    fn rehearse(&mut self, job: &Job, now: Timestamp, seed: u128) -> String {
        let mut tx = Tx::begin(&mut self.working, &mut self.derived, now, seed);
        let ended = run(job, &mut tx);
        let told = told(&self.shared, &ended, &tx.changes);
        tx.abort();
        told
    }

    fn draw(&mut self) -> u128 {
        self.drawn += 1;
        let hash = Sha256::new()
            .chain_update(self.shared.options.seed)
            .chain_update(self.working.epoch.to_be_bytes())
            .chain_update(self.drawn.to_be_bytes())
            .finalize();
        u128::from_be_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes"))
    }

    /// Closes the open batch for the engine, unless the one before it is in flight.
    pub fn dispatch(&mut self) {
        if self.in_flight.is_some() {
            return;
        }
        let Open { entries, answers, mutations, .. } = std::mem::take(&mut self.open);
        if entries.is_empty() {
            let owns = self.owns();
            for (answer, result) in answers {
                answer(if owns.is_ok() { result } else { Err(lapsed()) });
            }
            return;
        }
        let id = self.draw() as u64;
        let previous = entries[0].0.revision - 1;
        let batch = Arc::new(Batch { id, epoch: self.working.epoch, previous, entries });
        self.outbox = Some(batch.clone());
        let state = self.working.clone();
        self.in_flight = Some(InFlight { batch, answers, mutations, state, again: false });
    }

    /// An append that was sent at `sent` has ended; `answer` follows.
    pub fn appended(&mut self, sent: Duration, outcome: Append) {
        let Some(mut flight) = self.in_flight.take() else { return };
        match outcome {
            Append::Done => {
                // A batch that was there already has moved nothing that a candidate could see.
                if !flight.again {
                    self.shared.lease.confirmed(sent);
                }
                let entries = flight.batch.entries.iter().map(|(entry, _)| entry.clone());
                self.shared.published.publish(flight.state, entries.collect());
                self.ready = flight.answers;
            }
            Append::NoRoom(why) => {
                tracing::error!("the store has no room, changes are refused: {why}");
                self.in_flight = Some(flight);
                self.take_back();
            }
            Append::Unknown(why) => {
                if !flight.again {
                    tracing::warn!("an append has an unknown outcome, it is tried again: {why}");
                }
                self.outbox = Some(flight.batch.clone());
                flight.again = true;
                self.in_flight = Some(flight);
                self.tick();
            }
            Append::Refused(why) => {
                tracing::error!("the store refused a batch, the lane stops: {why}");
                self.in_flight = Some(flight);
                self.lose(Lost::Taken);
            }
            Append::Behind(revision) => {
                let answered = flight.batch.previous;
                tracing::error!(
                    "the store is at {revision}, {answered} was answered: it lost data, the lane stops"
                );
                self.in_flight = Some(flight);
                self.lose(Lost::Broken);
            }
        }
    }

    /// Tells those whose batch is durable. It wakes a lot of them, which the engine need not wait for.
    pub fn answer(&mut self) {
        self.ready.drain(..).for_each(|(answer, result)| answer(result));
    }

    /// A renewal that was sent at `sent` has ended.
    pub fn renewed(&mut self, sent: Duration, outcome: Result<bool>) {
        match outcome {
            Ok(true) if self.lost.is_none() => self.shared.lease.confirmed(sent),
            Ok(true) => {}
            Ok(false) => {
                tracing::error!("another process owns the cell, the lane stops");
                self.lose(Lost::Taken);
            }
            Err(error) => tracing::warn!("the lease could not be renewed: {}", error.chain()),
        }
    }

    /// Lets nobody wait longer than the lease holds.
    pub fn tick(&mut self) {
        if !self.shared.lease.holds() {
            self.give_up_waiting();
        }
    }

    /// What a follower goes on from. The derived state is as of the newest published state, unless batches were lost.
    pub fn into_derived(self) -> Option<Vec<Box<dyn Derived>>> {
        self.lost.is_none().then_some(self.derived)
    }

    /// Everything since the newest published state is undone, and those who wait are told.
    fn take_back(&mut self) {
        let flying = self.in_flight.take();
        let open = std::mem::take(&mut self.open);
        let flown = flying.iter().flat_map(|f| &f.batch.entries);
        let entries: Vec<_> = flown.chain(&open.entries).map(|(entry, _)| entry.clone()).collect();
        entries.iter().rev().for_each(|entry| self.revert(&entry.changes));
        self.working = State::clone(&self.shared.published.state());
        for (answer, _) in flying.into_iter().flat_map(|f| f.answers).chain(open.answers) {
            answer(Err(Error::unavailable("The store has no room; nothing was changed.")));
        }
    }

    fn lose(&mut self, why: Lost) {
        self.lost = Some(why);
        self.shared.lease.lost();
        self.give_up_waiting();
        (self.outbox, self.in_flight, self.open) = (None, None, Open::default());
    }

    fn give_up_waiting(&mut self) {
        let flying = self.in_flight.as_mut().map(|f| std::mem::take(&mut f.answers)).unwrap_or_default();
        for (answer, _) in flying.into_iter().chain(std::mem::take(&mut self.open.answers)) {
            answer(Err(unknown()));
        }
    }
}

const UNKNOWN: &str = "The outcome is unknown; look before you try again.";
const NOT_OWNER: &str = "This process does not own the cell; try again in a moment.";
const LAPSED: &str = "The control plane cannot reach its store; try again in a moment.";

pub(crate) fn unknown() -> Error {
    Error::unavailable(UNKNOWN)
}

pub(crate) fn not_owner() -> Error {
    Error::unavailable(NOT_OWNER)
}

fn lapsed() -> Error {
    Error::unavailable(LAPSED)
}

/// Whether the owner of the cell, once there is one again, may do or know what failed with this.
pub(crate) fn passes(error: &Error) -> bool {
    [UNKNOWN, NOT_OWNER, LAPSED].contains(&error.message())
}

fn run(job: &Job, tx: &mut Tx) -> Result<Boxed> {
    match catch_unwind(AssertUnwindSafe(|| (job.run)(tx))) {
        Ok(result) => result,
        Err(panic) => Err(Error::internal("the transaction panicked").because(panic_text(&panic))),
    }
}

/// What a run did, as text.
fn told(shared: &Shared, ended: &Result<Boxed>, changes: &[Change]) -> String {
    use std::fmt::Write;
    let mut text =
        ended.as_ref().err().map(|e| format!("{:?} {}\n", e.kind(), e.chain())).unwrap_or_default();
    for change in changes {
        let mut image = Vec::new();
        if let Some(after) = &change.after {
            // A record that cannot be written fails where it counts.
            let _ = with_cipher(&shared.cipher, || {
                shared.schema.kinds[change.slot].render(&**after, None, &mut image)
            });
        }
        let _ = writeln!(text, "{} {} {}", change.kind, change.key, String::from_utf8_lossy(&image));
    }
    text
}

fn panic_text(panic: &Boxed) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without text".into())
}
