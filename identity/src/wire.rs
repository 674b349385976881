//! How Identity words things: links, lists with filters, attributes that nobody declared, merging updates.

use api::{Call, Reply};
use base::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::fmt;

pub type Map = serde_json::Map<String, Value>;

/// Entries of a list without `limit`; what is beyond is told by `truncated` and the link to the next page.
pub const LIST_MAX: usize = 10_000;

/// A name of 1 to `MAX` characters with something to see in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Name<const MAX: usize = 255>(String);

impl<const MAX: usize> Name<MAX> {
    pub fn parse(text: &str) -> Result<Name<MAX>> {
        match text.trim().is_empty() || text.chars().count() > MAX {
            true => Err(Error::invalid(format!("A name has 1 to {MAX} characters, not only blanks."))),
            false => Ok(Name(text.to_string())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Name<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Name<MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Name<MAX>, D::Error> {
        let text = String::deserialize(d)?;
        Name::parse(&text).map_err(serde::de::Error::custom)
    }
}

pub fn yes() -> bool {
    true
}

/// Reads null as the type's own nothing.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Plain data as a JSON object.
pub fn map(value: &impl Serialize) -> Map {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => Map::new(),
    }
}

/// The object under the body's one key, for bodies that keep what they do not know.
pub fn body(call: &Call, key: &str) -> Result<Map> {
    call.json_in(key)
}

/// A declared attribute of a body, taken out; null is as if it were not there.
pub fn take<T: DeserializeOwned>(body: &mut Map, key: &str) -> Result<Option<T>> {
    match body.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => api::call::from_value(value, key).map(Some),
    }
}

/// The writable part of something, read from what is left of a body.
pub fn fields<F: DeserializeOwned>(body: Map, key: &str) -> Result<F> {
    api::call::from_value(Value::Object(body), key)
}

/// `old` with the attributes of `patch` laid over it; of `options`, a null takes one away.
pub fn merged<F: Serialize + DeserializeOwned>(old: &F, patch: Map, key: &str) -> Result<F> {
    let mut whole = map(old);
    for (name, value) in patch {
        match (name.as_str(), whole.get_mut(&name), value) {
            ("options", Some(Value::Object(options)), Value::Object(new)) => {
                options.extend(new);
                options.retain(|_, v| !v.is_null());
            }
            (_, _, value) => drop(whole.insert(name, value)),
        }
    }
    fields(whole, key)
}

/// Errors: `Invalid` when a patch would change what is fixed at creation.
pub fn fixed(patch: &mut Map, key: &str, now: &Value) -> Result<()> {
    match patch.remove(key) {
        Some(value) if value != *now => Err(Error::invalid(format!("{key} cannot be changed."))),
        Some(_) | None => Ok(()),
    }
}

/// Errors: `Forbidden` when the option `immutable` is on. The option itself may always be changed.
pub fn may_change(options: &Map, what: &str, id: impl fmt::Display) -> Result<()> {
    match options.get("immutable") {
        Some(Value::Bool(true)) => Err(Error::forbidden(format!(
            "Cannot change immutable {what} {id}: set its option immutable to false first."
        ))),
        Some(_) | None => Ok(()),
    }
}

/// As `may_change`, for a patch: one that sets the option passes.
pub fn may_patch(options: &Map, patch: &Map, what: &str, id: impl fmt::Display) -> Result<()> {
    match patch.get("options").and_then(|o| o.get("immutable")) {
        Some(_) => Ok(()),
        None => may_change(options, what, id),
    }
}

pub fn missing(what: &str, id: impl fmt::Display) -> Error {
    Error::not_found(format!("Could not find {what}: {id}."))
}

/// Adds `links.self`.
pub fn linked(call: &Call, path: &str, mut view: Map) -> Value {
    let id = view.get("id").and_then(Value::as_str).unwrap_or_default();
    view.insert("links".into(), json!({"self": format!("{}/v3/{path}/{id}", call.base)}));
    Value::Object(view)
}

pub fn one(call: &Call, key: &str, path: &str, view: Map) -> Value {
    json!({key: linked(call, path, view)})
}

/// A list: filtered by the attributes in `filters`, cut to a page, with its links.
pub fn many(
    call: &Call,
    key: &str,
    path: &str,
    filters: &[&str],
    views: impl IntoIterator<Item = Map>,
) -> Result<Reply> {
    let wanted = wanted(call, filters)?;
    let kept = views.into_iter().filter(|view| wanted.iter().all(|f| f.holds(view)));
    let mut page = api::page::Page::of(&call.query)?;
    if !call.query.has("limit") {
        page.limit = LIST_MAX;
    }
    let id = |view: &Map| view.get("id").and_then(Value::as_str).unwrap_or_default().to_string();
    let (views, more) = page.cut(kept, id)?;
    let next = views.last().filter(|_| more).map(|last| api::page::next(call, &id(last)));
    let views: Vec<Value> = views.into_iter().map(|view| linked(call, path, view)).collect();
    let mut body = listed(call, key, views);
    if let Some(next) = next {
        body["links"]["next"] = next.into();
        body["truncated"] = true.into();
    }
    Ok(Reply::ok(&body))
}

/// A list as it stands.
pub fn listed(call: &Call, key: &str, views: Vec<Value>) -> Value {
    let here = format!("{}{}", call.base, call.path);
    json!({key: views, "links": {"next": null, "self": here, "previous": null}})
}

/// One condition of a query: `name__contains=web`.
struct Wanted {
    key: String,
    how: How,
    value: String,
}

#[derive(Clone, Copy)]
enum How {
    Is,
    Contains,
    StartsWith,
    EndsWith,
    /// As the ones before, in any case.
    AnyCase(fn(&str, &str) -> bool),
}

fn wanted(call: &Call, filters: &[&str]) -> Result<Vec<Wanted>> {
    let mut out = Vec::new();
    for (name, value) in &call.query.0 {
        let (key, how) = name.split_once("__").unwrap_or((name, ""));
        if !filters.contains(&key) {
            continue;
        }
        let how = match how {
            "" | "exact" => How::Is,
            "contains" => How::Contains,
            "startswith" => How::StartsWith,
            "endswith" => How::EndsWith,
            "iexact" => How::AnyCase(|a, b| a == b),
            "icontains" => How::AnyCase(|a, b| a.contains(b)),
            "istartswith" => How::AnyCase(|a, b| a.starts_with(b)),
            "iendswith" => How::AnyCase(|a, b| a.ends_with(b)),
            _ => continue,
        };
        out.push(Wanted { key: key.into(), how, value: value.clone() });
    }
    Ok(out)
}

impl Wanted {
    fn holds(&self, view: &Map) -> bool {
        let has = match view.get(&self.key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(is)) => return *is != is_no(&self.value),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        };
        match self.how {
            How::Is => has == self.value,
            How::Contains => has.contains(&self.value),
            How::StartsWith => has.starts_with(&self.value),
            How::EndsWith => has.ends_with(&self.value),
            How::AnyCase(holds) => holds(&has.to_lowercase(), &self.value.to_lowercase()),
        }
    }
}

/// Keystone takes everything but these for a yes.
pub fn is_no(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "0" | "false" | "f" | "no" | "off")
}
