//! Images are folded in behind the log by the owner: one thread, which also trims the log and etcd's own history.
//!
//! What it takes at once it writes in several transactions and puts `folded` last; each is guarded by the epoch and by
//! the `folded` it began from, so one that comes late changes nothing. Who reads images in between applies the batches
//! after `folded` over them, and sees nothing of the half.

use super::client::{Client, Cluster, Failed};
use super::message::{Compact, Compare, Ignored, Range, Ranged, RequestOp, Txn, TxnDone, delete, put};
use super::value::{self, Images, Keys, Small};
use super::{COMPACT, PAGE_BATCHES, RANGE, TXN};
use crate::engine::Batch;
use crate::log::Revision;
use base::Result;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A change waits this long for others of the same record, unless many wait.
const FOLD_EVERY: Duration = Duration::from_millis(200);
const FOLD_RECORDS: usize = 2_000;
/// etcd takes 128 operations in a transaction unless it is told otherwise.
const OPS_MAX: usize = 100;
/// And 1.5 MiB, of which a record has at most one.
const TXN_BYTES: usize = 1 << 20;
/// Images that may wait; then appends wait, too.
const PENDING_BYTES: usize = 64 << 20;
const AGAIN: Duration = Duration::from_millis(100);
/// Batches after which the log is looked at, and how many are taken out at once.
const TRIM_EVERY: usize = 128;
const TRIM_MAX: usize = 512;
/// The log is kept this long (microseconds), or as long as it is no larger.
const LOG_KEEP_MICROS: i64 = 3_600_000_000;
const LOG_BYTES_MAX: u64 = 256 << 20;
/// etcd's own history is of use to who reads images meanwhile.
const HISTORY_KEEP: Duration = Duration::from_secs(30);
const COMPACT_EVERY: Duration = Duration::from_secs(5);
/// Revisions of etcd that are not worth a compaction.
const COMPACT_MIN: i64 = 1_000;

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Goes,
    /// Ends when nothing waits.
    Finishes,
    Ends,
}

/// The changes of `from+1 ..= until`.
struct Pending {
    images: Images,
    from: Revision,
    until: Revision,
    bytes: usize,
    since: Option<Instant>,
    batches: usize,
    newest: (i64, u64),
    life: Life,
}

struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no holder panics")
    }
}

pub struct Folder {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.shared.lock().life = Life::Ends;
        self.shared.changed.notify_all();
    }
}

impl Folder {
    /// For the owner of this epoch, who took the cell at a revision; what is not yet folded until then, too.
    pub fn start(cluster: Cluster, keys: Keys, epoch: u64, at: Revision) -> Result<Folder> {
        let pending = Pending {
            images: Images::new(),
            from: at,
            until: at,
            bytes: 0,
            since: Some(Instant::now()),
            batches: 0,
            newest: (0, 0),
            life: Life::Goes,
        };
        let shared = Arc::new(Shared { pending: Mutex::new(pending), changed: Condvar::new() });
        let worker = Worker {
            client: Client::new(cluster)?,
            keys,
            epoch,
            folded: None,
            shared: shared.clone(),
            batches: 0,
            etcd: 0,
            marks: VecDeque::new(),
        };
        let thread = std::thread::Builder::new().name("fold".into()).spawn(|| worker.run())?;
        Ok(Folder { shared, thread: Some(thread) })
    }

