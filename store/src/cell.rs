//! A cell: one lane, its published state, and the door to both.

use crate::QUEUE_MAX;
use crate::engine::{Engine, Head};
use crate::lane::{self, Job, Message};
use crate::log::{Cause, Revision};
use crate::record::Schema;
use crate::state::State;
use crate::tx::Tx;
use crate::watch::{Published, Watch};
use base::secret::{Cipher, with_cipher};
use base::{Error, Result, Timestamp};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// How a cell is opened.
pub struct Options {
    /// Run every transaction twice from the same state and stop on a difference.
    pub twice: bool,
    /// The clock that transactions are stamped with.
    pub clock: fn() -> Timestamp,
    /// Where seeds come from; a simulation gives its own.
    pub seed: [u8; 32],
}

impl Default for Options {
    fn default() -> Options {
        let mut seed = [0; 32];
        let _ = std::fs::File::open("/dev/urandom")
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut seed));
        Options { twice: cfg!(debug_assertions), clock: Timestamp::wall, seed }
    }
}

/// One cell. Clones are handles to the same.
#[derive(Clone)]
pub struct Cell {
    inner: Arc<Inner>,
}

struct Inner {
    published: Arc<Published>,
    lane: mpsc::Sender<Message>,
    waiting: Arc<AtomicUsize>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Cell {
    /// Loads everything that the engine has and starts the lane under the next epoch.
    ///
    /// Errors: what the engine says; `Internal` when a stored record cannot be read.
    pub fn open(
        mut engine: Box<dyn Engine>,
        schema: Schema,
        cipher: Arc<dyn Cipher>,
        options: Options,
    ) -> Result<Cell> {
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
        let published = Arc::new(Published::new(state.clone()));
        let waiting = Arc::new(AtomicUsize::new(0));
        let (lane, thread) =
            lane::start(engine, state, derived, published.clone(), cipher, options, waiting.clone())?;
        Ok(Cell { inner: Arc::new(Inner { published, lane, waiting, thread: Mutex::new(Some(thread)) }) })
    }

    /// The newest published state: everything in it is durable.
    pub fn read(&self) -> Arc<State> {
        self.inner.published.state()
    }

    /// Runs a transaction and answers when what it changed, and what it could have read, is durable.
    ///
    /// `f` may run more than once from the same state; only the last run counts.
    /// Errors: what `f` says; `Unavailable` when the lane is full or has stopped; `Internal` when `f` panics.
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
        answered.await.map_err(|_| gone())?
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
