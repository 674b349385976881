//! Killed at any moment, a cell has everything it answered, no half of what it did not, and nothing that disagrees.
//!
//! The test runs itself again as the process to kill. That process writes through a file layer that forgets what was
//! not synced and prints each answered write; the checks are made on a copy of the files that it leaves behind.

#![allow(clippy::unwrap_used, reason = "a test")]

mod forgetful;

use base::id::ProjectId;
use base::secret::Cipher;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use store::engine::sqlite::Sqlite;
use store::engine::{Engine, Logged, Tail};
use store::{Cause, Cell, Index, IndexPart, Options, Record, Schema, Tx, Written};

const ROUNDS: u64 = 120;
const CLIENTS: u64 = 6;
/// Pages of log after which SQLite copies them into the file: small, so that kills meet it.
const CHECKPOINT_PAGES: i32 = 30;
const GROUP: u64 = 4;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Item {
    name: String,
    /// The operation that wrote it last.
    by: String,
    /// How many records that operation wrote.
    of: u64,
    size: i64,
}

const BY_WRITER: Index<Item> = Index::many("by", |i, keys| keys.push(i.by.key()));

impl Record for Item {
    const KIND: &'static str = "item";
    type Key = String;
    const INDEXES: &'static [Index<Item>] = &[BY_WRITER];

    fn key(&self) -> String {
        self.name.clone()
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(ProjectId::ZERO, "size", self.size);
    }
}

fn cell(engine: impl Engine + 'static) -> Cell {
    let options = Options { twice: false, ..Options::default() };
    Cell::open(Box::new(engine), Schema::default().record::<Item>(), key(), options).unwrap()
}

fn key() -> Arc<dyn Cipher> {
    store::cipher::CellKey::cipher([7; 32])
}

#[test]
fn what_was_answered_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut answered = Vec::new();
    for round in 0..ROUNDS {
        answered.extend(run_and_kill(dir.path(), "FULL", round));
        if let Err(what) = check(dir.path(), &answered) {
            panic!("round {round}: {what}");
        }
    }
    assert!(answered.len() > ROUNDS as usize, "only {} writes were answered", answered.len());
}

#[test]
fn the_check_sees_what_a_store_that_does_not_sync_loses() {
    let dir = tempfile::tempdir().unwrap();
    let answered = run_and_kill(dir.path(), "OFF", 40);
    assert!(answered.len() >= 40);
    let what = check(dir.path(), &answered).unwrap_err();
    assert!(what.contains("was answered"), "{what}");
}

/// An answered write: its revision and the operation's name.
type Answered = (u64, String);

