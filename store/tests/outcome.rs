//! Appends that end as nobody knows, leases that end meanwhile, and engines that lose what they confirmed.
//!
//! The engine is the real one; what stands around it stands for the wire to a database server. Time moves by hand.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::cell::Cell as Local;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use store::engine::sqlite::Sqlite;
use store::engine::{Append, Batch, Each, Head, Tail};
use store::lease::{LEASE_MS, MARGIN_MS, Sign};
use store::{BATCH_MAX, Cause, Cell, Engine, Options, Record, Revision, Schema, Steps};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    name: String,
}

impl Record for Note {
    const KIND: &'static str = "note";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// What the wire does to the next append.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The engine has it, the answer is lost.
    AnswerLost,
    /// The engine never sees it.
    RequestLost,
    /// Another owner comes first.
    TakenOver,
    /// The engine goes back to nothing.
    DataLost,
    /// Its disk is full.
    NoRoom,
}

fn take(engine: &mut Sqlite) {
    let seen = engine.sign().unwrap().epoch;
    engine.take("another", seen).unwrap().unwrap();
}

struct Wire {
    engine: Sqlite,
    faults: Arc<Mutex<VecDeque<Fault>>>,
}

impl Engine for Wire {
    fn images(&mut self, each: Each) -> Result<Head> {
        self.engine.images(each)
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        self.engine.take(owner, seen)
    }

    fn append(&mut self, batch: &Batch) -> Append {
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            None => self.engine.append(batch),
            Some(Fault::AnswerLost) => {
                assert_eq!(self.engine.append(batch), Append::Done);
                Append::Unknown("the answer was lost".into())
            }
            Some(Fault::RequestLost) => Append::Unknown("the request was lost".into()),
            Some(Fault::TakenOver) => {
                take(&mut self.engine);
                self.engine.append(batch)
            }
            Some(Fault::NoRoom) => Append::NoRoom("the disk is full".into()),
            Some(Fault::DataLost) => {
                let db = rusqlite::Connection::open_in_memory().unwrap();
                self.engine = Sqlite::over(db, "FULL").unwrap();
                take(&mut self.engine);
                self.engine.append(batch)
            }
        }
    }

    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        match self.faults.lock().unwrap().front() {
            None => self.engine.renew(epoch, counter),
            Some(_) => Err(Error::internal("the wire is cut")),
        }
    }

    fn sign(&mut self) -> Result<Sign> {
        self.engine.sign()
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        self.engine.release(epoch)
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        self.engine.tail(after, limit)
    }
}

thread_local! {
    static NOW: Local<Duration> = const { Local::new(Duration::ZERO) };
}

fn pass(ms: u64) {
    NOW.set(NOW.get() + Duration::from_millis(ms));
}

/// A cell that is stepped, over a wire with these faults.
fn cell(faults: &[Fault]) -> (Cell, Steps, Arc<Mutex<VecDeque<Fault>>>) {
    let file = rusqlite::Connection::open_in_memory().unwrap();
    let wire = Wire { engine: Sqlite::over(file, "FULL").unwrap(), faults: Arc::default() };
    let options = Options { monotonic: || NOW.get(), ..Options::default() };
    let ahead = wire.faults.clone();
    let (cell, steps) = Cell::stepped(Box::new(wire), schema(), key(), options).unwrap();
    ahead.lock().unwrap().extend(faults);
    (cell, steps, ahead)
}

fn schema() -> Schema {
    Schema::default().record::<Note>()
}

fn key() -> Arc<dyn base::secret::Cipher> {
    store::cipher::CellKey::cipher([1; 32])
}

/// A write that has been handed to the lane.
struct Asked(Pin<Box<dyn Future<Output = Result<u64>>>>);

impl Asked {
    fn write(cell: &Cell, name: &str) -> Asked {
        let (cell, name) = (cell.clone(), name.to_string());
        let mut asked = Asked(Box::pin(async move {
            let put = move |tx: &mut store::Tx| {
                tx.put(Note { name: name.clone() })?;
                Ok(tx.next_revision())
            };
            cell.write(Cause::step("note"), put).await
        }));
        assert!(asked.answer().is_none());
        asked
    }

