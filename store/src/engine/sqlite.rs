//! SQLite in WAL mode with `synchronous=FULL`: the embedded engine, one process on one machine.
//!
//! Tables: `meta` (format; the head; the lease row: epoch and counter; the last batch), `image` (newest image of each
//! record), `log`. The process that has the file open holds it exclusively, and a second one is told so in a sentence:
//! so nobody takes over while it lives, and its lease needs no clock.

use super::{Append, Batch, Engine, Head};
use crate::lease::Sign;
use crate::log::{Revision, Written};
use base::{Error, Result, Timestamp};
use rusqlite::{Connection, OptionalExtension, ffi, params};
use std::path::Path;
use std::time::Duration;

/// The format this version writes. A larger one in the file is of a newer version.
pub const FORMAT: i64 = 1;
/// The log is kept this long (microseconds).
const LOG_KEEP_MICROS: i64 = 3_600_000_000;
/// Old entries that an append takes out beyond twice those that it adds.
const TRIM_MORE: i64 = 64;

pub struct Sqlite {
    db: Connection,
    synchronous: String,
}

impl Sqlite {
    /// Opens or makes the file.
    ///
    /// Errors: `Conflict` when another process has it open or a newer version wrote it.
    pub fn open(path: &Path) -> Result<Sqlite> {
        Sqlite::over(Connection::open(path).map_err(|e| named(path, e))?, "FULL").map_err(|e| at(path, e))
    }

    /// Opens over a connection that the caller made, with SQLite's `synchronous` setting: for tests of durability.
    pub fn over(db: Connection, synchronous: &str) -> Result<Sqlite> {
        db.busy_timeout(Duration::from_millis(500)).map_err(sql)?;
        db.execute_batch(&format!(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous};
             PRAGMA wal_autocheckpoint=4000; PRAGMA cache_size=-32768;
             CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS image(kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
                                              PRIMARY KEY(kind, key)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS log(revision INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
                                            at INTEGER NOT NULL, body BLOB NOT NULL);"
        ))
        .map_err(sql)?;
        let mut engine = Sqlite { db, synchronous: synchronous.into() };
        match engine.meta("format")? {
            None => engine.set_meta("format", FORMAT)?,
            Some(format) if format > FORMAT => {
                return Err(Error::conflict(format!(
                    "was written by a newer version (format {format}, this one reads {FORMAT}); start that version"
                )));
            }
            Some(_) => {}
        }
        Ok(engine)
    }

    fn meta(&self, name: &str) -> Result<Option<i64>> {
        let mut query = self.db.prepare_cached("SELECT value FROM meta WHERE name=?1").map_err(sql)?;
        query.query_row([name], |row| row.get(0)).optional().map_err(sql)
    }

    fn set_meta(&mut self, name: &str, value: i64) -> Result<()> {
        self.db
            .execute(
                "INSERT INTO meta VALUES(?1,?2) ON CONFLICT(name) DO UPDATE SET value=?2",
                params![name, value],
            )
            .map_err(sql)?;
        Ok(())
    }

    fn write(&mut self, batch: &Batch) -> rusqlite::Result<Append> {
        let tx = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let get = |name: &str| {
            let mut query = tx.prepare_cached("SELECT value FROM meta WHERE name=?1")?;
            query.query_row([name], |row| row.get::<_, i64>(0))
        };
        let (epoch, head, last) = (get("epoch")?, get("revision")?, get("batch")?);
        if epoch == batch.epoch as i64 && head == batch.last() as i64 && last == batch.id as i64 {
            return Ok(Append::Done);
        }
        if epoch == batch.epoch as i64 && head < batch.previous as i64 {
            return Ok(Append::Behind(head as Revision));
        }
        if (epoch, head) != (batch.epoch as i64, batch.previous as i64) {
            return Ok(Append::Refused(format!(
                "it is at epoch {epoch} revision {head}, the batch expects {} and {}",
                batch.epoch, batch.previous
            )));
        }
        let mut time = 0;
        {
            let mut log = tx.prepare_cached("INSERT INTO log VALUES(?1,?2,?3,?4)")?;
            let mut put = tx.prepare_cached(
                "INSERT INTO image VALUES(?1,?2,?3) ON CONFLICT(kind,key) DO UPDATE SET body=?3",
            )?;
            let mut delete = tx.prepare_cached("DELETE FROM image WHERE kind=?1 AND key=?2")?;
            for (entry, encoded) in &batch.entries {
                time = entry.time.0;
                log.execute(params![entry.revision as i64, batch.epoch as i64, time, encoded.body])?;
                for (change, image) in entry.changes.iter().zip(encoded.images()) {
                    match image {
                        Some(image) => put.execute(params![change.kind, change.key, image])?,
                        None => delete.execute(params![change.kind, change.key])?,
                    };
                }
            }
            let mut set = tx.prepare_cached("UPDATE meta SET value=?2 WHERE name=?1")?;
            set.execute(params!["revision", batch.last() as i64])?;
            set.execute(params!["time", time])?;
            set.execute(params!["batch", batch.id as i64])?;
            // Never a scan of the whole log: it is as long as an hour, and every caller waits for this.
            let oldest = tx
                .prepare_cached("SELECT revision, at FROM log ORDER BY revision LIMIT 1")?
                .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
            if oldest.1 < time - LOG_KEEP_MICROS {
                let until = oldest.0 + 2 * batch.entries.len() as i64 + TRIM_MORE;
                tx.prepare_cached("DELETE FROM log WHERE revision<?1 AND at<?2")?
                    .execute([until, time - LOG_KEEP_MICROS])?;
            }
        }
        tx.commit()?;
        Ok(Append::Done)
    }
}

