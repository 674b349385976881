//! The cell over the real engine: reads see what was answered, failures leave no trace, restarts lose nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::id::ProjectId;
use base::{Error, Id, IdKind, Kind, Secret};
use serde::{Deserialize, Serialize};
use std::any::Any;
use store::engine::sqlite::Sqlite;
use store::{Cause, Cell, Derived, Index, IndexPart, News, Options, Record, Schema};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Thing {
    id: Id<Thing>,
    name: String,
    project: ProjectId,
    size: i64,
    secret: Secret,
}

impl IdKind for Thing {}

const BY_NAME: Index<Thing> = Index::unique("name", |t, keys| keys.push(t.name.key()));
const BY_PROJECT: Index<Thing> = Index::many("project", |t, keys| keys.push(t.project.key()));

impl Record for Thing {
    const KIND: &'static str = "thing";
    type Key = Id<Thing>;
    const INDEXES: &'static [Index<Thing>] = &[BY_NAME, BY_PROJECT];

    fn key(&self) -> Id<Thing> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.project, "size", self.size);
    }
}

#[derive(Default)]
struct Total(i64);

impl Derived for Total {
    fn changed(&mut self, _: &'static str, before: Option<&dyn Any>, after: Option<&dyn Any>) {
        let size = |r: Option<&dyn Any>| r.and_then(|r| r.downcast_ref::<Thing>()).map_or(0, |t| t.size);
        self.0 += size(after) - size(before);
    }
}

fn open(dir: &std::path::Path) -> Cell {
    try_open(dir).unwrap()
}

fn try_open(dir: &std::path::Path) -> Result<Cell, Error> {
    let engine = Sqlite::open(&dir.join("state.db"))?;
    let cipher = store::cipher::CellKey::open(&dir.join("cell.key"))?;
    let schema = Schema::default().record::<Thing>().derived::<Total>();
    Cell::open(Box::new(engine), schema, cipher, Options::default())
}

async fn create(cell: &Cell, name: &str, size: i64) -> Result<Id<Thing>, Error> {
    let name = name.to_string();
    cell.write(Cause::step("create"), move |tx| {
        let secret = Secret::new("hush");
        let thing = Thing { id: tx.new_id(), name: name.clone(), project: ProjectId::ZERO, size, secret };
        let id = thing.id;
        tx.put(thing)?;
        Ok(id)
    })
    .await
}

#[tokio::test]
async fn answers_are_readable_indexed_summed_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cell = open(dir.path());
    let id = create(&cell, "one", 3).await.unwrap();
    create(&cell, "two", 4).await.unwrap();
    cell.close();
    let bytes = std::fs::read(dir.path().join("state.db")).unwrap();
    assert!(!bytes.windows(4).any(|w| w == b"hush"), "the secret lies open in the file");

    let cell = open(dir.path());
    let state = cell.read();
    assert_eq!(state.get::<Thing>(&id).unwrap().secret.expose(), "hush");
    assert_eq!(state.one(&BY_NAME, "two").unwrap().size, 4);
    assert_eq!(state.by(&BY_PROJECT, ProjectId::ZERO).count(), 2);
    assert_eq!(state.sum(ProjectId::ZERO, "size"), 7);
    assert_eq!((state.epoch(), state.revision()), (2, 2));
    let total = cell.write(Cause::step("read"), |tx| Ok(tx.derived::<Total>().0)).await.unwrap();
    assert_eq!(total, 7);
}

#[tokio::test]
async fn a_failed_or_panicked_transaction_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let cell = open(dir.path());
    create(&cell, "one", 3).await.unwrap();
    assert_eq!(create(&cell, "one", 5).await.unwrap_err().kind(), Kind::Conflict);
    let half = |tx: &mut store::Tx, name: &str| {
        let (id, project) = (tx.new_id(), ProjectId::ZERO);
        tx.put(Thing { id, name: name.into(), project, size: 9, secret: Secret::default() }).unwrap();
    };
    let failed = cell.write(Cause::step("fail"), move |tx| {
        half(tx, "half");
        Err::<(), _>(Error::invalid("no"))
    });
    assert_eq!(failed.await.unwrap_err().message(), "no");
    let panicked = cell.write(Cause::step("panic"), move |tx| -> Result<(), Error> {
        half(tx, "half");
        panic!("boom")
    });
    assert_eq!(panicked.await.unwrap_err().kind(), Kind::Internal);
    let total = cell.write(Cause::step("read"), |tx| Ok(tx.derived::<Total>().0)).await.unwrap();
    assert_eq!((total, cell.read().count::<Thing>(), cell.read().revision()), (3, 1, 1));
}

#[tokio::test]
async fn watchers_see_every_revision_once_and_resume() {
    let dir = tempfile::tempdir().unwrap();
    let cell = open(dir.path());
    let mut watch = cell.watch(0);
    for n in 0..20 {
        create(&cell, &format!("thing {n}"), n).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let Some(News::Entries(entries)) = watch.next().await else { panic!("no entries") };
        seen.extend(entries.iter().map(|e| e.revision));
    }
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    let Some(News::Entries(rest)) = cell.watch(15).next().await else { panic!("no entries") };
    assert_eq!(rest.len(), 5);
}

#[tokio::test]
async fn fields_of_a_newer_version_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cell = open(dir.path());
    let id = create(&cell, "one", 3).await.unwrap();
    cell.close();
    let db = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
    db.execute("UPDATE image SET body=CAST(json_set(body, '$.colour', 'green') AS BLOB)", []).unwrap();
    drop(db);
    let cell = open(dir.path());
    let change = move |tx: &mut store::Tx| Ok(tx.update::<Thing>(&id, |t| t.size = 8)?.is_some());
    assert!(cell.write(Cause::step("grow"), change).await.unwrap());
    cell.close();
    let db = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
    let colour: String =
        db.query_row("SELECT json_extract(body, '$.colour') FROM image", [], |r| r.get(0)).unwrap();
    assert_eq!(colour, "green");
}

#[tokio::test]
async fn a_second_process_and_a_newer_file_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let cell = open(dir.path());
    create(&cell, "one", 1).await.unwrap();
    let second = try_open(dir.path()).err().unwrap();
    assert!(second.message().contains("owned by another process"), "{second}");
    cell.close();
    let db = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
    db.execute("UPDATE meta SET value=99 WHERE name='format'", []).unwrap();
    drop(db);
    let newer = Sqlite::open(&dir.path().join("state.db")).err().unwrap();
    assert!(newer.message().contains("newer version"), "{newer}");
}
