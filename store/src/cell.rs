//! A cell: one lane, its published state, and the door to both.

use crate::drive::{self, Message, Steps};
use crate::engine::{Engine, Head};
use crate::lane::{Job, Lane, unknown};
use crate::lease::{Lease, monotonic};
use crate::log::{Cause, Revision};
use crate::record::Schema;
use crate::state::State;
use crate::tx::Tx;
use crate::watch::{Published, Watch};
use crate::{QUEUE_MAX, RING_MAX};
use base::secret::{Cipher, with_cipher};
use base::{Error, Result, Timestamp};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

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
}

impl Default for Options {
    fn default() -> Options {
        let mut seed = [0; 32];
        let _ = std::fs::File::open("/dev/urandom")
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut seed));
        Options { twice: cfg!(debug_assertions), clock: Timestamp::wall, monotonic, ring: RING_MAX, seed }
    }
}

/// One cell. Clones are handles to the same.
#[derive(Clone)]
pub struct Cell {
    inner: Arc<Inner>,
}

struct Inner {
    published: Arc<Published>,
    lease: Arc<Lease>,
    lane: mpsc::Sender<Message>,
    waiting: Arc<AtomicUsize>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// A cell whose lane nobody moves yet.
struct Loaded {
    cell: Cell,
    lane: Lane,
    engine: Box<dyn Engine>,
    inbox: mpsc::Receiver<Message>,
}

/// The last handle is gone: the lane finishes what waits, and the engine is closed behind it.
impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.lane.send(Message::Close);
    }
}

impl Cell {
    /// Loads everything that the engine has and starts the lane under the next epoch.
    ///
    /// Errors: what the engine says; `Internal` when a stored record cannot be read.
    pub fn open(
        engine: Box<dyn Engine>,
        schema: Schema,
        cipher: Arc<dyn Cipher>,
        options: Options,
    ) -> Result<Cell> {
        let Loaded { cell, lane, engine, inbox } = Cell::load(engine, schema, cipher, options)?;
        let thread = drive::start(lane, engine, cell.inner.lane.clone(), inbox)?;
        *cell.inner.thread.lock().expect("no holder panics") = Some(thread);
        Ok(cell)
    }

    /// The same without threads: the lane moves only when the caller steps it.
    pub fn stepped(
        engine: Box<dyn Engine>,
        schema: Schema,
        cipher: Arc<dyn Cipher>,
        options: Options,
    ) -> Result<(Cell, Steps)> {
        let Loaded { cell, lane, engine, inbox } = Cell::load(engine, schema, cipher, options)?;
        Ok((cell, Steps::new(lane, engine, inbox)))
    }

    fn load(
        mut engine: Box<dyn Engine>,
        schema: Schema,
        cipher: Arc<dyn Cipher>,
        options: Options,
    ) -> Result<Loaded> {
        let schema = Arc::new(schema);
        let mut state = State::empty(schema.clone());
        let mut derived: Vec<_> = schema.derived.iter().map(|make| make()).collect();
        let Head { epoch, revision, time } = with_cipher(&cipher, || {
            engine.load(&mut |kind, body| match schema.slot_named(kind) {
                Some(slot) => state.load(slot, body),
                // A kind of a newer version: the engine keeps it, we let it be.
                None => Ok(()),
            })
        })?;
        state.revision = revision;
        state.epoch = epoch;
        state.time = time;
        for (slot, table) in state.tables.iter().enumerate() {
            table.each(&mut |record| {
                for d in &mut derived {
                    d.changed(schema.kinds[slot].name, None, Some(record));
                }
            });
        }
        let alone = engine.alone();
        // Loading may take longer than a lease: it counts from a renewal after it.
        let sent = (options.monotonic)();
        if !alone && !engine.renew(epoch, 0)? {
            return Err(Error::unavailable("Another process took the cell over while it was being loaded."));
        }
        let lease = Arc::new(Lease::new(options.monotonic, sent, alone));
        let published = Arc::new(Published::new(state.clone(), options.ring));
        let waiting = Arc::new(AtomicUsize::new(0));
        let (messages, inbox) = mpsc::channel();
        let lane =
            Lane::new(options, state, derived, cipher, published.clone(), waiting.clone(), lease.clone());
        let inner = Inner { published, lease, lane: messages, waiting, thread: Mutex::default() };
        Ok(Loaded { cell: Cell { inner: Arc::new(inner) }, lane, engine, inbox })
    }

    /// The newest published state: everything in it is durable.
    pub fn read(&self) -> Arc<State> {
        self.inner.published.state()
    }

    /// Whether this process may answer from `read`: it holds the lease.
    ///
    /// Errors: `Unavailable` when the lease is over.
    pub fn owns(&self) -> Result<()> {
        match self.inner.lease.holds() {
            true => Ok(()),
            false => Err(Error::unavailable("This process does not hold the cell; try again in a moment.")),
        }
    }

    /// Runs a transaction and answers when what it changed, and what it could have read, is durable.
    ///
    /// `f` may run more than once from the same state; only the last run counts.
    /// Errors: what `f` says; `Unavailable` when the lane is full or has stopped, or the outcome is unknown; `Internal`
    /// when `f` panics.
    pub async fn write<T, F>(&self, cause: Cause, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx) -> Result<T> + Send + 'static,
    {
        if self.inner.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX {
            self.inner.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::unavailable("The cloud is busy; try again in a moment."));
        }
        let (answer, answered) = tokio::sync::oneshot::channel();
        let job = Job::new(cause, f, answer);
        let gone = || Error::unavailable("The control plane is stopping; try again in a moment.");
        self.inner.lane.send(Message::Job(job)).map_err(|_| gone())?;
        answered.await.map_err(|_| unknown())?
    }

    /// Watches the log from just after `after`.
    pub fn watch(&self, after: Revision) -> Watch {
        Watch::new(self.inner.published.clone(), after)
    }

    /// Watches from now on, with the state that "now" means.
    pub fn watch_from_now(&self) -> (Arc<State>, Watch) {
        let state = self.read();
        let watch = self.watch(state.revision());
        (state, watch)
    }

    /// Lets the lane finish what waits and closes the engine. Later writes are `Unavailable`.
    pub fn close(&self) {
        let _ = self.inner.lane.send(Message::Close);
        if let Some(thread) = self.inner.thread.lock().expect("no holder panics").take() {
            let _ = thread.join();
        }
    }
}
