//! A cell: its published state, the lane or the follower behind it, and the door to both.

use crate::drive::{self, Life, Message, Role, Steps};
use crate::engine::Engine;
use crate::follow::Follower;
use crate::lane::{Job, Shared, not_owner, passes, unknown};
use crate::lease::{LEASE_MS, Lease, Losses, monotonic};
use crate::log::{Cause, Revision};
use crate::record::Schema;
use crate::state::{Digest, Form, State};
use crate::trial::{self, Drawn, Trials};
use crate::tx::Tx;
use crate::watch::{Published, Watch};
use crate::{QUEUE_MAX, RING_MAX, again};
use base::secret::{Cipher, with_cipher};
use base::{Error, Result, Timestamp};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// A read waits this long for the state to be current: longer than a take-over takes.
pub const CURRENT_MAX: Duration = Duration::from_secs(5);
/// Whoever opens a cell looks this often whether it may be taken.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a cell is opened.
pub struct Options {
    /// Run every transaction twice from the same state; one that differs changes nothing and is an `Internal` error
    /// that names its route. For tests and simulations; false in a release build.
    pub twice: bool,
    /// The clock that transactions are stamped with.
    pub clock: fn() -> Timestamp,
    /// The clock that the lease is judged by. It never goes back.
    pub monotonic: fn() -> Duration,
    /// Log entries kept in memory for watchers.
    pub ring: usize,
    /// Where seeds come from; a simulation gives its own.
    pub seed: [u8; 32],
    /// What this process calls itself in the lease row.
    pub owner: String,
}

impl Default for Options {
    fn default() -> Options {
        let mut seed = [0; 32];
        let _ = std::fs::File::open("/dev/urandom")
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut seed));
        Options {
            twice: cfg!(debug_assertions),
            clock: Timestamp::wall,
            monotonic,
            ring: RING_MAX,
            seed,
            owner: format!("process {}", std::process::id()),
        }
    }
}

/// One cell. Clones are handles to the same.
#[derive(Clone)]
pub struct Cell {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    messages: mpsc::Sender<Message>,
    role: watch::Receiver<Role>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// The last handle is gone: the lane finishes what waits, and the engine is closed behind it.
impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Close);
    }
}

impl Cell {
    /// Loads everything that the engine has, takes the cell and starts the lane.
    ///
    /// Errors: what the engine says; `Internal` when a stored record cannot be read; `Conflict` when another process
    /// owns the cell and lives.
    pub fn open(
        engine: Box<dyn Engine>,
        schema: Schema,
        cipher: Arc<dyn Cipher>,
        options: Options,
    ) -> Result<Cell> {
        let mut follower = Follower::load(shared(schema, cipher, options), engine)?;
        take(&mut follower)?;
        Cell::start(follower, true)
    }

    /// Loads everything that the engine has and follows: reads wait for what is durable, writes are refused until
    /// this process owns the cell.
    ///
    /// Errors: what the engine says; `Internal` when a stored record cannot be read.
    pub fn follow(
        engine: Box<dyn Engine>,
        schema: Schema,
        cipher: Arc<dyn Cipher>,
        options: Options,
    ) -> Result<Cell> {
        Cell::start(Follower::load(shared(schema, cipher, options), engine)?, false)
    }

    fn start(follower: Follower, owner: bool) -> Result<Cell> {
        let shared = follower.shared.clone();
        let (messages, inbox) = mpsc::channel();
        let (told, role) = watch::channel(Role::Follower);
        let life = Life {
            inbox,
            messages: messages.clone(),
            role: told,
            currents: Vec::new(),
            losses: Losses::default(),
        };
        let thread = drive::start(follower, life, owner)?;
        Ok(Cell { inner: Arc::new(Inner { shared, messages, role, thread: Mutex::new(Some(thread)) }) })
    }

    /// The owner's part without threads: the lane moves only when the caller steps it. Taken at once: the caller has
    /// decided that it may be.
    pub fn stepped(
        engine: Box<dyn Engine>,
        schema: Schema,
        cipher: Arc<dyn Cipher>,
        options: Options,
    ) -> Result<(Cell, Steps)> {
        let mut follower = Follower::load(shared(schema, cipher, options), engine)?;
        let sign = follower.catch_up()?;
        follower.died = Some(sign.epoch);
        if !follower.take(&sign)? {
            return Err(Error::unavailable("Another process took the cell over while it was being loaded."));
        }
        let (messages, inbox) = mpsc::channel();
        let shared = follower.shared.clone();
        let (lane, engine) = follower.into_lane();
        let (_, role) = watch::channel(Role::Owner(lane.epoch()));
        let inner = Inner { shared, messages, role, thread: Mutex::default() };
        Ok((Cell { inner: Arc::new(inner) }, Steps::new(lane, engine, inbox)))
    }

    /// The newest published state: everything in it is durable. Within `again` and `trial`, the state that the request
    /// came upon.
    pub fn read(&self) -> Arc<State> {
        trial::state().or_else(again::state).unwrap_or_else(|| self.inner.shared.published.state())
    }

    /// Whether this process may answer from `read` now: it owns the cell, and its lease holds.
    ///
    /// Errors: `Unavailable`.
    pub fn owns(&self) -> Result<()> {
        match self.inner.shared.lease.holds() {
            true => Ok(()),
            false => Err(not_owner()),
        }
    }

