//! Two processes over one faulty engine, clients that move amounts between accounts, and watchers.
//!
//! Processes crash and take over by lease, the server forgets what was not synced, answers get lost or come late, the
//! wall clock jumps. Held after each step: what was answered is durable and was done once; what was refused was not
//! done; amounts add up at every revision; at most one process answers, and what it answers is never older than what
//! anybody was told; watchers see every revision once and in order.

use crate::engine::{Disk, Faults};
use crate::{Random, World, clock, poll};
use base::id::ProjectId;
use base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use store::lease::Candidate;
use store::{Cause, Cell, News, Options, Record, Schema, Steps, Tx, Watch};

const ACCOUNTS: u64 = 8;
const BALANCE: i64 = 100;
const CLIENTS: usize = 5;
const WATCHERS: usize = 3;
/// Rounds without faults in which everything must come to an end.
const SETTLE_MAX: usize = 1_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Account {
    id: u64,
    balance: i64,
    /// The operation that wrote it last.
    by: String,
}

impl Record for Account {
    const KIND: &'static str = "account";
    type Key = u64;

    fn key(&self) -> u64 {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(ProjectId::ZERO, "balance", self.balance);
    }
}

type Model = BTreeMap<u64, Account>;

struct Plane {
    cell: Cell,
    steps: Steps,
    /// The revision up to which its state was compared with the log.
    compared: Option<u64>,
}

type Asked = Pin<Box<dyn Future<Output = Result<Told>>>>;

/// What a transaction answers.
#[derive(Clone, Copy, Debug)]
enum Told {
    Wrote(u64),
    Saw(u64),
}

#[derive(Default)]
struct Client {
    count: u64,
    /// The operation's name, the newest revision that anybody knew of when it was asked, and its future.
    asked: Option<(String, u64, Asked)>,
}

#[derive(Default)]
struct Watcher {
    watch: Option<(usize, Watch)>,
    at: u64,
    model: Model,
}

pub struct CellWorld {
    disk: Disk,
    planes: [Option<Plane>; 2],
    candidates: [Candidate; 2],
    clients: Vec<Client>,
    watchers: Vec<Watcher>,
    /// What is durable: the operation of each revision, and the model at each.
    truth: Vec<String>,
    models: Vec<Model>,
    refused: BTreeSet<String>,
    told: u64,
    last: (u64, base::Timestamp),
}

