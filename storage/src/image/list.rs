//! `GET /v2/images`: who sees what, filters with operators, order, pages.

use super::rest::cx;
use super::view::view;
use super::{BY_OWNER, BY_VISIBILITY, Image, Visibility, member};
use crate::App;
use crate::image::member::MemberStatus;
use api::page::Page;
use api::{Call, Reply};
use base::{Error, Id, Result, Timestamp};
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::State;

/// Images of a page when the client does not say.
const LIMIT: usize = 25;
/// Queries that are no filters.
const OTHER: &[&str] =
    &["limit", "marker", "sort", "sort_key", "sort_dir", "visibility", "member_status", "os_hidden"];

pub async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let filters = filters(&call)?;
    let hidden = call.query.flag("os_hidden")?.unwrap_or(false);
    let shown = candidates(&state, &call)?.into_values();
    let mut images: Vec<(Arc<Image>, Value)> = shown
        .filter(|image| image.fields.hidden == hidden)
        .map(|image| (view(&image), image))
        .filter(|(view, image)| filters.iter().all(|f| f.holds(image, view)))
        .map(|(view, image)| (image, view))
        .collect();
    let order = order(&call)?;
    images.sort_by(|a, b| compare(&order, a, b));
    let mut page = Page::of(&call.query)?;
    if !call.query.has("limit") {
        page.limit = LIMIT;
    }
    let (images, more) = page.cut(images, |(image, _)| image.id.to_string())?;
    let next = images.last().filter(|_| more).map(|(image, _)| next(&call, image.id));
    let views: Vec<Value> = images.into_iter().map(|(_, view)| view).collect();
    let mut body = json!({"images": views, "schema": "/v2/schemas/images", "first": first(&call)});
    if let Some(next) = next {
        body["next"] = next.into();
    }
    Ok(Reply::ok(&body))
}

/// The list from `last` on, as a path.
fn next(call: &Call, last: Id<Image>) -> String {
    api::page::next(call, &last.to_string())[call.base.len()..].to_string()
}

/// The list from its start, as a path.
fn first(call: &Call) -> String {
    let marked = api::page::next(call, "");
    marked[call.base.len()..].trim_end_matches("marker=").trim_end_matches(['&', '?']).to_string()
}

/// The images that the caller may list, by id.
fn candidates(state: &State, call: &Call) -> Result<BTreeMap<Id<Image>, Arc<Image>>> {
    let asked = call.query.get("visibility");
    let wanted: Option<Visibility> = match asked {
        None | Some("all") => None,
        Some(word) => Some(
            serde_json::from_value(word.into())
                .map_err(|_| Error::invalid("visibility is public, private, shared, community or all."))?,
        ),
    };
    let mut found = BTreeMap::new();
    let mut add = |image: &Arc<Image>| drop(found.insert(image.id, image.clone()));
    let own = call.cx.project();
    match cx(call).everywhere {
        true => state.all::<Image>().for_each(&mut add),
        false => {
            state.by(&BY_OWNER, own).for_each(&mut add);
            let by = |visibility: Visibility| state.by(&BY_VISIBILITY, visibility as u32);
            by(Visibility::Public).for_each(&mut add);
            by(Visibility::Community).for_each(&mut add);
            let status = member_status(call)?;
            let shared = member::of_project(state, own).filter(|m| status.is_none_or(|s| s == m.status));
            shared
                .filter_map(|m| state.get::<Image>(&m.image))
                .filter(|i| i.fields.visibility == Visibility::Shared)
                .for_each(&mut add);
        }
    }
    found.retain(|_, image| match wanted {
        Some(visibility) => image.fields.visibility == visibility,
        None => {
            asked == Some("all") || image.owner == own || image.fields.visibility != Visibility::Community
        }
    });
    Ok(found)
}

/// What the caller answered to those who share; without the query, that it accepts. `None`: whatever it answered.
fn member_status(call: &Call) -> Result<Option<MemberStatus>> {
    match call.query.get("member_status") {
        None => Ok(Some(MemberStatus::Accepted)),
        Some("all") => Ok(None),
        Some(word) => serde_json::from_value(word.into())
            .map(Some)
            .map_err(|_| Error::invalid("member_status is pending, accepted, rejected or all.")),
    }
}

/// One condition of a query.
enum Filter {
    Is(String, Value),
    OneOf(String, Vec<String>),
    Tag(String),
    Min(u64),
    Max(u64),
    Time(TimeOf, fn(Timestamp, Timestamp) -> bool, Timestamp),
}

type TimeOf = fn(&Image) -> Timestamp;

fn filters(call: &Call) -> Result<Vec<Filter>> {
    let given = call.query.0.iter().filter(|(key, _)| !OTHER.contains(&key.as_str()));
    given.map(|(key, value)| filter(key, value)).collect()
}

fn filter(key: &str, value: &str) -> Result<Filter> {
    let number = || value.parse::<u64>().map_err(|_| Error::invalid(format!("{key} is a number.")));
    Ok(match key {
        "tag" => Filter::Tag(value.into()),
        "size_min" => Filter::Min(number()?),
        "size_max" => Filter::Max(number()?),
        "size" | "min_ram" | "min_disk" | "virtual_size" => Filter::Is(key.into(), number()?.into()),
        "protected" => match value {
            "true" | "True" => Filter::Is(key.into(), true.into()),
            "false" | "False" => Filter::Is(key.into(), false.into()),
            _ => return Err(Error::invalid("protected is true or false.")),
        },
        "created_at" => time(|image| image.created_at, value)?,
        "updated_at" => time(|image| image.updated_at, value)?,
        "id" | "name" | "status" | "disk_format" | "container_format" => match value.split_once(':') {
            Some(("in", list)) => Filter::OneOf(key.into(), words(list)?),
            Some(("eq", word)) => Filter::Is(key.into(), word.into()),
            Some(_) | None => Filter::Is(key.into(), value.into()),
        },
        key => Filter::Is(key.into(), value.into()),
    })
}

