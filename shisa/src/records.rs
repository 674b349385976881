//! `shisa store ...`: the records of a cloud as a whole: copied, saved, brought back, looked through.
//!
//! A backup is a store of its own, `sqlite:FILE`, as of one revision; the cloud may be up meanwhile. Secrets in it are
//! sealed with the cell's key, which is kept elsewhere (`cell.key` of the state directory).
//!
//! What is written has a later epoch than whatever was there, so that nodes take what it says for newer.

use crate::cli::Store as Words;
use crate::plane::services;
use crate::progress::{Progress, say};
use crate::state::Directory;
use base::{Error, Result, Timestamp};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use store::copy::{Row, fill};
use store::engine::{self, Tail};
use store::lease::LEASE_MS;
use store::{Digest, Engine, Form};

/// Rows on their way from one store to another.
const ROWS_MAX: usize = 1_000;
/// A line of progress after so many.
const TELL_EVERY: u64 = 20_000;
/// Entries that are looked through at once.
const ENTRIES_MAX: usize = 500;
const LOOK_EVERY: Duration = Duration::from_millis(50);

type Digests = BTreeMap<String, Digest>;

pub fn run(directory: &Directory, words: &Words, begin: Instant) -> Result<()> {
    let progress = Progress::since(begin);
    match words {
        Words::Copy { from, to } => {
            there(from)?;
            idle(from)?;
            empty(to, "name an empty store")?;
            copy(from, to, &progress)?;
            say(format_args!("`shisa up --store {}` goes on from it", engine::shown(to)));
        }
        Words::Backup { file } => {
            if file.exists() {
                return Err(Error::conflict(format!(
                    "{} is there already; name another file",
                    file.display()
                )));
            }
            copy(&directory.need_store()?, &url_of(file), &progress)?;
            let key = directory.key();
            say(format_args!("its secrets are sealed with {}: keep a copy of that elsewhere", key.display()));
        }
        Words::Restore { file, replace } => {
            there(&url_of(file))?;
            let to = directory.need_store()?;
            if let Some(running) = directory.running() {
                let pid = running.process.pid;
                return Err(Error::conflict(format!(
                    "the cloud is up (process {pid}): `shisa down` stops it"
                )));
            }
            idle(&to)?;
            if !replace {
                empty(&to, "`--replace` overwrites them")?;
            }
            copy(&url_of(file), &to, &progress)?;
        }
        Words::Verify { store } => verify(directory, &store_of(directory, store)?, &progress)?,
        Words::Log { store, last, after } => log(&store_of(directory, store)?, *last, *after)?,
    }
    Ok(())
}

fn url_of(file: &Path) -> String {
    format!("sqlite:{}", file.display())
}

fn store_of(directory: &Directory, said: &Option<String>) -> Result<String> {
    let url = said.clone().map_or_else(|| directory.need_store(), Ok)?;
    there(&url)?;
    Ok(url)
}

/// A file is not made where one is to be read.
///
/// Errors: `NotFound`.
fn there(url: &str) -> Result<()> {
    match url.strip_prefix("sqlite:").map(Path::new) {
        Some(file) if !file.exists() => Err(Error::not_found(format!("there is no {}", file.display()))),
        Some(_) | None => Ok(()),
    }
}

/// Errors: `Conflict` when a process owns the store and lives.
fn idle(url: &str) -> Result<()> {
    let mut engine = engine::open(url)?;
    let first = engine.sign()?;
    if first.epoch == 0 || first.free || engine.abandoned() {
        return Ok(());
    }
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(LEASE_MS) {
        std::thread::sleep(LOOK_EVERY);
        if engine.sign()? != first {
            let (owner, shown) = (first.owner, engine::shown(url));
            return Err(Error::conflict(format!("{shown} is in use by {owner}: stop that cloud first")));
        }
    }
    Ok(())
}

/// Errors: `Conflict`, with what else to do, when there are records.
fn empty(url: &str, advice: &str) -> Result<()> {
    let revision = engine::open(url)?.sign()?.revision;
    match revision {
        0 => Ok(()),
        _ => Err(Error::conflict(format!(
            "{} has records (revision {revision}); {advice}",
            engine::shown(url)
        ))),
    }
}

/// Copies as of one revision, and compares what arrived; says what it does.
fn copy(from: &str, to: &str, progress: &Progress) -> Result<()> {
    let same = |_: &str, body: &[u8]| Ok(body.to_vec());
    copied(from, to, same, &mut |about, text| progress.step(about, text)).map(drop)
}

/// How many records a store has; `see` is shown each, with its kind.
pub fn count(url: &str, see: &mut dyn FnMut(&str, &[u8])) -> Result<u64> {
    let mut count = 0;
    engine::open(url)?.images(&mut |kind, _, body| {
        count += 1;
        see(kind, body);
        Ok(())
    })?;
    Ok(count)
}

