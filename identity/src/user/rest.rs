//! `/v3/users`. Passwords are hashed before the transaction; a password never comes back.

use super::{Password, User, UserFields, create, delete, get, update, view};
use crate::wire::{self, Map, body, fields, fixed, many, merged, take};
use crate::{App, aim, group};
use api::route::OPEN;
use api::{Call, Reply, Route};
use base::{DomainId, Error, Result, Timestamp, UserId};
use serde::Deserialize;

pub fn routes() -> Vec<Route<App>> {
    const ONE: &str = "/v3/users/{user_id}";
    vec![
        api::get("/v3/users", "identity:list_users", list).target(aim::domain),
        api::post("/v3/users", "identity:create_user", post).target(aim::new_user),
        api::get(ONE, "identity:get_user", show).target(aim::path),
        api::patch(ONE, "identity:update_user", change).target(aim::path),
        api::delete(ONE, "identity:delete_user", remove).target(aim::path),
        api::post("/v3/users/{user_id}/password", OPEN, own_password),
        api::get("/v3/users/{user_id}/groups", "identity:list_groups_for_user", groups).target(aim::path),
    ]
}

pub(crate) const FILTERS: &[&str] = &["name", "enabled", "domain_id", "default_project_id"];

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let only = aim::own_domain(&call);
    let asked = call.query.get("domain_id").and_then(|d| d.parse::<DomainId>().ok()).or(only);
    let users: Box<dyn Iterator<Item = _> + Send> = match (asked, call.query.get("name")) {
        (Some(domain), Some(name)) => Box::new(super::named(&state, domain, name).into_iter()),
        (Some(domain), None) => Box::new(state.by(&super::BY_DOMAIN, domain)),
        (None, _) => Box::new(state.all::<User>()),
    };
    let users = users.filter(|u| only.is_none_or(|d| d == u.domain));
    many(&call, "users", "users", FILTERS, users.map(|u| view(u)))
}

/// Takes the password out of a body, hashed.
async fn hashed(app: &App, body: &mut Map) -> Result<Option<Password>> {
    let Some(plain) = take::<String>(body, "password")? else { return Ok(None) };
    app.settings.accepts(&plain)?;
    let hash = app.hasher.hash(&plain).await?;
    Ok(Some(app.settings.password(hash, Timestamp::wall(), true)))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "user")?;
    let password = hashed(&app, &mut body).await?;
    let domain = take(&mut body, "domain_id")?.unwrap_or_else(|| aim::home_domain(&call));
    body.remove("id");
    let new: UserFields = fields(body, "user")?;
    let cx = call.cx.clone();
    let user =
        call.write(&app.cell, move |tx| create(tx, &cx, domain, new.clone(), password.clone())).await?;
    Ok(Reply::created(&wire::one(&call, "user", "users", view(&user))))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let user = get(&state, call.id("user_id", "User")?)?;
    Ok(Reply::ok(&wire::one(&call, "user", "users", view(user))))
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let id: UserId = call.id("user_id", "User")?;
    get(&app.cell.read(), id)?;
    let mut patch = body(&call, "user")?;
    let password = hashed(&app, &mut patch).await?;
    let (cx, history) = (call.cx.clone(), app.settings.history());
    let user = call.write(&app.cell, move |tx| {
        let old = get(tx, id)?;
        let mut patch = patch.clone();
        fixed(&mut patch, "id", &id.to_string().into())?;
        fixed(&mut patch, "domain_id", &old.domain.to_string().into())?;
        let new = merged(&old.fields, patch, "user")?;
        update(tx, &cx, id, new, password.clone(), history)
    });
    let user = user.await?;
    Ok(Reply::ok(&wire::one(&call, "user", "users", view(&user))))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let id: UserId = call.id("user_id", "User")?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnPassword {
    password: String,
    original_password: String,
}

/// Needs no token: the old password proves who asks, also when it has expired.
async fn own_password(app: App, call: Call) -> Result<Reply> {
    let id: UserId = call.id("user_id", "User").map_err(|_| crate::token::refused())?;
    let asked: OwnPassword = call.json_in("user")?;
    let state = app.cell.read();
    let user = crate::token::login::proven(&app, &state, state.get::<User>(&id), &asked.original_password);
    let user = user.await?;
    if user.option("lock_password") {
        return Err(Error::invalid("The password of this user may not be changed."));
    }
    app.settings.accepts(&asked.password)?;
    app.settings.old_enough(&user, Timestamp::wall())?;
    for used in user.passwords.iter().rev().take(app.settings.unique_last_password_count) {
        if app.hasher.verify(&asked.password, Some(&used.hash)).await? {
            return Err(Error::invalid("The new password cannot be identical to a previous password."));
        }
    }
    let hash = app.hasher.hash(&asked.password).await?;
    let (new, history) = (app.settings.password(hash, Timestamp::wall(), false), app.settings.history());
    call.write(&app.cell, move |tx| super::change_password(tx, id, new.clone(), history)).await?;
    Ok(Reply::no_content())
}

async fn groups(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let user: UserId = call.id("user_id", "User")?;
    get(&state, user)?;
    let groups = group::of_user(&state, user).filter_map(|id| group::get(&state, id).ok());
    many(&call, "groups", "groups", &["name"], groups.map(|g| group::view(g)))
}
