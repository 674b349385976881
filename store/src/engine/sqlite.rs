//! SQLite in WAL mode with `synchronous=FULL`: the embedded engine, the processes of one machine.
//!
//! Tables: `meta` (format; the head; the lease row: epoch, counter, owner, free; the last batch), `image` (newest image
//! of each record), `log`. Beside the file stands `FILE-owner`, locked by the owner for as long as its process lives:
//! when it is free a candidate need not wait for the lease to end.

use super::checkpoint::Checkpoints;
use super::{Append, Batch, Each, Engine, Head, Logged, Tail};
use crate::lease::Sign;
use crate::log::Revision;
use base::{Error, Result, Timestamp};
use rusqlite::{Connection, OptionalExtension, ffi, params};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The format this version writes. A larger one in the file is of a newer version.
pub const FORMAT: i64 = 1;
/// The log is kept this long (microseconds).
const LOG_KEEP_MICROS: i64 = 3_600_000_000;
/// Old entries that an append takes out beyond twice those that it adds.
const TRIM_MORE: i64 = 64;
/// Pages of SQLite's own log that an append brings into the file itself; more of them where a thread does that.
const LOG_PAGES: i64 = 4_000;
const LOG_PAGES_BESIDE: i64 = 32_000;
/// Of the log, read at once.
const TAIL_BYTES_MAX: usize = 8 << 20;
/// A write waits this long for another process's, which is never longer than one batch.
const BUSY_MAX: Duration = Duration::from_millis(500);

pub struct Sqlite {
    db: Connection,
    synchronous: String,
    owner: Ownership,
    /// While this process owns a cell that others may look at.
    checkpoints: Option<Checkpoints>,
}

/// What stands for the owner's process.
enum Ownership {
    /// The connection has the file for itself.
    Sole,
    Lock {
        file: File,
        held: bool,
    },
}

impl Sqlite {
    /// Opens or makes the file. Several processes may; one of them owns the cell.
    ///
    /// Errors: `Conflict` when a newer version wrote it, or one that has it for itself.
    pub fn open(path: &Path) -> Result<Sqlite> {
        let lock = || -> std::io::Result<Ownership> {
            let mut beside = path.as_os_str().to_owned();
            beside.push("-owner");
            let options = File::options().create(true).append(true).mode(0o600).open(PathBuf::from(beside));
            Ok(Ownership::Lock { file: options?, held: false })
        };
        let opened = || {
            let db = Connection::open(path).map_err(sql)?;
            Sqlite::with(db, "NORMAL", "FULL", lock()?)
        };
        opened().map_err(|e| at(path, e))
    }

    /// Opens over a connection that the caller made and nobody shares, with SQLite's `synchronous` setting: for tests
    /// of durability.
    pub fn over(db: Connection, synchronous: &str) -> Result<Sqlite> {
        Sqlite::with(db, "EXCLUSIVE", synchronous, Ownership::Sole)
    }