    /// Waits until `read` has all that was durable when this was called, on whatever process: so every process of a
    /// cell reads as one.
    ///
    /// Errors: `Unavailable` after `CURRENT_MAX`.
    pub async fn current(&self) -> Result<()> {
        if self.inner.shared.lease.holds() {
            return Ok(());
        }
        let late = || Error::unavailable("The control plane cannot reach its store; try again in a moment.");
        let (answer, answered) = oneshot::channel();
        self.inner.messages.send(Message::Current(answer)).map_err(|_| late())?;
        match tokio::time::timeout(CURRENT_MAX, answered).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }

    /// What this process is to the cell, as it changes.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.inner.role.clone()
    }

    /// Whether to take the cell when its owner has laid it down, has ended, or was silent for the length of a lease.
    pub fn stand_by(&self, yes: bool) {
        let _ = self.inner.messages.send(Message::StandBy(yes));
    }

    /// Says that the process that owned the cell under `epoch` has ended: nobody need wait for its lease.
    pub fn died(&self, epoch: u64) {
        let _ = self.inner.messages.send(Message::Died(epoch));
    }

    /// Finishes what waits, lays the lease down and follows. Later writes are `Unavailable`.
    ///
    /// Errors: `Unavailable` when this process does not own the cell; what the engine says.
    pub async fn release(&self) -> Result<()> {
        let (done, released) = oneshot::channel();
        self.inner.messages.send(Message::Release(done)).map_err(|_| not_owner())?;
        released.await.map_err(|_| not_owner())?
    }

    /// Runs a transaction and answers when what it changed, and what it could have read, is durable.
    ///
    /// `f` may run more than once from the same state; only the last run counts.
    /// Errors: what `f` says; `Unavailable` when the lane is full or has stopped, this process does not own the cell,
    /// or the outcome is unknown; `Internal` when `f` panics.
    pub async fn write<T, F>(&self, cause: Cause, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx) -> Result<T> + Send + 'static,
    {
        if let Some(tried) = trial::write(&f) {
            return tried;
        }
        let cause = again::named(cause);
        if let Some(done) = again::next() {
            return done.answer(&f);
        }
        let waiting = &self.inner.shared.waiting;
        if waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::unavailable("The cloud is busy; try again in a moment."));
        }
        let (answer, answered) = oneshot::channel();
        let job = Job::new(cause, again::until(), f, answer);
        let sent = self.inner.messages.send(Message::Job(job)).map_err(|_| not_owner());
        let answer = match sent {
            Ok(()) => answered.await.unwrap_or_else(|_| Err(unknown())),
            Err(error) => Err(error),
        };
        match &answer {
            Ok(_) => again::note_written(self.inner.shared.published.done_until()),
            Err(error) if passes(error) => again::note_passing(),
            Err(_) => {}
        }
        answer
    }

    /// Runs a request under the mutation's id: what it has written before, whichever process did it, is not written
    /// again but answered as it was then. True beside it: a write failed because the cell has no owner here for the
    /// moment; asked again under the same id, here or elsewhere, the request goes through once.
    pub async fn once<F: Future>(&self, mutation: &str, request: F) -> (F::Output, bool) {
        let done = self.inner.shared.published.done(mutation);
        again::scope(mutation, done, request).await
    }

    /// For trying requests of the log again, `drawn` left out of the comparison.
    pub fn trials(&self, drawn: &'static [Drawn]) -> Trials {
        Trials::new(self.inner.shared.clone(), drawn)
    }

    /// Whether this request is only tried again: then it touches nothing beside the records.
    pub fn is_trial(&self) -> bool {
        trial::is_on()
    }

    /// How many records there are of each kind at a revision, and a sum over them.
    ///
    /// Errors: `NotFound` when the state of that revision is no longer remembered, or not yet there.
    pub fn digests(&self, revision: Revision, form: Form) -> Result<BTreeMap<&'static str, Digest>> {
        let state = self.inner.shared.published.state_at(revision);
        let state =
            state.ok_or_else(|| Error::not_found(format!("Revision {revision} is not remembered.")))?;
        with_cipher(&self.inner.shared.cipher, || state.digests(form))
    }

    /// Watches the log from just after `after`.
    pub fn watch(&self, after: Revision) -> Watch {
        Watch::new(self.inner.shared.clone(), after)
    }

    /// Watches from now on, with the state that "now" means.
    pub fn watch_from_now(&self) -> (Arc<State>, Watch) {
        let state = self.inner.shared.published.state();
        let watch = self.watch(state.revision());
        (state, watch)
    }

    /// Lets the lane finish what waits, lays the lease down and closes the engine. Later writes are `Unavailable`.
    pub fn close(&self) {
        let _ = self.inner.messages.send(Message::Close);
        if let Some(thread) = self.inner.thread.lock().expect("no holder panics").take() {
            let _ = thread.join();
        }
    }
}

fn shared(schema: Schema, cipher: Arc<dyn Cipher>, options: Options) -> Arc<Shared> {
    let schema = Arc::new(schema);
    let published = Published::new(State::empty(schema.clone()), options.ring);
    let lease = Lease::new(options.monotonic);
    Arc::new(Shared { options, schema, cipher, published, lease, waiting: AtomicUsize::new(0) })
}

/// Takes the cell, once its last owner's lease is over.
fn take(follower: &mut Follower) -> Result<()> {
    let first = follower.catch_up()?;
    let mut sign = first.clone();
    let patience = (2 * Duration::from_millis(LEASE_MS)).as_millis() / LOOK_EVERY.as_millis();
    for _ in 0..patience {
        if follower.take(&sign)? {
            return Ok(());
        }
        if sign != first {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
        sign = follower.catch_up()?;
    }
    Err(Error::conflict(format!("The cell is owned by another process that lives: {}", sign.owner)))
}
