//! `/v3/projects/{project_id}/tags`, and the filters by tags.

use super::{Project, Tag, get, update};
use crate::App;
use crate::aim;
use crate::wire::missing;
use api::{Call, Reply, Route};
use base::{ProjectId, Result};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

pub fn routes() -> Vec<Route<App>> {
    const ALL: &str = "/v3/projects/{project_id}/tags";
    const ONE: &str = "/v3/projects/{project_id}/tags/{tag}";
    vec![
        api::get(ALL, "identity:list_project_tags", list).target(aim::path),
        api::put(ALL, "identity:update_project_tags", replace).target(aim::path),
        api::delete(ALL, "identity:delete_project_tags", clear).target(aim::path),
        api::get(ONE, "identity:get_project_tag", check).target(aim::path),
        api::put(ONE, "identity:create_project_tag", add).target(aim::path),
        api::delete(ONE, "identity:delete_project_tag", remove).target(aim::path),
    ]
}

/// Whether a project passes `tags`, `tags-any`, `not-tags` and `not-tags-any`.
pub fn wanted(call: &Call, project: &Project) -> bool {
    let has = |tag: &str| project.fields.tags.iter().any(|t| t.as_str() == tag);
    let asked = |name: &str| call.query.get(name).map(|tags| tags.split(','));
    asked("tags").is_none_or(|mut tags| tags.all(has))
        && asked("tags-any").is_none_or(|mut tags| tags.any(has))
        && asked("not-tags").is_none_or(|mut tags| !tags.all(has))
        && asked("not-tags-any").is_none_or(|mut tags| !tags.any(has))
}

fn view(call: &Call, project: &Project) -> serde_json::Value {
    let here = format!("{}{}", call.base, call.path);
    json!({"tags": project.fields.tags, "links": {"next": null, "previous": null, "self": here}})
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    Ok(Reply::ok(&view(&call, get(&state, call.id("project_id", "Project")?)?)))
}

/// Changes the tags of the project in the path.
async fn change(
    app: &App,
    call: &Call,
    f: impl Fn(&mut Vec<Tag>) -> Result<()> + Send + 'static,
) -> Result<Arc<Project>> {
    let id: ProjectId = call.id("project_id", "Project")?;
    let cx = call.cx.clone();
    let changed = call.write(&app.cell, move |tx| {
        let mut fields = get(tx, id)?.fields.clone();
        f(&mut fields.tags)?;
        update(tx, &cx, id, fields)
    });
    changed.await
}

async fn replace(app: App, call: Call) -> Result<Reply> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Tags {
        tags: Vec<Tag>,
    }
    let Tags { tags } = call.json()?;
    let project = change(&app, &call, move |now| {
        now.clone_from(&tags);
        Ok(())
    });
    Ok(Reply::ok(&view(&call, &*project.await?)))
}

async fn clear(app: App, call: Call) -> Result<Reply> {
    change(&app, &call, |tags| {
        tags.clear();
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}

async fn check(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let project = get(&state, call.id("project_id", "Project")?)?;
    let tag = call.param("tag");
    match project.fields.tags.iter().any(|t| t.as_str() == tag) {
        true => Ok(Reply::no_content()),
        false => Err(missing("project tag", tag)),
    }
}

async fn add(app: App, call: Call) -> Result<Reply> {
    let tag = Tag::parse(call.param("tag"))?;
    let href = format!("{}{}", call.base, call.path);
    change(&app, &call, move |tags| {
        tags.push(tag.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::new(http::StatusCode::CREATED).header("location", href))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let tag = call.param("tag").to_string();
    change(&app, &call, move |tags| {
        let before = tags.len();
        tags.retain(|t| t.as_str() != tag);
        if tags.len() == before { Err(missing("project tag", &tag)) } else { Ok(()) }
    })
    .await?;
    Ok(Reply::no_content())
}