    fn with(db: Connection, locking: &str, synchronous: &str, owner: Ownership) -> Result<Sqlite> {
        db.busy_timeout(BUSY_MAX).map_err(sql)?;
        db.execute_batch(&format!(
            "PRAGMA locking_mode={locking}; PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous};
             PRAGMA wal_autocheckpoint={LOG_PAGES}; PRAGMA cache_size=-32768;
             CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS image(kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
                                              PRIMARY KEY(kind, key)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS log(revision INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
                                            at INTEGER NOT NULL, body BLOB NOT NULL);"
        ))
        .map_err(sql)?;
        let mut engine = Sqlite { db, synchronous: synchronous.into(), owner, checkpoints: None };
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

    fn number(&self, name: &str) -> Result<u64> {
        Ok(self.meta(name)?.unwrap_or(0) as u64)
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
        if cfg!(feature = "break-fence") {
            tx.prepare_cached("DELETE FROM log WHERE revision>?1")?.execute([batch.previous as i64])?;
        } else if epoch == batch.epoch as i64 && head < batch.previous as i64 {
            return Ok(Append::Behind(head as Revision));
        }
        if !cfg!(feature = "break-fence") && (epoch, head) != (batch.epoch as i64, batch.previous as i64) {
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
    fn images(&mut self, each: Each) -> Result<Head> {
        self.read(|engine| {
            let mut query = engine.db.prepare("SELECT kind, key, body FROM image").map_err(sql)?;
            let mut rows = query.query([]).map_err(sql)?;
            while let Some(row) = rows.next().map_err(sql)? {
                let text = |n| row.get_ref(n).map_err(sql)?.as_str().map_err(|e| sql(e.into()));
                let body = row.get_ref(2).map_err(sql)?.as_blob().map_err(|e| sql(e.into()))?;
                each(text(0)?, text(1)?, body)?;
            }
            engine.head()
        })
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        let tx = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(sql)?;
        let epoch = tx.query_row("SELECT value FROM meta WHERE name='epoch'", [], |row| row.get::<_, i64>(0));
        if epoch.optional().map_err(sql)?.unwrap_or(0) as u64 != seen {
            return Ok(None);
        }
        let put = "INSERT INTO meta VALUES(?1,?2) ON CONFLICT(name) DO UPDATE SET value=?2";
        for (name, value) in [("epoch", seen as i64 + 1), ("counter", 0), ("free", 0)] {
            tx.execute(put, params![name, value]).map_err(sql)?;
        }
        tx.execute(put, params!["owner", owner]).map_err(sql)?;
        for name in ["revision", "time", "batch"] {
            tx.execute("INSERT INTO meta VALUES(?1,0) ON CONFLICT(name) DO NOTHING", [name]).map_err(sql)?;
        }
        tx.commit().map_err(sql)?;
        self.lock();
        self.start_checkpoints();
        Ok(Some(self.head()?))
    }

    fn append(&mut self, batch: &Batch) -> Append {
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.rest(&self.db);
        }
        self.write(batch).unwrap_or_else(|error| match error.sqlite_error() {
            // After a failed sync the kernel may call pages clean that the disk does not have: what is read back
            // proves nothing, so trying again does not either.
            Some(e) if [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_CORRUPT].contains(&e.extended_code) => {
                Append::Refused(format!("SQLite: {error}"))
            }
            Some(e) if e.code == ffi::ErrorCode::DiskFull => Append::NoRoom(format!("SQLite: {error}")),
            Some(_) | None => Append::Unknown(format!("SQLite: {error}")),
        })
    }

    /// Not synced: after a power cut nobody counts renewals.
    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        self.lock();
        self.db.execute_batch("PRAGMA synchronous=NORMAL").map_err(sql)?;
        let renewed = self.db.execute(
            "UPDATE meta SET value=?2 WHERE name='counter' AND (SELECT value FROM meta WHERE name='epoch')=?1",
            params![epoch as i64, counter as i64],
        );
        self.db.pragma_update(None, "synchronous", &self.synchronous).map_err(sql)?;
        let mine = renewed.map_err(sql)? == 1;
        Ok(mine || cfg!(feature = "break-fence"))
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        let released = self.db.execute(
            "UPDATE meta SET value=1 WHERE name='free' AND (SELECT value FROM meta WHERE name='epoch')=?1",
            [epoch as i64],
        );
        self.unlock();
        // Whoever takes the cell need not wait for a look at the log that goes on.
        if let Some(checkpoints) = self.checkpoints.take() {
            checkpoints.end();
        }
        Ok(released.map_err(sql)? == 1)
    }

    fn sign(&mut self) -> Result<Sign> {
        self.read(|engine| {
            let owner =
                engine.db.query_row("SELECT value FROM meta WHERE name='owner'", [], |row| row.get(0));
            Ok(Sign {
                epoch: engine.number("epoch")?,
                counter: engine.number("counter")?,
                revision: engine.number("revision")?,
                owner: owner.optional().map_err(sql)?.unwrap_or_default(),
                free: engine.number("free")? == 1,
            })
        })
    }

    /// The lock that tells so is kept, for the `take` that follows.
    fn abandoned(&mut self) -> bool {
        self.lock()
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        self.read(|engine| {
            if after >= engine.number("revision")? {
                return Ok(Tail::Entries(Vec::new()));
            }
            let text = "SELECT revision, epoch, body FROM log WHERE revision>?1 ORDER BY revision LIMIT ?2";
            let mut query = engine.db.prepare_cached(text).map_err(sql)?;
            let rows = query.query_map(params![after as i64, limit as i64], |row| {
                let (revision, epoch): (i64, i64) = (row.get(0)?, row.get(1)?);
                Ok(Logged { revision: revision as u64, epoch: epoch as u64, body: row.get(2)? })
            });
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for entry in rows.map_err(sql)? {
                let entry = entry.map_err(sql)?;
                bytes += entry.body.len();
                entries.push(entry);
                if bytes >= TAIL_BYTES_MAX {
                    break;
                }
            }
            match entries.first() {
                Some(first) if first.revision == after + 1 => Ok(Tail::Entries(entries)),
                Some(_) | None => Ok(Tail::Trimmed),
            }
        })
    }

    fn close(&mut self) {
        self.checkpoints = None;
        let _ = self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);");
        self.unlock();
    }
}

impl Sqlite {
    /// Where there is no thread for it, appends do it as they did.
    fn start_checkpoints(&mut self) {
        if self.checkpoints.is_some() || matches!(self.owner, Ownership::Sole) {
            return;
        }
        let Some(file) = self.db.path().map(PathBuf::from) else { return };
        let started = Checkpoints::start(&file).and_then(|started| {
            self.db.pragma_update(None, "wal_autocheckpoint", LOG_PAGES_BESIDE)?;
            Ok(started)
        });
        match started {
            Ok(started) => self.checkpoints = Some(started),
            Err(error) => {
                tracing::warn!("no thread for the checkpoints of SQLite: {error}");
                // As it was before, unless this fails, too.
                let _ = self.db.pragma_update(None, "wal_autocheckpoint", LOG_PAGES);
            }
        }
    }

