//! The records of one kind with their indexes, in ordered persistent maps.
//!
//! What nobody else holds is changed in place: within a batch only the first change of a node copies it.

use crate::index::{Index, IndexKey};
use crate::log::Revision;
use crate::record::{Image, Record};
use crate::state::beyond;
use crate::tx::Broken;
use base::id::ProjectId;
use base::{Error, Result};
use imbl::{OrdMap, OrdSet};
use serde_json::Value;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that make the indexes of a table that was loaded.
const THREADS: usize = 2;

/// A record and what a newer version wrote beside the fields that this one knows.
#[derive(Clone)]
pub(crate) struct Row<R> {
    pub record: Arc<R>,
    pub unknown: Option<Arc<Value>>,
}

type Entries<R> = OrdSet<(IndexKey, Option<<R as Record>::Key>)>;

#[derive(Clone)]
pub(crate) struct Table<R: Record> {
    pub rows: OrdMap<R::Key, Row<R>>,
    changed: Revision,
    indexes: Vec<Entries<R>>,
}

impl<R: Record> Default for Table<R> {
    fn default() -> Table<R> {
        Table { rows: OrdMap::new(), changed: 0, indexes: R::INDEXES.iter().map(|_| OrdSet::new()).collect() }
    }
}

impl<R: Record> Table<R> {
    pub fn index(&self, n: usize) -> &Entries<R> {
        &self.indexes[n]
    }

    pub fn changed(&self) -> Revision {
        self.changed
    }

    /// Puts a record; what stood there. The unknown fields stay.
    pub fn put(&mut self, record: Arc<R>) -> Result<Option<Row<R>>, Broken> {
        let key = record.key();
        let before = self.rows.get(&key).cloned();
        let (old, new) = (before.as_ref().map(|row| keys(&*row.record)).unwrap_or_default(), keys(&*record));
        for (n, added) in new.iter().filter(|entry| R::INDEXES[entry.0].unique && !old.contains(entry)) {
            if self.is_taken(*n, added, &key) {
                return Err(Broken { kind: R::KIND, index: R::INDEXES[*n].name });
            }
        }
        self.reindex(&key, old, new);
        let unknown = before.as_ref().and_then(|row| row.unknown.clone());
        self.rows.insert(key, Row { record, unknown });
        Ok(before)
    }

    pub fn remove(&mut self, key: &R::Key) -> Option<Row<R>> {
        let old = keys(&*self.rows.get(key)?.record);
        self.reindex(key, old, Vec::new());
        self.rows.remove(key)
    }

    fn reindex(&mut self, key: &R::Key, old: Vec<(usize, IndexKey)>, new: Vec<(usize, IndexKey)>) {
        if old == new {
            return;
        }
        for (n, gone) in old.iter().filter(|entry| !new.contains(entry)) {
            self.indexes[*n].remove(&(gone.clone(), Some(key.clone())));
        }
        for (n, added) in new.into_iter().filter(|entry| !old.contains(entry)) {
            self.indexes[n].insert((added, Some(key.clone())));
        }
    }

    /// Whether another than `owner` has the key.
    fn is_taken(&self, index: usize, key: &IndexKey, owner: &R::Key) -> bool {
        let mut having = self.indexes[index].range((key.clone(), None)..).take_while(|(k, _)| k == key);
        having.any(|(_, primary)| primary.as_ref() != Some(owner))
    }

    fn made(&self, index: &Index<R>) -> Result<Entries<R>> {
        let (mut entries, mut keys) = (Vec::with_capacity(self.rows.len()), Vec::new());
        for (key, row) in &self.rows {
            (index.keys)(&row.record, &mut keys);
            entries.extend(keys.drain(..).map(|k| (k, Some(key.clone()))));
        }
        // In order each stands beside the one before it, and a node is touched once.
        entries.sort_unstable();
        entries.dedup();
        match index.unique && entries.windows(2).any(|two| two[0].0 == two[1].0) {
            true => Err(twice::<R>(index.name)),
            false => Ok(entries.into_iter().collect()),
        }
    }
}

fn twice<R: Record>(index: &str) -> Error {
    Error::internal(format!("a stored {} cannot be read", R::KIND))
        .because(Error::internal(format!("the index {index} holds another with the same value")))
}

/// The keys of a record in each index.
fn keys<R: Record>(record: &R) -> Vec<(usize, IndexKey)> {
    let (mut all, mut some) = (Vec::with_capacity(R::INDEXES.len() + 2), Vec::new());
    for (n, index) in R::INDEXES.iter().enumerate() {
        (index.keys)(record, &mut some);
        all.extend(some.drain(..).map(|key| (n, key)));
    }
    all
}

