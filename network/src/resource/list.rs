//! Lists: what filters choose, in an order, cut into pages.
//!
//! What a filter or an order asks of a resource is read from the record where that is plain (`Resource::shows`), and
//! else from its view. What is answered is written once, after the cut.

use super::Resource;
use crate::App;
use api::page::Page;
use api::{Call, Reply, View, view};
use base::{Error, Result};
use http::StatusCode;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;
use std::sync::Arc;
use store::State;

pub async fn list<R: Resource>(app: App, call: Call) -> Result<Reply> {
    check_filters::<R>(&call)?;
    let state = app.cell.read();
    let few = narrowed::<R>(&state, &call);
    let all = few.is_none().then(|| state.all::<R>()).into_iter().flatten();
    let found = few.into_iter().flatten().chain(all).filter(|r| r.visible(&state, &call.cx));
    answer_all(&call, &state, found.collect())
}

/// Filters, sorts, cuts and answers a list of resources.
pub fn answer_all<R: Resource>(call: &Call, state: &State, mut found: Vec<&Arc<R>>) -> Result<Reply> {
    let mut rest = filters(call);
    rest.retain(|name| !plainly(call, name, &mut found));
    if rest.is_empty() && !call.query.has("sort_key") {
        found.sort_by_key(|r| r.key());
    } else {
        let render = |r: &Arc<R>| view::value(|view| r.view(state, &call.cx, view));
        let mut views: Vec<_> = found.iter().map(|r| (*r, render(r))).collect();
        arrange(call, &rest, &mut views, |(_, view)| view)?;
        found = views.into_iter().map(|(r, _)| r).collect();
    }
    let (found, links) = paged(call, found, |r| r.key().to_string())?;
    let fields = fields(call);
    let one = |r: &Arc<R>, view: &mut View| r.view(state, &call.cx, view);
    Ok(Reply::written(StatusCode::OK, |body| {
        body.objects_of(R::MANY, &fields, found, one);
        if !links.is_empty() {
            body.named(&format!("{}_links", R::MANY), &links);
        }
    }))
}

/// Filters by what the records tell; false: they do not.
fn plainly<R: Resource>(call: &Call, name: &str, found: &mut Vec<&Arc<R>>) -> bool {
    let shows = |r: &R, value: &str| match name {
        "id" => Some(r.key().to_string() == value),
        "project_id" | "tenant_id" => Some(r.meta().shown_project() == value),
        "name" if R::NAMED => Some(r.meta().name == value),
        name => r.shows(name, value),
    };
    let wanted: Vec<&str> = call.query.all(name).collect();
    // A record tells of an attribute whatever the record and the value are.
    if found.first().zip(wanted.first()).is_some_and(|(r, value)| shows(r, value).is_none()) {
        return false;
    }
    found.retain(|r| wanted.iter().any(|value| shows(r, value) == Some(true)));
    true
}

/// What a list has to look at, when one of its filters has an index: its cost is then not that of all there are.
fn narrowed<'a, R: Resource>(state: &'a State, call: &Call) -> Option<Vec<&'a Arc<R>>> {
    let filters = call.query.0.iter().filter(|(name, _)| call.query.all(name).count() == 1);
    filters
        .filter_map(|(name, value)| match name.as_str() {
            "id" => Some(value.parse().ok().and_then(|id| state.get::<R>(&id)).into_iter().collect()),
            name => R::having(state, name, value),
        })
        .min_by_key(Vec::len)
}

/// What of a query is no filter.
const CONTROL: [&str; 6] = ["fields", "sort_key", "sort_dir", "limit", "marker", "page_reverse"];
/// What lists of all resources can be filtered by.
const FILTERS: [&str; 12] = [
    "id",
    "project_id",
    "tenant_id",
    "name",
    "description",
    "created_at",
    "updated_at",
    "revision_number",
    "tags",
    "tags-any",
    "not-tags",
    "not-tags-any",
];

/// Errors: `Invalid` for a filter or sort key that the resource does not have.
pub fn check_filters<R: Resource>(call: &Call) -> Result<()> {
    let known = |name: &str| FILTERS.contains(&name) || R::ATTRIBUTES.contains(&name);
    let names = call.query.0.iter().map(|(n, _)| n.as_str());
    let unknown: Vec<_> =
        names.filter(|n| !CONTROL.contains(n) && *n != "changed_since" && !known(n)).collect();
    if !unknown.is_empty() {
        return Err(Error::invalid(format!("{unknown:?} is invalid attribute for filtering")));
    }
    match call.query.all("sort_key").find(|key| !known(key)) {
        Some(key) => {
            Err(Error::invalid(format!("'{}' is an invalid attribute for sort key", key.escape_default())))
        }
        None => Ok(()),
    }
}

/// The names of a query that are filters, each once.
fn filters(call: &Call) -> Vec<&str> {
    let mut names: Vec<&str> = call.query.0.iter().map(|(n, _)| n.as_str()).collect();
    names.retain(|n| !CONTROL.contains(n));
    names.sort_unstable();
    names.dedup();
    names
}

/// Filters, sorts, cuts and answers a list of views of what is no resource.
pub fn answer(call: &Call, many: &'static str, mut views: Vec<Map<String, Value>>) -> Result<Reply> {
    arrange(call, &filters(call), &mut views, |view| view)?;
    let (mut views, links) = paged(call, views, id_of)?;
    views.iter_mut().for_each(|view| select(call, view));
    let mut body = Map::new();
    body.insert(many.into(), views.into_iter().map(Value::Object).collect());
    if !links.is_empty() {
        body.insert(format!("{many}_links"), json!(links));
    }
    Ok(Reply::ok(&body))
}

fn id_of(view: &Map<String, Value>) -> String {
    view.get("id").and_then(Value::as_str).unwrap_or("").to_string()
}

