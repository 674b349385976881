//! etcd 3.4 or newer (Raft): several machines without a database team. `etcd://HOST:PORT,HOST:PORT,.../CELL`.
//!
//! A batch is one value under its revision, written in one transaction that compares epoch and revision; its images are
//! folded in behind it (`fold`), and whoever reads images applies the batches that are not folded yet. The keys are in
//! `value`. All reads are linearizable, and any member answers.
//!
//! etcd keeps its history until it is compacted, and takes no writes past its quota (2 GiB unless it is told otherwise):
//! the owner keeps 30 s of history and at most 256 MiB of log, and compacts for the whole cluster, which therefore is
//! Shisa's own. When the quota is used up changes are refused (`NoRoom`) and the lease, a write too, lapses, until an
//! operator has raised it (`--quota-backend-bytes`) and ended the alarm (`etcdctl alarm disarm`).
//!
//! Deliberately absent: TLS (use a private network or a proxy on the machine), etcd's own leases (whole seconds),
//! watches (followers ask).

mod client;
mod fold;
mod message;
mod value;

use super::wire::LOAD_MAX;
use super::{Append, Batch, Each, Engine, Head, Limits, Tail};
use crate::lease::Sign;
use crate::log::Revision;
use base::{Error, Result, Timestamp};
use client::{Client, Cluster, Failed};
use fold::Folder;
use message::{Compare, KeyValue, Range, Ranged, RequestOp, Txn, TxnDone, put, range};
use std::time::Duration;
use value::{Images, Keys, Small};

/// The format this version writes. A larger one in etcd is of a newer version.
pub const FORMAT: u64 = 1;
/// A request is at most 1.5 MiB unless etcd is told otherwise; beside the entries it has little.
const BATCH_BYTES_MAX: usize = (3 << 19) - (64 << 10);
const PORT: &str = "2379";
/// The cell of a URL that names none.
const CELL: &str = "shisa";
/// The parts that images are in, and how many are read at once.
const PARTS: usize = 256;
const PARTS_AT_ONCE: usize = 8;
/// Images of a part, and batches, that are read at once.
const PAGE_IMAGES: i64 = 2_000;
const PAGE_BATCHES: i64 = 16;
/// An append waits this long for images to be folded, where far too many wait.
const ROOM_WAIT: Duration = Duration::from_millis(200);

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";

pub struct Etcd {
    client: Client,
    cluster: Cluster,
    keys: Keys,
    /// While this process owns the cell.
    folder: Option<Folder>,
    /// Bytes of all batches so far.
    total: u64,
}

impl Etcd {
    /// Errors: `Invalid` for a URL that cannot be read; `Conflict` when a newer version wrote the cell; `Unavailable`.
    pub fn open(url: &str) -> Result<Etcd> {
        let (cluster, cell) = parse(url).ok_or_else(|| {
            Error::invalid("The etcd URL cannot be read: it is etcd://HOST:PORT,HOST:PORT/CELL.")
        })?;
        let client = Client::new(cluster.clone())?;
        let mut engine = Etcd { client, cluster, keys: Keys(cell), folder: None, total: 0 };
        let range = engine.all_small();
        let small = Small::of(&engine.piece(&range)?.kvs);
        match small.number::<u64>("format") {
            found if found > FORMAT => Err(Error::conflict(format!(
                "{} was written by a newer version (format {found}, this one reads {FORMAT}); start that version.",
                engine.client.name()
            ))),
            _ => Ok(engine),
        }
    }

    /// A piece of a load.
    fn piece(&mut self, range: &Range) -> Result<Ranged> {
        let found = self.client.call_within(LOAD_MAX, RANGE, range);
        found.map_err(|failed| self.client.told(failed))
    }

    fn ask(&mut self, range: &Range) -> Result<Ranged> {
        let found = self.client.call(RANGE, range);
        found.map_err(|failed| self.client.told(failed))
    }

    fn all_small(&self) -> Range {
        let (key, end) = self.keys.all("head");
        Range { key: key.into(), end: end.into(), ..Range::default() }
    }

    fn small(&mut self) -> Result<Small> {
        let range = self.all_small();
        Ok(Small::of(&self.ask(&range)?.kvs))
    }

    fn change(&mut self, compare: Vec<Compare>, success: Vec<RequestOp>) -> Result<TxnDone, Failed> {
        let failure = vec![range(self.all_small())];
        self.client.call(TXN, &Txn { compare, success, failure })
    }

    /// One small key, if the epoch is still this.
    fn set(&mut self, epoch: u64, name: &str, to: u64) -> Result<bool> {
        let compare = vec![Compare::is(self.keys.head("epoch"), epoch)];
        let done = self.change(compare, vec![put(self.keys.head(name), to.to_string())]);
        Ok(done.map_err(|failed| self.client.told(failed))?.succeeded)
    }

