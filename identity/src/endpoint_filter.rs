//! Which endpoints and endpoint groups a project is told of (OS-EP-FILTER).
//!
//! The associations are kept and listed. The catalogue of a token is not narrowed by them: a project without any would
//! otherwise see nothing, and Keystone's default catalogue does not look at them either.

use crate::catalog::rest::endpoint_view;
use crate::catalog::{self, Endpoint};
use crate::plain::{self, Plain, plain};
use crate::wire::{Map, many, missing, or_default};
use crate::{App, project};
use api::{Call, Reply, Route};
use base::{Error, Id, ProjectId, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupFields {
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// `service_id`, `region_id`, `interface`: what an endpoint of the group has.
    pub filters: Map,
    #[serde(flatten)]
    pub extra: Map,
}

plain!(EndpointGroup(GroupFields): "endpoint_group", "endpoint_group", "endpoint_groups",
    "OS-EP-FILTER/endpoint_groups", &["name"],
    fn check(_: &State, fields: &GroupFields) -> Result<()> {
        let known = ["service_id", "region_id", "interface", "enabled"];
        match fields.filters.keys().find(|k| !known.contains(&k.as_str())) {
            Some(key) => Err(Error::invalid(format!("{} is not a filter of endpoints.", key.escape_default()))),
            None => Ok(()),
        }
    },
    fn forget(tx: &mut Tx, id: Id<EndpointGroup>) {
        let all: Vec<_> = tx.by(&BY_THING, id.to_string()).map(|t| t.key()).collect();
        all.iter().for_each(|t| drop(tx.delete::<Told>(t)));
    }
);

/// That a project is told of an endpoint or an endpoint group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub project: ProjectId,
    /// The id of the endpoint or group.
    pub of: String,
}

pub const BY_PROJECT: Index<Told> = Index::many("project", |t, keys| keys.push(t.project.key()));
pub const BY_THING: Index<Told> = Index::many("thing", |t, keys| keys.push(t.of.key()));

impl Record for Told {
    const KIND: &'static str = "project_endpoint";
    type Key = String;
    const INDEXES: &'static [Index<Told>] = &[BY_PROJECT, BY_THING];

    fn key(&self) -> String {
        format!("{}/{}", self.project, self.of)
    }
}

pub(crate) fn forget_project(tx: &mut Tx, project: ProjectId) {
    let all: Vec<_> = tx.by(&BY_PROJECT, project).map(|t| t.key()).collect();
    all.iter().for_each(|t| drop(tx.delete::<Told>(t)));
}

pub fn routes() -> Vec<Route<App>> {
    const GROUPS: &str = "/v3/OS-EP-FILTER/endpoint_groups";
    const GROUP: &str = "/v3/OS-EP-FILTER/endpoint_groups/{id}";
    const OF_PROJECT: &str = "/v3/OS-EP-FILTER/projects/{project_id}/endpoints/{endpoint_id}";
    const IN_PROJECT: &str = "/v3/OS-EP-FILTER/endpoint_groups/{id}/projects/{project_id}";
    vec![
        api::get(GROUPS, "identity:list_endpoint_groups", plain::list::<EndpointGroup>),
        api::post(GROUPS, "identity:create_endpoint_group", plain::post::<EndpointGroup>),
        api::get(GROUP, "identity:get_endpoint_group", plain::show::<EndpointGroup>),
        api::patch(GROUP, "identity:update_endpoint_group", plain::change::<EndpointGroup>),
        api::delete(GROUP, "identity:delete_endpoint_group", plain::remove::<EndpointGroup>),
        api::get(
            "/v3/OS-EP-FILTER/endpoint_groups/{id}/projects",
            "identity:list_projects_associated_with_endpoint_group",
            projects,
        ),
        api::get(
            "/v3/OS-EP-FILTER/endpoint_groups/{id}/endpoints",
            "identity:list_endpoints_associated_with_endpoint_group",
            members,
        ),
        api::get(IN_PROJECT, "identity:get_endpoint_group_in_project", check),
        api::put(IN_PROJECT, "identity:add_endpoint_group_to_project", add),
        api::delete(IN_PROJECT, "identity:remove_endpoint_group_from_project", take),
        api::get(
            "/v3/OS-EP-FILTER/projects/{project_id}/endpoint_groups",
            "identity:list_endpoint_groups_for_project",
            groups,
        ),
        api::get(
            "/v3/OS-EP-FILTER/endpoints/{endpoint_id}/projects",
            "identity:list_projects_for_endpoint",
            projects,
        ),
        api::get(OF_PROJECT, "identity:check_endpoint_in_project", check),
        api::put(OF_PROJECT, "identity:add_endpoint_to_project", add),
        api::delete(OF_PROJECT, "identity:remove_endpoint_from_project", take),
        api::get(
            "/v3/OS-EP-FILTER/projects/{project_id}/endpoints",
            "identity:list_endpoints_for_project",
            endpoints,
        ),
    ]
}

