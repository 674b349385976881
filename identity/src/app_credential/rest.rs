//! `/v3/users/{user_id}/application_credentials` and the access rules that they name.

use super::{AppCredential, BY_USER, create, delete, get};
use crate::access_rule::{self, AccessRule};
use crate::trust::rest::role_of;
use crate::wire::{self, Map, body, many, missing, take};
use crate::{App, assignment, role, token};
use api::{Call, Reply, Route};
use base::context::Scope;
use base::{Error, Id, ProjectId, Result, Secret, Timestamp, UserId};
use serde_json::{Value, json};
use std::sync::Arc;
use store::State;

pub fn routes() -> Vec<Route<App>> {
    const ALL: &str = "/v3/users/{user_id}/application_credentials";
    const ONE: &str = "/v3/users/{user_id}/application_credentials/{credential_id}";
    vec![
        api::get(ALL, "identity:list_application_credentials", list),
        api::post(ALL, "identity:create_application_credential", post),
        api::get(ONE, "identity:get_application_credential", show),
        api::delete(ONE, "identity:delete_application_credential", remove),
    ]
}

fn path(user: UserId) -> String {
    format!("users/{user}/application_credentials")
}

fn view(state: &State, app: &AppCredential) -> Map {
    let roles = app.roles.iter().filter_map(|id| role::get(state, *id).ok());
    let roles: Vec<Value> =
        roles.map(|r| json!({"id": r.id, "name": r.fields.name, "domain_id": r.domain})).collect();
    let mut view = wire::map(&json!({
        "id": app.id,
        "name": app.name,
        "description": app.description,
        "user_id": app.user,
        "project_id": app.project,
        "roles": roles,
        "expires_at": app.expires_at.map(Timestamp::micros),
        "unrestricted": app.unrestricted,
        "system": null,
    }));
    if let Some(rules) = &app.access_rules {
        let rules = rules.iter().filter_map(|id| state.get::<AccessRule>(id)).map(|r| access_rule::view(r));
        view.insert("access_rules".into(), rules.map(Value::Object).collect());
    }
    view
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let user: UserId = call.id("user_id", "User")?;
    let all = state.by(&BY_USER, user).map(|a| view(&state, a));
    many(&call, "application_credentials", &path(user), &["name"], all)
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let user: UserId = call.id("user_id", "User")?;
    if call.cx.who.delegated {
        return Err(Error::forbidden("A delegated token may not make application credentials."));
    }
    let Scope::Project { project, .. } = call.cx.who.scope else {
        return Err(Error::forbidden("An application credential is for the project of a token."));
    };
    let mut body = body(&call, "application_credential")?;
    let told: String = match take(&mut body, "secret")? {
        Some(secret) => secret,
        None => token::new_key().expose().trim_end_matches('=').to_string(),
    };
    let secret = app.hasher.hash(&told).await?;
    let rules: Option<Vec<Map>> = take(&mut body, "access_rules")?;
    let new = parse(&app.cell.read(), body, user, project, secret)?;
    let cx = call.cx.clone();
    let made = call.write(&app.cell, move |tx| {
        let mut new = new.clone();
        let rules =
            rules.as_ref().map(|all| all.iter().map(|r| access_rule::found_or_made(tx, user, r)).collect());
        new.access_rules = rules.transpose()?;
        create(tx, &cx, new)
    });
    let made = made.await?;
    let mut view = view(&app.cell.read(), &made);
    view.insert("secret".into(), told.into());
    Ok(Reply::created(&wire::one(&call, "application_credential", &path(user), view)))
}

fn parse(
    state: &State,
    mut body: Map,
    user: UserId,
    project: ProjectId,
    secret: Secret,
) -> Result<AppCredential> {
    let name: wire::Name =
        take(&mut body, "name")?.ok_or_else(|| Error::invalid("'name' is a required property"))?;
    let expires: Option<String> = take(&mut body, "expires_at")?;
    let expires_at = expires
        .map(|text| Timestamp::parse(&text).ok_or_else(|| Error::invalid("expires_at is not a time.")))
        .transpose()?;
    let roles: Vec<Map> = take(&mut body, "roles")?.unwrap_or_default();
    let mut roles = roles.iter().map(|r| role_of(state, r)).collect::<Result<Vec<_>>>()?;
    if roles.is_empty() {
        roles = assignment::roles_on_project(state, user, project).into_iter().collect();
    }
    Ok(AppCredential {
        id: Id::ZERO,
        name: name.to_string(),
        user,
        project,
        roles,
        secret,
        description: take(&mut body, "description")?,
        expires_at,
        unrestricted: take(&mut body, "unrestricted")?.unwrap_or(false),
        access_rules: None,
    })
}

/// The user's own credential that the path names.
fn found(state: &State, call: &Call) -> Result<Arc<AppCredential>> {
    let user: UserId = call.id("user_id", "User")?;
    let app = get(state, call.id("credential_id", "Application credential")?)?;
    match app.user == user {
        true => Ok(app.clone()),
        false => Err(missing("application credential", app.id)),
    }
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let found = found(&state, &call)?;
    Ok(Reply::ok(&wire::one(&call, "application_credential", &path(found.user), view(&state, &found))))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    if call.cx.who.delegated {
        return Err(Error::forbidden("A delegated token may not change application credentials."));
    }
    let (id, cx) = (found(&app.cell.read(), &call)?.id, call.cx.clone());
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}
