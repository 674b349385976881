//! `/v3/OS-TRUST/trusts`.

use super::{BY_TRUSTEE, BY_TRUSTOR, Trust, create, delete, get};
use crate::wire::{self, Map, body, many, missing, take};
use crate::{App, aim, role};
use api::{Call, Reply, Route, Target};
use base::{Error, Id, Result, RoleId, Timestamp, UserId};
use serde_json::{Value, json};
use store::State;

const PATH: &str = "OS-TRUST/trusts";

pub fn routes() -> Vec<Route<App>> {
    const ALL: &str = "/v3/OS-TRUST/trusts";
    const ONE: &str = "/v3/OS-TRUST/trusts/{trust_id}";
    const ROLES: &str = "/v3/OS-TRUST/trusts/{trust_id}/roles";
    const ROLE: &str = "/v3/OS-TRUST/trusts/{trust_id}/roles/{role_id}";
    vec![
        api::get(ALL, "identity:list_trusts_for_trustor", list).target(asked),
        api::post(ALL, "identity:create_trust", post).target(aim::new_trust),
        api::get(ONE, "identity:get_trust", show).target(aim::path),
        api::delete(ONE, "identity:delete_trust", remove).target(aim::path),
        api::get(ROLES, "identity:list_roles_for_trust", roles).target(aim::path),
        api::get(ROLE, "identity:get_role_for_trust", one_role).target(aim::path),
    ]
}

/// Whose trusts are asked for.
fn asked(_: &App, call: &Call, target: &mut Target) {
    for (query, field) in [("trustor_user_id", "trustor_user_id"), ("trustee_user_id", "trustee_user_id")] {
        if let Some(id) = call.query.get(query) {
            target.insert(format!("target.trust.{field}"), id.to_string());
        }
    }
}

fn view(trust: &Trust) -> Map {
    wire::map(&json!({
        "id": trust.id,
        "trustor_user_id": trust.trustor,
        "trustee_user_id": trust.trustee,
        "project_id": trust.project,
        "impersonation": trust.impersonation,
        "expires_at": trust.expires_at.map(Timestamp::micros_zulu),
        "remaining_uses": trust.remaining_uses,
        "deleted_at": null,
        "redelegation_count": 0,
        "redelegated_trust_id": null,
    }))
}

fn role_views(call: &Call, state: &State, trust: &Trust) -> Vec<Value> {
    let roles = trust.roles.iter().filter_map(|id| role::get(state, *id).ok());
    roles.map(|r| wire::linked(call, "roles", role::view(r))).collect()
}

fn full(call: &Call, state: &State, trust: &Trust) -> Value {
    let mut view = view(trust);
    let here = format!("{}/v3/{PATH}/{}/roles", call.base, trust.id);
    view.insert("roles".into(), role_views(call, state, trust).into());
    view.insert("roles_links".into(), json!({"self": here, "next": null, "previous": null}));
    wire::one(call, "trust", PATH, view)
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let id = |name: &str| -> Option<UserId> { call.query.get(name)?.parse().ok() };
    let trusts: Box<dyn Iterator<Item = _> + Send> = match (id("trustor_user_id"), id("trustee_user_id")) {
        (Some(trustor), _) => Box::new(state.by(&BY_TRUSTOR, trustor)),
        (None, Some(trustee)) => Box::new(state.by(&BY_TRUSTEE, trustee)),
        (None, None) => {
            call.require("identity:list_trusts", &Target::new())?;
            Box::new(state.all::<Trust>())
        }
    };
    many(&call, "trusts", PATH, &["trustor_user_id", "trustee_user_id"], trusts.map(|t| view(t)))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    if call.cx.who.delegated {
        return Err(Error::forbidden("A delegated token may not delegate again."));
    }
    let mut body = body(&call, "trust")?;
    let new = parse(&app.cell.read(), &mut body)?;
    let cx = call.cx.clone();
    let trust = call.write(&app.cell, move |tx| create(tx, &cx, new.clone())).await?;
    Ok(Reply::created(&full(&call, &app.cell.read(), &trust)))
}

fn parse(state: &State, body: &mut Map) -> Result<Trust> {
    fn must<T: serde::de::DeserializeOwned>(body: &mut Map, name: &str) -> Result<T> {
        take(body, name)?.ok_or_else(|| Error::invalid(format!("'{name}' is a required property")))
    }
    let expires: Option<String> = take(body, "expires_at")?;
    let expires_at = expires
        .map(|text| Timestamp::parse(&text).ok_or_else(|| Error::invalid("expires_at is not a time.")))
        .transpose()?;
    let project = take(body, "project_id")?;
    let roles: Vec<Map> = take(body, "roles")?.unwrap_or_default();
    let roles = roles.iter().map(|r| role_of(state, r)).collect::<Result<Vec<_>>>()?;
    if project.is_some() && roles.is_empty() {
        return Err(Error::forbidden("At least one role should be specified."));
    }
    let remaining_uses: Option<u32> = take(body, "remaining_uses")?;
    if remaining_uses == Some(0) {
        return Err(Error::invalid("remaining_uses must be a positive integer or null."));
    }
    Ok(Trust {
        id: Id::ZERO,
        trustor: must(body, "trustor_user_id")?,
        trustee: must(body, "trustee_user_id")?,
        impersonation: must(body, "impersonation")?,
        project,
        roles,
        expires_at,
        remaining_uses,
    })
}

/// A role by id or name.
pub(crate) fn role_of(state: &State, asked: &Map) -> Result<RoleId> {
    let text = |key: &str| asked.get(key).and_then(Value::as_str);
    match (text("id"), text("name")) {
        (Some(id), _) => Ok(role::get(state, id.parse().map_err(|_| missing("role", id))?)?.id),
        (None, Some(name)) => role::named(state, name).map(|r| r.id).ok_or_else(|| missing("role", name)),
        (None, None) => Err(Error::invalid("A role is named by its id or name.")),
    }
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let trust = get(&state, call.id("trust_id", "Trust")?)?;
    Ok(Reply::ok(&full(&call, &state, trust)))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let (id, cx): (Id<Trust>, _) = (call.id("trust_id", "Trust")?, call.cx.clone());
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}

async fn roles(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let trust = get(&state, call.id("trust_id", "Trust")?)?;
    Ok(Reply::ok(&wire::listed(&call, "roles", role_views(&call, &state, trust))))
}

async fn one_role(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let trust = get(&state, call.id("trust_id", "Trust")?)?;
    let id: RoleId = call.id("role_id", "Role")?;
    let role = role::get(&state, id).ok().filter(|r| trust.roles.contains(&r.id));
    let role = role.ok_or_else(|| missing("role", id))?;
    Ok(Reply::ok(&wire::one(&call, "role", "roles", role::view(role))))
}