/// Copies as of one revision, each record as `alter` makes it of its kind and body, and compares what arrived; the
/// number of records. `tell` hears how far it is.
pub fn copied(
    from: &str,
    to: &str,
    alter: impl Fn(&str, &[u8]) -> Result<Vec<u8>> + Send + 'static,
    tell: &mut dyn FnMut(&str, String),
) -> Result<u64> {
    let mut target = engine::open(to)?;
    let after = engine::open(from)?.sign()?.epoch;
    let (rows, read) = mpsc::sync_channel(ROWS_MAX);
    let source = from.to_string();
    let reader = std::thread::spawn(move || {
        let mut sent = Digests::new();
        let head = engine::open(&source)?.images(&mut |kind, key, body| {
            let body = alter(kind, body)?;
            sent.entry(kind.into()).or_default().add(key, &body);
            let row = Row { kind: kind.into(), key: key.into(), body };
            rows.send(row).map_err(|e| Error::unavailable("the other store takes no more").because(e))
        })?;
        Ok::<_, Error>((head, sent))
    });
    let mut count = 0;
    let mut told = read.into_iter().inspect(|_| {
        count += 1;
        if count % TELL_EVERY == 0 {
            tell("copy", format!("{count} records"));
        }
    });
    let filled = fill(target.as_mut(), "shisa store", after, &mut told);
    // Ends a reader that nobody listens to any more.
    drop(told);
    let source = reader.join().map_err(|_| Error::internal("the reader of the store panicked"))?;
    let head = filled?;
    let (source, sent) = source?;
    tell("copy", format!("{count} records as of revision {}", source.revision));
    let arrived = digests(target.as_mut())?;
    if sent != arrived {
        return Err(Error::internal(format!("{} does not have what was sent", engine::shown(to))));
    }
    target.close();
    tell("verify", format!("{} kinds are equal in both; epoch {}", arrived.len(), head.epoch));
    Ok(count)
}

fn digests(engine: &mut dyn Engine) -> Result<Digests> {
    let mut digests = Digests::new();
    engine.images(&mut |kind, key, body| {
        digests.entry(kind.into()).or_default().add(key, body);
        Ok(())
    })?;
    Ok(digests)
}

/// Reads every record as this version does, and says how many there are of each kind with a digest.
fn verify(directory: &Directory, url: &str, progress: &Progress) -> Result<()> {
    let mut engine = engine::open(url)?;
    let sign = engine.sign()?;
    let raw = digests(engine.as_mut())?;
    progress.step(
        "read",
        format_args!("revision {}, epoch {}, {}", sign.revision, sign.epoch, engine::shown(url)),
    );
    let cell = services::open(directory, url, "verify")?;
    let read = cell.digests(cell.read().revision(), Form::Written)?;
    cell.close();
    let mut unknown = 0;
    for (kind, digest) in &raw {
        let known = read.contains_key(kind.as_str());
        unknown += usize::from(!known);
        let note = if known { "" } else { "  (of a newer version)" };
        say(format_args!("{kind:<28} {:>9}  {:032x}{note}", digest.records, digest.sum));
    }
    let records: u64 = raw.values().map(|d| d.records).sum();
    progress.step(
        "verify",
        format_args!("{records} records of {} kinds can be read, {unknown} kinds are not ours", raw.len()),
    );
    Ok(())
}

/// What changed, when, and by which request.
fn log(url: &str, last: u64, after: Option<u64>) -> Result<()> {
    let mut engine = engine::open(url)?;
    let newest = engine.sign()?.revision;
    let mut at = after.unwrap_or(newest.saturating_sub(last));
    let until = if after.is_some() { at.saturating_add(last) } else { newest };
    while at < until.min(newest) {
        let wanted = (until - at).min(ENTRIES_MAX as u64) as usize;
        let entries = match engine.tail(at, wanted)? {
            Tail::Entries(entries) => entries,
            Tail::Trimmed => {
                say(format_args!("{:>10}  the log no longer reaches back to here", at + 1));
                at += 1;
                continue;
            }
        };
        let Some(newest) = entries.last() else { break };
        at = newest.revision;
        for entry in &entries {
            let read = serde_json::from_slice(&entry.body);
            let read = read.map_err(|e| Error::internal("a log entry cannot be read").because(e))?;
            say(line(entry.revision, entry.epoch, &read));
        }
    }
    Ok(())
}

/// What is shown of an entry (`store::Written`): nothing that is sealed, so no key is needed.
#[derive(Deserialize)]
struct Shown {
    time: i64,
    cause: ShownCause,
    changes: Vec<(String, String, Option<IgnoredAny>)>,
}

#[derive(Deserialize)]
struct ShownCause {
    id: String,
    who: String,
    #[serde(default)]
    address: String,
    route: String,
}

fn line(revision: u64, epoch: u64, entry: &Shown) -> String {
    let change = |(kind, key, image): &(String, String, Option<_>)| {
        format!("{}{kind}/{key}", if image.is_some() { "" } else { "-" })
    };
    let changes: Vec<String> = entry.changes.iter().map(change).collect();
    let cause = &entry.cause;
    let who = match cause.who.trim() {
        "" => "-".to_string(),
        // What a node said is a step, not a request.
        node if cause.id == cause.route => format!("node {node}"),
        who => who.to_string(),
    };
    let from = if cause.address.is_empty() { "-" } else { cause.address.as_str() };
    let (time, changes) = (Timestamp(entry.time).zulu(), changes.join(" "));
    format!("{revision:>10}  {time}  epoch {epoch}  {}  {who}  {from}  {}  {changes}", cause.id, cause.route)
}
