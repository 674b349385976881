//! Quotas: a view of `identity::limit` and of the store's sums.

use crate::{App, RESOURCES};
use api::{Call, Reply};
use base::{Error, ProjectId, Result};
use identity::limit::{self, Resource};
use serde_json::{Map, Value, json};
use store::State;

fn word(resource: &Resource) -> &'static str {
    resource.name.split_once(':').map_or(resource.name, |(_, word)| word)
}

fn project(call: &Call) -> Result<ProjectId> {
    let text = call.param("project_id");
    let id = text
        .parse()
        .map_err(|_| Error::not_found(format!("Project {} could not be found.", text.escape_default())))?;
    match call.cx.sees(id) {
        true => Ok(id),
        false => Err(Error::forbidden("Only an administrator sees the quota of another project.")
            .named("PolicyNotAuthorized")),
    }
}

fn view(state: &State, project: ProjectId) -> Map<String, Value> {
    RESOURCES.iter().map(|r| (word(r).to_string(), json!(limit::of(state, project, r)))).collect()
}

/// GET /quotas
pub async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let mut projects: Vec<ProjectId> = state
        .all::<limit::Limit>()
        .filter(|l| l.resource.starts_with("network:"))
        .map(|l| l.project)
        .collect();
    projects.dedup();
    projects.retain(|p| *p != limit::DEFAULTS && call.cx.sees(*p));
    let views: Vec<_> = projects
        .iter()
        .map(|p| {
            let mut view = view(&state, *p);
            view.insert("tenant_id".into(), json!(p));
            view.insert("project_id".into(), json!(p));
            view
        })
        .collect();
    Ok(Reply::ok(&json!({"quotas": views})))
}

/// GET /quotas/{project_id}
pub async fn show(app: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"quota": view(&app.cell.read(), project(&call)?)})))
}

/// GET /quotas/{project_id}/default
pub async fn default(app: App, call: Call) -> Result<Reply> {
    project(&call)?;
    Ok(Reply::ok(&json!({"quota": view(&app.cell.read(), limit::DEFAULTS)})))
}

/// GET /quotas/{project_id}/details.json
pub async fn details(app: App, call: Call) -> Result<Reply> {
    let (state, project) = (app.cell.read(), project(&call)?);
    let one = |r: &Resource| {
        let figures = json!({"limit": limit::of(&state, project, r), "used": limit::used(&state, project, r), "reserved": 0});
        (word(r).to_string(), figures)
    };
    let details: Map<String, Value> = RESOURCES.iter().map(one).collect();
    Ok(Reply::ok(&json!({"quota": details})))
}

/// PUT /quotas/{project_id}
pub async fn update(app: App, call: Call) -> Result<Reply> {
    let project = project(&call)?;
    let wanted: Map<String, Value> = call.json_in("quota")?;
    let force = wanted.get("force").is_some_and(|f| f == true || f == "True" || f == "true");
    let state = app.cell.read();
    let mut set = Vec::new();
    for (name, value) in &wanted {
        if ["tenant_id", "project_id", "force", "check_limit"].contains(&name.as_str()) {
            continue;
        }
        let resource = RESOURCES.iter().find(|r| word(r) == name);
        let resource = resource.ok_or_else(|| {
            Error::invalid(format!("Unrecognized attribute(s) '{}'", name.escape_default()))
        })?;
        let limit = value
            .as_i64()
            .or_else(|| value.as_str()?.parse().ok())
            .filter(|n| *n >= -1 && *n <= i32::MAX as i64);
        let limit = limit
            .ok_or_else(|| Error::invalid(format!("Invalid input for {name}. It is a number from -1 on.")))?;
        let used = limit::used(&state, project, resource);
        if !force && limit >= 0 && limit < used {
            return Err(Error::invalid(format!(
                "Quota limit {limit} for {name} must be greater than or equal to already used {used}"
            )));
        }
        set.push((*resource, limit));
    }
    let quota = call
        .write(&app.cell, move |tx| {
            for (resource, limit) in &set {
                limit::set(tx, project, resource, *limit)?;
            }
            Ok(view(tx, project))
        })
        .await?;
    Ok(Reply::ok(&json!({"quota": quota})))
}

/// DELETE /quotas/{project_id}
pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let project = project(&call)?;
    call.write(&app.cell, move |tx| {
        limit::reset(tx, project, "network");
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}