pub(crate) type Amounts = Vec<(ProjectId, &'static str, i64)>;
/// A record with what a newer version wrote beside it.
pub(crate) type Read = (Image, Option<Arc<Value>>);

/// A table without its type.
pub(crate) trait AnyTable: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn cloned(&self) -> Arc<dyn AnyTable>;
    /// Notes when it changed; when it had before.
    fn changes_at(&mut self, at: Revision) -> Revision;
    /// Reads a record as it stands in the engine.
    fn read(&self, body: &[u8]) -> Result<Read>;
    /// Puts a record without its indexes.
    fn load(&mut self, read: Read) -> Amounts;
    fn index_all(&mut self) -> Result<()>;
    /// One record instead of another, whatever unique indexes say; what either uses up.
    fn exchange(&mut self, before: Option<&Image>, after: Option<Read>) -> (Amounts, Amounts);
    /// Errors: `Internal` when another has the same value in a unique index.
    fn is_unique(&self, record: &Image) -> Result<()>;
    fn image(&self, key: &str) -> Option<Image>;
    /// The fields of `key` that this version does not know.
    fn unknown(&self, key: &str) -> Option<Arc<Value>>;
    fn each(&self, f: &mut dyn FnMut(&str, &(dyn Any + Send + Sync)));
}

impl<R: Record> AnyTable for Table<R> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Arc<dyn AnyTable> {
        Arc::new(self.clone())
    }

    fn changes_at(&mut self, at: Revision) -> Revision {
        std::mem::replace(&mut self.changed, at)
    }

    fn read(&self, body: &[u8]) -> Result<Read> {
        let bad = |e: serde_json::Error| Error::internal("its fields do not fit").because(e);
        let record: Arc<R> = Arc::new(serde_json::from_slice(body).map_err(bad)?);
        // Nearly all are what this version writes; only the others are looked at field by field.
        let same = serde_json::to_vec(&*record).map_err(bad)? == body;
        let rest = match same {
            true => None,
            false => {
                let raw: Value = serde_json::from_slice(body).map_err(bad)?;
                beyond(raw, &serde_json::to_value(&*record).map_err(bad)?)
            }
        };
        Ok((record, rest.map(Arc::new)))
    }

    fn load(&mut self, (image, unknown): Read) -> Amounts {
        let record = typed::<R>(image);
        let amounts = amounts(&*record);
        self.rows.insert(record.key(), Row { record, unknown });
        amounts
    }

    fn index_all(&mut self) -> Result<()> {
        let (next, table) = (AtomicUsize::new(0), &*self);
        let work = || {
            let mut made = Vec::new();
            while let Some(index) = R::INDEXES.get(next.fetch_add(1, Ordering::Relaxed)) {
                made.push((index.name, table.made(index)));
            }
            made
        };
        let made: Vec<_> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let others = others.into_iter().flat_map(|other| other.join().expect("it does not panic"));
            others.chain(mine).collect()
        });
        for (name, entries) in made {
            let n = R::INDEXES.iter().position(|index| index.name == name);
            self.indexes[n.expect("it is one of them")] = entries?;
        }
        Ok(())
    }

    fn exchange(&mut self, before: Option<&Image>, after: Option<Read>) -> (Amounts, Amounts) {
        let before = before.map(|image| typed::<R>(image.clone()));
        let after = after.map(|(image, unknown)| Row { record: typed::<R>(image), unknown });
        let used = (
            before.as_deref().map(amounts).unwrap_or_default(),
            after.as_ref().map(|row| amounts(&*row.record)).unwrap_or_default(),
        );
        let Some(key) = after.as_ref().map(|row| row.record.key()).or(before.as_ref().map(|r| r.key()))
        else {
            return used;
        };
        let old = before.as_deref().map(keys).unwrap_or_default();
        self.reindex(&key, old, after.as_ref().map(|row| keys(&*row.record)).unwrap_or_default());
        match after {
            Some(row) => drop(self.rows.insert(key, row)),
            None => drop(self.rows.remove(&key)),
        }
        used
    }

    fn is_unique(&self, record: &Image) -> Result<()> {
        if !R::INDEXES.iter().any(|index| index.unique) {
            return Ok(());
        }
        let record = typed::<R>(record.clone());
        let owner = record.key();
        let keys = keys(&*record);
        let mut unique = keys.iter().filter(|(n, _)| R::INDEXES[*n].unique);
        match unique.find(|(n, key)| self.is_taken(*n, key, &owner)) {
            Some((n, _)) => Err(twice::<R>(R::INDEXES[*n].name)),
            None => Ok(()),
        }
    }

    fn image(&self, key: &str) -> Option<Image> {
        let key = key.parse::<R::Key>().ok()?;
        self.rows.get(&key).map(|row| row.record.clone() as _)
    }

    fn unknown(&self, key: &str) -> Option<Arc<Value>> {
        let key = key.parse::<R::Key>().ok()?;
        self.rows.get(&key)?.unknown.clone()
    }

    fn each(&self, f: &mut dyn FnMut(&str, &(dyn Any + Send + Sync))) {
        self.rows.iter().for_each(|(key, row)| f(&key.to_string(), &*row.record));
    }
}

fn typed<R: Record>(image: Image) -> Arc<R> {
    image.downcast().expect("the slot fixes the type")
}

pub(crate) fn amounts<R: Record>(record: &R) -> Amounts {
    let mut amounts = Vec::new();
    record.amounts(&mut |project, resource, n| amounts.push((project, resource, n)));
    amounts
}