    /// Runs `f` on one state of the file.
    fn read<T>(&mut self, f: impl FnOnce(&mut Sqlite) -> Result<T>) -> Result<T> {
        self.db.execute_batch("BEGIN").map_err(sql)?;
        let value = f(self);
        let ended = self.db.execute_batch("COMMIT").map_err(sql);
        value.and_then(|value| ended.map(|()| value))
    }

    fn head(&self) -> Result<Head> {
        let time = Timestamp(self.meta("time")?.unwrap_or(0));
        Ok(Head { epoch: self.number("epoch")?, revision: self.number("revision")?, time })
    }

    /// Whether this process has the owner's lock now.
    fn lock(&mut self) -> bool {
        match &mut self.owner {
            Ownership::Sole => true,
            Ownership::Lock { held: true, .. } => true,
            Ownership::Lock { file, held } => {
                *held = flock(&*file, FlockOperation::NonBlockingLockExclusive).is_ok();
                *held
            }
        }
    }

    fn unlock(&mut self) {
        if let Ownership::Lock { file, held } = &mut self.owner {
            // The kernel lets go of it anyway when the file is closed.
            *held = flock(&*file, FlockOperation::Unlock).is_err() && *held;
        }
    }
}

fn sql(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            Error::conflict("is in use by another process").because(error)
        }
        _ => Error::internal("SQLite failed").because(error),
    }
}

fn at(path: &Path, error: Error) -> Error {
    Error::new(error.kind(), format!("The state file {} {}.", path.display(), error.message())).because(error)
}
