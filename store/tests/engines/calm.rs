//! What an engine owes the lane and its followers while its server is well.

use crate::servers::Server;
use crate::world::*;
use base::{Kind, Result, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use store::engine::{Append, Batch, Each, Head, Limits, Tail};
use store::lease::Sign;
use store::{Cell, Engine, News, Options, Revision};

pub async fn all(server: &Server) {
    answers_are_in_the_log_in_their_order(&url(server, "order")).await;
    a_cell_is_taken_from_where_it_was_seen(&url(server, "take"));
    an_old_epoch_changes_nothing(&url(server, "fence")).await;
    a_batch_that_is_appended_again_is_done_once(&url(server, "twice")).await;
    whoever_follows_resumes_where_it_was(&url(server, "resume")).await;
    whoever_is_behind_the_log_starts_over(&url(server, "trimmed")).await;
    a_restart_loses_nothing(&url(server, "restart")).await;
}

async fn answers_are_in_the_log_in_their_order(url: &str) {
    let cell = owner(url);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..20 {
        let cell = cell.clone();
        tasks.spawn(async move {
            let mut answered = Answered::new();
            for n in 0..20 {
                let name = format!("{client} {}", n % 7);
                let id = format!("{client}.{n}");
                answered.insert(id.clone(), add(&cell, &id, &name).await.unwrap().0);
                if n % 5 == 4 {
                    delete(&cell, &name).await.unwrap();
                }
            }
            answered
        });
    }
    let answered: Answered = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(check(url, &answered), 480);
    assert!(matches!(engine(url).tail(480, 5).unwrap(), Tail::Entries(none) if none.is_empty()));
    assert!(matches!(engine(url).tail(470, 5).unwrap(), Tail::Entries(five) if five.len() == 5));
    cell.close();
}

fn a_cell_is_taken_from_where_it_was_seen(url: &str) {
    let mut one = engine(url);
    assert_eq!(one.sign().unwrap(), Sign::default());
    assert_eq!(one.images(&mut |_, _, _| panic!("it is empty")).unwrap(), Head::default());
    assert_eq!(one.take("one", 5).unwrap(), None);
    assert_eq!(one.take("one", 0).unwrap(), Some(Head { epoch: 1, ..Head::default() }));
    assert_eq!(one.take("one", 0).unwrap(), None);
    assert!(one.renew(1, 7).unwrap());
    let sign = engine(url).sign().unwrap();
    assert_eq!(sign, Sign { epoch: 1, counter: 7, revision: 0, owner: "one".into(), free: false });
    let race = |n: usize| {
        let url = url.to_string();
        std::thread::spawn(move || engine(&url).take(&format!("racer {n}"), 1).unwrap().is_some())
    };
    let racers: Vec<_> = (0..6).map(race).collect();
    let won = racers.into_iter().map(|r| r.join().unwrap()).filter(|won| *won).count();
    assert_eq!(won, 1, "one of them takes it");
    assert!(!one.renew(1, 8).unwrap() && !one.release(1).unwrap());
    assert!(one.release(2).unwrap());
    let sign = one.sign().unwrap();
    assert!(sign.free && sign.epoch == 2 && sign.owner.starts_with("racer"), "{sign:?}");
}

async fn an_old_epoch_changes_nothing(url: &str) {
    let cell = owner(url);
    add(&cell, "first", "note").await.unwrap();
    let mut other = engine(url);
    let head = other.take("other", 1).unwrap().unwrap();
    assert_eq!((head.epoch, head.revision), (2, 1));
    assert_eq!(add(&cell, "second", "note").await.unwrap_err().kind(), Kind::Unavailable);
    assert!(cell.owns().is_err());
    assert_eq!(other.sign().unwrap().revision, 1);
    assert_eq!(check(url, &Answered::from([("first".into(), 1)])), 1);
    cell.close();
    assert!(!other.sign().unwrap().free, "the old owner lays down what is not its own");
}

/// An engine that is told to do something else now and then.
struct Odd {
    engine: Box<dyn Engine>,
    twice: bool,
    deaf: Arc<AtomicBool>,
}

impl Engine for Odd {
    fn images(&mut self, each: Each) -> Result<Head> {
        self.engine.images(each)
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        self.engine.take(owner, seen)
    }

    fn append(&mut self, batch: &Batch) -> Append {
        if self.twice {
            assert_eq!(self.engine.append(batch), Append::Done);
        }
        self.engine.append(batch)
    }

    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        self.engine.renew(epoch, counter)
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        self.engine.release(epoch)
    }

    fn sign(&mut self) -> Result<Sign> {
        match self.deaf.load(Ordering::SeqCst) {
            false => self.engine.sign(),
            true => Err(base::Error::unavailable("it hears nothing")),
        }
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        self.engine.tail(after, limit)
    }

    fn limits(&self) -> Limits {
        self.engine.limits()
    }
}

