//! What the resources have in common at the API: create (also many at once), list, show, update, delete.

use crate::App;
use crate::attr::{Meta, MetaBody, read_only};
use api::{Call, Reply};
use base::{Context, Error, Id, IdKind, Kind, ProjectId, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::Arc;
use store::{Record, State, Tx};

/// Resources that one request may create.
const BULK_MAX: usize = 200;

/// One kind of resource under `/v2.0`.
pub trait Resource: Record<Key = Id<Self>> + IdKind {
    /// `network`, as the body's key.
    const ONE: &'static str;
    /// `networks`, as the list's key.
    const MANY: &'static str;
    /// `Network`, in sentences.
    const TITLE: &'static str;
    /// `NetworkNotFound`, as clients map it.
    const NOT_FOUND: &'static str;
    /// What its views show beyond what all resources do: what lists can be filtered by.
    const ATTRIBUTES: &'static [&'static str];
    /// Whether it has a name that its owner writes.
    const NAMED: bool = true;
    /// What a caller may write beyond what all resources share, on create and update.
    type Body: DeserializeOwned + Clone + Send + Sync + 'static;

    fn meta(&self) -> &Meta;
    fn visible(&self, _state: &State, cx: &Context) -> bool {
        cx.sees(self.meta().project)
    }
    fn view(&self, state: &State, cx: &Context) -> Map<String, Value>;
    /// All that have this value of an attribute, and maybe more, where an index tells of it.
    fn having<'a>(_state: &'a State, _attribute: &str, _value: &str) -> Option<Vec<&'a Arc<Self>>> {
        None
    }
    /// Finer rules than the route's, for attributes that only some may write.
    fn guard(_call: &Call, _body: &Self::Body, _verb: &str) -> Result<()> {
        Ok(())
    }
    fn create(tx: &mut Tx, cx: &Context, project: ProjectId, body: &Wanted<Self>) -> Result<Arc<Self>>;
    fn update(tx: &mut Tx, cx: &Context, old: &Self, body: &Wanted<Self>) -> Result<Arc<Self>>;
    fn delete(tx: &mut Tx, cx: &Context, old: &Self) -> Result<()>;
}

/// What a caller wrote: the attributes that all resources share, and those of this one.
#[derive(Clone)]
pub struct Wanted<R: Resource> {
    pub meta: MetaBody,
    pub own: R::Body,
}

impl<R: Resource> Deref for Wanted<R> {
    type Target = R::Body;

    fn deref(&self) -> &R::Body {
        &self.own
    }
}

impl<R: Resource> Wanted<R> {
    /// Errors: `Invalid`, naming the attribute.
    pub fn parse(value: Value) -> Result<Wanted<R>> {
        let mut own: Map<String, Value> = api::call::from_value(value, R::ONE)?;
        let mut shared = Map::new();
        for attribute in ["name", "description", "tenant_id", "project_id"] {
            if (attribute != "name" || R::NAMED)
                && let Some(value) = own.remove(attribute)
            {
                shared.insert(attribute.into(), value);
            }
        }
        let meta = api::call::from_value(Value::Object(shared), R::ONE)?;
        Ok(Wanted { meta, own: api::call::from_value(Value::Object(own), R::ONE)? })
    }
}

pub fn not_found<R: Resource>(id: &str) -> Error {
    Error::not_found(format!("{} {} could not be found.", R::TITLE, id.escape_default())).named(R::NOT_FOUND)
}

/// The resource, if the caller may see it.
pub fn get<R: Resource>(state: &State, cx: &Context, id: Id<R>) -> Result<Arc<R>> {
    let found = state.get::<R>(&id).filter(|r| r.visible(state, cx));
    found.cloned().ok_or_else(|| not_found::<R>(&id.to_string()))
}

/// The resource, if the caller may change it: what is only seen is forbidden.
pub fn own<R: Resource>(state: &State, cx: &Context, id: Id<R>) -> Result<Arc<R>> {
    let found = get(state, cx, id)?;
    match cx.sees(found.meta().project) {
        true => Ok(found),
        false => Err(Error::forbidden(format!("{} {id} belongs to another project.", R::TITLE))
            .named("PolicyNotAuthorized")),
    }
}