    fn answer(&mut self) -> Option<Result<u64>> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}

fn settle(steps: &mut Steps) {
    while steps.run_one() || steps.append() | steps.appended() {}
}

#[test]
fn a_batch_of_unknown_outcome_goes_through_exactly_once() {
    use Fault::{AnswerLost, RequestLost};
    for faults in [&[AnswerLost][..], &[RequestLost], &[RequestLost, AnswerLost, RequestLost, AnswerLost]] {
        let (cell, mut steps, _) = cell(faults);
        let mut one = Asked::write(&cell, "one");
        steps.run_one();
        for _ in faults {
            assert!(steps.append() && steps.appended());
            assert!(one.answer().is_none(), "answered while the outcome is unknown");
            assert_eq!(cell.read().revision(), 0, "published while the outcome is unknown");
        }
        let mut two = Asked::write(&cell, "two");
        settle(&mut steps);
        assert_eq!((one.answer().unwrap().unwrap(), two.answer().unwrap().unwrap()), (1, 2));
        assert_eq!(cell.read().count::<Note>(), 2);
        assert_eq!(steps.sign().unwrap().revision, 2);
    }
}

#[test]
fn nobody_waits_longer_than_the_lease_and_a_confirmation_brings_it_back() {
    let (cell, mut steps, faults) = cell(&[Fault::AnswerLost, Fault::RequestLost]);
    let mut one = Asked::write(&cell, "one");
    steps.run_one();
    assert!(steps.append() && steps.appended());
    pass(LEASE_MS - MARGIN_MS - 1);
    steps.tick();
    assert!(one.answer().is_none() && cell.owns().is_ok());
    pass(1);
    assert!(cell.owns().is_err(), "an owner answers after its lease");
    steps.tick();
    let error = one.answer().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.message().contains("outcome is unknown"), "{error}");
    let mut late = Asked::write(&cell, "late");
    steps.run_one();
    assert_eq!(late.answer().unwrap().unwrap_err().kind(), Kind::Unavailable);

    // The wire is whole again: the batch went through once, and the lane goes on from it.
    faults.lock().unwrap().clear();
    assert!(steps.append() && steps.appended());
    assert!(cell.owns().is_err(), "a batch that was there already shows a candidate no life");
    steps.renew();
    assert!(cell.owns().is_ok());
    assert_eq!((cell.read().revision(), cell.read().count::<Note>()), (1, 1));
    let mut two = Asked::write(&cell, "two");
    settle(&mut steps);
    assert_eq!(two.answer().unwrap().unwrap(), 2);
}

#[test]
fn a_renewal_holds_the_lease_counted_from_when_it_was_sent() {
    let (cell, mut steps, faults) = cell(&[]);
    for _ in 0..5 {
        pass(400);
        steps.renew();
        assert!(cell.owns().is_ok());
    }
    faults.lock().unwrap().push_back(Fault::RequestLost);
    pass(400);
    steps.renew();
    assert!(cell.owns().is_ok(), "one lost renewal is no end");
    pass(100);
    assert!(cell.owns().is_err());
}

#[test]
fn an_owner_with_an_old_epoch_changes_nothing_and_stops() {
    let (cell, mut steps, _) = cell(&[Fault::RequestLost, Fault::TakenOver]);
    let (mut one, mut two) = (Asked::write(&cell, "one"), Asked::write(&cell, "two"));
    settle(&mut steps);
    for asked in [&mut one, &mut two] {
        assert!(asked.answer().unwrap().unwrap_err().message().contains("outcome is unknown"));
    }
    assert!(cell.owns().is_err());
    steps.renew();
    assert!(cell.owns().is_err(), "lost is lost");
    let mut late = Asked::write(&cell, "late");
    settle(&mut steps);
    assert!(late.answer().unwrap().unwrap_err().message().contains("does not own"));
    assert_eq!(steps.sign().unwrap().revision, 0);
}

