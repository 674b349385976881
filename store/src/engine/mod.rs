//! The durable side: images, take, append, renew, tail. One small trait, one suite of tests for all implementations.
//!
//! An engine keeps the newest image of each record, the log, and the lease row: epoch, the owner's name and counter,
//! and whether the owner has laid it down. Whoever only follows calls `images`, `sign` and `tail`, and changes nothing.

mod checkpoint;
pub mod etcd;
pub mod postgres;
pub mod sqlite;
mod wire;

use crate::lease::Sign;
use crate::log::{Encoded, Entry, Revision};
use base::{Error, Result, Timestamp};
use std::path::Path;
use std::sync::Arc;

/// Where an engine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Of the last owner, or of the one that just took it.
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

    /// When its last transaction happened.
    pub fn time(&self) -> Timestamp {
        self.entries.last().map_or(Timestamp::default(), |(entry, _)| entry.time)
    }
}

/// How an append ended, as far as the lane has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Append {
    /// It is durable: now, or since it was appended under this id before.
    Done,
    /// Nothing of it is durable for want of room, and the owner remains the owner.
    NoRoom(String),
    /// Another epoch owns the cell, or the engine cannot go on.
    Refused(String),
    /// It may be durable or not; appending the same batch again will tell.
    Unknown(String),
    /// The engine is at an older revision than it has confirmed: it lost what was answered.
    Behind(Revision),
}

/// An entry as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub revision: Revision,
    /// Of the owner that wrote it.
    pub epoch: u64,
    /// JSON: `Written`.
    pub body: Vec<u8>,
}

/// What stands after a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// In order and without a gap; none when there are none.
    Entries(Vec<Logged>),
    /// The log no longer reaches back that far: whoever needs them starts over from the images.
    Trimmed,
}

/// What an engine can take at once; the lane cuts batches to fit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub batch_entries: usize,
    /// Encoded size of all entries of a batch.
    pub batch_bytes: usize,
}

/// What each image is given to: kind, key and encoded record.
pub type Each<'a> = &'a mut dyn FnMut(&str, &str, &[u8]) -> Result<()>;

/// What keeps the newest image of each record and the log.
pub trait Engine: Send {
    /// Gives every image as of one revision, and says which. Takes nothing.
    fn images(&mut self, each: Each) -> Result<Head>;

    /// Takes ownership under the epoch after `seen`. `None`: it is no longer at `seen`, another was first.
    ///
    /// `owner` names the new one for whoever reads the lease row.
    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>>;

    /// Makes a batch durable, guarded by epoch and previous revision; a batch that it already has is done.
    fn append(&mut self, batch: &Batch) -> Append;

    /// Writes the owner's counter into the lease row. False: another epoch owns the cell. An error: unknown.
    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool>;

    /// The owner lays the lease down, so that a candidate need not wait. False: another epoch owns the cell.
    fn release(&mut self, epoch: u64) -> Result<bool>;

    /// The lease row and the newest durable revision: what a candidate watches, and what a follower has to reach.
    fn sign(&mut self) -> Result<Sign>;

    /// Whether the engine itself knows that the owner's process has ended.
    fn abandoned(&mut self) -> bool {
        false
    }

    /// The encoded entries after `after`, at most `limit`.
    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail>;

    fn limits(&self) -> Limits {
        Limits { batch_entries: crate::BATCH_MAX, batch_bytes: crate::BATCH_BYTES_MAX }
    }

    /// Writes what can be written before the end.
    fn close(&mut self) {}
}

/// Opens the engine that a URL names: `sqlite:PATH`, `postgres://USER@HOST:PORT/DATABASE`, `etcd://HOST:PORT,.../CELL`.
///
/// Errors: `Invalid` where there is no such engine; what the engine says. None of them quotes a password.
pub fn open(url: &str) -> Result<Box<dyn Engine>> {
    match url.split_once(':') {
        Some(("sqlite", path)) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            Ok(Box::new(sqlite::Sqlite::open(Path::new(path))?))
        }
        Some(("postgres" | "postgresql", _)) => Ok(Box::new(postgres::Postgres::open(url)?)),
        Some(("etcd", _)) => Ok(Box::new(etcd::Etcd::open(url)?)),
        Some(_) | None => Err(Error::invalid(
            "There is no such store: it is sqlite:PATH, postgres://USER@HOST:PORT/DATABASE, or etcd://HOST:PORT,HOST:PORT/CELL.",
        )),
    }
}

/// A store's URL as it may be shown: without what stands between a user's name and the `@`.
pub fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    match rest.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or_default()),
        None => url.into(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(super::shown("postgres://me:se@cret@db:5432/x"), "postgres://me@db:5432/x");
        assert_eq!(super::shown("etcd://a:1,b:2/cell"), "etcd://a:1,b:2/cell");
        assert_eq!(super::shown("sqlite:a@b.db"), "sqlite:a@b.db");
    }
}