    fn write(&mut self, batch: &Batch) -> Result<Append, Failed> {
        let value = value::encode(batch, self.total).map_err(|e| Failed::Unknown(e.chain()))?;
        let compare = vec![
            Compare::is(self.keys.head("epoch"), batch.epoch),
            Compare::is(self.keys.head("revision"), batch.previous),
        ];
        let small = |name: &str, value: String| put(self.keys.head(name), value);
        let success = vec![
            put(self.keys.log(batch.last()), value),
            small("revision", batch.last().to_string()),
            small("time", batch.time().0.to_string()),
            small("batch", batch.id.to_string()),
            small("total", (self.total + size(batch)).to_string()),
        ];
        let done = self.change(compare, success)?;
        Ok(if done.succeeded { Append::Done } else { self.why(batch, &Small::of(done.found(0))) })
    }

    /// What the head says of a batch that was not let through.
    fn why(&self, batch: &Batch, head: &Small) -> Append {
        let (epoch, revision) = (head.number::<u64>("epoch"), head.number::<Revision>("revision"));
        if (epoch, revision, head.number("batch")) == (batch.epoch, batch.last(), batch.id) {
            Append::Done
        } else if epoch < batch.epoch || epoch == batch.epoch && revision < batch.previous {
            Append::Behind(revision)
        } else {
            Append::Refused(format!(
                "{} is at epoch {epoch} revision {revision}, the batch expects {} and {}",
                self.client.name(),
                batch.epoch,
                batch.previous
            ))
        }
    }

    fn failed(&mut self, batch: &Batch, failed: Failed) -> Append {
        let why = failed.text();
        if failed.no_room() {
            // An earlier attempt may have been the last for which there was room.
            return match self.small() {
                Ok(head) if is_at(&head, batch.epoch, batch.previous) => Append::NoRoom(why),
                Ok(head) => self.why(batch, &head),
                Err(_) => Append::Unknown(why),
            };
        }
        if failed.cannot_go_on() { Append::Refused(why) } else { Append::Unknown(why) }
    }

    /// Gives the images of a part, of which the first page was found, but for those that are newer elsewhere.
    fn part(&mut self, mut page: Range, mut found: Ranged, newer: &Images, each: Each) -> Result<()> {
        loop {
            for KeyValue { key, value } in &found.kvs {
                let named = self.keys.named(key);
                let (kind, key) = named.ok_or_else(|| Error::internal("A key in etcd is no image's."))?;
                if !newer.contains_key(&(kind.into(), key.into())) {
                    each(kind, key, value)?;
                }
            }
            let Some(last) = found.kvs.last().filter(|_| found.more) else { return Ok(()) };
            page.key = [&last.key[..], &[0]].concat().into();
            found = self.piece(&page)?;
        }
    }

    /// Gives what the batches after `after` made of the records.
    fn unfolded(&mut self, after: Revision, head: Revision, at: i64) -> Result<Images> {
        let mut images = Images::new();
        let mut from = after;
        while from < head {
            let (key, end) = (self.keys.log(from + 1).into(), self.keys.log(head + 1).into());
            let found =
                self.piece(&Range { key, end, limit: PAGE_BATCHES, revision: at, ..Range::default() })?;
            let Some(last) = found.kvs.last() else {
                return Err(Error::internal(format!("The log in etcd ends at {from}, before {head}.")));
            };
            from = value::entries(&last.value)?.last().map_or(head, |(revision, _)| *revision);
            for kv in &found.kvs {
                value::apply(&kv.value, &mut images)?;
            }
        }
        Ok(images)
    }
}

fn size(batch: &Batch) -> u64 {
    batch.entries.iter().map(|(_, encoded)| encoded.body.len() as u64).sum()
}

impl Engine for Etcd {
    fn images(&mut self, each: Each) -> Result<Head> {
        let found = self.piece(&self.all_small())?;
        let (small, at) = (Small::of(&found.kvs), found.header.map_or(0, |h| h.revision));
        let head = head_of(&small);
        let newer = self.unfolded(small.number("folded"), head.revision, at)?;
        for first in (0..PARTS).step_by(PARTS_AT_ONCE) {
            let ends = (first..first + PARTS_AT_ONCE).map(|part| self.keys.all(&format!("image/{part:02x}")));
            let pages = ends.map(|(key, end)| page(key, end, at)).collect::<Vec<_>>();
            let all = Txn { success: pages.iter().cloned().map(range).collect(), ..Txn::default() };
            let done = self.client.call_within::<TxnDone>(LOAD_MAX, TXN, &all);
            let done = done.map_err(|failed| self.client.told(failed))?;
            for (page, found) in pages.into_iter().zip(done.responses) {
                self.part(page, found.range.unwrap_or_default(), &newer, each)?;
            }
        }
        for ((kind, key), image) in &newer {
            if let Some(image) = image {
                each(kind, key, image)?;
            }
        }
        Ok(head)
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        let key = self.keys.head("epoch");
        let compare = if seen == 0 { Compare::absent(key) } else { Compare::is(key, seen) };
        let small = |name: &str, value: String| put(self.keys.head(name), value);
        let mut success = vec![
            small("epoch", (seen + 1).to_string()),
            small("owner", owner.into()),
            small("counter", "0".into()),
            small("free", "0".into()),
        ];
        if seen == 0 {
            success.push(small("format", FORMAT.to_string()));
            success.extend(["revision", "time", "batch", "folded"].map(|name| small(name, "0".into())));
        }
        let place = success.len();
        success.push(range(self.all_small()));
        let done = self.change(vec![compare], success).map_err(|failed| self.client.told(failed))?;
        if !done.succeeded {
            return Ok(None);
        }
        let small = Small::of(done.found(place));
        let head = head_of(&small);
        self.total = small.number("total");
        self.folder =
            Some(Folder::start(self.cluster.clone(), self.keys.clone(), head.epoch, head.revision)?);
        Ok(Some(head))
    }

