//! Tables and indexes: ordered persistent maps, so that a snapshot is a pointer and a reader never waits.

use crate::index::{Index, IndexKey, IndexPart};
use crate::log::{Change, Revision};
use crate::record::{Derived, Image, Record, Schema};
use crate::tx::Broken;
use base::id::ProjectId;
use base::{Error, Result, Timestamp};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Everything a cell knows at one revision. Cloning it costs a pointer per kind.
#[derive(Clone)]
pub struct State {
    pub(crate) revision: Revision,
    pub(crate) epoch: u64,
    pub(crate) time: Timestamp,
    pub(crate) schema: Arc<Schema>,
    pub(crate) tables: Vec<Arc<dyn AnyTable>>,
    sums: OrdMap<(ProjectId, &'static str), i64>,
}

impl State {
    pub(crate) fn empty(schema: Arc<Schema>) -> State {
        let tables = schema.kinds.iter().map(|kind| (kind.empty)()).collect();
        State { revision: 0, epoch: 0, time: Timestamp::default(), schema, tables, sums: OrdMap::new() }
    }

    /// The last revision that is in this state.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The epoch of the lane that wrote it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn get<R: Record>(&self, key: &R::Key) -> Option<&Arc<R>> {
        self.table::<R>().rows.get(key).map(|row| &row.record)
    }