/// The endpoint or group in the path.
fn thing(state: &State, call: &Call) -> Result<String> {
    if call.params.iter().any(|(name, _)| *name == "endpoint_id") {
        return Ok(catalog::endpoint(state, call.id("endpoint_id", "Endpoint")?)?.id.to_string());
    }
    Ok(plain::get::<EndpointGroup>(state, plain::id(call)?)?.id.to_string())
}

fn told(state: &State, call: &Call) -> Result<Told> {
    let project = project::get(state, call.id("project_id", "Project")?)?.id;
    Ok(Told { project, of: thing(state, call)? })
}

async fn projects(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let told = state.by(&BY_THING, thing(&state, &call)?);
    let projects = told.filter_map(|t| project::get(&state, t.project).ok());
    many(&call, "projects", "projects", &[], projects.map(|p| project::view(p)))
}

async fn check(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let told = told(&state, &call)?;
    let found = state.get::<Told>(&told.key()).map(|_| Reply::no_content());
    found.ok_or_else(|| missing("association of endpoint", told.key()))
}

async fn add(app: App, call: Call) -> Result<Reply> {
    let told = told(&app.cell.read(), &call)?;
    call.write(&app.cell, move |tx| Ok(tx.put(told.clone())?)).await?;
    Ok(Reply::no_content())
}

async fn take(app: App, call: Call) -> Result<Reply> {
    let told = told(&app.cell.read(), &call)?;
    let take = move |tx: &mut Tx| {
        let gone = tx.delete::<Told>(&told.key());
        gone.map(drop).ok_or_else(|| missing("association of endpoint", told.key()))
    };
    call.write(&app.cell, take).await?;
    Ok(Reply::no_content())
}

fn holds(group: &EndpointGroup, endpoint: &Endpoint) -> bool {
    let fields = crate::wire::map(&endpoint.fields);
    group.fields.filters.iter().all(|(key, wanted)| fields.get(key) == Some(wanted))
}

async fn members(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let group = plain::get::<EndpointGroup>(&state, plain::id(&call)?)?;
    let members = state.all::<Endpoint>().filter(|e| holds(group, e));
    many(&call, "endpoints", "endpoints", &[], members.map(|e| endpoint_view(&call, e)))
}

fn groups_of(state: &State, project: ProjectId) -> Vec<Arc<EndpointGroup>> {
    let told = state.by(&BY_PROJECT, project).filter_map(|t| t.of.parse().ok());
    told.filter_map(|id| state.get::<EndpointGroup>(&id).cloned()).collect()
}

async fn groups(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let project = project::get(&state, call.id("project_id", "Project")?)?.id;
    let groups = groups_of(&state, project);
    many(&call, EndpointGroup::MANY, EndpointGroup::PATH, &[], groups.iter().map(|g| plain::view(&**g)))
}

async fn endpoints(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let project = project::get(&state, call.id("project_id", "Project")?)?.id;
    let groups = groups_of(&state, project);
    let own: Vec<&str> = state.by(&BY_PROJECT, project).map(|t| t.of.as_str()).collect();
    let told = |e: &Endpoint| own.contains(&e.id.to_string().as_str()) || groups.iter().any(|g| holds(g, e));
    let endpoints = state.all::<Endpoint>().filter(|e| told(e));
    many(&call, "endpoints", "endpoints", &[], endpoints.map(|e| endpoint_view(&call, e)))
}
