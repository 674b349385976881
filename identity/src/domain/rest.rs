//! `/v3/domains`.

use super::{DomainFields, create, delete, get, update, view};
use crate::App;
use crate::aim;
use crate::wire::{self, body, fields, fixed, many, merged, take};
use api::{Call, Reply, Route};
use base::{DomainId, Error, Result};

pub fn routes() -> Vec<Route<App>> {
    vec![
        api::get("/v3/domains", "identity:list_domains", list).target(aim::domain),
        api::post("/v3/domains", "identity:create_domain", post),
        api::get("/v3/domains/{domain_id}", "identity:get_domain", show).target(aim::path),
        api::patch("/v3/domains/{domain_id}", "identity:update_domain", change).target(aim::path),
        api::delete("/v3/domains/{domain_id}", "identity:delete_domain", remove).target(aim::path),
    ]
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let only = aim::own_domain(&call);
    let domains = state.all::<super::Domain>().filter(|d| only.is_none_or(|id| id == d.id));
    many(&call, "domains", "domains", &["name", "enabled"], domains.map(|d| view(d)))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "domain")?;
    let id = take::<String>(&mut body, "explicit_domain_id")?;
    let id = id.map(|id| id.parse::<DomainId>()).transpose();
    let id = id.map_err(|_| Error::invalid("explicit_domain_id must be 32 hex digits."))?;
    body.remove("id");
    let new: DomainFields = fields(body, "domain")?;
    let cx = call.cx.clone();
    let domain = call.write(&app.cell, move |tx| create(tx, &cx, id, new.clone())).await?;
    Ok(Reply::created(&wire::one(&call, "domain", "domains", view(&domain))))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let domain = get(&state, call.id("domain_id", "Domain")?)?;
    Ok(Reply::ok(&wire::one(&call, "domain", "domains", view(domain))))
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let id: DomainId = call.id("domain_id", "Domain")?;
    let mut patch = body(&call, "domain")?;
    fixed(&mut patch, "id", &id.to_string().into())?;
    let cx = call.cx.clone();
    let domain = call.write(&app.cell, move |tx| {
        let old = &get(tx, id)?.fields;
        wire::may_patch(&old.options, &patch, "domain", id)?;
        let new = merged(old, patch.clone(), "domain")?;
        update(tx, &cx, id, new)
    });
    let domain = domain.await?;
    Ok(Reply::ok(&wire::one(&call, "domain", "domains", view(&domain))))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let id: DomainId = call.id("domain_id", "Domain")?;
    let cx = call.cx.clone();
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}
