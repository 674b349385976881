//! What a client writes of an image: the body of a creation, and JSON patches over it.
//!
//! Attributes that are not declared are properties: strings. Source: `openstack-images-v2.1-json-patch` (RFC 6902 with
//! paths of one level), and v2.0, where the operation is the key of the path.

use super::{Image, ImageFields};
use api::Call;
use api::call::from_value;
use base::{Error, Id, ProjectId, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Attributes that only we write.
const READ_ONLY: &[&str] = &[
    "status",
    "created_at",
    "updated_at",
    "checksum",
    "os_hash_algo",
    "os_hash_value",
    "size",
    "virtual_size",
    "self",
    "file",
    "schema",
    "direct_url",
    "stores",
    "locations",
    "deleted",
    "deleted_at",
];
const BASE: &[&str] = &[
    "id",
    "name",
    "visibility",
    "protected",
    "os_hidden",
    "owner",
    "disk_format",
    "container_format",
    "min_disk",
    "min_ram",
    "tags",
];
const NAME_MAX: usize = 255;

/// An image to be.
#[derive(Clone)]
pub struct NewImage {
    pub id: Option<Id<Image>>,
    pub owner: ProjectId,
    pub fields: ImageFields,
}

pub fn parse(body: Map<String, Value>, own: ProjectId) -> Result<NewImage> {
    let mut new = NewImage { id: None, owner: own, fields: ImageFields::default() };
    for (key, value) in body {
        match key.as_str() {
            "id" => {
                let id: String = from_value(value, "id")?;
                new.id = Some(id.parse().map_err(|_| Error::invalid("The id of an image is a UUID."))?);
            }
            "owner" => new.owner = owner(value)?,
            key => set(&mut new.fields, key, value)?,
        }
    }
    Ok(new)
}

fn owner(value: Value) -> Result<ProjectId> {
    let text: String = from_value(value, "owner")?;
    text.parse().map_err(|_| Error::invalid("The owner of an image is a project's id."))
}

pub fn tag(text: &str) -> Result<String> {
    match text.is_empty() || text.chars().count() > NAME_MAX {
        true => Err(Error::invalid(format!("A tag has 1 to {NAME_MAX} characters."))),
        false => Ok(text.to_string()),
    }
}

fn short(text: String, what: &str) -> Result<String> {
    match text.chars().count() > NAME_MAX {
        true => Err(Error::invalid(format!("{} has at most {NAME_MAX} characters.", what.escape_default()))),
        false => Ok(text),
    }
}

/// Sets one attribute or property.
///
/// Errors: `Forbidden` for what only we write, `Invalid` for a value that does not fit.
fn set(fields: &mut ImageFields, key: &str, value: Value) -> Result<()> {
    if READ_ONLY.contains(&key) {
        return Err(Error::forbidden(format!("Attribute '{key}' is read-only.")));
    }
    if key.starts_with("os_glance_") {
        return Err(Error::forbidden(format!("Attribute '{}' is reserved.", key.escape_default())));
    }
    fn of<T: DeserializeOwned>(value: Value, key: &str) -> Result<T> {
        from_value(value, key)
    }
    match key {
        "name" => {
            fields.name = of::<Option<String>>(value, key)?.map(|n| short(n, key)).transpose()?;
        }
        "visibility" => fields.visibility = of(value, key)?,
        "protected" => fields.protected = of(value, key)?,
        "os_hidden" => fields.hidden = of(value, key)?,
        "disk_format" => fields.disk_format = of(value, key)?,
        "container_format" => fields.container_format = of(value, key)?,
        "min_disk" => fields.min_disk_gib = u64::from(of::<u32>(value, key)?),
        "min_ram" => fields.min_ram_mib = u64::from(of::<u32>(value, key)?),
        "tags" => {
            let tags: Vec<String> = of(value, key)?;
            fields.tags = tags.iter().map(|t| tag(t)).collect::<Result<_>>()?;
        }
        key => {
            let key = short(key.to_string(), "The name of a property")?;
            let value = of(value, &key)?;
            fields.properties.insert(key, value);
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Add,
    Replace,
    Remove,
}

/// One operation of a patch.
#[derive(Clone, Debug)]
pub struct Change {
    op: Op,
    /// The attribute, and what is inside of it (`tags/-`).
    key: String,
    inner: Option<String>,
    value: Value,
}

/// Operations of one patch.
const CHANGES_MAX: usize = 1_000;

/// Errors: `MediaType` for another content type, `Invalid`.
pub fn read(call: &Call) -> Result<Vec<Change>> {
    let kind = call.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("");
    let change = match kind.split(';').next().unwrap_or("").trim() {
        "application/openstack-images-v2.1-json-patch" => modern,
        "application/openstack-images-v2.0-json-patch" => old,
        _ => {
            return Err(Error::media_type(
                "An image is changed by application/openstack-images-v2.1-json-patch.",
            ));
        }
    };
    let changes: Vec<Map<String, Value>> = call.json()?;
    match changes.len() > CHANGES_MAX {
        true => Err(Error::too_large(format!("A patch has at most {CHANGES_MAX} operations."))),
        false => changes.into_iter().map(change).collect(),
    }
}

fn op(word: &str) -> Result<Op> {
    match word {
        "add" => Ok(Op::Add),
        "replace" => Ok(Op::Replace),
        "remove" => Ok(Op::Remove),
        _ => Err(Error::invalid("Operations of a patch are add, replace and remove.")),
    }
}

fn modern(mut change: Map<String, Value>) -> Result<Change> {
    let word = |key: &str| change.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let (op, path) = (op(&word("op"))?, word("path"));
    made(op, &path, change.remove("value"))
}

fn old(mut change: Map<String, Value>) -> Result<Change> {
    let value = change.remove("value");
    let (word, path) = change.iter().next().ok_or_else(|| Error::invalid("An operation has a path."))?;
    made(op(word)?, path.as_str().unwrap_or_default(), value)
}

fn made(op: Op, path: &str, value: Option<Value>) -> Result<Change> {
    let bad = || Error::invalid(format!("Invalid JSON pointer: {}", path.escape_default()));
    let rest = path.strip_prefix('/').filter(|r| !r.is_empty() && !r.ends_with('/')).ok_or_else(bad)?;
    let plain = |part: &str| part.replace("~1", "/").replace("~0", "~");
    let (key, inner) = match rest.split_once('/') {
        Some((key, inner)) => (plain(key), Some(plain(inner))),
        None => (plain(rest), None),
    };
    let value = match (op, value) {
        (Op::Remove, _) => Value::Null,
        (Op::Add | Op::Replace, Some(value)) => value,
        (Op::Add | Op::Replace, None) => return Err(Error::invalid("Operation needs a value.")),
    };
    Ok(Change { op, key, inner, value })
}

/// Owner and fields of `image` after `changes`.
///
/// Errors: `Conflict` for a property that is not there, `Forbidden`, `Invalid`.
pub fn apply(image: &Image, changes: &[Change]) -> Result<(ProjectId, ImageFields)> {
    let (mut to, mut fields) = (image.owner, image.fields.clone());
    for change in changes {
        let (key, value) = (change.key.as_str(), change.value.clone());
        match (change.op, &change.inner) {
            (Op::Add, Some(inner)) if key == "tags" && inner == "-" => {
                fields.tags.insert(tag(value.as_str().unwrap_or_default())?);
            }
            (_, Some(_)) => {
                return Err(Error::invalid(format!(
                    "Invalid JSON pointer for this resource: '/{}'",
                    key.escape_default()
                )));
            }
            (Op::Remove, None) => remove(&mut fields, key)?,
            (Op::Replace, None) if is_own(key) && !fields.properties.contains_key(key) => {
                return Err(Error::conflict(format!("Property {} does not exist.", key.escape_default())));
            }
            (Op::Add | Op::Replace, None) if key == "id" => {
                return Err(Error::forbidden("Attribute 'id' is read-only."));
            }
            (Op::Add | Op::Replace, None) if key == "owner" => to = owner(value)?,
            (Op::Add | Op::Replace, None) => set(&mut fields, key, value)?,
        }
    }
    Ok((to, fields))
}

/// Whether a key names a property of the image's own.
fn is_own(key: &str) -> bool {
    !BASE.contains(&key) && !READ_ONLY.contains(&key) && !key.starts_with("os_glance_")
}

fn remove(fields: &mut ImageFields, key: &str) -> Result<()> {
    if !is_own(key) {
        return Err(Error::forbidden(format!("Attribute '{}' may not be removed.", key.escape_default())));
    }
    let gone = fields.properties.remove(key).map(drop);
    gone.ok_or_else(|| Error::conflict(format!("Property {} does not exist.", key.escape_default())))
}
