//! `/v3/auth`: tokens, and where one may sign in to.

use super::payload::{Place, audit_text};
use super::{Held, login};
use crate::app_credential::AppCredential;
use crate::trust::Trust;
use crate::user::User;
use crate::wire::{self, many};
use crate::{App, assignment, catalog, domain, project};
use api::route::OPEN;
use api::{Call, Reply, Route, Target};
use base::{Error, Result, Timestamp};
use http::StatusCode;
use serde_json::{Value, json};
use store::State;

pub fn routes() -> Vec<Route<App>> {
    const TOKENS: &str = "/v3/auth/tokens";
    vec![
        api::post(TOKENS, OPEN, post),
        api::get(TOKENS, "identity:validate_token", show).target(subject),
        api::head(TOKENS, "identity:check_token", check).target(subject),
        api::delete(TOKENS, "identity:revoke_token", revoke).target(subject),
        api::get("/v3/auth/catalog", "identity:get_auth_catalog", catalog),
        api::get("/v3/auth/projects", "identity:get_auth_projects", projects),
        api::get("/v3/auth/domains", "identity:get_auth_domains", domains),
        api::get("/v3/auth/system", "identity:get_auth_system", system),
    ]
}

const SUBJECT: &str = "x-subject-token";

/// Whose the token in `X-Subject-Token` is. One that is none counts as the caller's own: the answer is then 404.
fn subject(app: &App, call: &Call, target: &mut Target) {
    let held = asked(call).and_then(|text| app.tokens.held_until(text, app.settings.allow_expired_s).ok());
    let user = held.map_or(call.cx.user(), |h| h.who.user);
    target.insert("target.token.user_id".into(), user.to_string());
}

fn asked(call: &Call) -> Option<&str> {
    call.headers.get(SUBJECT)?.to_str().ok()
}

/// The token asked about.
///
/// Errors: `NotFound` when it does not stand.
fn found(app: &App, call: &Call) -> Result<std::sync::Arc<Held>> {
    let late = call.query.get("allow_expired").is_some_and(|v| !wire::is_no(v));
    let grace = if late { app.settings.allow_expired_s } else { 0 };
    let held = asked(call).and_then(|text| app.tokens.held_until(text, grace).ok());
    held.ok_or_else(|| Error::not_found("Could not recognize the token in X-Subject-Token."))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let auth: login::Auth = call.json_in("auth")?;
    let state = app.cell.read();
    let token = login::login(&app, &state, auth).await?;
    let (text, held) = app.tokens.issue(&state, token)?;
    Ok(answer(StatusCode::CREATED, &call, &state, &held, &text))
}

fn answer(status: StatusCode, call: &Call, state: &State, held: &Held, text: &str) -> Reply {
    let catalog = !call.query.has("nocatalog");
    let body = json!({"token": view(call, state, held, catalog)});
    Reply::json(status, &body).header(SUBJECT, text).header("vary", "X-Auth-Token")
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let held = found(&app, &call)?;
    let text = asked(&call).unwrap_or_default();
    Ok(answer(StatusCode::OK, &call, &app.cell.read(), &held, text))
}

async fn check(app: App, call: Call) -> Result<Reply> {
    let text = asked(&call).unwrap_or_default().to_string();
    found(&app, &call)?;
    Ok(Reply::new(StatusCode::OK).header(SUBJECT, text).header("vary", "X-Auth-Token"))
}

async fn revoke(app: App, call: Call) -> Result<Reply> {
    let held = found(&app, &call)?;
    call.write(&app.cell, move |tx| super::revoke(tx, &held.token)).await?;
    Ok(Reply::no_content())
}

fn named(id: impl ToString, name: &str, home: Value) -> Value {
    json!({"id": id.to_string(), "name": name, "domain": home})
}

fn domain_ref(state: &State, id: base::DomainId) -> Value {
    let name = domain::get(state, id).map(|d| d.fields.name.to_string()).unwrap_or_default();
    json!({"id": id, "name": name})
}

/// The body of a token.
fn view(call: &Call, state: &State, held: &Held, with_catalog: bool) -> Value {
    let token = &held.token;
    let mut user = named(held.who.user, &held.who.user_name, domain_ref(state, held.who.user_domain));
    let password = state.get::<User>(&held.who.user).and_then(|u| u.password()?.expires);
    user["password_expires_at"] = password.map(Timestamp::micros_zulu).into();
    let audits: Vec<String> = std::iter::once(token.audit).chain(token.chain).map(audit_text).collect();
    let mut view = json!({
        "methods": token.methods(),
        "user": user,
        "audit_ids": audits,
        "expires_at": token.expires.micros_zulu(),
        "issued_at": token.issued.micros_zulu(),
    });
    let roles: Vec<Value> = held.roles.iter().map(|(id, name)| json!({"id": id, "name": name})).collect();
    match token.place {
        Place::Unscoped => {}
        Place::System => view["system"] = json!({"all": true}),
        Place::Domain(id) => view["domain"] = domain_ref(state, id),
        Place::Project(id) => {
            if let Ok(project) = project::get(state, id) {
                view["project"] = named(id, project.fields.name.as_str(), domain_ref(state, project.domain));
                view["is_domain"] = false.into();
            }
        }
    }
    if token.place != Place::Unscoped {
        view["roles"] = roles.into();
        if with_catalog {
            view["catalog"] = catalog::view(state, &call.origin, &held.who).into();
        }
    }
    delegations(state, held, &mut view);
    view
}

fn delegations(state: &State, held: &Held, view: &mut Value) {
    if let Some(trust) = held.token.trust.and_then(|id| state.get::<Trust>(&id)) {
        view["OS-TRUST:trust"] = json!({
            "id": trust.id,
            "impersonation": trust.impersonation,
            "trustor_user": {"id": trust.trustor},
            "trustee_user": {"id": trust.trustee},
        });
    }
    if let Some(app) = held.token.app_credential.and_then(|id| state.get::<AppCredential>(&id)) {
        view["application_credential"] =
            json!({"id": app.id, "name": app.name, "restricted": !app.unrestricted});
    }
}

async fn catalog(app: App, call: Call) -> Result<Reply> {
    let services = catalog::view(&app.cell.read(), &call.origin, &call.cx.who);
    Ok(Reply::ok(&wire::listed(&call, "catalog", services)))
}

async fn projects(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let projects = assignment::projects_of(&state, call.cx.user());
    let open = projects.iter().filter(|p| p.fields.enabled && domain::is_enabled(&state, p.domain));
    many(&call, "projects", "projects", &["name"], open.map(|p| project::view(p)))
}

async fn domains(app: App, call: Call) -> Result<Reply> {
    let domains = assignment::domains_of(&app.cell.read(), call.cx.user());
    let open = domains.iter().filter(|d| d.fields.enabled);
    many(&call, "domains", "domains", &["name"], open.map(|d| domain::view(d)))
}

async fn system(app: App, call: Call) -> Result<Reply> {
    let roles = assignment::roles_on_system(&app.cell.read(), call.cx.user());
    let all = if roles.is_empty() { Vec::new() } else { vec![json!({"all": true})] };
    Ok(Reply::ok(&wire::listed(&call, "system", all)))
}
