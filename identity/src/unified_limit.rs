//! Unified limits: `/v3/registered_limits` and `/v3/limits`, a view of `limit`.
//!
//! The records here say what is limited; how much is said by `limit::Limit` alone, under the service's type and the
//! resource's name (`compute:cores`), where `limit::claim` finds it. Limits of a domain are kept and shown; nothing is
//! claimed against them, as the flat model has it.

use crate::catalog::{self, Service};
use crate::limit::{self, DEFAULTS};
use crate::wire::{self, Map, many, missing};
use crate::{App, domain, project};
use api::{Call, Reply, Route, Target};
use base::context::Scope;
use base::{DomainId, Error, Id, IdKind, ProjectId, Result};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Index, IndexPart, Record, State, Tx};

/// What is limited: a resource of a service, maybe in one region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    pub service_id: Id<Service>,
    #[serde(default)]
    pub region_id: Option<String>,
    pub resource_name: String,
    #[serde(default)]
    pub description: Option<String>,
}

impl Subject {
    fn key(&self) -> store::IndexKey {
        (self.service_id, &self.region_id, &self.resource_name).key()
    }

    /// The name that the store sums it under.
    fn name(&self, state: &State) -> Result<String> {
        let service = catalog::service(state, self.service_id);
        let service = service.map_err(|e| Error::invalid(e.message()))?;
        if let Some(region) = &self.region_id {
            catalog::region(state, region).map_err(|e| Error::invalid(e.message()))?;
        }
        Ok(format!("{}:{}", service.fields.kind, self.resource_name))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisteredLimit {
    pub id: Id<RegisteredLimit>,
    pub subject: Subject,
}

impl IdKind for RegisteredLimit {
    const HEX: bool = true;
}

pub const REGISTERED: Index<RegisteredLimit> =
    Index::unique("resource", |r, keys| keys.push(r.subject.key()));

impl Record for RegisteredLimit {
    const KIND: &'static str = "registered_limit";
    type Key = Id<RegisteredLimit>;
    const INDEXES: &'static [Index<RegisteredLimit>] = &[REGISTERED];

    fn key(&self) -> Id<RegisteredLimit> {
        self.id
    }
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    Project(ProjectId),
    Domain(DomainId),
}

impl Holder {
    /// Where its number stands: a domain's under the project that it also is.
    fn project(self) -> ProjectId {
        match self {
            Holder::Project(id) => id,
            Holder::Domain(id) => domain::as_project(id),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnifiedLimit {
    pub id: Id<UnifiedLimit>,
    pub holder: Holder,
    pub subject: Subject,
}

impl IdKind for UnifiedLimit {
    const HEX: bool = true;
}

pub const ONCE: Index<UnifiedLimit> = Index::unique("resource of one project", |l, keys| {
    let mut key = l.holder.project().key().to_vec();
    key.extend_from_slice(&l.subject.key());
    keys.push(key.as_slice().into());
});

impl Record for UnifiedLimit {
    const KIND: &'static str = "unified_limit";
    type Key = Id<UnifiedLimit>;
    const INDEXES: &'static [Index<UnifiedLimit>] = &[ONCE];

    fn key(&self) -> Id<UnifiedLimit> {
        self.id
    }
}

pub fn routes() -> Vec<Route<App>> {
    const REGISTERED: &str = "/v3/registered_limits/{id}";
    const LIMIT: &str = "/v3/limits/{id}";
    vec![
        api::get("/v3/registered_limits", "identity:list_registered_limits", list_registered),
        api::post("/v3/registered_limits", "identity:create_registered_limits", post_registered),
        api::get(REGISTERED, "identity:get_registered_limit", show_registered),
        api::patch(REGISTERED, "identity:update_registered_limit", change_registered),
        api::delete(REGISTERED, "identity:delete_registered_limit", remove_registered),
        api::get("/v3/limits/model", "identity:get_limit_model", model),
        api::get("/v3/limits", "identity:list_limits", list),
        api::post("/v3/limits", "identity:create_limits", post),
        api::get(LIMIT, "identity:get_limit", show).target(aim_limit),
        api::patch(LIMIT, "identity:update_limit", change),
        api::delete(LIMIT, "identity:delete_limit", remove),
    ]
}

const FILTERS: &[&str] = &["service_id", "region_id", "resource_name", "project_id", "domain_id"];

fn registered_view(state: &State, registered: &RegisteredLimit) -> Map {
    let name = registered.subject.name(state).unwrap_or_default();
    let mut view = wire::map(&registered.subject);
    view.insert("id".into(), registered.id.to_string().into());
    view.insert("default_limit".into(), limit::stored(state, DEFAULTS, &name).into());
    view
}

fn limit_view(state: &State, limit: &UnifiedLimit) -> Map {
    let name = limit.subject.name(state).unwrap_or_default();
    let mut view = wire::map(&limit.subject);
    let (project, domain) = match limit.holder {
        Holder::Project(id) => (Some(id.to_string()), None),
        Holder::Domain(id) => (None, Some(id.to_string())),
    };
    view.insert("id".into(), limit.id.to_string().into());
    view.insert("project_id".into(), project.into());
    view.insert("domain_id".into(), domain.into());
    view.insert("resource_limit".into(), limit::stored(state, limit.holder.project(), &name).into());
    view
}

/// A number that a body must hold: -1 for no limit.
fn number(body: &mut Map, key: &str) -> Result<Option<i64>> {
    match body.remove(key).map(|n| n.as_i64()) {
        None => Ok(None),
        Some(Some(n)) if n >= -1 => Ok(Some(n)),
        Some(_) => Err(Error::invalid(format!("{key} is an integer from -1 on."))),
    }
}

fn must<T>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| Error::invalid(format!("'{key}' is a required property")))
}

fn created(call: &Call, key: &str, views: Vec<Map>) -> Reply {
    let views: Vec<Value> = views.into_iter().map(|v| wire::linked(call, key, v)).collect();
    Reply::json(StatusCode::CREATED, &json!({key: views}))
}

async fn list_registered(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let all = state.all::<RegisteredLimit>().map(|r| registered_view(&state, r));
    many(&call, "registered_limits", "registered_limits", FILTERS, all)
}

async fn post_registered(app: App, call: Call) -> Result<Reply> {
    let bodies: Vec<Map> = call.json_in("registered_limits")?;
    let made = call.write(&app.cell, move |tx| bodies.iter().map(|b| register(tx, b.clone())).collect());
    let made: Vec<RegisteredLimit> = made.await?;
    let state = app.cell.read();
    Ok(created(&call, "registered_limits", made.iter().map(|r| registered_view(&state, r)).collect()))
}

fn register(tx: &mut Tx, mut body: Map) -> Result<RegisteredLimit> {
    let default = must(number(&mut body, "default_limit")?, "default_limit")?;
    let subject: Subject = wire::fields(body, "registered_limit")?;
    let name = subject.name(tx)?;
    let new = RegisteredLimit { id: tx.new_id(), subject };
    tx.put(new.clone())?;
    limit::store(tx, DEFAULTS, &name, default)?;
    Ok(new)
}

fn registered(state: &State, id: Id<RegisteredLimit>) -> Result<RegisteredLimit> {
    let found = state.get::<RegisteredLimit>(&id);
    found.map(|r| RegisteredLimit::clone(r)).ok_or_else(|| missing("registered limit", id))
}

async fn show_registered(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let view = registered_view(&state, &registered(&state, call.id("id", "Registered limit")?)?);
    Ok(Reply::ok(&wire::one(&call, "registered_limit", "registered_limits", view)))
}

async fn change_registered(app: App, call: Call) -> Result<Reply> {
    let id: Id<RegisteredLimit> = call.id("id", "Registered limit")?;
    let patch: Map = call.json_in("registered_limit")?;
    call.write(&app.cell, move |tx| {
        let (mut patch, old) = (patch.clone(), registered(tx, id)?);
        let default = number(&mut patch, "default_limit")?;
        let before = old.subject.name(tx)?;
        let subject: Subject = wire::merged(&old.subject, patch, "registered_limit")?;
        let name = subject.name(tx)?;
        let default = default.or(limit::stored(tx, DEFAULTS, &before)).unwrap_or(-1);
        if before != name {
            not_in_use(tx, &old.subject)?;
            limit::forget(tx, DEFAULTS, &before);
        }
        tx.put(RegisteredLimit { id, subject })?;
        limit::store(tx, DEFAULTS, &name, default)
    })
    .await?;
    show_registered(app, call).await
}

/// Errors: `Forbidden` while projects have limits of it.
fn not_in_use(state: &State, subject: &Subject) -> Result<()> {
    match state.all::<UnifiedLimit>().any(|l| l.subject.key() == subject.key()) {
        true => Err(Error::forbidden("The registered limit is in use by limits of projects or domains.")),
        false => Ok(()),
    }
}

async fn remove_registered(app: App, call: Call) -> Result<Reply> {
    let id: Id<RegisteredLimit> = call.id("id", "Registered limit")?;
    call.write(&app.cell, move |tx| {
        let old = registered(tx, id)?;
        not_in_use(tx, &old.subject)?;
        limit::forget(tx, DEFAULTS, &old.subject.name(tx)?);
        tx.delete::<RegisteredLimit>(&id);
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}

async fn model(_: App, _: Call) -> Result<Reply> {
    let about = "Limit enforcement and validation does not take project hierarchy into consideration.";
    Ok(Reply::ok(&json!({"model": {"name": "flat", "description": about}})))
}

/// Everybody sees the limits of the project or domain of the token; who may see any sees all.
async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let all = state.all::<UnifiedLimit>();
    let seen = all.filter(|l| call.may("identity:get_limit", &target(&state, l)));
    many(&call, "limits", "limits", FILTERS, seen.map(|l| limit_view(&state, l)))
}

fn target(state: &State, limit: &UnifiedLimit) -> Target {
    let mut target = Target::new();
    let domain = match limit.holder {
        Holder::Project(id) => {
            target.insert("target.limit.project_id".into(), id.to_string());
            project::get(state, id).ok().map(|p| p.domain)
        }
        Holder::Domain(id) => Some(id),
    };
    target.extend(domain.map(|d| ("target.limit.domain_id".to_string(), d.to_string())));
    target
}

fn aim_limit(app: &App, call: &Call, aimed: &mut Target) {
    let state = app.cell.read();
    let id = call.param("id").parse().ok();
    if let Some(limit) = id.and_then(|id| state.get::<UnifiedLimit>(&id)) {
        aimed.extend(target(&state, limit));
    }
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let bodies: Vec<Map> = call.json_in("limits")?;
    let own = match call.cx.who.scope {
        Scope::Project { project, .. } => Some(project),
        Scope::Domain(_) | Scope::System | Scope::Unscoped => None,
    };
    let made = call.write(&app.cell, move |tx| bodies.iter().map(|b| create(tx, b.clone(), own)).collect());
    let made: Vec<UnifiedLimit> = made.await?;
    let state = app.cell.read();
    Ok(created(&call, "limits", made.iter().map(|l| limit_view(&state, l)).collect()))
}

fn create(tx: &mut Tx, mut body: Map, own: Option<ProjectId>) -> Result<UnifiedLimit> {
    let n = must(number(&mut body, "resource_limit")?, "resource_limit")?;
    let project: Option<ProjectId> = wire::take(&mut body, "project_id")?;
    let domain: Option<DomainId> = wire::take(&mut body, "domain_id")?;
    let holder = match (project, domain) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("A limit is of a project or a domain, not of both."));
        }
        (Some(id), None) => Holder::Project(project::get(tx, id)?.id),
        (None, Some(id)) => Holder::Domain(domain::get(tx, id)?.id),
        (None, None) => Holder::Project(must(own, "project_id")?),
    };
    let subject: Subject = wire::fields(body, "limit")?;
    let name = subject.name(tx)?;
    if tx.one(&REGISTERED, (subject.service_id, &subject.region_id, &subject.resource_name)).is_none() {
        return Err(Error::forbidden("There is no registered limit for this resource."));
    }
    let new = UnifiedLimit { id: tx.new_id(), holder, subject };
    tx.put(new.clone())?;
    limit::store(tx, holder.project(), &name, n)?;
    Ok(new)
}

fn get(state: &State, id: Id<UnifiedLimit>) -> Result<UnifiedLimit> {
    state.get::<UnifiedLimit>(&id).map(|l| UnifiedLimit::clone(l)).ok_or_else(|| missing("limit", id))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let view = limit_view(&state, &get(&state, call.id("id", "Limit")?)?);
    Ok(Reply::ok(&wire::one(&call, "limit", "limits", view)))
}

/// Only the number and the description change.
async fn change(app: App, call: Call) -> Result<Reply> {
    let id: Id<UnifiedLimit> = call.id("id", "Limit")?;
    let mut patch: Map = call.json_in("limit")?;
    let n = number(&mut patch, "resource_limit")?;
    let description: Option<Option<String>> =
        patch.remove("description").map(|d| api::call::from_value(d, "limit.description")).transpose()?;
    if let Some(key) = patch.keys().next() {
        return Err(Error::invalid(format!("{} cannot be changed.", key.escape_default())));
    }
    call.write(&app.cell, move |tx| {
        let mut limit = get(tx, id)?;
        if let Some(n) = n {
            let name = limit.subject.name(tx)?;
            limit::store(tx, limit.holder.project(), &name, n)?;
        }
        if let Some(description) = &description {
            limit.subject.description.clone_from(description);
        }
        tx.put(limit)?;
        Ok(())
    })
    .await?;
    show(app, call).await
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let id: Id<UnifiedLimit> = call.id("id", "Limit")?;
    call.write(&app.cell, move |tx| {
        let limit = get(tx, id)?;
        limit::forget(tx, limit.holder.project(), &limit.subject.name(tx)?);
        tx.delete::<UnifiedLimit>(&id);
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}

fn forget(tx: &mut Tx, gone: impl Fn(&UnifiedLimit) -> bool) {
    let all: Vec<UnifiedLimit> =
        tx.all::<UnifiedLimit>().filter(|l| gone(l)).map(|l| (**l).clone()).collect();
    for limit in all {
        if let Ok(name) = limit.subject.name(tx) {
            limit::forget(tx, limit.holder.project(), &name);
        }
        tx.delete::<UnifiedLimit>(&limit.id);
    }
}

/// The limits of what is deleted go with it.
pub(crate) fn forget_holder(tx: &mut Tx, holder: Holder) {
    forget(tx, |l| l.holder == holder);
    limit::forget_project(tx, holder.project());
}

/// The limits of a service's resources go with it.
pub(crate) fn forget_service(tx: &mut Tx, id: Id<Service>) {
    forget(tx, |l| l.subject.service_id == id);
    let all: Vec<RegisteredLimit> =
        tx.all::<RegisteredLimit>().filter(|r| r.subject.service_id == id).map(|r| (**r).clone()).collect();
    for registered in all {
        if let Ok(name) = registered.subject.name(tx) {
            limit::forget(tx, DEFAULTS, &name);
        }
        tx.delete::<RegisteredLimit>(&registered.id);
    }
}
