//! State, tables, indexes, sums, derived state and watchers against a plain model, over random transactions.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::id::ProjectId;
use base::{Error, Kind, Result};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use store::engine::sqlite::Sqlite;
use store::{
    Broken, Cause, Cell, Derived, Index, IndexPart, News, Options, Record, Schema, State, Steps, Tx,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Thing {
    id: u32,
    name: u32,
    project: ProjectId,
    size: i64,
    tags: Vec<u32>,
    inner: Inner,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Inner {
    depth: u32,
}

const BY_NAME: Index<Thing> = Index::unique("name", |t, keys| keys.push(t.name.key()));
const BY_PROJECT: Index<Thing> = Index::many("project", |t, keys| keys.push(t.project.key()));
const BY_TAG: Index<Thing> = Index::many("tag", |t, keys| keys.extend(t.tags.iter().map(|tag| tag.key())));

impl Record for Thing {
    const KIND: &'static str = "thing";
    type Key = u32;
    const INDEXES: &'static [Index<Thing>] = &[BY_NAME, BY_PROJECT, BY_TAG];

    fn key(&self) -> u32 {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.project, "size", self.size);
        add(self.project, "things", 1);
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

fn options(ring: usize) -> Options {
    // Nobody renews the lease of a cell that is stepped: its clock stands.
    Options { ring, seed: [3; 32], monotonic: || std::time::Duration::ZERO, ..Options::default() }
}

fn open(engine: Sqlite, options: Options) -> (Cell, Steps) {
    let schema = Schema::default().record::<Thing>().derived::<Total>();
    Cell::stepped(Box::new(engine), schema, store::cipher::CellKey::cipher([1; 32]), options).unwrap()
}

fn memory() -> Sqlite {
    Sqlite::over(rusqlite::Connection::open_in_memory().unwrap(), "FULL").unwrap()
}

fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn write<T, F>(cell: &Cell, steps: &mut Steps, f: F) -> Result<T>
where
    T: Send + 'static,
    F: Fn(&mut Tx) -> Result<T> + Send + 'static,
{
    let mut write = std::pin::pin!(cell.write(Cause::step("POST /things"), f));
    assert!(now(&mut write).is_none());
    while steps.run_one() || steps.append() | steps.appended() {}
    now(write).expect("the lane has settled")
}

fn project(n: u8) -> ProjectId {
    ProjectId::from_random(n.into())
}

#[derive(Clone, Debug)]
enum Op {
    Put(Thing),
    Grow(u32, i64),
    Delete(u32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Commit,
    Fail,
    Panic,
}

fn op() -> impl Strategy<Value = Op> {
    let thing = (0..12u32, 0..9u32, 0..3u8, 0..50i64, prop::collection::btree_set(0..4u32, 0..3)).prop_map(
        |(id, name, p, size, tags)| {
            let tags = tags.into_iter().collect();
            Thing { id, name, project: project(p), size, tags, inner: Inner::default() }
        },
    );
    prop_oneof![
        3 => thing.prop_map(Op::Put),
        1 => (0..12u32, 0..3i64).prop_map(|(id, by)| Op::Grow(id, by)),
        1 => (0..12u32).prop_map(Op::Delete),
    ]
}

fn transaction() -> impl Strategy<Value = (Vec<Op>, End)> {
    let end = prop_oneof![6 => Just(End::Commit), 1 => Just(End::Fail), 1 => Just(End::Panic)];
    (prop::collection::vec(op(), 0..6), end)
}

type Model = BTreeMap<u32, Thing>;

/// The operation on the model; the index that it would break.
fn apply(model: &mut Model, op: &Op) -> Option<&'static str> {
    match op {
        Op::Put(thing) => {
            if model.values().any(|t| t.name == thing.name && t.id != thing.id) {
                return Some("name");
            }
            model.insert(thing.id, thing.clone());
        }
        Op::Grow(id, by) => {
            if let Some(thing) = model.get_mut(id) {
                thing.size += by;
            }
        }
        Op::Delete(id) => drop(model.remove(id)),
    }
    None
}

/// The same in a transaction; answers the broken indexes, which do not end it.
fn run(tx: &mut Tx, ops: &[Op], end: End) -> Result<Vec<Option<&'static str>>> {
    let mut told = Vec::new();
    for op in ops {
        let result: Result<(), Broken> = match op {
            Op::Put(thing) => tx.put(thing.clone()).map(drop),
            Op::Grow(id, by) => tx.update::<Thing>(id, |t| t.size += by).map(drop),
            Op::Delete(id) => {
                tx.delete::<Thing>(id);
                Ok(())
            }
        };
        told.push(result.err().map(|broken| broken.index));
    }
    match end {
        End::Commit => Ok(told),
        End::Fail => Err(Error::invalid("it was meant to fail")),
        End::Panic => panic!("it was meant to panic"),
    }
}

fn check(state: &State, model: &Model) {
    assert_eq!(state.count::<Thing>(), model.len());
    assert!(state.all::<Thing>().map(|t| &**t).eq(model.values()));
    assert!(state.after::<Thing>(&5).map(|t| &**t).eq(model.range(6..).map(|(_, t)| t)));
    for name in 0..9u32 {
        assert_eq!(state.one(&BY_NAME, name).map(|t| &**t), model.values().find(|t| t.name == name));
    }
    for tag in 0..4u32 {
        let expect = model.values().filter(|t| t.tags.contains(&tag));
        assert!(state.by(&BY_TAG, tag).map(|t| &**t).eq(expect));
    }
    for p in (0..3).map(project) {
        let mine: Vec<_> = model.values().filter(|t| t.project == p).collect();
        assert!(state.by(&BY_PROJECT, p).map(|t| &**t).eq(mine.iter().copied()));
        assert_eq!(state.sum(p, "size"), mine.iter().map(|t| t.size).sum::<i64>());
        assert_eq!(state.sum(p, "things"), mine.len() as i64);
    }
}

/// What a watcher that resumes at `after` makes of the model at that revision.
fn follow(cell: &Cell, after: u64, mut model: Model, ring: usize) -> Model {
    let mut watch = cell.watch(after);
    let head = cell.read().revision();
    while let Some(Some(news)) = now(watch.next()) {
        match news {
            News::Snapshot(state) => {
                assert!(head - after > ring as u64, "a snapshot for one who is {} behind", head - after);
                model = state.all::<Thing>().map(|t| (t.id, (**t).clone())).collect();
            }
            News::Entries(entries) => {
                assert!(head - after <= ring as u64);
                assert!(entries.iter().map(|e| e.revision).eq(after + 1..=head));
                for (before, thing) in entries.iter().flat_map(|e| &e.changes).filter_map(|c| c.of::<Thing>())
                {
                    assert_eq!(before, before.and_then(|t| model.get(&t.id)));
                    match (before, thing) {
                        (_, Some(thing)) => drop(model.insert(thing.id, thing.clone())),
                        (Some(gone), None) => drop(model.remove(&gone.id)),
                        (None, None) => panic!("a change of nothing"),
                    }
                }
            }
        }
        assert_eq!(watch.at(), head);
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_its_model(transactions in prop::collection::vec(transaction(), 1..40), ring in 1..12usize) {
        let (cell, mut steps) = open(memory(), options(ring));
        let mut model = Model::new();
        let mut past = vec![(cell.read(), model.clone())];
        for (ops, end) in transactions {
            let mut next = model.clone();
            let expect: Vec<_> = ops.iter().map(|op| apply(&mut next, op)).collect();
            let told = write(&cell, &mut steps, move |tx| run(tx, &ops, end));
            match end {
                End::Commit => prop_assert_eq!(told.unwrap(), expect),
                End::Fail => prop_assert_eq!(told.unwrap_err().kind(), Kind::Invalid),
                End::Panic => prop_assert_eq!(told.unwrap_err().kind(), Kind::Internal),
            }
            let before = cell.read().revision();
            if end == End::Commit {
                prop_assert_eq!(before - past.last().unwrap().0.revision(), u64::from(next != model));
                model = next;
            }
            let total = write(&cell, &mut steps, |tx| Ok(tx.derived::<Total>().0)).unwrap();
            prop_assert_eq!(total, model.values().map(|t| t.size).sum::<i64>());
            past.push((cell.read(), model.clone()));
        }
        for (state, then) in past {
            check(&state, &then);
            prop_assert_eq!(&follow(&cell, state.revision(), then, ring), &model);
        }
    }
}

#[test]
fn a_transaction_that_differs_when_run_again_is_its_callers_error() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let thing = |tx: &mut Tx, size: u64| {
        let (project, tags, inner) = (project(0), Vec::new(), Inner::default());
        tx.put(Thing { id: size as u32, name: size as u32, project, size: size as i64, tags, inner })?;
        Ok(())
    };
    let (cell, mut steps) = open(memory(), Options { twice: true, ..options(9) });
    let error =
        write(&cell, &mut steps, move |tx| thing(tx, RUNS.fetch_add(1, Ordering::Relaxed))).unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.message().contains("POST /things is not deterministic"), "{error}");
    let fails = write(&cell, &mut steps, |_| match RUNS.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => Err::<(), _>(Error::invalid("now and then")),
        _ => Ok(()),
    });
    assert!(fails.unwrap_err().message().contains("is not deterministic"));
    write(&cell, &mut steps, move |tx| thing(tx, 100)).unwrap();
    let total = write(&cell, &mut steps, |tx| Ok(tx.derived::<Total>().0)).unwrap();
    assert_eq!((cell.read().count::<Thing>(), cell.read().revision(), total), (1, 1, 100));

    let (cell, mut steps) = open(memory(), Options { twice: false, ..options(9) });
    write(&cell, &mut steps, move |tx| thing(tx, RUNS.fetch_add(1, Ordering::Relaxed))).unwrap();
    assert_eq!(cell.read().count::<Thing>(), 1);
}