impl CellWorld {
    pub fn new(random: &mut Random) -> CellWorld {
        // Some worlds are calm, some are wild.
        let unknown = random.below(4) * 12;
        let faults = Faults { unknown, refused: random.below(2), renewal: random.below(3) * 10 };
        CellWorld {
            disk: Disk::new(random.fork(), faults),
            planes: [None, None],
            candidates: Default::default(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            watchers: (0..WATCHERS).map(|_| Watcher::default()).collect(),
            truth: Vec::new(),
            models: vec![Model::new()],
            refused: BTreeSet::new(),
            told: 0,
            last: (0, base::Timestamp(0)),
        }
    }

    fn client(&mut self, n: usize, random: &mut Random) -> String {
        match self.clients[n].asked.take() {
            None => self.ask(n, random),
            Some((name, floor, mut future)) => match poll(&mut future) {
                None => {
                    self.clients[n].asked = Some((name, floor, future));
                    format!("client {n} waits")
                }
                Some(answer) => self.answered(n, name, floor, answer),
            },
        }
    }

    fn ask(&mut self, n: usize, random: &mut Random) -> String {
        let to = random.below(2) as usize;
        let Some(plane) = &self.planes[to] else { return format!("client {n} finds nobody") };
        if random.chance(20) && plane.cell.owns().is_ok() {
            let revision = plane.cell.read().revision();
            assert!(revision >= self.told, "a read at {revision} after {} was answered", self.told);
            return format!("client {n} reads {revision} at {to}");
        }
        let client = &mut self.clients[n];
        client.count += 1;
        let name = format!("{n}.{}", client.count);
        let (what, id, cell) = (random.draw(), name.clone(), plane.cell.clone());
        let cause = Cause::step(&name);
        let mut future: Asked =
            Box::pin(async move { cell.write(cause, move |tx| operate(tx, &id, what)).await });
        // The first poll hands it to the lane.
        let line = match poll(&mut future) {
            Some(answer) => return self.answered(n, name, self.told, answer),
            None => format!("client {n} asks {to} for {name}"),
        };
        self.clients[n].asked = Some((name, self.told, future));
        line
    }

    fn answered(&mut self, n: usize, name: String, floor: u64, answer: Result<Told>) -> String {
        let line = format!("client {n}: {name} is {answer:?}");
        match answer {
            Ok(Told::Wrote(revision)) => {
                assert_eq!(self.truth.get(revision as usize - 1), Some(&name), "{revision} was answered");
                self.told = self.told.max(revision);
            }
            Ok(Told::Saw(revision)) => {
                assert!(revision >= floor, "{name} saw {revision} after {floor} was answered");
                assert!(revision <= self.truth.len() as u64, "{name} saw {revision}, which is not durable");
                self.told = self.told.max(revision);
            }
            Err(error) if error.message().contains("unknown") => {}
            Err(error) => {
                assert!(matches!(error.kind(), Kind::Unavailable | Kind::Invalid), "{}", error.chain());
                assert!(!self.truth.contains(&name), "{name} was refused and is done");
                self.refused.insert(name);
            }
        }
        line
    }

    fn plane(&mut self, n: usize, random: &mut Random) -> String {
        let Some(plane) = &mut self.planes[n] else { return self.open(n, random) };
        match random.below(100) {
            0..30 => format!("plane {n} runs one: {}", plane.steps.run_one()),
            30..55 => format!("plane {n} appends: {}", plane.steps.append()),
            55..80 => format!("plane {n} hears of it: {}", plane.steps.appended()),
            80..93 => {
                plane.steps.renew();
                format!("plane {n} renews, owns: {}", plane.cell.owns().is_ok())
            }
            93..98 => {
                plane.steps.tick();
                format!("plane {n} looks at the clock")
            }
            _ => {
                self.planes[n] = None;
                format!("plane {n} is killed")
            }
        }
    }

    /// At once when the other process is known to be dead, else when its lease is over.
    fn open(&mut self, n: usize, random: &mut Random) -> String {
        let mut engine = self.disk.connect();
        let sign = engine.sign().expect("the engine answers");
        if self.planes[1 - n].is_some() && !self.candidates[n].may_take(&sign, clock::monotonic()) {
            return format!("plane {n} watches {sign:?}");
        }
        let options = Options {
            twice: true,
            clock: clock::wall,
            monotonic: clock::monotonic,
            ring: 1 + random.below(20) as usize,
            seed: random.seed(),
            owner: format!("plane {n}"),
        };
        let schema = Schema::default().record::<Account>();
        match Cell::stepped(engine, schema, store::cipher::CellKey::cipher([5; 32]), options) {
            Ok((cell, steps)) => {
                self.planes[n] = Some(Plane { cell, steps, compared: None });
                format!("plane {n} opens")
            }
            Err(error) => format!("plane {n} does not open: {error}"),
        }
    }

    fn watch(&mut self, n: usize, random: &mut Random) -> String {
        let watcher = &mut self.watchers[n];
        if watcher.watch.as_ref().is_none_or(|(plane, _)| self.planes[*plane].is_none() || random.chance(5)) {
            let to = random.below(2) as usize;
            watcher.watch = self.planes[to].as_ref().map(|plane| (to, plane.cell.watch(watcher.at)));
        }
        let Some((_, watch)) = &mut watcher.watch else { return format!("watcher {n} finds nobody") };
        let news = poll(&mut Box::pin(watch.next())).flatten();
        let line = match news {
            None => return format!("watcher {n} waits"),
            Some(News::Snapshot(state)) => {
                watcher.model = state.all::<Account>().map(|a| (a.id, (**a).clone())).collect();
                format!("watcher {n} starts over at {}", state.revision())
            }
            Some(News::Entries(entries)) => {
                let expect = watcher.at + 1..=watch.at();
                assert!(entries.iter().map(|e| e.revision).eq(expect), "watcher {n} at {}", watcher.at);
                for (before, after) in
                    entries.iter().flat_map(|e| &e.changes).filter_map(|c| c.of::<Account>())
                {
                    before.map(|a| watcher.model.remove(&a.id));
                    after.map(|a| watcher.model.insert(a.id, a.clone()));
                }
                format!("watcher {n} sees {}", entries.len())
            }
        };
        watcher.at = watch.at();
        assert_eq!(watcher.model, self.models[watcher.at as usize], "watcher {n} at {}", watcher.at);
        line
    }
}

/// Moves an amount, writes or deletes a note beside the accounts, looks, or fails halfway.
fn operate(tx: &mut Tx, by: &str, what: u64) -> Result<Told> {
    let wrote = Told::Wrote(tx.next_revision());
    let account = |id, balance| Account { id, balance, by: by.into() };
    if tx.count::<Account>() == 0 {
        for id in 0..ACCOUNTS {
            tx.put(account(id, BALANCE))?;
        }
        return Ok(wrote);
    }
    let (from, to) = (what % ACCOUNTS, (what >> 8) % ACCOUNTS);
    let note = ACCOUNTS + from;
    match (what >> 16) % 10 {
        0 => Ok(Told::Saw(tx.revision())),
        1 => {
            tx.put(account(from, 1_000_000))?;
            Err(Error::invalid("it was meant to fail"))
        }
        2 if tx.delete::<Account>(&note).is_some() => Ok(wrote),
        2 | 3 => {
            tx.put(account(note, 0))?;
            Ok(wrote)
        }
        _ => {
            let amount = (tx.random() % 10) as i64;
            for (id, sign) in [(from, -1), (to, 1)] {
                let balance = tx.get::<Account>(&id).map_or(0, |a| a.balance);
                tx.put(account(id, balance + sign * amount))?;
            }
            Ok(wrote)
        }
    }
}

impl World for CellWorld {
    fn step(&mut self, random: &mut Random) -> String {
        let (client, watcher) =
            (random.below(CLIENTS as u64) as usize, random.below(WATCHERS as u64) as usize);
        match random.below(100) {
            0..35 => self.client(client, random),
            35..75 => self.plane(random.below(2) as usize, random),
            75..85 => self.watch(watcher, random),
            85..98 => {
                let ms = if random.chance(3) { random.below(900) } else { random.below(40) };
                clock::pass(Duration::from_millis(ms));
                format!("{ms} ms pass")
            }
            98 => {
                self.disk.crash();
                "the server crashes".into()
            }
            _ => {
                let secs = random.below(7_200) as i64 - 3_600;
                clock::set_wall_by(secs);
                format!("the wall clock is set by {secs} s")
            }
        }
    }

