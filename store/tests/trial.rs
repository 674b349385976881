//! Entries of the log tried again by a follower.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use store::{Cause, Cell, Derived, Options, Record, Schema, Tried, Tx, engine};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    name: String,
    number: u64,
    id: u128,
    salt: u64,
    /// Named by users.
    metadata: BTreeMap<String, u64>,
}

impl Record for Note {
    const KIND: &'static str = "note";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// The sum of all numbers, which follows the records.
#[derive(Default)]
struct Sum(u64);

impl Derived for Sum {
    fn changed(
        &mut self,
        _: &'static str,
        before: Option<&dyn std::any::Any>,
        after: Option<&dyn std::any::Any>,
    ) {
        let number = |note: Option<&dyn std::any::Any>| {
            note.and_then(|n| n.downcast_ref::<Note>()).map_or(0, |n| n.number)
        };
        self.0 = self.0 + number(after) - number(before);
    }
}

fn schema() -> Schema {
    Schema::default().record::<Note>().derived::<Sum>()
}

fn url(dir: &Path) -> String {
    format!("sqlite:{}/state.db", dir.display())
}

fn options(name: &str) -> Options {
    // What is drawn outside of the transaction is not deterministic.
    Options { owner: name.into(), twice: false, ..Options::default() }
}

fn cipher() -> std::sync::Arc<dyn base::secret::Cipher> {
    store::cipher::CellKey::cipher([1; 32])
}

/// Drawn outside of the transaction.
static SALT: AtomicU64 = AtomicU64::new(0);

/// What a version of the program does for a request: the sum so far plus `by`.
async fn request(cell: &Cell, id: &str, name: &str, by: u64) -> Result<u64> {
    let seen = cell.read().all::<Note>().map(|n| n.number).sum::<u64>();
    let name = name.to_string();
    let run = move |tx: &mut Tx| {
        let (number, id) = (tx.derived::<Sum>().0 + by, tx.random());
        let salt = SALT.fetch_add(1, Ordering::Relaxed);
        let metadata = BTreeMap::from([(format!("secret {by}"), by)]);
        tx.put(Note { name: name.clone(), number, id, salt, metadata })?;
        Ok(())
    };
    cell.write(Cause { id: id.into(), ..Cause::default() }, run).await?;
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_tries_what_the_owner_wrote_and_tells_how_it_differs() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        |name: &str| Cell::open(engine::open(&url(dir.path())).unwrap(), schema(), cipher(), options(name));
    let owner = open("owner").unwrap();
    let follower =
        Cell::follow(engine::open(&url(dir.path())).unwrap(), schema(), cipher(), options("follower"))
            .unwrap();
    for n in 1..=5 {
        request(&owner, &format!("req-{n}"), &format!("n{n}"), n).await.unwrap();
    }
    follower.current().await.unwrap();
    let trials = follower.trials(&[("note", "salt")]);
    let entries = trials.entries(0, 100);
    assert_eq!(entries.iter().map(|e| e.revision).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(trials.entries(3, 1)[0].revision, 4);

    // In order, and out of it: derived state is as it was then.
    for n in [1, 2, 3, 5, 2_u64] {
        let entry = &entries[n as usize - 1];
        let name = format!("n{n}");
        let again = request(&follower, "req", &name, n);
        let (seen, tried) = trials.again(entry, again).await.unwrap();
        let before = (1..n).fold(0, |sum, n| sum + sum + n);
        assert_eq!((seen.unwrap(), tried), (before, Tried::Equal), "{n}");
    }
    let differs = async |entry: usize, name: &str, by: u64| {
        let (_, tried) = trials.again(&entries[entry], request(&follower, "req", name, by)).await.unwrap();
        match tried {
            Tried::Different(how) => how,
            Tried::Equal => panic!("{name} is equal"),
        }
    };
    assert_eq!(differs(1, "n2", 7).await, "writes another note.metadata, writes another note.number");
    assert_eq!(differs(1, "n9", 2).await, "leaves a note as it was, changes a note besides");

    let (_, tried) = trials.again(&entries[0], async {}).await.unwrap();
    assert_eq!(tried, Tried::Different("does not make it".into()));
    let refusing = async {
        let refuse = |_: &mut Tx| Err::<(), _>(base::Error::conflict("secret words"));
        follower.write(Cause::step("refuse"), refuse).await.unwrap_err();
    };
    let (_, tried) = trials.again(&entries[0], refusing).await.unwrap();
    assert_eq!(tried, Tried::Different("does not make it: Conflict".into()));
    let twice = async {
        request(&follower, "req", "n1", 1).await.unwrap();
        assert_eq!(follower.read().count::<Note>(), 1, "it reads what it wrote");
        request(&follower, "req", "n2", 1).await.unwrap();
    };
    let (_, tried) = trials.again(&entries[0], twice).await.unwrap();
    assert_eq!(tried, Tried::Different("changes note besides".into()));
    let panics = async {
        let panic = |tx: &mut Tx| {
            tx.put(Note { name: "half".into(), number: 1_000, id: 0, salt: 0, metadata: BTreeMap::new() })?;
            if tx.count::<Note>() > 0 {
                panic!("on purpose");
            }
            Ok(())
        };
        follower.write(Cause::step("panic"), panic).await.unwrap_err();
    };
    let (_, tried) = trials.again(&entries[3], panics).await.unwrap();
    assert_eq!(tried, Tried::Different("panics".into()));
    // A panic leaves nothing in derived state.
    let (_, tried) = trials.again(&entries[4], request(&follower, "req", "n5", 5)).await.unwrap();
    assert_eq!(tried, Tried::Equal);

    // Nothing of it counts, and outside of a trial a follower writes nothing.
    owner.current().await.unwrap();
    assert_eq!(owner.read().revision(), 5);
    assert!(request(&follower, "req", "n6", 6).await.is_err());
    assert!(!follower.is_trial());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_wrote_twice_is_tried_once_and_a_step_alone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = || engine::open(&url(dir.path())).unwrap();
    let owner = Cell::open(engine(), schema(), cipher(), options("owner")).unwrap();
    let both = async |cell: &Cell| {
        request(cell, "req-1", "a", 1).await?;
        request(cell, "req-1", "b", 1).await
    };
    let follower = Cell::follow(engine(), schema(), cipher(), options("follower")).unwrap();
    both(&owner).await.unwrap();
    for name in ["c", "d"] {
        let put = move |tx: &mut Tx| {
            Ok(tx.put(Note { name: name.into(), number: 1, id: 0, salt: 0, metadata: BTreeMap::new() })?)
        };
        owner.write(Cause::step("step"), put).await.unwrap();
    }
    follower.current().await.unwrap();
    let trials = follower.trials(&[("note", "salt")]);
    let entries = trials.entries(0, 10);
    let later: Vec<bool> = entries.iter().map(|entry| trials.is_later(entry)).collect();
    assert_eq!(later, [false, true, false, false]);
    let (_, tried) = trials.again(&entries[0], both(&follower)).await.unwrap();
    assert_eq!(tried, Tried::Equal);
    let (_, tried) = trials.again(&entries[0], request(&follower, "req-1", "a", 1)).await.unwrap();
    assert_eq!(tried, Tried::Different("does not make it".into()));
}