pub fn id_of<R: Resource>(call: &Call) -> Result<Id<R>> {
    call.param("id").parse().map_err(|_| not_found::<R>(call.param("id")))
}

/// The project that a new resource is for.
fn project(cx: &Context, body: &MetaBody) -> Result<ProjectId> {
    let wanted = body.project().unwrap_or(cx.project());
    match cx.sees(wanted) {
        true => Ok(wanted),
        false => Err(Error::forbidden("Only an administrator may create resources for another project.")
            .named("PolicyNotAuthorized")),
    }
}

pub async fn create<R: Resource>(app: App, call: Call) -> Result<Reply> {
    let mut body: Map<String, Value> = call.json()?;
    if let Some(many) = body.remove(R::MANY) {
        let bodies: Vec<Value> = api::call::from_value(many, R::MANY)?;
        if bodies.is_empty() || bodies.len() > BULK_MAX {
            return Err(Error::invalid(format!("{} takes 1 to {BULK_MAX} entries.", R::MANY)));
        }
        let views = create_all::<R>(&app, &call, bodies).await?;
        return Ok(Reply::created(&json!({R::MANY: views})));
    }
    let one = body.remove(R::ONE).ok_or_else(|| {
        Error::invalid(format!("Invalid input for field/attribute {0}. '{0}' is a required property", R::ONE))
    })?;
    let views = create_all::<R>(&app, &call, vec![one]).await?;
    Ok(Reply::created(&json!({R::ONE: views.into_iter().next()})))
}

pub async fn create_all<R: Resource>(
    app: &App,
    call: &Call,
    bodies: Vec<Value>,
) -> Result<Vec<Map<String, Value>>> {
    let bodies: Vec<Wanted<R>> = bodies.into_iter().map(Wanted::parse).collect::<Result<_>>()?;
    for body in &bodies {
        R::guard(call, body, "create")?;
    }
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| {
        let mut made = Vec::with_capacity(bodies.len());
        for body in &bodies {
            made.push(R::create(tx, &cx, project(&cx, &body.meta)?, body)?);
        }
        Ok(made.iter().map(|r| r.view(tx, &cx)).collect())
    })
    .await
}

pub async fn show<R: Resource>(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let found = get::<R>(&state, &call.cx, id_of(&call)?)?;
    let mut view = found.view(&state, &call.cx);
    select(&call, &mut view);
    Ok(Reply::ok(&json!({R::ONE: view})))
}

pub async fn update<R: Resource>(app: App, call: Call) -> Result<Reply> {
    let id = id_of::<R>(&call)?;
    let body = Wanted::<R>::parse(call.json_in(R::ONE)?)?;
    own::<R>(&app.cell.read(), &call.cx, id)?;
    R::guard(&call, &body, "update")?;
    let expected = if_match(&call)?;
    let cx = call.cx.clone();
    let view = call
        .write(&app.cell, move |tx| {
            let old = own::<R>(tx, &cx, id)?;
            check_revision(&*old, expected)?;
            if body.meta.project().is_some_and(|p| p != old.meta().project) {
                return Err(read_only("project_id"));
            }
            Ok(R::update(tx, &cx, &old, &body)?.view(tx, &cx))
        })
        .await?;
    Ok(Reply::ok(&json!({R::ONE: view})))
}

pub async fn delete<R: Resource>(app: App, call: Call) -> Result<Reply> {
    let id = id_of::<R>(&call)?;
    let expected = if_match(&call)?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| {
        let old = own::<R>(tx, &cx, id)?;
        check_revision(&*old, expected)?;
        R::delete(tx, &cx, &old)
    })
    .await?;
    Ok(Reply::no_content())
}