async fn a_batch_that_is_appended_again_is_done_once(url: &str) {
    let odd = Odd { engine: engine(url), twice: true, deaf: Arc::default() };
    let cell = Cell::open(Box::new(odd), schema(), cipher(), options("owner")).unwrap();
    for n in 1..=10 {
        assert_eq!(add(&cell, &n.to_string(), "note").await.unwrap(), (n, n));
    }
    assert_eq!(check(url, &Answered::new()), 10);
    cell.close();
}

async fn whoever_follows_resumes_where_it_was(url: &str) {
    let cell = owner(url);
    let green = follower(url, "green");
    let mut watch = green.watch(0);
    for n in 0..60 {
        add(&cell, &n.to_string(), &format!("note {}", n % 9)).await.unwrap();
        green.current().await.unwrap();
        assert!(green.read().revision() > n, "it answers before it has what was answered");
    }
    delete(&cell, "note 3").await.unwrap();
    green.current().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 61 {
        match watch.next().await.unwrap() {
            News::Entries(entries) => seen.extend(entries.iter().map(|e| e.revision)),
            News::Snapshot(_) => panic!("the ring is long enough"),
        }
    }
    assert_eq!(seen, (1..=61).collect::<Vec<_>>());
    green.close();
    add(&cell, "after", "note 1").await.unwrap();
    let green = follower(url, "green again");
    green.current().await.unwrap();
    assert_eq!(
        green.digests(62, store::Form::Written).unwrap(),
        cell.digests(62, store::Form::Written).unwrap()
    );
    cell.close();
    green.close();
}

static AHEAD: AtomicI64 = AtomicI64::new(0);

fn clock() -> Timestamp {
    Timestamp(Timestamp::wall().0 + AHEAD.load(Ordering::SeqCst))
}

async fn whoever_is_behind_the_log_starts_over(url: &str) {
    const HOURS_2: i64 = 7_200_000_000;
    let options = |name: &str| Options { clock, ..options(name) };
    let cell = Cell::open(engine(url), schema(), cipher(), options("owner")).unwrap();
    let deaf = Arc::new(AtomicBool::new(false));
    let odd = Odd { engine: engine(url), twice: false, deaf: deaf.clone() };
    let green = Cell::follow(Box::new(odd), schema(), cipher(), options("green")).unwrap();
    for n in 0..20 {
        add(&cell, &format!("old {n}"), &format!("note {n}")).await.unwrap();
    }
    green.current().await.unwrap();
    let mut watch = green.watch(20);
    deaf.store(true, Ordering::SeqCst);
    AHEAD.fetch_add(HOURS_2, Ordering::SeqCst);
    delete(&cell, "note 7").await.unwrap();
    let mut raw = engine(url);
    let mut n = 0;
    // Some engines trim now and then, and behind the append.
    while raw.tail(21, 1).unwrap() != Tail::Trimmed {
        n += 1;
        assert!(n < 20_000, "the log is never trimmed");
        add(&cell, &n.to_string(), &format!("note {}", n % 30)).await.unwrap();
        if n == 400 {
            AHEAD.fetch_add(HOURS_2, Ordering::SeqCst);
        }
    }
    let newest = cell.read().revision();
    assert!(matches!(raw.tail(newest - 1, 9).unwrap(), Tail::Entries(one) if one.len() == 1));
    deaf.store(false, Ordering::SeqCst);
    green.current().await.unwrap();
    assert_eq!(
        green.digests(newest, store::Form::Written).unwrap(),
        cell.digests(newest, store::Form::Written).unwrap()
    );
    assert!(matches!(watch.next().await.unwrap(), News::Snapshot(state) if state.revision() == newest));
    add(&cell, "last", "note 1").await.unwrap();
    green.current().await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), News::Entries(one) if one.len() == 1));
    cell.close();
    green.close();
}

async fn a_restart_loses_nothing(url: &str) {
    let mut answered = Answered::new();
    for round in 1..=3 {
        let cell = owner(url);
        assert_eq!(cell.read().epoch(), round);
        for n in 0..30 {
            let id = format!("{round}.{n}");
            answered.insert(id.clone(), add(&cell, &id, &format!("note {}", n % 11)).await.unwrap().0);
        }
        delete(&cell, &format!("note {round}")).await.unwrap();
        let digests = cell.digests(cell.read().revision(), store::Form::Written).unwrap();
        cell.close();
        let again = follower(url, "again");
        assert_eq!(again.digests(again.read().revision(), store::Form::Written).unwrap(), digests);
        again.close();
    }
    assert_eq!(check(url, &answered), 93);
}
