//! `/v3/projects` and `/v3/users/{user_id}/projects`. Where a domain stands for a project, it is shown as one.

use super::{NewProject, Project, ProjectFields, acting_domain, create, delete, get, update, view};
use crate::App;
use crate::aim;
use crate::domain::{self, Domain};
use crate::wire::{self, Map, body, fields, fixed, many, merged, take};
use api::{Call, Reply, Route};
use base::{DomainId, Error, ProjectId, Result, UserId};
use serde_json::{Value, json};
use store::State;

pub fn routes() -> Vec<Route<App>> {
    vec![
        api::get("/v3/projects", "identity:list_projects", list).target(aim::domain),
        api::post("/v3/projects", "identity:create_project", post).target(aim::new_project),
        api::get("/v3/projects/{project_id}", "identity:get_project", show).target(aim::path),
        api::patch("/v3/projects/{project_id}", "identity:update_project", change).target(aim::path),
        api::delete("/v3/projects/{project_id}", "identity:delete_project", remove).target(aim::path),
        api::get("/v3/users/{user_id}/projects", "identity:list_user_projects", of_user).target(aim::path),
    ]
}

const FILTERS: &[&str] = &["name", "enabled", "parent_id", "domain_id"];

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    if call.query.get("is_domain").is_some_and(|v| !wire::is_no(v)) {
        let domains = state.all::<Domain>().map(|d| domain::project_view(d));
        return many(&call, "projects", "projects", &["name", "enabled"], domains);
    }
    let only = aim::own_domain(&call);
    let asked = call.query.get("domain_id").and_then(|d| d.parse::<DomainId>().ok()).or(only);
    let projects: Box<dyn Iterator<Item = _> + Send> = match (asked, call.query.get("name")) {
        (Some(domain), Some(name)) => Box::new(super::named(&state, domain, name).into_iter()),
        (Some(domain), None) => Box::new(state.by(&super::BY_DOMAIN, domain)),
        (None, _) => Box::new(state.all::<Project>()),
    };
    let projects = projects.filter(|p| only.is_none_or(|d| d == p.domain) && super::tags::wanted(&call, p));
    many(&call, "projects", "projects", FILTERS, projects.map(|p| view(p)))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "project")?;
    let domain: Option<DomainId> = take(&mut body, "domain_id")?;
    let parent: Option<String> = take(&mut body, "parent_id")?;
    let is_domain: bool = take(&mut body, "is_domain")?.unwrap_or(false);
    body.remove("id");
    let cx = call.cx.clone();
    if is_domain {
        let new: domain::DomainFields = fields(body, "project")?;
        let made = call.write(&app.cell, move |tx| domain::create(tx, &cx, None, new.clone())).await?;
        return Ok(Reply::created(&wire::one(&call, "project", "projects", domain::project_view(&made))));
    }
    let new: ProjectFields = fields(body, "project")?;
    let own = aim::home_domain(&call);
    let made = call.write(&app.cell, move |tx| {
        let (domain, parent) = place(tx, domain, parent.as_deref(), own)?;
        create(tx, &cx, NewProject { domain, parent, fields: new.clone() })
    });
    let made = made.await?;
    Ok(Reply::created(&wire::one(&call, "project", "projects", view(&made))))
}

/// Where a new project goes: what the body says, else its parent's domain, else the caller's.
fn place(
    state: &State,
    domain: Option<DomainId>,
    parent: Option<&str>,
    own: DomainId,
) -> Result<(DomainId, Option<ProjectId>)> {
    let Some(parent) = parent else { return Ok((domain.unwrap_or(own), None)) };
    if let Some(above) = acting_domain(state, parent) {
        return match domain.is_none_or(|d| d == above.id) {
            true => Ok((above.id, None)),
            false => Err(Error::invalid("A project is in the same domain as its parent.")),
        };
    }
    let parent = get(state, parent.parse().map_err(|_| wire::missing("project", parent))?)?;
    Ok((domain.unwrap_or(parent.domain), Some(parent.id)))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    if let Some(domain) = acting_domain(&state, call.param("project_id")) {
        return Ok(Reply::ok(&wire::one(&call, "project", "projects", domain::project_view(&domain))));
    }
    let project = get(&state, call.id("project_id", "Project")?)?;
    let mut view = view(project);
    relatives(&state, &call, project, &mut view);
    Ok(Reply::ok(&wire::one(&call, "project", "projects", view)))
}

