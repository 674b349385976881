//! Metadata definitions: which properties images, flavors and the like may have, for forms to offer. Nothing reads them
//! but clients.
//!
//! A namespace is one record with all that it defines: it is written seldom, read whole, and deleted whole.
//!
//! Limits: `DEFINITIONS_MAX` definitions of each kind in a namespace.

pub mod rest;

use crate::image::Visibility;
use base::{Context, Error, ProjectId, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Record, State, Tx};

/// Definitions of one kind in a namespace.
pub const DEFINITIONS_MAX: usize = 500;
const NAME_MAX: usize = 80;

/// What namespaces define things for, known from the start.
pub const RESOURCE_TYPES: [&str; 6] = [
    "OS::Glance::Image",
    "OS::Cinder::Volume",
    "OS::Nova::Flavor",
    "OS::Nova::Aggregate",
    "OS::Nova::Server",
    "OS::Trove::Instance",
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    pub owner: ProjectId,
    pub fields: NamespaceFields,
    #[serde(default)]
    pub definitions: BTreeMap<Kind, BTreeMap<String, Definition>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a client writes of the namespace itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamespaceFields {
    pub namespace: String,
    #[serde(default)]
    pub display_name: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default = "private")]
    pub visibility: Visibility,
    #[serde(default)]
    pub protected: bool,
}

fn private() -> Visibility {
    Visibility::Private
}

/// What a namespace defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Object,
    Property,
    Tag,
    ResourceType,
}

/// One definition as it came, beside its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    pub body: Map<String, Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Record for Namespace {
    const KIND: &'static str = "metadef_namespace";
    type Key = String;

    fn key(&self) -> String {
        self.fields.namespace.clone()
    }
}

impl Namespace {
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&String, &Definition)> {
        self.definitions.get(&kind).into_iter().flatten()
    }
}

fn missing(what: &str, name: &str) -> Error {
    Error::not_found(format!("Metadata definition {what} {} not found.", name.escape_default()))
}

pub fn sees(cx: &Context, namespace: &Namespace) -> bool {
    namespace.fields.visibility == Visibility::Public || cx.sees(namespace.owner)
}

/// Errors: `NotFound` when it is not there or not for this caller.
pub fn get(state: &State, cx: &Context, name: &str) -> Result<Arc<Namespace>> {
    let found = state.get::<Namespace>(&name.to_string()).filter(|n| sees(cx, n));
    found.cloned().ok_or_else(|| missing("namespace", name))
}

fn checked(name: &str) -> Result<()> {
    match name.is_empty() || name.chars().count() > NAME_MAX {
        true => Err(Error::invalid(format!("The name of a definition has 1 to {NAME_MAX} characters."))),
        false => Ok(()),
    }
}

/// Errors: `Conflict` for the name.
pub fn create(
    tx: &mut Tx,
    _cx: &Context,
    owner: ProjectId,
    fields: NamespaceFields,
) -> Result<Arc<Namespace>> {
    checked(&fields.namespace)?;
    if tx.get::<Namespace>(&fields.namespace).is_some() {
        return Err(Error::conflict("A metadata definition namespace with this name already exists."));
    }
    let now = tx.now();
    Ok(tx.put(Namespace { owner, fields, definitions: BTreeMap::new(), created_at: now, updated_at: now })?)
}

/// A new name moves it.
pub fn update(
    tx: &mut Tx,
    cx: &Context,
    name: &str,
    owner: Option<ProjectId>,
    fields: NamespaceFields,
) -> Result<Arc<Namespace>> {
    checked(&fields.namespace)?;
    let old = get(tx, cx, name)?;
    if fields.namespace != name {
        if tx.get::<Namespace>(&fields.namespace).is_some() {
            return Err(Error::conflict("A metadata definition namespace with this name already exists."));
        }
        tx.delete::<Namespace>(&name.to_string());
    }
    let owner = owner.unwrap_or(old.owner);
    Ok(tx.put(Namespace { owner, fields, updated_at: tx.now(), ..Namespace::clone(&old) })?)
}

/// Errors: `Forbidden` while it is protected.
fn may_change(namespace: &Namespace) -> Result<()> {
    match namespace.fields.protected {
        true => Err(Error::forbidden(format!(
            "Metadata definition namespace {} is protected and may not be changed.",
            namespace.fields.namespace
        ))),
        false => Ok(()),
    }
}

pub fn delete(tx: &mut Tx, cx: &Context, name: &str) -> Result<()> {
    may_change(&*get(tx, cx, name)?)?;
    tx.delete::<Namespace>(&name.to_string());
    Ok(())
}

/// Adds a definition.
///
/// Errors: `Conflict` for the name, `TooLarge`.
pub fn define(
    tx: &mut Tx,
    cx: &Context,
    name: &str,
    kind: Kind,
    what: &str,
    body: Map<String, Value>,
) -> Result<()> {
    checked(what)?;
    let now = tx.now();
    let mut namespace = Namespace::clone(&*get(tx, cx, name)?);
    let all = namespace.definitions.entry(kind).or_default();
    if all.contains_key(what) {
        return Err(Error::conflict("A metadata definition with this name already exists."));
    }
    if all.len() >= DEFINITIONS_MAX {
        return Err(Error::too_large(format!(
            "A namespace has at most {DEFINITIONS_MAX} definitions of a kind."
        )));
    }
    all.insert(what.to_string(), Definition { body, created_at: now, updated_at: now });
    tx.put(namespace)?;
    Ok(())
}

/// Replaces a definition, maybe under a new name.
pub fn redefine(
    tx: &mut Tx,
    cx: &Context,
    name: &str,
    kind: Kind,
    what: &str,
    to: &str,
    body: Map<String, Value>,
) -> Result<()> {
    checked(to)?;
    let now = tx.now();
    let mut namespace = Namespace::clone(&*get(tx, cx, name)?);
    let all = namespace.definitions.entry(kind).or_default();
    let old = all.remove(what).ok_or_else(|| missing("of the namespace", what))?;
    if all.contains_key(to) {
        return Err(Error::conflict("A metadata definition with this name already exists."));
    }
    all.insert(to.to_string(), Definition { body, updated_at: now, ..old });
    tx.put(namespace)?;
    Ok(())
}

/// Removes a definition, or without a name all of a kind.
pub fn forget(tx: &mut Tx, cx: &Context, name: &str, kind: Kind, what: Option<&str>) -> Result<()> {
    let mut namespace = Namespace::clone(&*get(tx, cx, name)?);
    may_change(&namespace)?;
    let all = namespace.definitions.entry(kind).or_default();
    match what {
        Some(what) => drop(all.remove(what).ok_or_else(|| missing("of the namespace", what))?),
        None => all.clear(),
    }
    tx.put(namespace)?;
    Ok(())
}