    /// Waits a little for room. False: there is none.
    pub fn has_room(&self, wait: Duration) -> bool {
        let full = |pending: &mut Pending| pending.bytes > PENDING_BYTES;
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), wait, full);
        waited.expect("no holder panics").0.bytes <= PENDING_BYTES
    }

    /// A batch that is durable, and the bytes of the log with it.
    pub fn push(&self, batch: &Batch, total: u64) {
        let mut pending = self.shared.lock();
        if pending.until != batch.previous {
            // What is missing is read from the log.
            pending.images.clear();
            pending.from = batch.previous;
        }
        for (entry, encoded) in &batch.entries {
            for (change, image) in entry.changes.iter().zip(encoded.images()) {
                pending.bytes += image.map_or(0, <[u8]>::len);
                let image = image.map(Bytes::copy_from_slice);
                pending.images.insert((change.kind.into(), change.key.clone()), image);
            }
        }
        pending.until = batch.last();
        pending.newest = (batch.time().0, total);
        pending.batches += 1;
        let first = pending.since.is_none();
        pending.since.get_or_insert_with(Instant::now);
        if first || pending.images.len() >= FOLD_RECORDS {
            self.shared.changed.notify_all();
        }
    }

    /// Folds what waits and ends; not if etcd does not answer.
    pub fn finish(mut self) {
        self.shared.lock().life = Life::Finishes;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is folded at once.
struct Taken {
    images: Images,
    from: Revision,
    until: Revision,
    newest: (i64, u64),
    batches: usize,
}

struct Worker {
    client: Client,
    keys: Keys,
    epoch: u64,
    /// Nothing when it has to be read.
    folded: Option<Revision>,
    shared: Arc<Shared>,
    /// Since the log was last looked at.
    batches: usize,
    /// The newest revision of etcd's that was seen.
    etcd: i64,
    marks: VecDeque<(Instant, i64)>,
}

/// Another owns the cell.
struct Over;

enum Trouble {
    Over,
    Failed(String),
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Trouble {
        Trouble::Failed(failed.text())
    }
}

impl From<base::Error> for Trouble {
    fn from(error: base::Error) -> Trouble {
        Trouble::Failed(error.chain())
    }
}

impl Worker {
    fn run(mut self) {
        while let Some(taken) = self.next() {
            if self.fold_all(&taken).is_err() {
                break;
            }
            self.batches += taken.batches;
            let trimmed = self.trim(&taken).and_then(|()| self.compact());
            if let Err(Trouble::Failed(why)) = trimmed {
                tracing::debug!("the log in etcd was not trimmed: {why}");
            }
        }
    }

    /// What waits, once it has waited long enough or is enough.
    fn next(&self) -> Option<Taken> {
        let mut pending = self.shared.lock();
        loop {
            let waited = pending.since.map(|since| since.elapsed());
            let ripe =
                waited.is_some_and(|waited| waited >= FOLD_EVERY) || pending.images.len() >= FOLD_RECORDS;
            match pending.life {
                Life::Ends => return None,
                Life::Finishes if pending.since.is_none() => return None,
                Life::Finishes => break,
                Life::Goes if ripe => break,
                Life::Goes => {
                    let rest = waited.map_or(Duration::MAX, |waited| FOLD_EVERY - waited);
                    let woken = self.shared.changed.wait_timeout(pending, rest.min(HISTORY_KEEP));
                    pending = woken.expect("no holder panics").0;
                }
            }
        }
        let taken = Taken {
            images: std::mem::take(&mut pending.images),
            from: pending.from,
            until: pending.until,
            newest: pending.newest,
            batches: std::mem::take(&mut pending.batches),
        };
        (pending.from, pending.bytes, pending.since) = (pending.until, 0, None);
        self.shared.changed.notify_all();
        Some(taken)
    }

    /// Until it is done, or nobody wants it any more.
    fn fold_all(&mut self, taken: &Taken) -> Result<(), Over> {
        let mut told = false;
        loop {
            match self.fold(taken) {
                Ok(()) => return Ok(()),
                Err(Trouble::Over) => return Err(Over),
                Err(Trouble::Failed(why)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("images are not folded in, it is tried again: {why}");
                    }
                }
            }
            self.folded = None;
            std::thread::sleep(AGAIN);
            if self.shared.lock().life != Life::Goes {
                return Err(Over);
            }
        }
    }

    fn fold(&mut self, taken: &Taken) -> Result<(), Trouble> {
        let folded = match self.folded {
            Some(folded) => folded,
            None => self.read_folded()?,
        };
        if folded >= taken.until {
            self.folded = Some(folded);
            return Ok(());
        }
        let mut images = Images::new();
        if folded < taken.from {
            self.read_log(folded, taken.from, &mut images)?;
        }
        let mut chunk = Vec::new();
        let mut bytes = 0;
        for ((kind, key), image) in
            images.iter().filter(|(name, _)| !taken.images.contains_key(*name)).chain(&taken.images)
        {
            let size = image.as_ref().map_or(0, Bytes::len);
            if chunk.len() == OPS_MAX - 1 || !chunk.is_empty() && bytes + size > TXN_BYTES {
                self.write(folded, std::mem::take(&mut chunk))?;
                bytes = 0;
            }
            bytes += size;
            let name = self.keys.image(kind, key);
            chunk.push(match image {
                Some(image) => put(name, image.clone()),
                None => delete(name, String::new()),
            });
        }
        chunk.push(put(self.keys.head("folded"), taken.until.to_string()));
        self.write(folded, chunk)?;
        self.folded = Some(taken.until);
        Ok(())
    }

    fn write(&mut self, folded: Revision, success: Vec<RequestOp>) -> Result<(), Trouble> {
        let compare = vec![
            Compare::is(self.keys.head("epoch"), self.epoch),
            Compare::is(self.keys.head("folded"), folded),
        ];
        let done: TxnDone = self.client.call(TXN, &Txn { compare, success, failure: Vec::new() })?;
        self.etcd = done.revision();
        match done.succeeded {
            true => Ok(()),
            // Another owner; or it had been done by an attempt that was given up: what is read next tells.
            false => Err(Trouble::Failed("the cell has moved".into())),
        }
    }

    fn read_folded(&mut self) -> Result<Revision, Trouble> {
        let (from, to) = self.keys.all("head");
        let range = Range { key: from.into(), end: to.into(), ..Range::default() };
        let small = Small::of(&self.client.call::<Ranged>(RANGE, &range)?.kvs);
        match small.number::<u64>("epoch") == self.epoch {
            true => Ok(small.number("folded")),
            false => Err(Trouble::Over),
        }
    }

    fn read_log(&mut self, after: Revision, until: Revision, images: &mut Images) -> Result<(), Trouble> {
        let mut at = after;
        while at < until {
            let (key, end) = (self.keys.log(at + 1).into(), self.keys.log(until + 1).into());
            let range = Range { key, end, limit: PAGE_BATCHES, ..Range::default() };
            let found: Ranged = self.client.call(RANGE, &range)?;
            let Some(last) = found.kvs.last() else { break };
            at = value::entries(&last.value)?.last().map_or(until, |(revision, _)| *revision);
            for kv in &found.kvs {
                value::apply(&kv.value, images)?;
            }
        }
        Ok(())
    }

    fn trim(&mut self, taken: &Taken) -> Result<(), Trouble> {
        if self.batches < TRIM_EVERY {
            return Ok(());
        }
        self.batches = 0;
        let (from, _) = self.keys.all("log");
        // The newest batch stays: it says how large the log is.
        let all =
            Range { key: from.clone().into(), end: self.keys.log(taken.until).into(), ..Range::default() };
        let oldest: Ranged = self.client.call(RANGE, &Range { limit: 1, ..all.clone() })?;
        if !oldest.kvs.iter().any(|kv| is_old(&kv.value, taken.newest)) {
            return Ok(());
        }
        let keys = Range { limit: TRIM_MAX as i64, keys_only: true, ..all };
        let keys = self.client.call::<Ranged>(RANGE, &keys)?.kvs;
        let mut old = keys.len();
        while old > 1 {
            let last = Range { key: keys[old - 1].key.clone(), ..Range::default() };
            if self.client.call::<Ranged>(RANGE, &last)?.kvs.iter().any(|kv| is_old(&kv.value, taken.newest))
            {
                break;
            }
            old /= 2;
        }
        let Some(last) = keys.get(old.saturating_sub(1)) else { return Ok(()) };
        let end = format!("{}\0", String::from_utf8_lossy(&last.key));
        let compare = vec![Compare::is(self.keys.head("epoch"), self.epoch)];
        let success = vec![delete(from, end)];
        self.client.call::<TxnDone>(TXN, &Txn { compare, success, failure: Vec::new() })?;
        Ok(())
    }

    fn compact(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        if self.marks.back().is_some_and(|(at, _)| now - *at < COMPACT_EVERY) {
            return Ok(());
        }
        self.marks.push_back((now, self.etcd));
        let Some((at, first)) = self.marks.front().copied() else { return Ok(()) };
        if now - at < HISTORY_KEEP {
            return Ok(());
        }
        self.marks.pop_front();
        if self.etcd - first >= COMPACT_MIN {
            let done: Result<Ignored, Failed> = self.client.call(COMPACT, &Compact { revision: first });
            done?;
        }
        Ok(())
    }
}

fn is_old(value: &Bytes, newest: (i64, u64)) -> bool {
    let old = |top: value::Top| top.time < newest.0 - LOG_KEEP_MICROS || top.total + LOG_BYTES_MAX < newest.1;
    value::top(value).is_ok_and(|(top, _)| old(top))
}