    fn append(&mut self, batch: &Batch) -> Append {
        if self.folder.as_ref().is_some_and(|folder| !folder.has_room(ROOM_WAIT)) {
            return Append::Unknown(format!("{} does not keep up", self.client.name()));
        }
        let ended = self.write(batch).unwrap_or_else(|failed| self.failed(batch, failed));
        if ended == Append::Done {
            self.total += size(batch);
            if let Some(folder) = &self.folder {
                folder.push(batch, self.total);
            }
        }
        ended
    }

    fn renew(&mut self, epoch: u64, counter: u64) -> Result<bool> {
        self.set(epoch, "counter", counter)
    }

    fn release(&mut self, epoch: u64) -> Result<bool> {
        self.set(epoch, "free", 1)
    }

    fn sign(&mut self) -> Result<Sign> {
        let small = self.small()?;
        Ok(Sign {
            epoch: small.number("epoch"),
            counter: small.number("counter"),
            revision: small.number("revision"),
            owner: small.text("owner"),
            free: small.text("free") == "1",
        })
    }

    fn tail(&mut self, after: Revision, limit: usize) -> Result<Tail> {
        let (key, (_, end)) = (self.keys.log(after + 1).into(), self.keys.all("log"));
        let log = Range { key, end: end.into(), limit: PAGE_BATCHES, ..Range::default() };
        let both = Txn { success: vec![range(self.all_small()), range(log)], ..Txn::default() };
        let done: Result<TxnDone, Failed> = self.client.call(TXN, &both);
        let done = done.map_err(|failed| self.client.told(failed))?;
        if Small::of(done.found(0)).number::<Revision>("revision") <= after {
            return Ok(Tail::Entries(Vec::new()));
        }
        let mut entries = Vec::new();
        for kv in done.found(1) {
            entries.extend(value::logged(&kv.value)?.into_iter().filter(|entry| entry.revision > after));
            if entries.len() >= limit {
                break;
            }
        }
        entries.truncate(limit);
        Ok(match entries.first() {
            Some(first) if first.revision == after + 1 => Tail::Entries(entries),
            Some(_) | None => Tail::Trimmed,
        })
    }

    fn limits(&self) -> Limits {
        Limits { batch_entries: crate::BATCH_MAX, batch_bytes: BATCH_BYTES_MAX }
    }

    fn close(&mut self) {
        if let Some(folder) = self.folder.take() {
            folder.finish();
        }
    }
}

fn page(key: String, end: String, at: i64) -> Range {
    let (key, end) = (key.into(), end.into());
    Range { key, end, limit: PAGE_IMAGES, revision: at, ..Range::default() }
}

fn is_at(head: &Small, epoch: u64, revision: Revision) -> bool {
    (head.number("epoch"), head.number("revision")) == (epoch, revision)
}

fn head_of(small: &Small) -> Head {
    let time = Timestamp(small.number("time"));
    Head { epoch: small.number("epoch"), revision: small.number("revision"), time }
}

/// Members, user and cell of `etcd://USER:PASSWORD@HOST:PORT,HOST:PORT/CELL`.
fn parse(url: &str) -> Option<(Cluster, String)> {
    let rest = url.strip_prefix("etcd://")?;
    let (rest, cell) = rest.split_once('/').unwrap_or((rest, CELL));
    let (user, members) = match rest.rsplit_once('@') {
        Some((user, members)) => (Some(user.split_once(':')?), members),
        None => (None, rest),
    };
    let member = |member: &str| match member.rsplit_once(':') {
        Some(_) => member.to_string(),
        None => format!("{member}:{PORT}"),
    };
    let members: Vec<_> = members.split(',').filter(|m| !m.is_empty()).map(member).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let user = user.map(|(name, password)| (name.to_string(), password.to_string()));
    let good = !members.is_empty() && !cell.is_empty() && cell.chars().all(plain);
    good.then(|| (Cluster { members, user }, cell.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_members_user_and_cell() {
        let read = |url: &str| parse(url).map(|(c, cell)| (c.members.join(" "), c.user.is_some(), cell));
        assert_eq!(read("etcd://a,b:1"), Some(("a:2379 b:1".into(), false, "shisa".into())));
        assert_eq!(read("etcd://u:hush@a/blue"), Some(("a:2379".into(), true, "blue".into())));
        for bad in ["etcd://", "etcd://a/b/c", "etcd:///x", "sqlite:x", "etcd://u@a"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let error = Etcd::open("etcd://u:hush@127.0.0.1:1/blue").err().unwrap();
        assert!(!error.chain().contains("hush"), "{}", error.chain());
    }
}