    fn check(&mut self) {
        for logged in self.disk.durable(self.truth.len()) {
            let (entry, mut model) = (&logged.entry, self.models[self.truth.len()].clone());
            assert_eq!(entry.revision, self.truth.len() as u64 + 1);
            assert!((entry.epoch, entry.time) >= self.last && entry.time >= self.last.1, "time goes back");
            self.last = (entry.epoch, entry.time);
            for (_, key, image) in &logged.images {
                let key = key.parse().expect("an account's key is a number");
                match image {
                    Some(image) => {
                        model.insert(key, serde_json::from_slice(image).expect("the lane encoded it"))
                    }
                    None => model.remove(&key),
                };
            }
            let total: i64 = model.values().map(|a| a.balance).sum();
            assert_eq!(total, ACCOUNTS as i64 * BALANCE, "{} made amounts come or go", entry.cause.id);
            assert!(!self.truth.contains(&entry.cause.id), "{} is done twice", entry.cause.id);
            assert!(!self.refused.contains(&entry.cause.id), "{} was refused", entry.cause.id);
            self.truth.push(entry.cause.id.clone());
            self.models.push(model);
        }
        let owners = self.planes.iter().flatten().filter(|p| p.cell.owns().is_ok()).count();
        assert!(owners <= 1, "{owners} processes answer");
        for plane in self.planes.iter_mut().flatten() {
            let state = plane.cell.read();
            if plane.compared.replace(state.revision()) != Some(state.revision()) {
                let model = &self.models[state.revision() as usize];
                assert!(state.all::<Account>().map(|a| &**a).eq(model.values()));
                let total: i64 = model.values().map(|a| a.balance).sum();
                assert_eq!(state.sum(ProjectId::ZERO, "balance"), total);
            }
        }
    }

    fn settle(&mut self, random: &mut Random) {
        self.disk.set_faults(Faults::default());
        let head = |world: &CellWorld| world.truth.len() as u64;
        for round in 0..SETTLE_MAX {
            clock::pass(Duration::from_millis(20));
            for n in 0..2 {
                match &mut self.planes[n] {
                    // The first owner stays; the other waits for its lease to end.
                    None => drop(self.open(n, random)),
                    Some(plane) => {
                        plane.steps.renew();
                        while plane.steps.run_one() || plane.steps.append() | plane.steps.appended() {}
                        if plane.cell.owns().is_err() {
                            self.planes[n] = None;
                        }
                    }
                }
                self.check();
            }
            for n in 0..CLIENTS {
                if self.clients[n].asked.is_some() {
                    self.client(n, random);
                }
            }
            for n in 0..WATCHERS {
                self.watch(n, random);
            }
            let waiting = self.clients.iter().any(|c| c.asked.is_some());
            let behind = self.watchers.iter().any(|w| w.at < head(self));
            let owned = self.planes.iter().flatten().any(|p| p.cell.owns().is_ok());
            if !waiting && !behind && owned && round > 50 {
                return;
            }
        }
        panic!("without faults, it does not come to rest: {} revisions", head(self));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 2_000;

    #[test]
    fn a_cell_keeps_its_promises_under_every_seed() {
        crate::run(300, STEPS, CellWorld::new);
    }

    #[test]
    fn a_seed_is_the_same_run_every_time() {
        let trace = crate::trace(7, STEPS, CellWorld::new);
        assert_eq!(trace, crate::trace(7, STEPS, CellWorld::new));
        assert_ne!(trace, crate::trace(8, STEPS, CellWorld::new));
    }

    #[test]
    fn what_should_be_met_is_met() {
        let lines: Vec<_> = (0..10).flat_map(|seed| crate::trace(seed, STEPS, CellWorld::new)).collect();
        for what in
            ["Wrote(", "Saw(", "outcome is unknown", "starts over", " opens", "cannot reach", "does not own"]
        {
            let times = lines.iter().filter(|line| line.contains(what)).count();
            assert!(times >= 10, "{what:?} happened {times} times");
        }
    }
}