/// The revision that the caller insists on.
fn if_match(call: &Call) -> Result<Option<u64>> {
    let Some(header) = call.headers.get("if-match") else { return Ok(None) };
    let number = header.to_str().ok().and_then(|h| h.trim().strip_prefix("revision_number=")?.parse().ok());
    number.map(Some).ok_or_else(|| Error::invalid("If-Match takes revision_number=N.").named("InvalidInput"))
}

fn check_revision<R: Resource>(found: &R, expected: Option<u64>) -> Result<()> {
    match expected {
        Some(n) if n != found.meta().revision => Err(Error::new(
            Kind::Precondition,
            format!("Constrained to {n}, but current revision is {}", found.meta().revision),
        )
        .named("RevisionNumberConstraintFailed")),
        Some(_) | None => Ok(()),
    }
}

pub async fn list<R: Resource>(app: App, call: Call) -> Result<Reply> {
    check_filters::<R>(&call)?;
    let state = app.cell.read();
    let few = narrowed::<R>(&state, &call);
    let all = few.is_none().then(|| state.all::<R>()).into_iter().flatten();
    let found = few.into_iter().flatten().chain(all).filter(|r| r.visible(&state, &call.cx));
    answer(&call, R::MANY, found.map(|r| r.view(&state, &call.cx)).collect())
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

/// Filters, sorts, cuts and answers a list of views.
pub fn answer(call: &Call, many: &str, mut views: Vec<Map<String, Value>>) -> Result<Reply> {
    let mut names: Vec<&str> = call.query.0.iter().map(|(n, _)| n.as_str()).collect();
    names.retain(|n| !CONTROL.contains(n));
    names.sort_unstable();
    names.dedup();
    for name in names {
        let wanted: Vec<&str> = call.query.all(name).collect();
        views.retain(|view| matches(view, name, &wanted));
    }
    sort(call, &mut views)?;
    let reverse = call.query.flag("page_reverse")?.unwrap_or(false);
    if reverse {
        views.reverse();
    }
    let page = api::page::Page::of(&call.query)?;
    let limited = call.query.has("limit");
    let id = |view: &Map<String, Value>| view.get("id").and_then(Value::as_str).unwrap_or("").to_string();
    let had_marker = page.marker.is_some();
    let (mut views, more) = page.cut(views, |view| id(view))?;
    if reverse {
        views.reverse();
    }
    let links = links(call, &views, more, reverse, had_marker, limited);
    for view in &mut views {
        select(call, view);
    }
    let mut body = Map::new();
    body.insert(many.into(), views.into_iter().map(Value::Object).collect());
    if !links.is_empty() {
        body.insert(format!("{many}_links"), json!(links));
    }
    Ok(Reply::ok(&body))
}

fn links(
    call: &Call,
    views: &[Map<String, Value>],
    more: bool,
    reverse: bool,
    marker: bool,
    limited: bool,
) -> Vec<Value> {
    let (Some(first), Some(last), true) = (views.first(), views.last(), limited) else { return Vec::new() };
    let href = |at: &Map<String, Value>, back: bool| {
        let address = api::page::next(call, at["id"].as_str().unwrap_or(""));
        let address = address.replace("&page_reverse=True", "").replace("page_reverse=True&", "");
        if back { format!("{address}&page_reverse=True") } else { address }
    };
    let mut links = Vec::new();
    if (more && !reverse) || (reverse && marker) {
        links.push(json!({"rel": "next", "href": href(last, false)}));
    }
    if (more && reverse) || (!reverse && marker) {
        links.push(json!({"rel": "previous", "href": href(first, true)}));
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
fn sort(call: &Call, views: &mut [Map<String, Value>]) -> Result<()> {
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
    views.sort_by(|a, b| {
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

/// Keeps only the `fields` that were asked for.
pub fn select(call: &Call, view: &mut Map<String, Value>) {
    let fields: Vec<&str> =
        call.query.all("fields").flat_map(|f| f.split(',')).filter(|f| !f.is_empty()).collect();
    if !fields.is_empty() {
        view.retain(|name, _| fields.contains(&name.as_str()));
    }
}
