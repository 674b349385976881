//! A transaction: a synchronous function over the state that puts and deletes records.
//!
//! It sees what it changed; it sees no clock and no random numbers but those stamped on it. It works in place and
//! notes how to take back each step, so failing leaves no trace.

use crate::log::{Change, Revision};
use crate::record::{Derived, Record};
use crate::state::{State, Undo};
use base::{Error, Id, IdKind, Timestamp};
use sha2::{Digest, Sha256};
use std::any::Any;
use std::collections::hash_map::Entry;
use std::ops::Deref;
use std::sync::Arc;

/// A unique index that a `put` would break; the verb turns it into its own conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    pub kind: &'static str,
    pub index: &'static str,
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Error {
        Error::conflict(format!("There is already a {} with this {}.", broken.kind, broken.index))
    }
}

/// One running transaction. Reading goes through `State`, which it dereferences to.
pub struct Tx<'a> {
    state: &'a mut State,
    pub(crate) changes: Vec<Change>,
    /// What it did to the state, also when it panicked before the change was noted.
    done: Vec<Undo>,
    derived: &'a mut Vec<Box<dyn Derived>>,
    revision: Revision,
    now: Timestamp,
    seed: u128,
    drawn: u64,
}

impl Deref for Tx<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state
    }
}

impl<'a> Tx<'a> {
    pub(crate) fn begin(
        state: &'a mut State,
        derived: &'a mut Vec<Box<dyn Derived>>,
        now: Timestamp,
        seed: u128,
    ) -> Tx<'a> {
        let revision = state.revision + 1;
        Tx { state, changes: Vec::new(), done: Vec::new(), derived, revision, now, seed, drawn: 0 }
    }

    /// When this transaction happens: not before the one before it.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The revision that this transaction will be, if it changes anything.
    pub fn next_revision(&self) -> Revision {
        self.revision
    }

    /// Random bits from the transaction's seed: the same when it is run again.
    pub fn random(&mut self) -> u128 {
        self.drawn += 1;
        let hash = Sha256::new()
            .chain_update(self.seed.to_be_bytes())
            .chain_update(self.drawn.to_be_bytes())
            .finalize();
        u128::from_be_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes"))
    }

    pub fn new_id<K: IdKind>(&mut self) -> Id<K> {
        Id::from_random(self.random())
    }

    pub fn derived<D: Derived>(&self) -> &D {
        self.derived
            .iter()
            .find_map(|d| (&**d as &dyn Any).downcast_ref())
            .expect("derived state is registered in the schema")
    }

    /// Inserts or replaces a record.
    pub fn put<R: Record>(&mut self, record: R) -> Result<Arc<R>, Broken> {
        let record = Arc::new(record);
        let done = self.state.put(record.clone())?;
        self.note::<R>(&record.key(), done);
        Ok(record)
    }

    /// Changes a record in place; `None` when there is none with this key.
    pub fn update<R: Record>(
        &mut self,
        key: &R::Key,
        f: impl FnOnce(&mut R),
    ) -> Result<Option<Arc<R>>, Broken> {
        let Some(old) = self.state.get::<R>(key) else { return Ok(None) };
        let mut new = R::clone(old);
        f(&mut new);
        if new == **old {
            return Ok(Some(old.clone()));
        }
        self.put(new).map(Some)
    }

    /// Removes a record; what it was, if it was there.
    pub fn delete<R: Record>(&mut self, key: &R::Key) -> Option<Arc<R>> {
        let before = self.state.get::<R>(key)?.clone();
        let done = self.state.remove::<R>(key)?;
        self.note::<R>(key, done);
        Some(before)
    }

    fn note<R: Record>(&mut self, key: &R::Key, done: Undo) {
        let (slot, before, after) = (done.slot, done.before.clone(), done.after.clone());
        // A put keeps what stood beside the record.
        let unknown = done.unknown.clone().filter(|_| after.is_some());
        self.done.push(done);
        let change = Change { slot, kind: R::KIND, key: key.to_string().into(), before, after, unknown };
        change.forth(self.derived);
        self.changes.push(change);
    }

    /// What it changed: one change a record, none that changes nothing. And how it is taken back.
    pub(crate) fn finish(self) -> (Vec<Change>, Vec<Undo>) {
        let mut merged: Vec<Change> = Vec::with_capacity(self.changes.len());
        let mut seen = std::collections::HashMap::with_capacity(self.changes.len());
        for change in self.changes {
            match seen.entry((change.slot, change.key.clone())) {
                Entry::Vacant(place) => {
                    place.insert(merged.len());
                    merged.push(change);
                }
                Entry::Occupied(place) => {
                    let first = &mut merged[*place.get()];
                    (first.after, first.unknown) = (change.after, change.unknown);
                }
            }
        }
        let schema = self.state.schema.clone();
        merged.retain(|c| match (&c.before, &c.after) {
            (Some(before), Some(after)) => !(schema.kinds[c.slot].same)(&**before, &**after),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        });
        if merged.is_empty() {
            self.state.undo(self.done);
            return (merged, Vec::new());
        }
        self.state.unchanged(&self.done, |slot| merged.iter().any(|change| change.slot == slot));
        (merged, self.done)
    }

    /// Takes back what it did, and what derived state followed.
    pub(crate) fn abort(self) {
        self.state.undo(self.done);
        for change in self.changes.iter().rev() {
            change.back(self.derived);
        }
    }
}
