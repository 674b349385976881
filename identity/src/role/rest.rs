//! `/v3/roles`, what they imply, and `/v3/role_inferences`.

use super::{Role, RoleFields, create, delete, get, implied_by, update, view};
use crate::wire::{self, body, fields, fixed, many, merged, take};
use crate::{App, aim};
use api::{Call, Reply, Route};
use base::{DomainId, Result, RoleId};
use serde_json::{Value, json};
use store::State;

pub fn routes() -> Vec<Route<App>> {
    const ONE: &str = "/v3/roles/{role_id}";
    const IMPLIES: &str = "/v3/roles/{role_id}/implies";
    const IMPLIED: &str = "/v3/roles/{role_id}/implies/{implied_role_id}";
    vec![
        api::get("/v3/roles", "identity:list_roles", list),
        api::post("/v3/roles", "identity:create_role", post),
        api::get(ONE, "identity:get_role", show).target(aim::path),
        api::patch(ONE, "identity:update_role", change).target(aim::path),
        api::delete(ONE, "identity:delete_role", remove).target(aim::path),
        api::get(IMPLIES, "identity:list_implied_roles", implied),
        api::get(IMPLIED, "identity:get_implied_role", one_implied),
        api::head(IMPLIED, "identity:check_implied_role", check_implied),
        api::put(IMPLIED, "identity:create_implied_role", imply),
        api::delete(IMPLIED, "identity:delete_implied_role", imply_no_more),
        api::get("/v3/role_inferences", "identity:list_role_inference_rules", inferences),
    ]
}

/// Without `domain_id` only the roles of the whole cloud.
async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let domain = call.query.get("domain_id").map(|d| d.parse::<DomainId>().unwrap_or_default());
    let roles = state.all::<Role>().filter(|r| r.domain == domain);
    many(&call, "roles", "roles", &["name", "domain_id"], roles.map(|r| view(r)))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "role")?;
    let domain: Option<DomainId> = take(&mut body, "domain_id")?;
    body.remove("id");
    let new: RoleFields = fields(body, "role")?;
    let cx = call.cx.clone();
    let role = call.write(&app.cell, move |tx| create(tx, &cx, domain, new.clone())).await?;
    Ok(Reply::created(&wire::one(&call, "role", "roles", view(&role))))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let role = get(&state, call.id("role_id", "Role")?)?;
    Ok(Reply::ok(&wire::one(&call, "role", "roles", view(role))))
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let id: RoleId = call.id("role_id", "Role")?;
    let patch = body(&call, "role")?;
    let cx = call.cx.clone();
    let role = call.write(&app.cell, move |tx| {
        let old = get(tx, id)?;
        let (mut patch, now) = (patch.clone(), view(old));
        wire::may_patch(&old.fields.options, &patch, "role", id)?;
        ["id", "domain_id"].iter().try_for_each(|key| fixed(&mut patch, key, &now[*key]))?;
        let new = merged(&old.fields, patch, "role")?;
        update(tx, &cx, id, new)
    });
    let role = role.await?;
    Ok(Reply::ok(&wire::one(&call, "role", "roles", view(&role))))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let id: RoleId = call.id("role_id", "Role")?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}

fn pair(call: &Call) -> Result<(RoleId, RoleId)> {
    Ok((call.id("role_id", "Role")?, call.id("implied_role_id", "Role")?))
}

/// A role as inferences show it.
fn brief(call: &Call, role: &Role) -> Value {
    let mut view = view(role);
    view.retain(|k, _| ["id", "name", "description"].contains(&k.as_str()));
    wire::linked(call, "roles", view)
}

fn inference(call: &Call, state: &State, prior: RoleId) -> Result<Value> {
    let implied: Vec<Value> =
        implied_by(state, prior).filter_map(|r| Some(brief(call, get(state, r).ok()?))).collect();
    Ok(json!({"prior_role": brief(call, get(state, prior)?), "implies": implied}))
}

async fn implied(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let rule = inference(&call, &state, call.id("role_id", "Role")?)?;
    let here = format!("{}{}", call.base, call.path);
    Ok(Reply::ok(&json!({"role_inference": rule, "links": {"self": here, "next": null, "previous": null}})))
}

fn pair_view(call: &Call, state: &State) -> Result<Value> {
    let (prior, implied) = pair(call)?;
    let rule =
        json!({"prior_role": brief(call, get(state, prior)?), "implies": brief(call, get(state, implied)?)});
    Ok(json!({"role_inference": rule, "links": {"self": format!("{}{}", call.base, call.path)}}))
}

async fn one_implied(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let (prior, implied) = pair(&call)?;
    super::implies(&state, prior, implied)?;
    Ok(Reply::ok(&pair_view(&call, &state)?))
}

async fn check_implied(app: App, call: Call) -> Result<Reply> {
    let (prior, implied) = pair(&call)?;
    super::implies(&app.cell.read(), prior, implied)?;
    Ok(Reply::no_content())
}

async fn imply(app: App, call: Call) -> Result<Reply> {
    let (prior, implied) = pair(&call)?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| super::imply(tx, &cx, prior, implied)).await?;
    Ok(Reply::created(&pair_view(&call, &app.cell.read())?))
}

async fn imply_no_more(app: App, call: Call) -> Result<Reply> {
    let (prior, implied) = pair(&call)?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| super::imply_no_more(tx, &cx, prior, implied)).await?;
    Ok(Reply::no_content())
}

async fn inferences(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let priors = state.all::<Role>().map(|r| r.id).filter(|id| implied_by(&state, *id).next().is_some());
    let rules: Result<Vec<Value>> = priors.map(|id| inference(&call, &state, id)).collect();
    let here = format!("{}{}", call.base, call.path);
    Ok(Reply::ok(
        &json!({"role_inferences": rules?, "links": {"self": here, "next": null, "previous": null}}),
    ))
}
