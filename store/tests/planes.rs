//! Two processes' worth of cells over one store: they read as one, one of them writes, and the other takes over when
//! the first lays the cell down, ends or falls silent. What was asked before is answered, not done twice.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::{Kind, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use store::engine::sqlite::Sqlite;
use store::engine::{Append, Batch, Each, Head, Tail};
use store::lease::Sign;
use store::{Cause, Cell, Engine, Form, Index, IndexPart, News, Options, Record, Revision, Role, Schema, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    name: String,
    number: u64,
}

const BY_NUMBER: Index<Note> = Index::unique("number", |n, keys| keys.push(n.number.key()));

impl Record for Note {
    const KIND: &'static str = "note";
    type Key = String;
    const INDEXES: &'static [Index<Note>] = &[BY_NUMBER];

    fn key(&self) -> String {
        self.name.clone()
    }
}

fn plane(dir: &Path, name: &str) -> Cell {
    let engine = Sqlite::open(&dir.join("state.db")).unwrap();
    plane_over(Box::new(engine), Options { owner: name.into(), ..Options::default() })
}

fn plane_over(engine: Box<dyn Engine>, options: Options) -> Cell {
    let cipher = store::cipher::CellKey::cipher([1; 32]);
    Cell::follow(engine, Schema::default().record::<Note>(), cipher, options).unwrap()
}

async fn owns(cell: &Cell) -> u64 {
    match *cell.role().wait_for(|role| matches!(role, Role::Owner(_))).await.unwrap() {
        Role::Owner(epoch) => epoch,
        Role::Follower | Role::Ended => unreachable!(),
    }
}

async fn put(cell: &Cell, name: &str, number: u64) -> Result<u64> {
    let name = name.to_string();
    let put = move |tx: &mut Tx| {
        tx.put(Note { name: name.clone(), number })?;
        Ok(tx.next_revision())
    };
    cell.write(Cause::step("put"), put).await
}

/// Adds one to the note's number and answers with the new one.
async fn add(cell: &Cell, name: &str) -> Result<u64> {
    let name = name.to_string();
    let add = move |tx: &mut Tx| Ok(tx.update::<Note>(&name, |n| n.number += 1)?.map_or(0, |n| n.number));
    cell.write(Cause::step("add"), add).await
}

#[tokio::test]
async fn planes_read_as_one_and_one_of_them_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (plane(dir.path(), "blue"), plane(dir.path(), "green"));
    blue.stand_by(true);
    assert_eq!(owns(&blue).await, 1);
    let mut watch = green.watch(0);
    for n in 1..=100 {
        assert_eq!(put(&blue, "one", n).await.unwrap(), n);
        green.current().await.unwrap();
        assert!(green.read().revision() >= n, "a follower answers before it has what was answered");
    }
    assert_eq!(green.read().get::<Note>(&"one".into()).unwrap().number, 100);
    assert!(green.read().one(&BY_NUMBER, 100u64).is_some() && green.read().one(&BY_NUMBER, 99u64).is_none());
    let mut seen = Vec::new();
    while seen.len() < 100 {
        match watch.next().await.unwrap() {
            News::Entries(entries) => seen.extend(entries.iter().map(|e| e.revision)),
            News::Snapshot(_) => panic!("the ring is long enough"),
        }
    }
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    assert_eq!(put(&green, "two", 2).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(blue.digests(100, Form::Written).unwrap(), green.digests(100, Form::Written).unwrap());
    assert_ne!(blue.digests(100, Form::Written).unwrap(), green.digests(99, Form::Written).unwrap());
}

