//! PostgreSQL 15 or newer: the processes of several machines, and what the database itself does to stay up.
//!
//! Tables: `lane` (one row: format, the head, the last batch, the lease), `image` (newest image of each record; no body
//! where it was deleted), `log`. One cell per database or schema: `postgres://USER@HOST:PORT/DB`, libpq's parameters
//! (`options=-csearch_path%3DNAME` for a schema); several hosts are tried in turn for the one that takes writes.
//!
//! An append is one statement that writes nothing unless the row of `lane` stands where the batch expects it. So no
//! lock is ever held across a round trip: an owner that is stopped anywhere stops nobody else. A connection that fails
//! or is late is dropped and made anew by the next call; a statement that it leaves behind meets the same guard.
//!
//! The SQL is what CockroachDB and YugabyteDB understand too: no NOTIFY, extensions, sequences, or clock of the server.
//! Deliberately absent: TLS (use a local socket, a private network or a proxy on the machine).

mod session;
mod sql;

use super::wire::{self, CALL_MAX, CONNECT_MAX, LOAD_MAX};
use super::{Append, Batch, Each, Engine, Head, Limits, Logged, Tail};
use crate::lease::Sign;
use crate::log::Revision;
use base::{Error, Result, Timestamp};
use session::{Failed, Session};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Config, Row};

/// The format this version writes. A larger one in the database is of a newer version.
pub const FORMAT: i64 = 1;
/// The log is kept this long (microseconds).
const LOG_KEEP_MICROS: i64 = 3_600_000_000;
/// Old entries and deleted records are taken out once there are this many more; twice as many at most.
const TIDY_EVERY: usize = 256;
/// Callers wait for it: it is given up for this time when it takes longer.
const TIDY_MAX: Duration = Duration::from_millis(200);
/// The limit of a call is doubled after one that was late, so often at most: the lease is over by then.
const LATE_DOUBLED_MAX: u32 = 2;
/// Deleted records that are remembered to be taken out; more are found at the next start.
const GONE_MAX: usize = 100_000;
/// Entries that are read at once: what comes within a call.
const TAIL_BYTES: i64 = 8 << 20;
/// Encoded size of a batch: what a slow disk still writes within a call.
const BATCH_BYTES_MAX: usize = 4 << 20;

pub struct Postgres {
    io: Handle,
    config: Config,
    /// For messages: hosts and database, and nothing else of the URL.
    name: String,
    session: Option<Session>,
    /// Of the row when it was taken: an attempt that was given up and comes late does not meet it again.
    fence: i64,
    /// Calls since the last that was answered.
    late: u32,
    /// The batch whose last attempt ended as nobody knows.
    unknown: Option<u64>,
    /// Entries since it was last tidied.
    added: usize,
    /// Deleted records whose rows still stand.
    gone: Vec<(String, Vec<u8>)>,
}