impl Engine for Sqlite {
    fn load(&mut self, each: &mut dyn FnMut(&str, &[u8]) -> Result<()>) -> Result<Head> {
        let epoch = self.meta("epoch")?.unwrap_or(0) + 1;
        let revision = self.meta("revision")?.unwrap_or(0);
        let time = self.meta("time")?.unwrap_or(0);
        let batch = self.meta("batch")?.unwrap_or(0);
        let head =
            [("epoch", epoch), ("counter", 0), ("revision", revision), ("time", time), ("batch", batch)];
        for (name, value) in head {
            self.set_meta(name, value)?;
        }
        let mut query = self.db.prepare("SELECT kind, body FROM image").map_err(sql)?;
        let mut rows = query.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let kind = row.get_ref(0).map_err(sql)?.as_str().map_err(|e| sql(e.into()))?;
            let body = row.get_ref(1).map_err(sql)?.as_blob().map_err(|e| sql(e.into()))?;
            each(kind, body)?;
        }
        Ok(Head { epoch: epoch as u64, revision: revision as u64, time: Timestamp(time) })
    }

    fn append(&mut self, batch: &Batch) -> Append {
        self.write(batch).unwrap_or_else(|error| match error.sqlite_error() {
            // After a failed sync the kernel may call pages clean that the disk does not have: what is read back
            // proves nothing, so trying again does not either.
            Some(e) if [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_CORRUPT].contains(&e.extended_code) => {
                Append::Refused(format!("SQLite: {error}"))
            }
            Some(_) | None => Append::Unknown(format!("SQLite: {error}")),
        })
    }

    /// Not synced: after a power cut nobody counts renewals.
    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        self.db.execute_batch("PRAGMA synchronous=NORMAL").map_err(sql)?;
        let renewed = self.db.execute(
            "UPDATE meta SET value=?2 WHERE name='counter' AND (SELECT value FROM meta WHERE name='epoch')=?1",
            params![epoch as i64, counter as i64],
        );
        self.db.pragma_update(None, "synchronous", &self.synchronous).map_err(sql)?;
        Ok(renewed.map_err(sql)? == 1)
    }

    fn sign(&mut self) -> Result<Sign> {
        let get = |name| Ok::<_, Error>(self.meta(name)?.unwrap_or(0) as u64);
        Ok(Sign { epoch: get("epoch")?, counter: get("counter")?, revision: get("revision")? })
    }

    fn alone(&self) -> bool {
        true
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Vec<(Revision, Vec<u8>)>> {
        let mut query = self
            .db
            .prepare_cached("SELECT revision, body FROM log WHERE revision>?1 ORDER BY revision LIMIT ?2")
            .map_err(sql)?;
        let rows = query.query_map(params![after as i64, limit as i64], |row| {
            Ok((row.get::<_, i64>(0)? as Revision, row.get(1)?))
        });
        rows.map_err(sql)?.collect::<rusqlite::Result<_>>().map_err(sql)
    }

    fn close(&mut self) {
        let _ = self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);");
    }
}

/// Reads an encoded entry of the log.
pub fn read_entry(body: &[u8]) -> Result<Written> {
    serde_json::from_slice(body).map_err(|e| Error::internal("a log entry cannot be read").because(e))
}

fn sql(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            Error::conflict("is in use by another process").because(error)
        }
        _ => Error::internal("SQLite failed").because(error),
    }
}

fn named(path: &Path, error: rusqlite::Error) -> Error {
    at(path, sql(error))
}

fn at(path: &Path, error: Error) -> Error {
    Error::new(error.kind(), format!("The state file {} {}.", path.display(), error.message())).because(error)
}
