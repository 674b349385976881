//! The durable side: load, append, renew, tail. One small trait, one suite of tests for all of its implementations.

pub mod sqlite;

use crate::lease::Sign;
use crate::log::{Encoded, Entry, Revision};
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
    /// Names the batch when it is appended again, so that it goes through once.
    pub id: u64,
    pub epoch: u64,
    /// The revision that the engine must be at.
    pub previous: Revision,
    /// Entries with their encoded form.
    pub entries: Vec<(Arc<Entry>, Encoded)>,
}

impl Batch {
    /// The revision that the engine is at when the batch is in it.
    pub fn last(&self) -> Revision {
        self.previous + self.entries.len() as Revision
    }
}

/// How an append ended, as far as the lane has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Append {
    /// It is durable: now, or since it was appended under this id before.
    Done,
    /// Another epoch owns the cell, or the engine cannot go on.
    Refused(String),
    /// It may be durable or not; appending the same batch again will tell.
    Unknown(String),
    /// The engine is at an older revision than it has confirmed: it lost what was answered.
    Behind(Revision),
}

/// What keeps the newest image of each record and the log.
pub trait Engine: Send {
    /// Takes ownership under a new epoch and gives every image: kind and encoded record.
    fn load(&mut self, each: &mut dyn FnMut(&str, &[u8]) -> Result<()>) -> Result<Head>;

    /// Makes a batch durable, guarded by epoch and previous revision; a batch that it already has is done.
    fn append(&mut self, batch: &Batch) -> Append;

    /// Writes the owner's counter into the lease row. False: another epoch owns the cell. An error: unknown.
    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool>;

    /// What a candidate watches to see whether the owner lives.
    fn sign(&mut self) -> Result<Sign>;

    /// Whether nobody else can own the cell while this process has it open, so that its lease needs no clock.
    fn alone(&self) -> bool {
        false
    }

    /// The encoded entries after `after`, at most `limit`; empty when there are none or they were trimmed.
    fn tail(&mut self, after: Revision, limit: usize) -> Result<Vec<(Revision, Vec<u8>)>>;

    /// Writes what can be written before the end.
    fn close(&mut self) {}
}