/// `?parents_as_list`, `?parents_as_ids`, `?subtree_as_list`, `?subtree_as_ids`.
fn relatives(state: &State, call: &Call, project: &Project, view: &mut Map) {
    let seen = |p: &Project| call.may("identity:get_project", &aim::of_project(p));
    let listed = |all: Vec<std::sync::Arc<Project>>| -> Value {
        all.iter()
            .filter(|p| seen(p))
            .map(|p| json!({"project": wire::linked(call, "projects", self::view(p))}))
            .collect()
    };
    if call.query.has("parents_as_list") {
        view.insert("parents".into(), listed(super::parents(state, project.id)));
    } else if call.query.has("parents_as_ids") {
        let top = json!({project.domain.to_string(): null});
        let above =
            super::parents(state, project.id).iter().rev().fold(top, |up, p| json!({p.id.to_string(): up}));
        view.insert("parents".into(), above);
    }
    if call.query.has("subtree_as_list") {
        view.insert("subtree".into(), listed(super::subtree(state, project.id)));
    } else if call.query.has("subtree_as_ids") {
        view.insert("subtree".into(), ids_below(state, project.id));
    }
}

fn ids_below(state: &State, id: ProjectId) -> Value {
    let below: Map =
        state.by(&super::BY_PARENT, id).map(|p| (p.id.to_string(), ids_below(state, p.id))).collect();
    if below.is_empty() { Value::Null } else { Value::Object(below) }
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let mut patch = body(&call, "project")?;
    let cx = call.cx.clone();
    if let Some(domain) = acting_domain(&app.cell.read(), call.param("project_id")) {
        patch.retain(|k, _| !["id", "domain_id", "parent_id", "is_domain"].contains(&k.as_str()));
        let new: domain::DomainFields = merged(&domain.fields, patch, "project")?;
        let made = call.write(&app.cell, move |tx| domain::update(tx, &cx, domain.id, new.clone())).await?;
        return Ok(Reply::ok(&wire::one(&call, "project", "projects", domain::project_view(&made))));
    }
    let id: ProjectId = call.id("project_id", "Project")?;
    let made = call.write(&app.cell, move |tx| {
        let old = get(tx, id)?;
        let (mut patch, now) = (patch.clone(), view(old));
        wire::may_patch(&old.fields.options, &patch, "project", id)?;
        if patch.remove("parent_id").is_some_and(|p| p != now["parent_id"]) {
            return Err(Error::forbidden("The parent of a project cannot be changed."));
        }
        ["id", "domain_id", "is_domain"].iter().try_for_each(|key| fixed(&mut patch, key, &now[*key]))?;
        let new = merged(&old.fields, patch, "project")?;
        update(tx, &cx, id, new)
    });
    let made = made.await?;
    Ok(Reply::ok(&wire::one(&call, "project", "projects", view(&made))))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let cx = call.cx.clone();
    if let Some(domain) = acting_domain(&app.cell.read(), call.param("project_id")) {
        call.write(&app.cell, move |tx| domain::delete(tx, &cx, domain.id)).await?;
        return Ok(Reply::no_content());
    }
    let id: ProjectId = call.id("project_id", "Project")?;
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}

async fn of_user(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let user: UserId = call.id("user_id", "User")?;
    crate::user::get(&state, user)?;
    let projects = crate::assignment::projects_of(&state, user);
    many(&call, "projects", "projects", FILTERS, projects.iter().map(|p| view(p)))
}
