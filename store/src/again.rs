//! A request that is asked a second time: what it wrote before is answered from the log, not written twice.
//!
//! A transaction depends on nothing but the state it came upon and its stamps, so running it again on that state gives
//! what was answered then; its changes are dropped. Where they are not the same, because the answer holds something
//! drawn outside of the transaction (a key pair, a salt), nobody can give it again, and the request hears that. While a request has such writes ahead of it, it also reads the
//! state that the next of them came upon. What follows, which the first attempt did not get to, is written as ever.

use crate::log::{Cause, Entry, Revision};
use crate::state::State;
use crate::tx::Tx;
use base::{Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A transaction that was written, and the state that it came upon; nothing where that is no longer remembered.
pub(crate) type Known = Option<(Arc<Entry>, State)>;

struct Scope {
    mutation: Arc<str>,
    done: Mutex<VecDeque<Known>>,
    /// Up to here `done` has all that was done, or this request did it itself.
    until: AtomicU64,
    /// A write failed for want of an owner.
    passing: Arc<AtomicBool>,
}

tokio::task_local! {
    static SCOPE: Arc<Scope>;
}

pub(crate) async fn scope<F: Future>(
    mutation: &str,
    (done, until): (Vec<Known>, Revision),
    request: F,
) -> (F::Output, bool) {
    let passing = Arc::<AtomicBool>::default();
    let done = Mutex::new(done.into());
    let scope = Scope { mutation: mutation.into(), done, until: until.into(), passing: passing.clone() };
    let output = SCOPE.scope(Arc::new(scope), request).await;
    (output, passing.load(Ordering::Relaxed))
}

/// Work of the request that runs on a task of its own, and is of the request there, too.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let scope = SCOPE.try_with(Arc::clone).ok();
    async move {
        match scope {
            Some(scope) => SCOPE.scope(scope, work).await,
            None => work.await,
        }
    }
}

/// A write of this request failed for want of an owner.
pub(crate) fn note_passing() {
    let _ = SCOPE.try_with(|scope| scope.passing.store(true, Ordering::Relaxed));
}

/// The state that a request reads which has writes ahead that were done.
pub(crate) fn state() -> Option<Arc<State>> {
    let ahead = |scope: &Arc<Scope>| {
        let done = scope.done.lock().expect("no holder panics");
        done.front().and_then(|known| known.as_ref()).map(|(_, before)| Arc::new(before.clone()))
    };
    SCOPE.try_with(ahead).ok().flatten()
}

/// A write of this request was answered, when it was known what had been done up to a revision.
pub(crate) fn note_written(until: Revision) {
    let _ = SCOPE.try_with(|scope| scope.until.fetch_max(until, Ordering::Relaxed));
}

/// Up to where this request knows what was done for it; nothing when it has no mutation.
pub(crate) fn until() -> Option<Revision> {
    SCOPE.try_with(|scope| scope.until.load(Ordering::Relaxed)).ok()
}

/// Gives the cause the request's mutation.
pub(crate) fn named(mut cause: Cause) -> Cause {
    let _ = SCOPE.try_with(|scope| cause.mutation = scope.mutation.to_string());
    cause
}

/// The next write of this request, if it was done before.
pub(crate) fn next() -> Option<Done> {
    if cfg!(feature = "break-replay") {
        return None;
    }
    let next = |scope: &Arc<Scope>| scope.done.lock().expect("no holder panics").pop_front();
    SCOPE.try_with(next).ok().flatten().map(Done)
}

pub(crate) struct Done(Known);

impl Done {
    /// What the transaction answered when it was written.
    ///
    /// Errors: `Conflict` when that is no longer known; the change stands.
    pub fn answer<T>(self, f: &dyn Fn(&mut Tx) -> Result<T>) -> Result<T> {
        let Some((entry, mut state)) = self.0 else { return Err(forgotten()) };
        let mut derived = state.derive();
        let mut tx = Tx::begin(&mut state, &mut derived, entry.time, entry.seed);
        let value = f(&mut tx).map_err(|error| forgotten().because(error))?;
        let (changes, _) = tx.finish();
        let same = changes.len() == entry.changes.len()
            && changes.iter().zip(&entry.changes).all(|(a, b)| a.same(b, &state.schema));
        if same { Ok(value) } else { Err(forgotten()) }
    }
}

fn forgotten() -> Error {
    Error::conflict(
        "The request was carried out before, and its answer cannot be given again; look what is there.",
    )
}
