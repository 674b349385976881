//! An engine in memory, as a faulty database server shows itself: answers get lost before or after the work was done,
//! what was not synced is forgotten when the server crashes, and owners come and go by epoch.

use crate::Random;
use base::{Error, Result, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use store::engine::{Append, Batch, Each, Head, Logged as Entered, Tail};
use store::lease::Sign;
use store::{Engine, Entry, Revision};

/// How often, in percent, something goes wrong.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// An append is not done, done without a sync, or done; its answer is lost.
    pub unknown: u64,
    /// The engine cannot go on with this owner.
    pub refused: u64,
    /// A renewal is done or not; its answer is lost.
    pub renewal: u64,
}

/// The server's disk: what all connections share.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Content>>);

struct Content {
    random: Random,
    faults: Faults,
    epoch: u64,
    counter: u64,
    owner: String,
    free: bool,
    log: Vec<Logged>,
    /// So many entries of the log survive a crash.
    synced: usize,
}

/// An entry with its images.
#[derive(Clone)]
pub struct Logged {
    pub entry: Arc<Entry>,
    pub batch: u64,
    body: Vec<u8>,
    /// Kind, key and after-image.
    pub images: Vec<(&'static str, String, Option<Vec<u8>>)>,
}

impl Disk {
    pub fn new(random: Random, faults: Faults) -> Disk {
        let (owner, log) = (String::new(), Vec::new());
        let content = Content { random, faults, epoch: 0, counter: 0, owner, free: false, log, synced: 0 };
        Disk(Arc::new(Mutex::new(content)))
    }

    pub fn connect(&self) -> Box<dyn Engine> {
        Box::new(self.clone())
    }

    pub fn set_faults(&self, faults: Faults) {
        self.content().faults = faults;
    }

    /// The server crashes and is there again: what was not synced is gone.
    pub fn crash(&self) {
        let mut content = self.content();
        let synced = content.synced;
        content.log.truncate(synced);
    }

    /// What survives, after the first `from` entries.
    pub fn durable(&self, from: usize) -> Vec<Logged> {
        let content = self.content();
        content.log[from..content.synced].to_vec()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("no holder panics")
    }
}

impl Content {
    fn head(&self) -> (Revision, u64, Timestamp) {
        self.log.last().map_or((0, 0, Timestamp(0)), |l| (l.entry.revision, l.batch, l.entry.time))
    }

    /// The guard: nothing, or why not.
    fn stopped(&self, batch: &Batch) -> Option<Append> {
        let (revision, ..) = self.head();
        if self.epoch != batch.epoch {
            return Some(Append::Refused(format!("epoch {} owns it, not {}", self.epoch, batch.epoch)));
        }
        if revision < batch.previous {
            return Some(Append::Behind(revision));
        }
        (revision != batch.previous).then(|| Append::Refused(format!("it is at revision {revision}")))
    }

    fn write(&mut self, batch: &Batch) {
        for (entry, encoded) in &batch.entries {
            let image = |image: Option<&[u8]>| image.map(<[u8]>::to_vec);
            let images = entry.changes.iter().zip(encoded.images());
            self.log.push(Logged {
                entry: entry.clone(),
                batch: batch.id,
                body: encoded.body.clone(),
                images: images.map(|(c, i)| (c.kind, c.key.to_string(), image(i))).collect(),
            });
        }
    }
}

impl Engine for Disk {
    fn images(&mut self, each: Each) -> Result<Head> {
        let mut content = self.content();
        // What is read is synced first: a new owner must not answer from what may be forgotten.
        content.synced = content.log.len();
        let mut newest = BTreeMap::new();
        for (kind, key, image) in content.log.iter().flat_map(|l| &l.images) {
            newest.insert((kind, key), image);
        }
        for ((kind, key), image) in newest {
            image.as_ref().map_or(Ok(()), |image| each(kind, key, image))?;
        }
        let (revision, _, time) = content.head();
        Ok(Head { epoch: content.epoch, revision, time })
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        let mut content = self.content();
        if content.epoch != seen {
            return Ok(None);
        }
        (content.epoch, content.counter, content.free) = (seen + 1, 0, false);
        content.owner = owner.into();
        let (revision, _, time) = content.head();
        Ok(Some(Head { epoch: content.epoch, revision, time }))
    }

    fn append(&mut self, batch: &Batch) -> Append {
        let mut content = self.content();
        let (faults, (revision, last, _)) = (content.faults, content.head());
        let there = (content.epoch, revision, last) == (batch.epoch, batch.last(), batch.id);
        if !there && let Some(outcome) = content.stopped(batch) {
            return outcome;
        }
        if content.random.chance(faults.refused) {
            return Append::Refused("the server is out of order".into());
        }
        let lost = content.random.chance(faults.unknown);
        let reached = if lost { content.random.below(3) } else { 2 };
        if reached >= 1 && !there {
            content.write(batch);
        }
        if reached == 2 {
            content.synced = content.log.len();
        }
        if lost { Append::Unknown("the answer was lost".into()) } else { Append::Done }
    }

    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        let mut content = self.content();
        let faults = content.faults;
        let lost = content.random.chance(faults.renewal);
        if lost && content.random.chance(50) {
            return Err(Error::internal("the renewal was lost"));
        }
        let owns = content.epoch == epoch;
        if owns {
            content.counter = counter;
        }
        if lost { Err(Error::internal("the answer was lost")) } else { Ok(owns) }
    }

    fn sign(&mut self) -> Result<Sign> {
        let content = self.content();
        let revision = content.log[..content.synced].last().map_or(0, |l| l.entry.revision);
        let (owner, free) = (content.owner.clone(), content.free);
        Ok(Sign { epoch: content.epoch, counter: content.counter, revision, owner, free })
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        let mut content = self.content();
        content.free |= content.epoch == epoch;
        Ok(content.epoch == epoch)
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        let content = self.content();
        let rest = content.log[..content.synced].iter().skip(after as usize).take(limit);
        let entered =
            |l: &Logged| Entered { revision: l.entry.revision, epoch: l.entry.epoch, body: l.body.clone() };
        Ok(Tail::Entries(rest.map(entered).collect()))
    }
}