/// `gt:2026-01-01T00:00:00Z`
fn time(of: TimeOf, value: &str) -> Result<Filter> {
    let (word, text) = match value.split_once(':') {
        Some((word, text)) if word.bytes().all(|b| b.is_ascii_alphabetic()) => (word, text),
        Some(_) | None => ("eq", value),
    };
    let holds: fn(Timestamp, Timestamp) -> bool = match word {
        "gt" => |a, b| a > b,
        "gte" => |a, b| a >= b,
        "lt" => |a, b| a < b,
        "lte" => |a, b| a <= b,
        "eq" => |a, b| a == b,
        "neq" => |a, b| a != b,
        _ => return Err(Error::invalid("Operators of times are gt, gte, lt, lte, eq and neq.")),
    };
    let at = Timestamp::parse(text)
        .ok_or_else(|| Error::invalid(format!("'{}' is not a time.", text.escape_default())))?;
    Ok(Filter::Time(of, holds, at.floor()))
}

/// Words between commas; one in double quotes may hold commas.
fn words(list: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    match quoted {
        true => Err(Error::invalid("A quote in the list is not closed.")),
        false => Ok(words),
    }
}

impl Filter {
    fn holds(&self, image: &Image, view: &Value) -> bool {
        let size = image.content.as_ref().map(|c| c.size);
        match self {
            Filter::Is(key, wanted) => view.get(key) == Some(wanted),
            Filter::OneOf(key, words) => {
                view.get(key).and_then(Value::as_str).is_some_and(|v| words.iter().any(|w| w == v))
            }
            Filter::Tag(tag) => image.fields.tags.contains(tag),
            Filter::Min(min) => size.is_some_and(|s| s >= *min),
            Filter::Max(max) => size.is_some_and(|s| s <= *max),
            Filter::Time(of, holds, at) => holds(of(image).floor(), *at),
        }
    }
}

/// Keys that a list may be sorted by.
const SORTED: &[&str] = &[
    "id",
    "name",
    "status",
    "container_format",
    "disk_format",
    "size",
    "created_at",
    "updated_at",
    "min_disk",
    "min_ram",
    "owner",
    "visibility",
    "virtual_size",
    "protected",
];

/// Keys with their direction; the newest first when nobody says.
fn order(call: &Call) -> Result<Vec<(String, bool)>> {
    let pairs: Vec<(String, Option<String>)> = match call.query.get("sort") {
        Some(sort) => sort
            .split(',')
            .map(|part| match part.trim().split_once(':') {
                Some((key, dir)) => (key.into(), Some(dir.into())),
                None => (part.trim().into(), None),
            })
            .collect(),
        None => {
            let dirs: Vec<&str> = call.query.all("sort_dir").collect();
            let dir = |n: usize| dirs.get(n).or(dirs.last()).map(|d| d.to_string());
            let mut keys: Vec<&str> = call.query.all("sort_key").collect();
            if keys.is_empty() {
                keys.push("created_at");
            }
            keys.into_iter().enumerate().map(|(n, key)| (key.to_string(), dir(n))).collect()
        }
    };
    let mut order =
        pairs.into_iter().map(|(key, dir)| direction(key, dir.as_deref())).collect::<Result<Vec<_>>>()?;
    order.extend([("created_at".to_string(), true), ("id".to_string(), true)]);
    Ok(order)
}

/// True: descending.
fn direction(key: String, dir: Option<&str>) -> Result<(String, bool)> {
    if !SORTED.contains(&key.as_str()) {
        return Err(Error::invalid(format!("Images are not sorted by {}.", key.escape_default())));
    }
    match dir {
        None | Some("desc") => Ok((key, true)),
        Some("asc") => Ok((key, false)),
        Some(_) => Err(Error::invalid("A direction is asc or desc.")),
    }
}

fn compare(order: &[(String, bool)], a: &(Arc<Image>, Value), b: &(Arc<Image>, Value)) -> Ordering {
    let rank = |(key, down): &(String, bool)| {
        let one = match key.as_str() {
            "created_at" => a.0.created_at.cmp(&b.0.created_at),
            "updated_at" => a.0.updated_at.cmp(&b.0.updated_at),
            key => values(&a.1[key], &b.1[key]),
        };
        if *down { one.reverse() } else { one }
    };
    order.iter().map(rank).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

fn values(a: &Value, b: &Value) -> Ordering {
    match (a.as_u64(), b.as_u64(), a.as_str(), b.as_str()) {
        (Some(a), Some(b), _, _) => a.cmp(&b),
        (_, _, Some(a), Some(b)) => a.cmp(b),
        _ => (!a.is_null()).cmp(&!b.is_null()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, expect: Option<&[&str]>) {
        let expect = expect.map(|w| w.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        assert_eq!(words(list).ok(), expect, "{list}");
    }

    #[test]
    fn lists_of_words_may_hold_commas_in_quotes() {
        check("a", Some(&["a"]));
        check("a,b", Some(&["a", "b"]));
        check("\"a,b\",c", Some(&["a,b", "c"]));
        check("\"a", None);
    }
}
