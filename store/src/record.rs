//! What a record is, and the schema: the list of all kinds that a cell holds.

use crate::format::Formats;
use crate::index::Index;
use crate::table::{AnyTable, Table};
use base::id::ProjectId;
use base::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The primary key of a record: an id, or a name where OpenStack uses names.
pub trait Key: Ord + Clone + fmt::Debug + fmt::Display + FromStr + Send + Sync + 'static {}
impl<T: Ord + Clone + fmt::Debug + fmt::Display + FromStr + Send + Sync + 'static> Key for T {}

/// One kind of resource, declared once beside its fields.
///
/// A field is added with `#[serde(default, skip_serializing_if = ...)]`: what is not used is not written, and the version
/// before has the same record. New values of an enum wait for `State::format`. Fields that this version does not know are kept by the table,
/// at every level of objects, in lists with the element that has them, and written back with the next change.
pub trait Record: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + 'static {
    /// The name of the table in the log: never changed.
    const KIND: &'static str;
    type Key: Key;
    const INDEXES: &'static [Index<Self>] = &[];

    fn key(&self) -> Self::Key;

    /// What this record uses up: project, resource (`compute:cores`), amount. The store keeps the sums.
    fn amounts(&self, _add: &mut dyn FnMut(ProjectId, &'static str, i64)) {}
}

/// State that is no table and follows the same changes (the scheduler's columns).
///
/// `changed` with before and after swapped takes back what it did: that is how an aborted transaction leaves no trace.
pub trait Derived: Any + Send {
    fn changed(&mut self, kind: &'static str, before: Option<&dyn Any>, after: Option<&dyn Any>);
}

pub(crate) type Image = Arc<dyn Any + Send + Sync>;

/// How a kind is read and written, without its type.
pub(crate) struct KindInfo {
    pub name: &'static str,
    /// Appends the JSON.
    encode: fn(&(dyn Any + Send + Sync), &mut Vec<u8>) -> Result<()>,
    value: fn(&(dyn Any + Send + Sync)) -> Result<Value>,
    pub same: fn(&(dyn Any + Send + Sync), &(dyn Any + Send + Sync)) -> bool,
    pub empty: fn() -> Arc<dyn AnyTable>,
}

impl KindInfo {
    /// Appends the JSON of a record, with the fields that a newer version wrote beside those that this one knows.
    pub fn render(
        &self,
        record: &(dyn Any + Send + Sync),
        unknown: Option<&Value>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(rest) = unknown else { return (self.encode)(record, out) };
        let mut value = (self.value)(record)?;
        crate::state::rejoin(&mut value, rest);
        self.write(&value, out)
    }

    /// As `render`, with the fields sorted: the same for versions that know other fields of it.
    pub fn render_sorted(
        &self,
        record: &(dyn Any + Send + Sync),
        unknown: Option<&Value>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let mut value = (self.value)(record)?;
        unknown.into_iter().for_each(|rest| crate::state::rejoin(&mut value, rest));
        self.write(&value, out)
    }

    fn write(&self, value: &Value, out: &mut Vec<u8>) -> Result<()> {
        serde_json::to_writer(out, value)
            .map_err(|e| Error::internal(format!("a {} cannot be written", self.name)).because(e))
    }
}

/// All kinds of a cell, each with its slot.
#[derive(Default)]
pub struct Schema {
    pub(crate) kinds: Vec<KindInfo>,
    slots: HashMap<TypeId, usize>,
    names: HashMap<&'static str, usize>,
    pub(crate) derived: Vec<fn() -> Box<dyn Derived>>,
    pub(crate) formats: Option<Formats>,
}

impl Schema {
    /// Adds a kind. Each service lists its own.
    pub fn record<R: Record>(mut self) -> Schema {
        let slot = self.kinds.len();
        assert!(self.names.insert(R::KIND, slot).is_none(), "the kind {} is declared twice", R::KIND);
        self.slots.insert(TypeId::of::<R>(), slot);
        self.kinds.push(KindInfo {
            name: R::KIND,
            encode: |image, out| serde_json::to_writer(out, typed::<R>(image)).map_err(unwritable::<R>),
            value: |image| serde_json::to_value(typed::<R>(image)).map_err(unwritable::<R>),
            same: |a, b| a.downcast_ref::<R>() == b.downcast_ref::<R>(),
            empty: || Arc::new(Table::<R>::default()),
        });
        self
    }

    /// Adds derived state; the lane keeps it, transactions read it.
    pub fn derived<D: Derived + Default>(mut self) -> Schema {
        self.derived.push(|| Box::new(D::default()));
        self
    }

    pub(crate) fn slot<R: Record>(&self) -> usize {
        *self
            .slots
            .get(&TypeId::of::<R>())
            .unwrap_or_else(|| panic!("the kind {} is not in the schema", R::KIND))
    }

    pub(crate) fn slot_named(&self, kind: &str) -> Option<usize> {
        self.names.get(kind).copied()
    }
}

fn typed<R: Record>(image: &(dyn Any + Send + Sync)) -> &R {
    image.downcast_ref().expect("the slot fixes the type")
}

fn unwritable<R: Record>(error: serde_json::Error) -> Error {
    Error::internal(format!("a {} cannot be written", R::KIND)).because(error)
}