#[test]
fn an_engine_behind_what_was_answered_stops_the_owner() {
    let (cell, mut steps, faults) = cell(&[]);
    let mut one = Asked::write(&cell, "one");
    settle(&mut steps);
    assert_eq!(one.answer().unwrap().unwrap(), 1);
    faults.lock().unwrap().push_back(Fault::DataLost);
    let mut two = Asked::write(&cell, "two");
    settle(&mut steps);
    assert_eq!(two.answer().unwrap().unwrap_err().kind(), Kind::Unavailable);
    let mut late = Asked::write(&cell, "late");
    settle(&mut steps);
    assert!(late.answer().unwrap().unwrap_err().message().contains("lost what it had confirmed"));
}

/// An engine that appends only when the test lets it.
struct Gate(Wire, std::sync::mpsc::Receiver<()>);

impl Engine for Gate {
    fn images(&mut self, each: Each) -> Result<Head> {
        self.0.images(each)
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        self.0.take(owner, seen)
    }

    fn append(&mut self, batch: &Batch) -> Append {
        // An error: the test lets everything through.
        let _ = self.1.recv();
        self.0.append(batch)
    }

    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        self.0.renew(epoch, counter)
    }

    fn sign(&mut self) -> Result<Sign> {
        self.0.sign()
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        self.0.release(epoch)
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        self.0.tail(after, limit)
    }
}

#[tokio::test]
async fn more_than_a_batch_may_wait_for_a_slow_engine() {
    let (open, gate) = std::sync::mpsc::channel();
    let db = rusqlite::Connection::open_in_memory().unwrap();
    let wire = Wire { engine: Sqlite::over(db, "FULL").unwrap(), faults: Arc::default() };
    let options = Options { monotonic: || Duration::ZERO, ..Options::default() };
    let cell = Cell::open(Box::new(Gate(wire, gate)), schema(), key(), options).unwrap();
    let mut asked: Vec<_> = (0..3 * BATCH_MAX).map(|n| Asked::write(&cell, &n.to_string())).collect();
    drop(open);
    for asked in &mut asked {
        asked.0.as_mut().await.unwrap();
    }
    assert_eq!(cell.read().count::<Note>(), 3 * BATCH_MAX);
}

#[tokio::test]
async fn threads_append_again_and_tell_watchers_of_the_end() {
    let db = rusqlite::Connection::open_in_memory().unwrap();
    let wire = Wire { engine: Sqlite::over(db, "FULL").unwrap(), faults: Arc::default() };
    let faults = wire.faults.clone();
    // The lease is judged by a clock that stands: only the faults decide.
    let options = Options { monotonic: || Duration::ZERO, ..Options::default() };
    let cell = Cell::open(Box::new(wire), schema(), key(), options).unwrap();
    faults.lock().unwrap().extend([Fault::AnswerLost, Fault::RequestLost]);
    assert_eq!(Asked::write(&cell, "one").0.await.unwrap(), 1);
    let mut watch = cell.watch(0);
    cell.close();
    assert!(watch.next().await.is_some());
    assert!(watch.next().await.is_none());
}

#[test]
fn a_full_disk_changes_nothing_and_ends_nothing() {
    let (cell, mut steps, _) = cell(&[Fault::NoRoom]);
    let mut one = Asked::write(&cell, "one");
    steps.run_one();
    assert!(steps.append());
    // It ran upon what is taken back.
    let mut two = Asked::write(&cell, "two");
    steps.run_one();
    assert!(steps.appended());
    for asked in [&mut one, &mut two] {
        let error = asked.answer().unwrap().unwrap_err();
        assert_eq!((error.kind(), error.message().contains("no room")), (Kind::Unavailable, true));
    }
    assert!(cell.owns().is_ok());
    assert_eq!(cell.read().count::<Note>(), 0);
    let mut three = Asked::write(&cell, "three");
    settle(&mut steps);
    assert_eq!(three.answer().unwrap().unwrap(), 1);
    assert_eq!(steps.sign().unwrap().revision, 1);
}
