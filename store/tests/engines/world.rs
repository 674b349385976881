//! What the cases share: a record, planes over a URL, writers that note what they were answered, and the check of it.

use crate::servers::Server;
use base::Result;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::engine::{self, Tail};
use store::{Cause, Cell, Engine, Options, Record, Revision, Role, Schema, Tx, Written};

/// What may take long on a busy machine and must come in the end.
pub const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    pub name: String,
    pub number: u64,
}

impl Record for Note {
    const KIND: &'static str = "note";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

pub fn schema() -> Schema {
    Schema::default().record::<Note>()
}

pub fn cipher() -> Arc<dyn base::secret::Cipher> {
    store::cipher::CellKey::cipher([1; 32])
}

pub fn options(name: &str) -> Options {
    Options { owner: name.into(), ..Options::default() }
}

pub fn engine(url: &str) -> Box<dyn Engine> {
    engine::open(url).unwrap()
}

pub fn follower(url: &str, name: &str) -> Cell {
    Cell::follow(engine(url), schema(), cipher(), options(name)).unwrap()
}

pub fn owner(url: &str) -> Cell {
    Cell::open(engine(url), schema(), cipher(), options("owner")).unwrap()
}

pub async fn owns(cell: &Cell) -> u64 {
    let mut role = cell.role();
    let role = tokio::time::timeout(SOON, role.wait_for(|role| matches!(role, Role::Owner(_)))).await;
    match *role.unwrap().unwrap() {
        Role::Owner(epoch) => epoch,
        Role::Follower | Role::Ended => unreachable!(),
    }
}

/// Adds one to a note's number; its revision and the new number.
pub async fn add(cell: &Cell, id: &str, name: &str) -> Result<(Revision, u64)> {
    let name = name.to_string();
    let add = move |tx: &mut Tx| {
        let number = tx.get::<Note>(&name).map_or(0, |n| n.number) + 1;
        tx.put(Note { name: name.clone(), number })?;
        Ok((tx.next_revision(), number))
    };
    cell.write(Cause { id: id.into(), ..Cause::default() }, add).await
}

pub async fn delete(cell: &Cell, name: &str) -> Result<()> {
    let name = name.to_string();
    cell.write(Cause::step("delete"), move |tx| Ok(tx.delete::<Note>(&name).is_some())).await.map(drop)
}

/// By the id of their cause: the revisions that were answered.
pub type Answered = HashMap<String, Revision>;

/// Clients that write until they are told to stop, and what they were answered.
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<(Answered, usize)>,
}

impl Writers {
    pub fn start(cell: &Cell, clients: usize) -> Writers {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), tokio::task::JoinSet::new());
        for client in 0..clients {
            tasks.spawn(write(cell.clone(), client, stop.clone()));
        }
        Writers { stop, tasks }
    }

    /// What was answered, and how many were not.
    pub async fn stop(self) -> (Answered, usize) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.tasks.join_all().await;
        let failed = ended.iter().map(|(_, failed)| failed).sum();
        (ended.into_iter().flat_map(|(answered, _)| answered).collect(), failed)
    }
}

async fn write(cell: Cell, client: usize, stop: Arc<AtomicBool>) -> (Answered, usize) {
    let (mut answered, mut failed) = (Answered::new(), 0);
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let id = format!("{client}.{n}");
        match add(&cell, &id, &format!("note {client}")).await {
            Ok((revision, _)) => drop(answered.insert(id, revision)),
            Err(_) => {
                failed += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    (answered, failed)
}

/// The whole log, read in small pieces.
pub fn log(engine: &mut dyn Engine) -> Vec<Written> {
    let mut log = Vec::new();
    loop {
        match engine.tail(log.len() as Revision, 37).unwrap() {
            Tail::Entries(entries) if entries.is_empty() => return log,
            Tail::Entries(entries) => {
                for entry in entries {
                    assert_eq!(entry.revision, log.len() as Revision + 1, "a gap in the log");
                    log.push(Written::read(&entry.body).unwrap());
                }
            }
            Tail::Trimmed => panic!("the log begins after {}", log.len()),
        }
    }
}

/// That all that was answered is there once and where it was said to be, and the images are what the log says.
pub fn check(url: &str, answered: &Answered) -> Revision {
    let mut engine = engine(url);
    let log = log(&mut *engine);
    let mut causes = HashMap::new();
    let mut wanted: BTreeMap<String, Note> = BTreeMap::new();
    for (n, entry) in log.iter().enumerate() {
        let revision = n as Revision + 1;
        if entry.cause.id != "delete" {
            assert_eq!(
                causes.insert(entry.cause.id.clone(), revision),
                None,
                "{} is doubled",
                entry.cause.id
            );
        }
        for (_, key, image) in &entry.changes {
            match image {
                Some(image) => drop(wanted.insert(key.clone(), serde_json::from_str(image.get()).unwrap())),
                None => drop(wanted.remove(key)),
            }
        }
    }
    for (id, revision) in answered {
        assert_eq!(causes.get(id), Some(revision), "{id} was answered as {revision} and is not there");
    }
    let mut images = BTreeMap::new();
    let head = engine.images(&mut |_, key, body| {
        let before = images.insert(key.to_string(), serde_json::from_slice(body).unwrap());
        assert_eq!(before, None, "{key} is given twice");
        Ok(())
    });
    assert_eq!(head.unwrap().revision, log.len() as Revision);
    assert_eq!(images, wanted);
    log.len() as Revision
}

/// Waits until the cell answers a write.
pub async fn writes_again(cell: &Cell, id: &str) {
    let until = Instant::now() + SOON;
    let mut n = 0;
    while let Err(error) = add(cell, &format!("{id}.{n}"), "again").await {
        assert!(Instant::now() < until, "{}", error.chain());
        n += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until it holds.
pub async fn comes(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < until, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn url(server: &Server, case: &str) -> String {
    eprintln!("{:?}: {case}", server.which);
    server.url()
}
