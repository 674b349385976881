//! The durable side: load, append, tail. One small trait, one suite of tests for all of its implementations.

pub mod sqlite;

use crate::log::{Entry, Revision};
use base::{Result, Timestamp};
use std::sync::Arc;

/// Where the engine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The epoch that this owner writes under; larger than any before.
    pub epoch: u64,
    pub revision: Revision,
    pub time: Timestamp,
}

/// A run of revisions that becomes durable together or not at all.
pub struct Batch {
    pub epoch: u64,
    /// The revision that the engine must be at.
    pub previous: Revision,
    /// Entries with their encoded form.
    pub entries: Vec<(Arc<Entry>, Vec<u8>)>,
}

/// How an append ended, as far as the lane has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Append {
    Done,
    /// Another epoch owns the cell, or the engine cannot go on.
    Refused(String),
}

/// What keeps the newest image of each record and the log.
pub trait Engine: Send {
    /// Takes ownership under a new epoch and gives every image: kind and encoded record.
    fn load(&mut self, each: &mut dyn FnMut(&str, &[u8]) -> Result<()>) -> Result<Head>;

    /// Makes a batch durable, guarded by epoch and previous revision.
    fn append(&mut self, batch: &Batch) -> Append;

    /// The encoded entries after `after`, at most `limit`; empty when there are none or they were trimmed.
    fn tail(&mut self, after: Revision, limit: usize) -> Result<Vec<(Revision, Vec<u8>)>>;

    /// Writes what can be written before the end.
    fn close(&mut self) {}
}
