//! What the resources have in common at the API: create (also many at once), list, show, update, delete.

mod list;

pub use list::{answer, answer_all, check_filters, fields, list, select};

use crate::App;
use crate::attr::{Meta, MetaBody, read_only};
use api::{Call, Reply, View};
use base::{Context, Error, Id, IdKind, Kind, ProjectId, Result};
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
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
    /// Writes what the caller sees of it.
    fn view(&self, state: &State, cx: &Context, view: &mut View);
    /// All that have this value of an attribute, and maybe more, where an index tells of it.
    fn having<'a>(_state: &'a State, _attribute: &str, _value: &str) -> Option<Vec<&'a Arc<Self>>> {
        None
    }
    /// Whether its view shows this value of an attribute, where that can be told without the view.
    fn shows(&self, _attribute: &str, _value: &str) -> Option<bool> {
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
        let made = create_all::<R>(&app, &call, bodies).await?;
        let state = app.cell.read();
        return Ok(Reply::written(StatusCode::CREATED, |body| {
            body.objects(R::MANY, &made, |r, view| r.view(&state, &call.cx, view))
        }));
    }
    let one = body.remove(R::ONE).ok_or_else(|| {
        Error::invalid(format!("Invalid input for field/attribute {0}. '{0}' is a required property", R::ONE))
    })?;
    create_one::<R>(&app, &call, one).await
}

pub async fn create_one<R: Resource>(app: &App, call: &Call, body: Value) -> Result<Reply> {
    let made = create_all::<R>(app, call, vec![body]).await?;
    Ok(answer_one(app, call, StatusCode::CREATED, &*made[0]))
}

/// What a write left of one resource. It is rendered outside the lane.
pub fn answer_one<R: Resource>(app: &App, call: &Call, status: StatusCode, one: &R) -> Reply {
    let state = app.cell.read();
    Reply::written(status, |body| body.object(R::ONE, |view| one.view(&state, &call.cx, view)))
}

async fn create_all<R: Resource>(app: &App, call: &Call, bodies: Vec<Value>) -> Result<Vec<Arc<R>>> {
    let bodies: Vec<Wanted<R>> = bodies.into_iter().map(Wanted::parse).collect::<Result<_>>()?;
    for body in &bodies {
        R::guard(call, body, "create")?;
    }
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| {
        bodies.iter().map(|body| R::create(tx, &cx, project(&cx, &body.meta)?, body)).collect()
    })
    .await
}

pub async fn show<R: Resource>(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let found = get::<R>(&state, &call.cx, id_of(&call)?)?;
    let fields = fields(&call);
    Ok(Reply::written(StatusCode::OK, |body| {
        body.object_of(R::ONE, &fields, |view| found.view(&state, &call.cx, view))
    }))
}

pub async fn update<R: Resource>(app: App, call: Call) -> Result<Reply> {
    let id = id_of::<R>(&call)?;
    let body = Wanted::<R>::parse(call.json_in(R::ONE)?)?;
    own::<R>(&app.cell.read(), &call.cx, id)?;
    R::guard(&call, &body, "update")?;
    let expected = if_match(&call)?;
    let cx = call.cx.clone();
    let changed = call
        .write(&app.cell, move |tx| {
            let old = own::<R>(tx, &cx, id)?;
            check_revision(&*old, expected)?;
            if body.meta.project().is_some_and(|p| p != old.meta().project) {
                return Err(read_only("project_id"));
            }
            R::update(tx, &cx, &old, &body)
        })
        .await?;
    Ok(answer_one(&app, &call, StatusCode::OK, &*changed))
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
