//! A store's records as a whole, brought into another store: what `shisa store copy` and `restore` do.
//!
//! It goes through `take` and `append` like any owner's writes, so it is the same for all engines, and a store that it
//! was cut off in is known: a mark stands in it from the first batch to the last, and whoever loads it is told.
//! The log begins anew; the epoch is later than any before, so nodes take what is told from it for newer.

use crate::engine::{Append, Batch, Engine, Head};
use crate::log::{Cause, Change, Encoded, Encoder, Entry};
use base::{Error, Result, Timestamp};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// The kind of the mark. No record is of it.
pub(crate) const UNFINISHED: &str = "unfinished";
/// Rows and bytes of one batch.
const ROWS_MAX: usize = 500;
const BYTES_MAX: usize = 256 << 10;
/// A batch of unknown outcome is appended again so often, so much later.
const TRIES: usize = 50;
const AGAIN: Duration = Duration::from_millis(100);

/// A record as it stands in an engine.
pub struct Row {
    pub kind: String,
    pub key: String,
    /// JSON.
    pub body: Vec<u8>,
}

/// What is to be told of an unfinished copy.
pub(crate) fn unfinished() -> Error {
    Error::conflict(
        "a copy into this store was cut off: bring it back whole with `shisa store restore --replace`",
    )
}

struct Copy<'a> {
    engine: &'a mut dyn Engine,
    head: Head,
    /// Kinds by name, as changes name them: there are some dozens.
    kinds: HashMap<String, &'static str>,
}

/// Replaces everything that the engine has by `rows`. Its new epoch is later than `after`.
///
/// Nobody else may own the store meanwhile. Errors: what the engine says.
pub fn fill(
    engine: &mut dyn Engine,
    owner: &str,
    after: u64,
    rows: &mut dyn Iterator<Item = Row>,
) -> Result<Head> {
    let mut old = BTreeSet::new();
    let mut epoch = engine
        .images(&mut |kind, key, _| {
            old.insert((kind.to_string(), key.to_string()));
            Ok(())
        })?
        .epoch;
    let head = loop {
        let taken = engine.take(owner, epoch)?;
        let head = taken.ok_or_else(|| Error::conflict("another process took the store"))?;
        if head.epoch > after {
            break head;
        }
        epoch = head.epoch;
    };
    let mut copy = Copy { engine, head, kinds: HashMap::new() };
    let mark =
        |body: Option<&[u8]>| vec![(UNFINISHED.to_string(), "copy".to_string(), body.map(<[u8]>::to_vec))];
    copy.append(mark(Some(b"{}")))?;
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for row in rows {
        old.remove(&(row.kind.clone(), row.key.clone()));
        bytes += row.body.len();
        batch.push((row.kind, row.key, Some(row.body)));
        if batch.len() >= ROWS_MAX || bytes >= BYTES_MAX {
            bytes = 0;
            copy.append(std::mem::take(&mut batch))?;
        }
    }
    for (kind, key) in old {
        batch.push((kind, key, None));
        if batch.len() >= ROWS_MAX {
            copy.append(std::mem::take(&mut batch))?;
        }
    }
    copy.append(batch)?;
    copy.append(mark(None))?;
    let head = copy.head;
    engine.release(head.epoch)?;
    Ok(head)
}

impl Copy<'_> {
    fn append(&mut self, rows: Vec<(String, String, Option<Vec<u8>>)>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let time = Timestamp::wall().max(self.head.time);
        let revision = self.head.revision + 1;
        let cause = Cause::step("copy");
        let mut encoder = Encoder::begin(time, 0, &cause)?;
        let mut changes = Vec::with_capacity(rows.len());
        for (kind, key, body) in rows {
            encoder.push(
                &kind,
                &key,
                body.map(|body| {
                    move |out: &mut Vec<u8>| {
                        out.extend_from_slice(&body);
                        Ok(())
                    }
                }),
            )?;
            let kind = self.kind(kind);
            changes.push(Change { slot: 0, kind, key: key.into(), before: None, after: None, unknown: None });
        }
        let encoded: Encoded = encoder.end();
        let entry = Entry { revision, epoch: self.head.epoch, time, seed: 0, cause, changes };
        let batch = Batch {
            id: revision,
            epoch: self.head.epoch,
            previous: self.head.revision,
            entries: vec![(Arc::new(entry), encoded)],
        };
        for _ in 0..TRIES {
            match self.engine.append(&batch) {
                Append::Done => {
                    (self.head.revision, self.head.time) = (revision, time);
                    return Ok(());
                }
                Append::Unknown(why) => {
                    tracing::warn!("a batch is appended again: {why}");
                    std::thread::sleep(AGAIN);
                }
                Append::NoRoom(why) | Append::Refused(why) => {
                    return Err(Error::unavailable(format!("the store takes no more: {why}")));
                }
                Append::Behind(revision) => {
                    return Err(Error::unavailable(format!("the store went back to revision {revision}")));
                }
            }
        }
        Err(Error::unavailable("the store does not say whether it has what was sent"))
    }

    /// A kind's name for as long as the process lives.
    fn kind(&mut self, kind: String) -> &'static str {
        self.kinds.entry(kind).or_insert_with_key(|kind| Box::leak(kind.clone().into_boxed_str()))
    }
}