impl Postgres {
    /// Connects, and makes the tables where there are none.
    ///
    /// Errors: `Invalid` for a URL that cannot be read; `Conflict` when a newer version wrote the tables; `Unavailable`.
    pub fn open(url: &str) -> Result<Postgres> {
        // What the library says of it is not passed on: it may quote the URL, and with it the password.
        let mut config: Config = url.parse().map_err(|_| {
            Error::invalid("The PostgreSQL URL cannot be read: it is postgres://USER@HOST:PORT/DATABASE.")
        })?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(Error::invalid("TLS to PostgreSQL is not built in: use a local socket or a proxy."));
        }
        if config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_application_name().is_none() {
            config.application_name("shisa");
        }
        config.connect_timeout(CONNECT_MAX / config.get_hosts().len().max(1) as u32);
        let (io, name) = (wire::io()?, name(&config));
        let (session, late, unknown) = (None, 0, None);
        let mut engine =
            Postgres { io, config, name, session, fence: 0, late, unknown, added: 0, gone: Vec::new() };
        engine.prepare_tables()?;
        Ok(engine)
    }

    fn prepare_tables(&mut self) -> Result<()> {
        let format = async |s: &mut Session| s.one(sql::FORMAT, &[]).await;
        let row = match self.call_within(LOAD_MAX, format) {
            Err(failed) if failed.no_table() => {
                // Two processes may be here at once; the second finds the tables of the first.
                let made = self.call_within(LOAD_MAX, async |s| s.run_all(sql::TABLES).await);
                match made {
                    Err(failed) if !failed.is_there() => return Err(self.told(failed)),
                    Ok(()) | Err(_) => {
                        self.call_within(LOAD_MAX, async |s| s.run(sql::FIRST, &[&FORMAT]).await)
                    }
                }
                .map_err(|failed| self.told(failed))?;
                for tune in sql::TUNE {
                    // Databases that only speak like PostgreSQL have no such settings, and no need of them.
                    let _ = self.call_within(LOAD_MAX, async |s| s.run_all(tune).await);
                }
                self.call_within(LOAD_MAX, format)
            }
            other => other,
        };
        let row = row.map_err(|failed| self.told(failed))?;
        match row.map_or(0, |row| row.get::<_, i64>(0)) {
            found if found > FORMAT => Err(Error::conflict(format!(
                "{} was written by a newer version (format {found}, this one reads {FORMAT}); start that version.",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    fn call<T>(
        &mut self,
        f: impl AsyncFnOnce(&mut Session) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failed> {
        self.call_within(CALL_MAX, f)
    }

    /// One exchange with the server, over a new connection where there is none.
    fn call_within<T>(
        &mut self,
        max: Duration,
        f: impl AsyncFnOnce(&mut Session) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failed> {
        // A new connection costs time, too: on a machine that is too busy, the same patience would never be enough.
        let max = max * (1 << self.late.min(LATE_DOUBLED_MAX));
        let value = self.exchange(max, f);
        self.late = if matches!(value, Err(Failed::Late)) { self.late + 1 } else { 0 };
        value
    }

    fn exchange<T>(
        &mut self,
        max: Duration,
        f: impl AsyncFnOnce(&mut Session) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failed> {
        let until = Instant::now() + max;
        let connect = Session::connect(&self.config);
        let mut session = match self.session.take().filter(Session::is_open) {
            Some(session) => session,
            None => wire::wait(&self.io, max / 2, connect).ok_or(Failed::Late)??,
        };
        let left = until.saturating_duration_since(Instant::now());
        let value = wire::wait(&self.io, left, f(&mut session)).ok_or(Failed::Late)?;
        let failed = value.as_ref().err();
        // A failed connection is never used again: what else it would answer belongs to a call that is over.
        if failed.is_none_or(session::keeps_connection) {
            self.session = Some(session);
        }
        Ok(value?)
    }

    fn told(&self, failed: Failed) -> Error {
        match failed {
            Failed::Late => wire::late(&self.name),
            Failed::Server(error) => Error::unavailable(format!("{} failed.", self.name)).because(error),
        }
    }

    /// In a transaction of the session, which is of no use to anybody else until it has ended.
    fn load(&mut self, each: Each) -> Result<Head> {
        self.gone.clear();
        let head = self.call(async |s| {
            s.run_all(sql::BEGIN).await?;
            s.one(sql::HEAD, &[]).await
        });
        let head = head.map_err(|failed| self.told(failed))?.map(|row| head_of(&row)).unwrap_or_default();
        let rows = self.call_within(LOAD_MAX, async |s| s.rows(sql::IMAGES, &[]).await);
        let mut rows = Box::pin(rows.map_err(|failed| self.told(failed))?);
        loop {
            let next = futures_util::StreamExt::next(&mut rows);
            let next = wire::wait(&self.io, LOAD_MAX, next).ok_or_else(|| wire::late(&self.name))?;
            let Some(row) = next else { break };
            let row = row.map_err(|error| self.told(Failed::Server(error)))?;
            let (kind, key): (&str, &[u8]) = (row.get(0), row.get(1));
            match row.get::<_, Option<&[u8]>>(2) {
                Some(body) => each(kind, &String::from_utf8_lossy(key), body)?,
                None if self.gone.len() < GONE_MAX => self.gone.push((kind.into(), key.into())),
                None => {}
            }
        }
        self.call(async |s| s.run_all("COMMIT").await).map_err(|failed| self.told(failed))?;
        Ok(head)
    }

    fn write(&mut self, batch: &Batch) -> Result<Append, Failed> {
        let rows = Rows::of(batch);
        let (epoch, previous, last) = (batch.epoch as i64, batch.previous as i64, batch.last() as i64);
        let (id, fence, time) = (batch.id as i64, self.fence, batch.time().0);
        let written = self.call(async |s| {
            let guard: [session::Param; 6] = [&epoch, &previous, &fence, &last, &time, &id];
            let log: [session::Param; 3] = [&rows.revisions, &rows.times, &rows.bodies];
            let images: [session::Param; 3] = [&rows.kinds, &rows.keys, &rows.images];
            s.one(sql::APPEND, &[&guard[..], &log, &images].concat()).await
        })?;
        if written.is_some_and(|row| row.get::<_, i64>(0) == 1) {
            let gone =
                rows.kinds.iter().zip(&rows.keys).zip(&rows.images).filter(|(_, image)| image.is_none());
            let room = GONE_MAX.saturating_sub(self.gone.len());
            self.gone.extend(gone.take(room).map(|((kind, key), _)| (kind.to_string(), key.to_vec())));
            self.added += batch.entries.len();
            return Ok(Append::Done);
        }
        self.look(batch)
    }

    /// Why the guard let nothing through.
    fn look(&mut self, batch: &Batch) -> Result<Append, Failed> {
        let row = self.call(async |s| s.one(sql::HEAD, &[]).await)?;
        let Some(row) = row else {
            return Ok(Append::Refused(format!("{} has no lane any more", self.name)));
        };
        let (epoch, head, last): (i64, i64, i64) = (row.get(0), row.get(1), row.get(3));
        let expected = (batch.epoch as i64, batch.last() as i64, batch.id as i64);
        Ok(if (epoch, head, last) == expected {
            Append::Done
        } else if (epoch, head) == (batch.epoch as i64, batch.previous as i64) {
            // Our own fence, of which nobody knew how it had ended.
            self.fence = row.get(4);
            Append::Unknown("it is fenced off from attempts before".into())
        } else if epoch < batch.epoch as i64 || epoch == batch.epoch as i64 && head < batch.previous as i64 {
            // A standby that became the primary without what it had not been sent.
            Append::Behind(head as Revision)
        } else {
            Append::Refused(format!(
                "{} is at epoch {epoch} revision {head}, the batch expects {} and {}",
                self.name, batch.epoch, batch.previous
            ))
        })
    }

    /// There was no room for an attempt. An earlier one of the same batch may still be under way.
    fn no_room(&mut self, batch: &Batch, why: String) -> Append {
        if self.unknown != Some(batch.id) {
            return Append::NoRoom(why);
        }
        let (epoch, previous, fence) = (batch.epoch as i64, batch.previous as i64, self.fence);
        let fenced = self.call(async |s| s.run(sql::FENCE, &[&epoch, &previous, &fence]).await);
        match fenced {
            Ok(1) => {
                self.fence += 1;
                Append::NoRoom(why)
            }
            // The earlier one was first, or the fence itself has an unknown outcome.
            Ok(_) => self.look(batch).unwrap_or(Append::Unknown(why)),
            Err(_) => Append::Unknown(why),
        }
    }

    fn failed(&mut self, batch: &Batch, failed: Failed) -> Append {
        let why = self.told_in_append(&failed);
        match failed {
            Failed::Server(error) if session::no_room(&error) => self.no_room(batch, why),
            Failed::Server(error) if session::cannot_go_on(&error) => Append::Refused(why),
            Failed::Server(_) | Failed::Late => Append::Unknown(why),
        }
    }

    fn told_in_append(&self, failed: &Failed) -> String {
        match failed {
            Failed::Late => wire::late(&self.name).message().into(),
            Failed::Server(error) => format!("{}: {}", self.name, session::chain(error)),
        }
    }

    /// Takes out some of what is no longer needed; safe at any time, whoever owns the cell.
    fn tidy(&mut self, time: Timestamp) {
        self.added = 0;
        let chunk = 2 * TIDY_EVERY as i64;
        let gone: Vec<_> = self.gone.drain(..self.gone.len().min(2 * TIDY_EVERY)).collect();
        let (kinds, keys): (Vec<_>, Vec<_>) = gone.into_iter().unzip();
        let old = time.0 - LOG_KEEP_MICROS;
        let tidied = self.call_within(TIDY_MAX, async |s| {
            if !keys.is_empty() {
                s.run(sql::SWEEP, &[&kinds, &keys]).await?;
            }
            s.run(sql::TRIM, &[&chunk, &old]).await
        });
        if let Err(failed) = tidied {
            tracing::warn!("the log was not trimmed: {}", self.told(failed).chain());
        }
    }
}

/// A batch as columns: its entries, and the newest image of each record that they change.
struct Rows<'a> {
    revisions: Vec<i64>,
    times: Vec<i64>,
    bodies: Vec<&'a [u8]>,
    kinds: Vec<&'a str>,
    keys: Vec<&'a [u8]>,
    images: Vec<Option<&'a [u8]>>,
}

impl<'a> Rows<'a> {
    fn of(batch: &'a Batch) -> Rows<'a> {
        let mut newest = HashMap::new();
        for (entry, encoded) in &batch.entries {
            for (change, image) in entry.changes.iter().zip(encoded.images()) {
                newest.insert((change.kind, change.key.as_bytes()), image);
            }
        }
        let mut newest: Vec<_> = newest.into_iter().collect();
        // Neighbours share pages.
        newest.sort_unstable_by_key(|(key, _)| *key);
        let entries = || batch.entries.iter();
        Rows {
            revisions: entries().map(|(entry, _)| entry.revision as i64).collect(),
            times: entries().map(|(entry, _)| entry.time.0).collect(),
            bodies: entries().map(|(_, encoded)| &*encoded.body).collect(),
            kinds: newest.iter().map(|((kind, _), _)| *kind).collect(),
            keys: newest.iter().map(|((_, key), _)| *key).collect(),
            images: newest.iter().map(|(_, image)| *image).collect(),
        }
    }
}

impl Engine for Postgres {
    fn images(&mut self, each: Each) -> Result<Head> {
        let head = self.load(each);
        if head.is_err() {
            self.session = None;
        }
        head
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        let seen = seen as i64;
        let row = self.call(async |s| s.one(sql::TAKE, &[&seen, &owner]).await);
        let Some(row) = row.map_err(|failed| self.told(failed))? else { return Ok(None) };
        self.fence = row.get(4);
        self.unknown = None;
        Ok(Some(head_of(&row)))
    }

    fn append(&mut self, batch: &Batch) -> Append {
        let ended = self.write(batch).unwrap_or_else(|failed| self.failed(batch, failed));
        self.unknown = matches!(ended, Append::Unknown(_)).then_some(batch.id);
        if ended == Append::Done && self.added.max(self.gone.len()) >= TIDY_EVERY {
            self.tidy(batch.time());
        }
        ended
    }

    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        let (epoch, counter) = (epoch as i64, counter as i64);
        let renewed = self.call(async |s| s.run(sql::RENEW, &[&epoch, &counter]).await);
        Ok(renewed.map_err(|failed| self.told(failed))? == 1)
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        let epoch = epoch as i64;
        let released = self.call(async |s| s.run(sql::RELEASE, &[&epoch]).await);
        Ok(released.map_err(|failed| self.told(failed))? == 1)
    }

    fn sign(&mut self) -> Result<Sign> {
        let row = self.call(async |s| s.one(sql::SIGN, &[]).await).map_err(|failed| self.told(failed))?;
        Ok(row.map_or(Sign::default(), |row| Sign {
            epoch: number(&row, 0),
            counter: number(&row, 1),
            revision: number(&row, 2),
            owner: row.get(3),
            free: number(&row, 4) == 1,
        }))
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        let (from, limit) = (after as i64, limit as i64);
        let rows = self.call(async |s| s.all(sql::TAIL, &[&from, &limit, &TAIL_BYTES]).await);
        let rows = rows.map_err(|failed| self.told(failed))?;
        if rows.first().is_none_or(|row| number(row, 0) <= after) {
            return Ok(Tail::Entries(Vec::new()));
        }
        let entry = |row: &Row| {
            let body: Option<Vec<u8>> = row.get(3);
            let (revision, epoch): (Option<i64>, Option<i64>) = (row.get(1), row.get(2));
            Some(Logged { revision: revision? as u64, epoch: epoch? as u64, body: body? })
        };
        let entries: Vec<Logged> = rows.iter().filter_map(entry).collect();
        Ok(match entries.first() {
            Some(first) if first.revision == after + 1 => Tail::Entries(entries),
            Some(_) | None => Tail::Trimmed,
        })
    }

    fn limits(&self) -> Limits {
        Limits { batch_entries: crate::BATCH_MAX, batch_bytes: BATCH_BYTES_MAX }
    }

    fn close(&mut self) {
        self.session = None;
    }
}

fn number(row: &Row, column: usize) -> u64 {
    row.get::<_, i64>(column) as u64
}

/// Of a row that begins with epoch, revision and time.
fn head_of(row: &Row) -> Head {
    Head { epoch: number(row, 0), revision: number(row, 1), time: Timestamp(row.get(2)) }
}

fn name(config: &Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(host) => host.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("PostgreSQL {}/{database}", hosts.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_quotes_a_password() {
        let config: Config = "postgres://shisa:hush@db1:5433,db2:5434/cloud".parse().unwrap();
        assert_eq!(name(&config), "PostgreSQL db1,db2/cloud");
        for url in ["postgres://shisa:hush@[/cloud", "postgres://shisa:hush@db/cloud?sslmode=require"] {
            let error = Postgres::open(url).err().unwrap();
            assert!(!error.chain().contains("hush"), "{}", error.chain());
        }
    }
}