#[test]
fn unknown_fields_stay_at_every_level_and_leave_with_their_record() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.db");
    let image = || -> serde_json::Value {
        let db = rusqlite::Connection::open(&file).unwrap();
        let body: Vec<u8> = db.query_row("SELECT body FROM image", [], |row| row.get(0)).unwrap();
        serde_json::from_slice(&body).unwrap()
    };
    let thing = Thing { id: 1, name: 1, project: project(0), size: 1, tags: vec![], inner: Inner::default() };
    let put = {
        let thing = thing.clone();
        move |tx: &mut Tx| Ok(tx.put(thing.clone())?.id)
    };
    let (cell, mut steps) = open(Sqlite::open(&file).unwrap(), options(9));
    write(&cell, &mut steps, put.clone()).unwrap();
    drop(steps);
    let db = rusqlite::Connection::open(&file).unwrap();
    let newer =
        "UPDATE image SET body=CAST(json_set(body, '$.colour', 'green', '$.inner.more', json('{\"a\":[1]}'))
                 AS BLOB)";
    db.execute(newer, []).unwrap();
    drop(db);

    let (cell, mut steps) = open(Sqlite::open(&file).unwrap(), options(9));
    let change = |tx: &mut Tx| {
        tx.update::<Thing>(&1, |t| (t.size, t.inner.depth) = (5, 7))?;
        Ok(())
    };
    write(&cell, &mut steps, change).unwrap();
    assert_eq!(
        **cell.read().get::<Thing>(&1).unwrap(),
        Thing { size: 5, inner: Inner { depth: 7 }, ..thing }
    );
    drop(steps);
    let kept = image();
    assert_eq!(kept["colour"], "green");
    assert_eq!(kept["inner"], serde_json::json!({"depth": 7, "more": {"a": [1]}}));

    let (cell, mut steps) = open(Sqlite::open(&file).unwrap(), options(9));
    write(&cell, &mut steps, |tx| Ok(tx.delete::<Thing>(&1).is_some())).unwrap();
    write(&cell, &mut steps, put).unwrap();
    drop(steps);
    assert_eq!(image().get("colour"), None, "a new record has an old one's fields");
}
