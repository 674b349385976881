//! What every network resource has, and how Neutron's clients write values.

use api::View;
use base::{Error, Id, IdKind, ProjectId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use store::Tx;

/// Characters of a name or description, as Neutron's database has them.
const TEXT_MAX: usize = 255;

/// The attributes that all resources share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// All zeroes: the cloud's own (gateway and floating IP ports).
    pub project: ProjectId,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// Counts the changes; `If-Match: revision_number=N` compares with it.
    #[serde(default)]
    pub revision: u64,
    #[serde(default)]
    pub tags: BTreeSet<String>,
}

impl Meta {
    pub fn new(tx: &Tx, project: ProjectId) -> Meta {
        Meta { project, created: tx.now(), updated: tx.now(), ..Meta::default() }
    }

    /// Notes a change.
    pub fn touch(&mut self, tx: &Tx) {
        self.updated = tx.now();
        self.revision += 1;
    }

    /// Takes over what the caller wrote of name and description.
    pub fn apply(&mut self, body: &MetaBody) {
        if let Some(name) = &body.name {
            self.name = name.0.clone();
        }
        if let Some(description) = &body.description {
            self.description = description.0.clone();
        }
    }

    /// The shared attributes as they are answered.
    pub fn view<K: IdKind>(&self, id: Id<K>, view: &mut View) {
        view.put("name", &self.name);
        view.put("tags", &self.tags);
        self.unnamed(id, view);
    }

    /// Of resources without name and tags.
    pub fn unnamed<K: IdKind>(&self, id: Id<K>, view: &mut View) {
        self.owned(id, view);
        view.put("description", &self.description);
        view.put("created_at", &self.created.zulu());
        view.put("updated_at", &self.updated.zulu());
        view.put("revision_number", &self.revision);
    }

    /// Id and owner alone: of resources that Neutron gives no times and revisions.
    pub fn owned<K: IdKind>(&self, id: Id<K>, view: &mut View) {
        view.put("id", &id);
        self.owner(view);
    }

    pub fn owner(&self, view: &mut View) {
        let project = self.shown_project();
        view.put("project_id", &project);
        view.put("tenant_id", &project);
    }

    /// Nobody's is shown as empty.
    pub fn shown_project(&self) -> String {
        if self.project == ProjectId::ZERO { String::new() } else { self.project.to_string() }
    }
}

/// The writable part of `Meta`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct MetaBody {
    pub name: Option<Text>,
    pub description: Option<Text>,
    pub tenant_id: Option<ProjectId>,
    pub project_id: Option<ProjectId>,
}

impl MetaBody {
    pub fn project(&self) -> Option<ProjectId> {
        self.project_id.or(self.tenant_id)
    }
}

/// Text of at most `TEXT_MAX` characters; null reads as empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Text, D::Error> {
        let text = Option::<String>::deserialize(d)?.unwrap_or_default();
        match text.chars().count() <= TEXT_MAX {
            true => Ok(Text(text)),
            false => Err(serde::de::Error::custom(format!("it exceeds the maximum length of {TEXT_MAX}"))),
        }
    }
}

/// A boolean as Neutron reads one: true, "True", "1", 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Flag, D::Error> {
        let value = Value::deserialize(d)?;
        let text = match &value {
            Value::Bool(flag) => return Ok(Flag(*flag)),
            Value::Number(n) => n.to_string(),
            Value::String(s) => s.to_ascii_lowercase(),
            Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
        };
        match text.as_str() {
            "1" | "true" | "yes" | "on" => Ok(Flag(true)),
            "0" | "false" | "no" | "off" => Ok(Flag(false)),
            _ => Err(serde::de::Error::custom(format!("'{value}' cannot be converted to boolean"))),
        }
    }
}

/// Whether a flag that only administrators change is written. A new thing may say what it is anyway, a change may not:
/// who may not set it may not reset it. Source: OSSA-2014-031.
pub fn privileged(flag: Option<Flag>, verb: &str) -> bool {
    flag.is_some_and(|f| f.0 || verb == "update")
}

/// A whole number, also as text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Whole(pub i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Whole, D::Error> {
        let value = Value::deserialize(d)?;
        let number = value.as_i64().or_else(|| value.as_str().and_then(|s| s.trim().parse().ok()));
        number.map(Whole).ok_or_else(|| serde::de::Error::custom(format!("'{value}' is not an integer")))
    }
}

/// For fields where null means something: absent is `None`, null is `Some(None)`.
pub fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(d).map(Some)
}

/// The error of an attribute that is fixed once the resource is there.
pub fn read_only(attribute: &str) -> Error {
    Error::invalid(format!("Cannot update read-only attribute {attribute}"))
}

/// The error of a required attribute that is not there.
pub fn missing(attribute: &str) -> Error {
    Error::invalid(format!("Failed to parse request. Required attribute '{attribute}' not specified"))
}

/// Neutron's InvalidInput.
pub fn input(message: impl Into<String>) -> Error {
    Error::invalid(format!("Invalid input for operation: {}.", message.into().trim_end_matches('.')))
        .named("InvalidInput")
}
