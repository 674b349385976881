//! Brings what SQLite's log has into its file on a thread of the owner's, so that no append waits for it.
//!
//! A passive checkpoint holds up no writer, but under load it never has all: more comes meanwhile, and the log only begins
//! anew once all of it is in the file. So when the log is long and little is left, the writer does that little itself,
//! between two appends (`Checkpoints::rest`).

use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at the log: what comes in between is a small checkpoint.
const EVERY: Duration = Duration::from_millis(50);
/// Pages of a log that is to begin anew.
const LONG: i64 = 4_000;
/// Pages that the writer may bring into the file itself.
const REST_MAX: i64 = 1_000;

/// The thread, for as long as this lives.
pub(crate) struct Checkpoints {
    shared: Arc<Shared>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Something was appended since the last look.
    appended: AtomicBool,
    /// The log is long, and nearly all of it is in the file.
    little_left: AtomicBool,
}

impl Checkpoints {
    /// Errors: the file cannot be opened once more, or there is no thread.
    pub fn start(file: &Path) -> rusqlite::Result<Checkpoints> {
        let db = Connection::open(file)?;
        db.execute_batch("PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-64;")?;
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = mpsc::channel();
        let seen = shared.clone();
        let thread = std::thread::Builder::new().name("checkpoint".into());
        let thread = thread.spawn(move || run(&db, &seen, &stopped));
        let thread = thread.map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
        Ok(Checkpoints { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Called before an append: brings the rest of a long log into the file when it is little.
    pub fn rest(&self, db: &Connection) {
        self.shared.appended.store(true, Ordering::Release);
        if self.shared.little_left.swap(false, Ordering::AcqRel)
            && let Err(error) = checkpoint(db)
        {
            tracing::warn!("SQLite's log could not be brought into its file: {error}");
        }
    }
}

impl Checkpoints {
    /// It ends by itself, after what it does now.
    pub fn end(mut self) {
        self.thread.take();
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(db: &Connection, shared: &Shared, stopped: &mpsc::Receiver<()>) {
    let mut failing = false;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
        if !shared.appended.swap(false, Ordering::AcqRel) {
            continue;
        }
        match twice(db) {
            Ok(little_left) => {
                shared.little_left.store(little_left, Ordering::Release);
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!("SQLite's log could not be brought into its file: {error}");
                }
                failing = true;
            }
        }
    }
}

/// A long log is looked at once more: then what came during the first, long look is in the file, too.
fn twice(db: &Connection) -> rusqlite::Result<bool> {
    let (log, _) = checkpoint(db)?;
    if log < LONG {
        return Ok(false);
    }
    let (log, done) = checkpoint(db)?;
    Ok(log - done < REST_MAX)
}

/// Pages of the log, and those of them that are in the file. Both are -1 when another is at it.
fn checkpoint(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    db.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |row| Ok((row.get(1)?, row.get(2)?)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use crate::engine::sqlite::Sqlite;
    use crate::engine::{Append, Batch, Engine};
    use crate::log::{Cause, Change, Encoder, Entry};
    use base::{Result, Timestamp};
    use std::sync::Arc;

    fn batch(revision: u64, size: usize) -> Batch {
        let (cause, key) = (Cause::step("test"), format!("note {}", revision % 100));
        let mut encoder = Encoder::begin(Timestamp(1), 0, &cause).unwrap();
        let image = |out: &mut Vec<u8>| -> Result<()> {
            out.extend(format!("\"{}\"", "x".repeat(size)).bytes());
            Ok(())
        };
        encoder.push("note", &key, Some(image)).unwrap();
        let change =
            Change { slot: 0, kind: "note", key: key.into(), before: None, after: None, unknown: None };
        let entry = Entry { revision, epoch: 1, time: Timestamp(1), seed: 0, cause, changes: vec![change] };
        let entries = vec![(Arc::new(entry), encoder.end())];
        Batch { id: revision, epoch: 1, previous: revision - 1, entries }
    }

    /// While one append follows the other, and long before an append does all of it.
    #[test]
    fn a_long_log_begins_anew_beside_appends() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cell.db");
        let mut engine = Sqlite::open(&file).unwrap();
        engine.take("test", 0).unwrap().unwrap();
        // Its salt is another each time that it begins.
        let salt = || {
            let mut head = [0; 32];
            let mut log = std::fs::File::open(dir.path().join("cell.db-wal")).unwrap();
            std::io::Read::read_exact(&mut log, &mut head).unwrap();
            head[16..24].to_vec()
        };
        let mut revision = 0;
        let mut append = |size| {
            revision += 1;
            assert_eq!(engine.append(&batch(revision, size)), Append::Done);
        };
        append(10);
        let first = salt();
        (0..40).for_each(|_| append(500_000));
        let more = (0..5_000).position(|_| {
            append(10);
            salt() != first
        });
        assert!(more.is_some(), "SQLite's log only grows");
        let mut notes = 0;
        let head = Sqlite::open(&file).unwrap().images(&mut |_, _, _| {
            notes += 1;
            Ok(())
        });
        assert_eq!((head.unwrap().revision, notes), (revision, revision.min(100)));
    }
}