/// Keeps what these filters let pass, in the order that the call asks for.
fn arrange<T>(
    call: &Call,
    filters: &[&str],
    items: &mut Vec<T>,
    view: impl Fn(&T) -> &Map<String, Value>,
) -> Result<()> {
    for name in filters {
        let wanted: Vec<&str> = call.query.all(name).collect();
        items.retain(|item| matches(view(item), name, &wanted));
    }
    sort(call, items, view)
}

/// The page of a list that the call asks for, with its links.
fn paged<T>(call: &Call, mut items: Vec<T>, id: impl Fn(&T) -> String) -> Result<(Vec<T>, Vec<Value>)> {
    let reverse = call.query.flag("page_reverse")?.unwrap_or(false);
    if reverse {
        items.reverse();
    }
    let page = Page::of(&call.query)?;
    let (mut items, more) = page.cut(items, &id)?;
    if reverse {
        items.reverse();
    }
    let ends = items.first().zip(items.last()).filter(|_| call.query.has("limit"));
    let ends = ends.map(|(first, last)| (id(first), id(last)));
    let links = ends.map_or_else(Vec::new, |ends| links(call, ends, more, reverse, page.marker.is_some()));
    Ok((items, links))
}

fn links(
    call: &Call,
    (first, last): (String, String),
    more: bool,
    reverse: bool,
    marker: bool,
) -> Vec<Value> {
    let href = |at: &str, back: bool| {
        let address = api::page::next(call, at);
        let address = address.replace("&page_reverse=True", "").replace("page_reverse=True&", "");
        if back { format!("{address}&page_reverse=True") } else { address }
    };
    let mut links = Vec::new();
    if (more && !reverse) || (reverse && marker) {
        links.push(json!({"rel": "next", "href": href(&last, false)}));
    }
    if (more && reverse) || (!reverse && marker) {
        links.push(json!({"rel": "previous", "href": href(&first, true)}));
    }
    links
}

/// Whether a field has one of the wanted values. Lists match by element, `fixed_ips=ip_address=A` by part.
fn matches(view: &Map<String, Value>, name: &str, wanted: &[&str]) -> bool {
    match name {
        "tags" | "tags-any" | "not-tags" | "not-tags-any" => return tags_match(view, name, wanted),
        "fixed_ips" => return fixed_ips_match(view, wanted),
        _ => {}
    }
    match view.get(name) {
        // What a resource does not have does not filter, as Neutron without filter-validation.
        None => true,
        Some(Value::Array(items)) => items.iter().any(|item| wanted.iter().any(|w| same(item, w))),
        Some(value) => wanted.iter().any(|w| same(value, w)),
    }
}

fn same(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(s) => s == wanted,
        Value::Bool(b) => {
            matches!((wanted.to_ascii_lowercase().as_str(), b), ("true" | "1", true) | ("false" | "0", false))
        }
        Value::Number(n) => n.to_string() == wanted,
        Value::Null => wanted.is_empty() || wanted == "None" || wanted == "null",
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn tags_match(view: &Map<String, Value>, name: &str, wanted: &[&str]) -> bool {
    let has =
        |tag: &str| view.get("tags").and_then(Value::as_array).is_some_and(|t| t.iter().any(|v| v == tag));
    let mut tags = wanted.iter().flat_map(|w| w.split(','));
    match name {
        "tags" => tags.all(has),
        "tags-any" => tags.any(has),
        "not-tags" => !tags.all(has),
        _ => !tags.any(has),
    }
}

fn fixed_ips_match(view: &Map<String, Value>, wanted: &[&str]) -> bool {
    let Some(Value::Array(fixed)) = view.get("fixed_ips") else { return false };
    wanted.iter().all(|part| {
        let Some((key, value)) = part.split_once('=') else { return false };
        fixed.iter().any(|f| match key {
            "ip_address_substr" => f["ip_address"].as_str().is_some_and(|a| a.contains(value)),
            key => f[key].as_str() == Some(value),
        })
    })
}

/// Sorts by each `sort_key` with its `sort_dir`, then by id so that pages are stable.
fn sort<T>(call: &Call, items: &mut [T], view: impl Fn(&T) -> &Map<String, Value>) -> Result<()> {
    let keys: Vec<&str> = call.query.all("sort_key").collect();
    let mut dirs = call.query.all("sort_dir");
    let mut order = Vec::new();
    for key in keys {
        let ascending = match dirs.next().unwrap_or("asc") {
            "asc" => true,
            "desc" => false,
            other => {
                return Err(Error::invalid(format!(
                    "sort_dir is asc or desc, not '{}'.",
                    other.escape_default()
                )));
            }
        };
        order.push((key, ascending));
    }
    if !order.iter().any(|(key, _)| *key == "id") {
        order.push(("id", true));
    }
    items.sort_by(|a, b| {
        let (a, b) = (view(a), view(b));
        order.iter().fold(Ordering::Equal, |so_far, (key, ascending)| {
            let next = compare(a.get(*key), b.get(*key));
            so_far.then(if *ascending { next } else { next.reverse() })
        })
    });
    Ok(())
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Some(Value::Bool(a)), Some(Value::Bool(b))) => a.cmp(b),
        _ => Ordering::Equal,
    }
}

/// The `fields` that were asked for; none: all.
pub fn fields(call: &Call) -> Vec<&str> {
    call.query.all("fields").flat_map(|f| f.split(',')).filter(|f| !f.is_empty()).collect()
}

/// Keeps only the `fields` that were asked for.
pub fn select(call: &Call, view: &mut Map<String, Value>) {
    let fields = fields(call);
    if !fields.is_empty() {
        view.retain(|name, _| fields.contains(&name.as_str()));
    }
}