    /// Every record of a kind, by key.
    pub fn all<R: Record>(&self) -> impl Iterator<Item = &Arc<R>> + '_ {
        self.table::<R>().rows.values().map(|row| &row.record)
    }

    /// The records after `key`, by key.
    pub fn after<R: Record>(&self, key: &R::Key) -> impl Iterator<Item = &Arc<R>> + '_ {
        let from = (Bound::Excluded(key.clone()), Bound::Unbounded);
        self.table::<R>().rows.range(from).map(|(_, row)| &row.record)
    }

    /// The records that `index` has under `key`, by primary key.
    pub fn by<R: Record>(&self, index: &Index<R>, key: impl IndexPart) -> impl Iterator<Item = &Arc<R>> + '_ {
        let table = self.table::<R>();
        let key = key.key();
        table.indexes[position(index)]
            .range((key.clone(), None)..)
            .take_while(move |(k, _)| *k == key)
            .filter_map(|(_, primary)| primary.as_ref())
            .map(|primary| &table.rows.get(primary).expect("an index names rows that are there").record)
    }

    /// The first record that `index` has under `key`: the only one where the index is unique.
    pub fn one<R: Record>(&self, index: &Index<R>, key: impl IndexPart) -> Option<&Arc<R>> {
        self.by(index, key).next()
    }

    /// The last revision that changed a table: what was computed from it since then still holds.
    pub fn changed_at<R: Record>(&self) -> Revision {
        self.table::<R>().changed
    }

    pub fn count<R: Record>(&self) -> usize {
        self.table::<R>().rows.len()
    }

    /// How much of a resource the records of a project use together.
    pub fn sum(&self, project: ProjectId, resource: &'static str) -> i64 {
        self.sums.get(&(project, resource)).copied().unwrap_or(0)
    }

    pub(crate) fn table<R: Record>(&self) -> &Table<R> {
        self.tables[self.schema.slot::<R>()].as_any().downcast_ref().expect("the slot fixes the type")
    }

    fn table_mut(&mut self, slot: usize) -> &mut dyn AnyTable {
        if Arc::get_mut(&mut self.tables[slot]).is_none() {
            self.tables[slot] = self.tables[slot].cloned();
        }
        Arc::get_mut(&mut self.tables[slot]).expect("a fresh clone has one owner")
    }

    pub(crate) fn put<R: Record>(&mut self, record: Arc<R>) -> Result<Option<Arc<R>>, Broken> {
        let (slot, revision) = (self.schema.slot::<R>(), self.revision + 1);
        let table =
            self.table_mut(slot).as_any_mut().downcast_mut::<Table<R>>().expect("the slot fixes the type");
        let before = table.put(record.clone())?;
        table.changed = revision;
        if let Some(before) = &before {
            self.tally(before.as_ref(), -1);
        }
        self.tally(record.as_ref(), 1);
        Ok(before)
    }

    pub(crate) fn remove<R: Record>(&mut self, key: &R::Key) -> Option<Arc<R>> {
        let (slot, revision) = (self.schema.slot::<R>(), self.revision + 1);
        let table =
            self.table_mut(slot).as_any_mut().downcast_mut::<Table<R>>().expect("the slot fixes the type");
        let before = table.remove(key)?;
        table.changed = revision;
        self.tally(before.as_ref(), -1);
        Some(before)
    }

    fn tally<R: Record>(&mut self, record: &R, sign: i64) {
        let sums = &mut self.sums;
        record.amounts(&mut |project, resource, n| {
            *sums.entry((project, resource)).or_insert(0) += sign * n;
        });
    }

    /// Puts an image as it stands in the engine. Used while loading.
    pub(crate) fn load(&mut self, slot: usize, body: &[u8]) -> Result<Image> {
        let (schema, revision) = (self.schema.clone(), self.revision);
        let (record, amounts) = self.table_mut(slot).load(body, revision).map_err(|e| {
            Error::internal(format!("a stored {} cannot be read", schema.kinds[slot].name)).because(e)
        })?;
        self.tally_all(amounts, 1);
        Ok(record)
    }

    fn unload(&mut self, slot: usize, key: &str) -> Option<Image> {
        let revision = self.revision;
        let (record, amounts) = self.table_mut(slot).unload(key, revision)?;
        self.tally_all(amounts, -1);
        Some(record)
    }

    fn tally_all(&mut self, amounts: Amounts, sign: i64) {
        for (project, resource, n) in amounts {
            *self.sums.entry((project, resource)).or_insert(0) += sign * n;
        }
    }

    /// Follows a transaction of the log: kinds, keys and after-images. Kinds of a newer version are let be.
    pub(crate) fn apply(
        &mut self,
        changes: &[(String, String, Option<Box<RawValue>>)],
    ) -> Result<Vec<Change>> {
        let known = changes.iter().filter_map(|(kind, key, image)| {
            let slot = self.schema.slot_named(kind)?;
            let kind = self.schema.kinds[slot].name;
            let change = Change { slot, kind, key: key.as_str().into(), before: None, after: None };
            Some((change, image.as_deref()))
        });
        let mut known: Vec<_> = known.collect();
        // All go before any comes: what a unique index held may have moved from one to another.
        for (change, _) in &mut known {
            change.before = self.unload(change.slot, &change.key);
        }
        for (change, image) in &mut known {
            change.after = image.map(|image| self.load(change.slot, image.get().as_bytes())).transpose()?;
        }
        Ok(known.into_iter().map(|(change, _)| change).collect())
    }

    /// Hands every record to derived state that starts from nothing.
    pub(crate) fn derive(&self) -> Vec<Box<dyn Derived>> {
        let mut derived: Vec<_> = self.schema.derived.iter().map(|make| make()).collect();
        for (kind, table) in self.schema.kinds.iter().zip(&self.tables) {
            table.each(&mut |_, record| {
                derived.iter_mut().for_each(|d| d.changed(kind.name, None, Some(record)));
            });
        }
        derived
    }

    /// How many records there are of each kind and a sum over them, whatever order they came in: two planes that have
    /// the same records at a revision have the same digests. Runs under the cell's cipher.
    pub(crate) fn digests(&self, form: Form) -> Result<BTreeMap<&'static str, Digest>> {
        let mut digests = BTreeMap::new();
        for (slot, (kind, table)) in self.schema.kinds.iter().zip(&self.tables).enumerate() {
            let (mut digest, mut failed) = (Digest::default(), Ok(()));
            table.each(&mut |key, record| {
                if failed.is_ok() {
                    failed = self.image(slot, key, record, form).map(|image| digest.add(key, &image));
                }
            });
            failed?;
            digests.insert(kind.name, digest);
        }
        Ok(digests)
    }

    /// A record as it stands in the engine, with what a newer version wrote beside it.
    fn image(&self, slot: usize, key: &str, record: &(dyn Any + Send + Sync), form: Form) -> Result<Vec<u8>> {
        let (kind, unknown, mut out) = (&self.schema.kinds[slot], self.tables[slot].unknown(key), Vec::new());
        match form {
            Form::Written => kind.render(record, unknown.as_deref(), &mut out)?,
            Form::Sorted => kind.render_sorted(record, unknown.as_deref(), &mut out)?,
        }
        Ok(out)
    }
}

/// In what form records are summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As this version writes them: releases before format 2 know no other.
    Written,
    /// Fields sorted: the same whichever fields a version knows.
    Sorted,
}

/// A sum over the records of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub records: u64,
    /// Of the hashes of key and image, so that order does not matter.
    #[serde(with = "hex")]
    pub sum: u128,
}