/// Starts the writer, kills it after it answered some writes, and returns all that it answered.
fn run_and_kill(dir: &Path, synchronous: &str, round: u64) -> Vec<Answered> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["the_writer", "--exact", "--nocapture"])
        .env("KILL_DIR", dir)
        .env("KILL_SYNCHRONOUS", synchronous)
        .env("KILL_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Some rounds end while the file is being opened, most after a number of answers that follows no pattern.
    let enough = if round % 10 == 3 { 0 } else { round * 7919 % 61 };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut answered = Vec::new();
    let mut opened = round.is_multiple_of(20);
    while !opened || (answered.len() as u64) < enough {
        let line = lines.next().expect("the writer goes on until it is killed");
        opened |= line == "opened";
        answered.extend(parse(&line));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    answered.extend(lines.filter_map(|line| parse(&line)));
    answered
}

fn parse(line: &str) -> Option<Answered> {
    let (revision, by) = line.strip_prefix("answered ")?.strip_suffix('.')?.split_once(' ')?;
    Some((revision.parse().ok()?, by.into()))
}

/// Looks at a copy of the files, so that the next writer recovers from what the killed one left.
fn check(dir: &Path, answered: &[Answered]) -> Result<(), String> {
    let copy = tempfile::tempdir().unwrap();
    for name in ["state.db", "state.db-wal", "state.db-journal"] {
        if dir.join(name).exists() {
            std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
        }
    }
    let file = copy.path().join("state.db");
    let mut engine = Sqlite::open(&file).map_err(|e| e.chain())?;
    let Tail::Entries(log) = engine.tail(0, usize::MAX >> 1).map_err(|e| e.chain())? else {
        return Err("the log was trimmed".into());
    };
    let mut images = BTreeMap::new();
    let mut causes = Vec::new();
    for (n, Logged { revision, body, .. }) in log.iter().enumerate() {
        if *revision != n as u64 + 1 {
            return Err(format!("revision {revision} follows {n}"));
        }
        let entry = Written::read(body).map_err(|e| e.chain())?;
        let written = entry.changes.iter().filter(|(.., image)| image.is_some()).count() as u64;
        for (_, key, image) in entry.changes {
            match image {
                Some(image) => {
                    let item: Item = serde_json::from_str(image.get()).unwrap();
                    if item.of != written || item.by != entry.cause.id {
                        return Err(format!("entry {revision} holds {written} of {item:?}"));
                    }
                    images.insert(key, item);
                }
                None => drop(images.remove(&key)),
            }
        }
        causes.push(entry.cause.id);
    }
    for (revision, by) in answered {
        if causes.get(*revision as usize - 1) != Some(by) {
            return Err(format!("{by} was answered as revision {revision} and is not there"));
        }
    }
    let cell = cell(engine);
    let state = cell.read();
    let loaded: BTreeMap<_, _> = state.all::<Item>().map(|i| (i.name.clone(), (**i).clone())).collect();
    let indexed = images.values().all(|i| state.by(&BY_WRITER, &i.by).any(|found| found.name == i.name));
    let sum: i64 = images.values().map(|i| i.size).sum();
    if loaded != images || !indexed || state.sum(ProjectId::ZERO, "size") != sum {
        return Err(format!("the images are not what the log says: {loaded:?} and {images:?}"));
    }
    if state.revision() != log.len() as u64 {
        return Err(format!("the head is {}, the log ends at {}", state.revision(), log.len()));
    }
    Ok(())
}

/// Not a test: the process that is killed, when the environment says so.
#[test]
fn the_writer() {
    let Ok(dir) = std::env::var("KILL_DIR") else { return };
    let early = std::env::var("KILL_SYNCHRONOUS").unwrap() == "FULL";
    let db = forgetful::open(&Path::new(&dir).join("state.db"), early).unwrap();
    // SAFETY: the engine below keeps the connection open for as long as the process lives.
    let raw = unsafe { db.handle() };
    let engine = Sqlite::over(db, &std::env::var("KILL_SYNCHRONOUS").unwrap()).unwrap();
    // SAFETY: as above, and nobody else uses the connection yet.
    unsafe { rusqlite::ffi::sqlite3_wal_autocheckpoint(raw, CHECKPOINT_PAGES) };
    let cell = cell(engine);
    say("opened\n");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let round = std::env::var("KILL_ROUND").unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            tasks.spawn(write_forever(cell.clone(), format!("{round}.{client}"), client));
        }
        tasks.join_all().await;
    });
}

/// One write, as one system call: a line is there or not.
fn say(line: &str) {
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

async fn write_forever(cell: Cell, name: String, client: u64) {
    for n in 0.. {
        let by = format!("{name}.{n}");
        let cause = Cause { id: by.clone(), ..Cause::default() };
        let id = by.clone();
        let revision = cell.write(cause, move |tx| operate(tx, &id, client, n)).await.unwrap();
        if let Some(revision) = revision {
            say(&format!("answered {revision} {by}.\n"));
        }
    }
}

/// Creates, updates in groups, deletes; `None` when nothing changed, which the log does not hold.
fn operate(tx: &mut Tx, by: &str, client: u64, n: u64) -> base::Result<Option<u64>> {
    let revision = tx.next_revision();
    let item = |slot: u64, of| Item {
        name: format!("{client}/{}", slot % 16),
        by: by.into(),
        of,
        size: (n % 100) as i64,
    };
    match n % 5 {
        4 => {
            let gone = item(n / 5, 0).name;
            return Ok(tx.delete::<Item>(&gone).map(|_| revision));
        }
        2 | 3 => {
            for member in 0..GROUP {
                tx.put(item(n + member * 3, GROUP))?;
            }
        }
        _ => {
            tx.put(item(n, 1))?;
        }
    }
    Ok(Some(revision))
}