#[tokio::test]
async fn a_switch_hands_the_lease_over_and_back_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (plane(dir.path(), "blue"), plane(dir.path(), "green"));
    blue.stand_by(true);
    owns(&blue).await;
    let mut from_to = [(&blue, &green), (&green, &blue)];
    for n in 0..20 {
        let (from, to) = from_to[0];
        let last = put(from, "one", n).await.unwrap();
        // What is on its way when the lease is laid down is either answered or refused, never lost.
        let late = put(from, "late", 1_000 + n);
        let (released, late) = tokio::join!(from.release(), late);
        released.unwrap();
        assert!(from.owns().is_err());
        to.stand_by(true);
        assert_eq!(owns(to).await, n + 2);
        to.stand_by(false);
        assert!(to.read().revision() >= late.unwrap_or(last));
        from.current().await.unwrap();
        assert_eq!(from.read().revision(), to.read().revision());
        from_to.reverse();
        from_to[0].1.stand_by(false);
    }
}

#[tokio::test]
async fn an_owner_that_ends_is_followed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (plane(dir.path(), "blue"), plane(dir.path(), "green"));
    blue.stand_by(true);
    let epoch = owns(&blue).await;
    put(&blue, "one", 1).await.unwrap();
    green.stand_by(true);
    green.died(epoch);
    assert_eq!(owns(&green).await, epoch + 1);
    assert_eq!(put(&green, "two", 2).await.unwrap(), 2);
    // The first one lives after all: its writes change nothing, and it follows.
    put(&blue, "three", 3).await.unwrap_err();
    blue.current().await.unwrap();
    assert_eq!(blue.read().revision(), 2);
    assert_eq!(*blue.role().borrow(), Role::Follower);
}

/// An engine through which no renewal gets: the owner is cut off.
struct Silent(Sqlite);

impl Engine for Silent {
    fn images(&mut self, each: Each) -> Result<Head> {
        self.0.images(each)
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        self.0.take(owner, seen)
    }

    fn append(&mut self, batch: &Batch) -> Append {
        self.0.append(batch)
    }

    fn renew(&mut self, _: u64, _: u64) -> Result<bool> {
        Err(base::Error::internal("cut off"))
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        self.0.release(epoch)
    }

    fn sign(&mut self) -> Result<Sign> {
        self.0.sign()
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        self.0.tail(after, limit)
    }
}

#[tokio::test]
async fn a_silent_owner_is_followed_after_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let silent = Silent(Sqlite::open(&dir.path().join("state.db")).unwrap());
    let blue = plane_over(Box::new(silent), Options::default());
    blue.stand_by(true);
    let epoch = owns(&blue).await;
    let green = plane(dir.path(), "green");
    green.stand_by(true);
    assert_eq!(owns(&green).await, epoch + 1);
    assert!(blue.owns().is_err(), "two answer");
    put(&blue, "one", 1).await.unwrap_err();
    put(&green, "one", 1).await.unwrap();
}

#[tokio::test]
async fn what_a_request_wrote_is_answered_again_by_any_plane_and_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (plane(dir.path(), "blue"), plane(dir.path(), "green"));
    blue.stand_by(true);
    let epoch = owns(&blue).await;
    put(&blue, "one", 1).await.unwrap();
    assert_eq!(blue.once("m1", add(&blue, "one")).await.0.unwrap(), 2);
    assert_eq!(blue.once("m2", add(&blue, "one")).await.0.unwrap(), 3);
    assert_eq!(blue.once("m1", add(&blue, "one")).await.0.unwrap(), 2, "the answer it had then");
    green.stand_by(true);
    green.died(epoch);
    owns(&green).await;
    let two_steps = async {
        let first = add(&green, "one").await.unwrap();
        (first, green.read().get::<Note>(&"one".into()).unwrap().number, add(&green, "one").await.unwrap())
    };
    // The first of its writes was done by the plane that ended; the second was not.
    assert_eq!(green.once("m2", two_steps).await, ((3, 3, 4), false));
    assert_eq!(green.read().get::<Note>(&"one".into()).unwrap().number, 4);
    assert_eq!(green.read().revision(), 4);
}