impl Digest {
    pub fn add(&mut self, key: &str, image: &[u8]) {
        let hash = Sha256::new().chain_update(key).chain_update([0]).chain_update(image).finalize();
        let hash = u128::from_be_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes"));
        (self.records, self.sum) = (self.records + 1, self.sum.wrapping_add(hash));
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(n: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{n:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        u128::from_str_radix(&String::deserialize(from)?, 16).map_err(D::Error::custom)
    }
}

fn position<R: Record>(index: &Index<R>) -> usize {
    R::INDEXES
        .iter()
        .position(|i| i.name == index.name)
        .unwrap_or_else(|| panic!("{} has no index {}", R::KIND, index.name))
}

/// A record and what a newer version wrote beside the fields that this one knows.
#[derive(Clone)]
pub(crate) struct Row<R> {
    pub record: Arc<R>,
    pub unknown: Option<Arc<Value>>,
}

#[derive(Clone)]
pub(crate) struct Table<R: Record> {
    pub rows: OrdMap<R::Key, Row<R>>,
    changed: Revision,
    indexes: Vec<OrdSet<(IndexKey, Option<R::Key>)>>,
}

impl<R: Record> Default for Table<R> {
    fn default() -> Table<R> {
        Table { rows: OrdMap::new(), changed: 0, indexes: R::INDEXES.iter().map(|_| OrdSet::new()).collect() }
    }
}

impl<R: Record> Table<R> {
    fn put(&mut self, record: Arc<R>) -> Result<Option<Arc<R>>, Broken> {
        let key = record.key();
        let before = self.rows.get(&key).cloned();
        let mut new = Vec::new();
        for (i, index) in R::INDEXES.iter().enumerate() {
            new.clear();
            (index.keys)(&record, &mut new);
            if index.unique && self.taken(i, &new, &key) {
                return Err(Broken { kind: R::KIND, index: index.name });
            }
        }
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (i, index) in R::INDEXES.iter().enumerate() {
            old.clear();
            new.clear();
            if let Some(before) = &before {
                (index.keys)(&before.record, &mut old);
            }
            (index.keys)(&record, &mut new);
            for gone in old.iter().filter(|k| !new.contains(k)) {
                self.indexes[i].remove(&(gone.clone(), Some(key.clone())));
            }
            for added in new.drain(..).filter(|k| !old.contains(k)) {
                self.indexes[i].insert((added, Some(key.clone())));
            }
        }
        let unknown = before.as_ref().and_then(|row| row.unknown.clone());
        self.rows.insert(key, Row { record, unknown });
        Ok(before.map(|row| row.record))
    }

    fn taken(&self, index: usize, keys: &[IndexKey], owner: &R::Key) -> bool {
        keys.iter().any(|key| {
            let first = self.indexes[index].get_next(&(key.clone(), None));
            first.is_some_and(|(k, primary)| k == key && primary.as_ref() != Some(owner))
        })
    }

    fn remove(&mut self, key: &R::Key) -> Option<Arc<R>> {
        let before = self.rows.remove(key)?.record;
        let mut old = Vec::new();
        for (i, index) in R::INDEXES.iter().enumerate() {
            old.clear();
            (index.keys)(&before, &mut old);
            for gone in old.drain(..) {
                self.indexes[i].remove(&(gone, Some(key.clone())));
            }
        }
        Some(before)
    }
}

type Amounts = Vec<(ProjectId, &'static str, i64)>;

/// A table without its type.
pub(crate) trait AnyTable: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn cloned(&self) -> Arc<dyn AnyTable>;
    fn load(&mut self, body: &[u8], at: Revision) -> Result<(Image, Amounts)>;
    fn unload(&mut self, key: &str, at: Revision) -> Option<(Image, Amounts)>;
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

    fn load(&mut self, body: &[u8], at: Revision) -> Result<(Image, Amounts)> {
        self.changed = at;
        let bad = |e: serde_json::Error| Error::internal("its fields do not fit").because(e);
        let record: Arc<R> = Arc::new(serde_json::from_slice(body).map_err(bad)?);
        self.put(record.clone()).map_err(|b| {
            Error::internal(format!("the index {} holds another with the same value", b.index))
        })?;
        // Nearly all are what this version writes; only the others are looked at field by field.
        let same = serde_json::to_vec(&*record).map_err(bad)? == body;
        let rest = match same {
            true => None,
            false => {
                let raw: Value = serde_json::from_slice(body).map_err(bad)?;
                beyond(raw, &serde_json::to_value(&*record).map_err(bad)?)
            }
        };
        if let Some(rest) = rest {
            let row = self.rows.get_mut(&record.key()).expect("it was put just now");
            row.unknown = Some(Arc::new(rest));
        }
        let amounts = amounts(&*record);
        Ok((record, amounts))
    }

    fn unload(&mut self, key: &str, at: Revision) -> Option<(Image, Amounts)> {
        let record = self.remove(&key.parse().ok()?)?;
        self.changed = at;
        let amounts = amounts(&*record);
        Some((record, amounts))
    }

    fn unknown(&self, key: &str) -> Option<Arc<Value>> {
        let key = key.parse::<R::Key>().ok()?;
        self.rows.get(&key)?.unknown.clone()
    }

    fn each(&self, f: &mut dyn FnMut(&str, &(dyn Any + Send + Sync))) {
        self.rows.iter().for_each(|(key, row)| f(&key.to_string(), &*row.record));
    }
}

fn amounts<R: Record>(record: &R) -> Amounts {
    let mut amounts = Vec::new();
    record.amounts(&mut |project, resource, n| amounts.push((project, resource, n)));
    amounts
}

/// The part of `raw` that `known` does not have, in objects at every level. Of a list: pairs of an element as it is known
/// and what it has beyond.
fn beyond(raw: Value, known: &Value) -> Option<Value> {
    match (raw, known) {
        (Value::Object(raw), Value::Object(known)) => {
            let rest = raw.into_iter().filter_map(|(name, value)| match known.get(&name) {
                None => Some((name, value)),
                Some(inner) => beyond(value, inner).map(|rest| (name, rest)),
            });
            let rest: serde_json::Map<String, Value> = rest.collect();
            (!rest.is_empty()).then_some(Value::Object(rest))
        }
        (Value::Array(raw), Value::Array(known)) if raw.len() == known.len() => {
            let pairs = raw.into_iter().zip(known);
            let pairs = pairs.filter_map(|(raw, known)| {
                beyond(raw, known).map(|rest| Value::Array(vec![known.clone(), rest]))
            });
            let pairs: Vec<Value> = pairs.collect();
            (!pairs.is_empty()).then_some(Value::Array(pairs))
        }
        _ => None,
    }
}

/// Puts back what `beyond` took out. An element of a list is known by all that this version knows of it: one that was
/// changed or removed loses the rest.
pub(crate) fn rejoin(known: &mut Value, rest: &Value) {
    match (known, rest) {
        (Value::Object(known), Value::Object(rest)) => {
            for (name, value) in rest {
                match known.get_mut(name) {
                    Some(inner) => rejoin(inner, value),
                    None => {
                        known.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(known), Value::Array(pairs)) => {
            let mut pairs: Vec<&Vec<Value>> = pairs.iter().filter_map(Value::as_array).collect();
            for element in known {
                if let Some(n) = pairs.iter().position(|pair| pair.first() == Some(element))
                    && let Some(rest) = pairs.remove(n).get(1)
                {
                    rejoin(element, rest);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_known_comes_back_at_every_level_and_with_its_own_element_of_a_list() {
        let check = |raw: Value, known: Value, changed: Value, expect: Value| {
            let mut back = changed;
            beyond(raw, &known).iter().for_each(|rest| rejoin(&mut back, rest));
            assert_eq!(back, expect);
        };
        check(
            json!({"a": 1, "new": 2, "in": {"b": 3, "new": {"c": 4}}}),
            json!({"a": 1, "in": {"b": 3}}),
            json!({"a": 5, "in": {"b": 6}}),
            json!({"a": 5, "new": 2, "in": {"b": 6, "new": {"c": 4}}}),
        );
        let raw =
            json!({"all": [{"n": 1, "new": "one"}, {"n": 2}, {"n": 3, "new": "three"}], "other": [1, 2]});
        let known = json!({"all": [{"n": 1}, {"n": 2}, {"n": 3}], "other": [1, 2]});
        check(raw.clone(), known.clone(), known.clone(), raw.clone());
        // The first went, the last was moved to the front, one came.
        check(
            raw.clone(),
            known.clone(),
            json!({"all": [{"n": 3}, {"n": 2}, {"n": 4}], "other": []}),
            json!({"all": [{"n": 3, "new": "three"}, {"n": 2}, {"n": 4}], "other": []}),
        );
        // Twins keep both of theirs.
        check(
            json!([{"n": 1, "new": "a"}, {"n": 1, "new": "b"}]),
            json!([{"n": 1}, {"n": 1}]),
            json!([{"n": 1}, {"n": 1}]),
            json!([{"n": 1, "new": "a"}, {"n": 1, "new": "b"}]),
        );
        check(json!({"a": [1]}), json!({"a": [1]}), json!({"a": [2, 3]}), json!({"a": [2, 3]}));
    }
}
