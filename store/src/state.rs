//! Tables and indexes: ordered persistent maps, so that a snapshot is a pointer and a reader never waits.

use crate::index::{Index, IndexPart};
use crate::log::{Change, Entry, Revision};
use crate::record::{Derived, Image, Record, Schema};
use crate::table::{Amounts, AnyTable, Read, Table, amounts};
use crate::tx::Broken;
use base::id::ProjectId;
use base::{Error, Result, Timestamp};
use imbl::OrdMap;
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
        table
            .index(position(index))
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
        self.table::<R>().changed()
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

    /// Puts a record, with what a newer version wrote beside the one before it.
    pub(crate) fn put<R: Record>(&mut self, record: Arc<R>) -> Result<Undo, Broken> {
        let (slot, revision, new) = (self.schema.slot::<R>(), self.revision + 1, amounts(&*record));
        let table = self.typed_mut::<R>(slot);
        let before = table.put(record.clone())?;
        let changed = table.changes_at(revision);
        let (before, unknown) = before.map_or((None, None), |row| (Some(row.record), row.unknown));
        let old = before.as_deref().map(amounts).unwrap_or_default();
        self.tally(old, new);
        Ok(Undo { slot, before: before.map(|r| r as _), after: Some(record), unknown, changed })
    }

    pub(crate) fn remove<R: Record>(&mut self, key: &R::Key) -> Option<Undo> {
        let (slot, revision) = (self.schema.slot::<R>(), self.revision + 1);
        // A table that is not touched is not copied.
        self.get::<R>(key)?;
        let table = self.typed_mut::<R>(slot);
        let row = table.remove(key)?;
        let changed = table.changes_at(revision);
        self.tally(amounts(&*row.record), Vec::new());
        Some(Undo { slot, before: Some(row.record), after: None, unknown: row.unknown, changed })
    }

    fn typed_mut<R: Record>(&mut self, slot: usize) -> &mut Table<R> {
        self.table_mut(slot).as_any_mut().downcast_mut().expect("the slot fixes the type")
    }

    /// Takes back what was just done, the last first: nothing of it is left.
    pub(crate) fn undo(&mut self, done: Vec<Undo>) {
        for Undo { slot, before, after, unknown, changed } in done.into_iter().rev() {
            let table = self.table_mut(slot);
            let (old, new) = table.exchange(after.as_ref(), before.map(|before| (before, unknown)));
            table.changes_at(changed);
            self.tally(old, new);
        }
    }

    /// Tables that were touched and hold what they held before are as they were.
    pub(crate) fn unchanged(&mut self, done: &[Undo], is_changed: impl Fn(usize) -> bool) {
        for undo in done.iter().rev().filter(|undo| !is_changed(undo.slot)) {
            self.table_mut(undo.slot).changes_at(undo.changed);
        }
    }

    fn tally(&mut self, old: Amounts, new: Amounts) {
        if old == new {
            return;
        }
        for (sign, amounts) in [(-1, old), (1, new)] {
            for (project, resource, n) in amounts {
                *self.sums.entry((project, resource)).or_insert(0) += sign * n;
            }
        }
    }

    /// Puts a record without its indexes: `index_all` follows. Used while loading.
    pub(crate) fn load(&mut self, slot: usize, read: Read) {
        let amounts = self.table_mut(slot).load(read);
        self.tally(Vec::new(), amounts);
    }

    /// Makes the indexes of what was loaded as of a revision. When each kind changed is not known: not after it.
    pub(crate) fn index_all(&mut self, loaded: Revision) -> Result<()> {
        (0..self.tables.len()).try_for_each(|slot| {
            let table = self.table_mut(slot);
            table.changes_at(loaded);
            table.index_all()
        })
    }

    /// Reads a record as it stands in the engine.
    pub(crate) fn read(&self, slot: usize, body: &[u8]) -> Result<Read> {
        self.tables[slot].read(body).map_err(|e| {
            Error::internal(format!("a stored {} cannot be read", self.schema.kinds[slot].name)).because(e)
        })
    }

    /// Follows a transaction of the log: kinds, keys and after-images. Kinds of a newer version are let be.
    pub(crate) fn apply(
        &mut self,
        changes: &[(String, String, Option<Box<RawValue>>)],
    ) -> Result<Vec<Change>> {
        let mut known = Vec::with_capacity(changes.len());
        for (kind, key, image) in changes {
            let Some(slot) = self.schema.slot_named(kind) else { continue };
            let after = image.as_ref().map(|image| self.read(slot, image.get().as_bytes())).transpose()?;
            let (kind, before) = (self.schema.kinds[slot].name, self.tables[slot].image(key));
            let (after, unknown) = after.unzip();
            known.push(Change {
                slot,
                kind,
                key: key.as_str().into(),
                before,
                after,
                unknown: unknown.flatten(),
            });
        }
        self.change(&known);
        // Only now: what a unique index held may have moved from one to another.
        for change in &known {
            change.after.as_ref().map_or(Ok(()), |after| self.tables[change.slot].is_unique(after))?;
        }
        Ok(known)
    }

    /// Goes on to the state that an entry left.
    pub(crate) fn follow(&mut self, entry: &Entry) {
        (self.revision, self.epoch, self.time) = (entry.revision, entry.epoch, entry.time);
        self.change(&entry.changes);
    }

    fn change(&mut self, changes: &[Change]) {
        let revision = self.revision;
        for change in changes {
            let table = self.table_mut(change.slot);
            let after = change.after.clone().map(|after| (after, change.unknown.clone()));
            let (old, new) = table.exchange(change.before.as_ref(), after);
            table.changes_at(revision);
            self.tally(old, new);
        }
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

/// What a transaction did to one record, so that it can be taken back.
pub(crate) struct Undo {
    pub slot: usize,
    pub before: Option<Image>,
    pub after: Option<Image>,
    /// What a newer version wrote beside `before`.
    pub unknown: Option<Arc<Value>>,
    /// When the table had changed before.
    changed: Revision,
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

/// The part of `raw` that `known` does not have, in objects at every level. Of a list: pairs of an element as it is known
/// and what it has beyond.
pub(crate) fn beyond(raw: Value, known: &Value) -> Option<Value> {
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