/// As when a process that lost the cell, and has it again, still has the request waiting.
#[tokio::test]
async fn what_waited_while_it_was_carried_out_elsewhere_is_not_done_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (plane(dir.path(), "blue"), plane(dir.path(), "green"));
    blue.stand_by(true);
    owns(&blue).await;
    put(&blue, "one", 1).await.unwrap();
    let (looked, has_looked) = tokio::sync::oneshot::channel();
    let (go, may_go) = tokio::sync::oneshot::channel();
    let waiting = blue.once("m1", async {
        looked.send(()).unwrap();
        may_go.await.unwrap();
        add(&blue, "one").await
    });
    let meanwhile = async {
        has_looked.await.unwrap();
        blue.release().await.unwrap();
        green.stand_by(true);
        owns(&green).await;
        assert_eq!(green.once("m1", add(&green, "one")).await.0.unwrap(), 2);
        green.stand_by(false);
        green.release().await.unwrap();
        blue.stand_by(true);
        owns(&blue).await;
        go.send(()).unwrap();
    };
    let ((late, passes), ()) = tokio::join!(waiting, meanwhile);
    assert_eq!(late.unwrap_err().kind(), Kind::Unavailable);
    assert!(passes, "the door asks again");
    assert_eq!(blue.once("m1", add(&blue, "one")).await.0.unwrap(), 2);
    assert_eq!(blue.read().get::<Note>(&"one".into()).unwrap().number, 2);
}

/// As when an owner was stopped in the middle of an answer, and all that waited comes first.
#[tokio::test]
async fn what_a_request_wrote_is_answered_again_behind_thousands_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let (blue, green) = (plane(dir.path(), "blue"), plane(dir.path(), "green"));
    blue.stand_by(true);
    let epoch = owns(&blue).await;
    put(&blue, "one", 1).await.unwrap();
    blue.once("m1", add(&blue, "one")).await.0.unwrap();
    green.stand_by(true);
    green.died(epoch);
    owns(&green).await;
    let mut others = tokio::task::JoinSet::new();
    for n in 0..3_000 {
        let green = green.clone();
        others.spawn(async move { put(&green, "other", 1_000 + n).await.unwrap() });
    }
    assert_eq!(others.join_all().await.len(), 3_000);
    assert_eq!(green.once("m1", add(&green, "one")).await.0.unwrap(), 2);
    assert_eq!(green.read().get::<Note>(&"one".into()).unwrap().number, 2);
}

#[tokio::test]
async fn a_plane_that_starts_late_does_not_do_twice_what_was_done_before_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let blue = plane(dir.path(), "blue");
    blue.stand_by(true);
    owns(&blue).await;
    put(&blue, "one", 1).await.unwrap();
    blue.once("m1", add(&blue, "one")).await.0.unwrap();
    blue.close();
    let green = plane(dir.path(), "green");
    green.stand_by(true);
    owns(&green).await;
    let error = green.once("m1", add(&green, "one")).await.0.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert_eq!(green.read().get::<Note>(&"one".into()).unwrap().number, 2);
}

#[tokio::test]
async fn a_follower_past_whom_the_log_was_trimmed_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let blue = plane(dir.path(), "blue");
    blue.stand_by(true);
    owns(&blue).await;
    for n in 1..=10 {
        put(&blue, "one", n).await.unwrap();
    }
    blue.close();
    let green = plane(dir.path(), "green");
    let mut watch = green.watch(10);
    let late = plane(dir.path(), "late");
    late.stand_by(true);
    owns(&late).await;
    // Nothing of the log is left when the follower asks for what comes after.
    let db = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
    db.execute_batch(
        "BEGIN IMMEDIATE; UPDATE image SET body=CAST('{\"name\":\"one\",\"number\":77}' AS BLOB);
         UPDATE meta SET value=20 WHERE name='revision'; DELETE FROM log; COMMIT;",
    )
    .unwrap();
    green.current().await.unwrap();
    assert_eq!(green.read().revision(), 20);
    assert_eq!(green.read().one(&BY_NUMBER, 77u64).unwrap().name, "one");
    assert!(matches!(watch.next().await.unwrap(), News::Snapshot(state) if state.revision() == 20));
}
