//! `/v3/groups` and their members.

use super::{Group, GroupFields, add, create, delete, get, has, members, remove, update, view};
use crate::wire::{self, body, fields, fixed, many, merged, take};
use crate::{App, aim, user};
use api::{Call, Reply, Route};
use base::{DomainId, Error, GroupId, Result, UserId};

pub fn routes() -> Vec<Route<App>> {
    const ONE: &str = "/v3/groups/{group_id}";
    const MEMBER: &str = "/v3/groups/{group_id}/users/{user_id}";
    vec![
        api::get("/v3/groups", "identity:list_groups", list).target(aim::domain),
        api::post("/v3/groups", "identity:create_group", post).target(aim::new_group),
        api::get(ONE, "identity:get_group", show).target(aim::path),
        api::patch(ONE, "identity:update_group", change).target(aim::path),
        api::delete(ONE, "identity:delete_group", discard).target(aim::path),
        api::get("/v3/groups/{group_id}/users", "identity:list_users_in_group", users).target(aim::path),
        api::put(MEMBER, "identity:add_user_to_group", join).target(aim::path),
        api::get(MEMBER, "identity:check_user_in_group", check).target(aim::path),
        api::delete(MEMBER, "identity:remove_user_from_group", leave).target(aim::path),
    ]
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let only = aim::own_domain(&call);
    let asked = call.query.get("domain_id").and_then(|d| d.parse::<DomainId>().ok()).or(only);
    let groups: Box<dyn Iterator<Item = _> + Send> = match asked {
        Some(domain) => Box::new(state.by(&super::BY_DOMAIN, domain)),
        None => Box::new(state.all::<Group>()),
    };
    let groups = groups.filter(|g| only.is_none_or(|d| d == g.domain));
    many(&call, "groups", "groups", &["name", "domain_id"], groups.map(|g| view(g)))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "group")?;
    let domain = take(&mut body, "domain_id")?.unwrap_or_else(|| aim::home_domain(&call));
    body.remove("id");
    let new: GroupFields = fields(body, "group")?;
    let cx = call.cx.clone();
    let group = call.write(&app.cell, move |tx| create(tx, &cx, domain, new.clone())).await?;
    Ok(Reply::created(&wire::one(&call, "group", "groups", view(&group))))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let group = get(&state, call.id("group_id", "Group")?)?;
    Ok(Reply::ok(&wire::one(&call, "group", "groups", view(group))))
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let id: GroupId = call.id("group_id", "Group")?;
    let patch = body(&call, "group")?;
    let cx = call.cx.clone();
    let group = call.write(&app.cell, move |tx| {
        let old = get(tx, id)?;
        let mut patch = patch.clone();
        fixed(&mut patch, "id", &id.to_string().into())?;
        fixed(&mut patch, "domain_id", &old.domain.to_string().into())?;
        let new = merged(&old.fields, patch, "group")?;
        update(tx, &cx, id, new)
    });
    let group = group.await?;
    Ok(Reply::ok(&wire::one(&call, "group", "groups", view(&group))))
}

async fn discard(app: App, call: Call) -> Result<Reply> {
    let id: GroupId = call.id("group_id", "Group")?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}

async fn users(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let id: GroupId = call.id("group_id", "Group")?;
    get(&state, id)?;
    many(&call, "users", "users", user::rest::FILTERS, members(&state, id).map(|u| user::view(u)))
}

fn pair(call: &Call) -> Result<(GroupId, UserId)> {
    Ok((call.id("group_id", "Group")?, call.id("user_id", "User")?))
}

async fn join(app: App, call: Call) -> Result<Reply> {
    let (group, user) = pair(&call)?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| add(tx, &cx, group, user)).await?;
    Ok(Reply::no_content())
}

async fn check(app: App, call: Call) -> Result<Reply> {
    let (group, user) = pair(&call)?;
    match has(&app.cell.read(), group, user) {
        true => Ok(Reply::no_content()),
        false => Err(Error::not_found(format!("User {user} not found in group {group}."))),
    }
}

async fn leave(app: App, call: Call) -> Result<Reply> {
    let (group, user) = pair(&call)?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| remove(tx, &cx, group, user)).await?;
    Ok(Reply::no_content())
}
