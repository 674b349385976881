//! `/v3/regions`, `/v3/services`, `/v3/endpoints`.

use super::{Endpoint, EndpointFields, Region, RegionFields, Service, ServiceFields};
use crate::App;
use crate::wire::{self, Map, body, fields, fixed, many, merged, take};
use api::{Call, Reply, Route};
use base::{Id, Result};
use serde_json::Value;

pub fn routes() -> Vec<Route<App>> {
    const REGION: &str = "/v3/regions/{region_id}";
    const SERVICE: &str = "/v3/services/{service_id}";
    const ENDPOINT: &str = "/v3/endpoints/{endpoint_id}";
    vec![
        api::get("/v3/regions", "identity:list_regions", list_regions),
        api::post("/v3/regions", "identity:create_region", post_region),
        api::put(REGION, "identity:create_region", put_region),
        api::get(REGION, "identity:get_region", show_region),
        api::patch(REGION, "identity:update_region", change_region),
        api::delete(REGION, "identity:delete_region", remove_region),
        api::get("/v3/services", "identity:list_services", list_services),
        api::post("/v3/services", "identity:create_service", post_service),
        api::get(SERVICE, "identity:get_service", show_service),
        api::patch(SERVICE, "identity:update_service", change_service),
        api::delete(SERVICE, "identity:delete_service", remove_service),
        api::get("/v3/endpoints", "identity:list_endpoints", list_endpoints),
        api::post("/v3/endpoints", "identity:create_endpoint", post_endpoint),
        api::get(ENDPOINT, "identity:get_endpoint", show_endpoint),
        api::patch(ENDPOINT, "identity:update_endpoint", change_endpoint),
        api::delete(ENDPOINT, "identity:delete_endpoint", remove_endpoint),
    ]
}

fn with_id(mut view: Map, id: impl ToString) -> Map {
    view.insert("id".into(), id.to_string().into());
    view
}

fn region_view(region: &Region) -> Map {
    with_id(wire::map(&region.fields), &region.id)
}

async fn list_regions(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    many(&call, "regions", "regions", &["parent_region_id"], state.all::<Region>().map(|r| region_view(r)))
}

async fn post_region(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "region")?;
    let id = take::<String>(&mut body, "id")?.filter(|id| !id.is_empty());
    let id = id.unwrap_or_else(|| super::super::token::new_audit().to_string());
    make_region(&app, &call, id, body).await
}

async fn put_region(app: App, call: Call) -> Result<Reply> {
    let id = call.param("region_id").to_string();
    let mut body = body(&call, "region")?;
    fixed(&mut body, "id", &id.clone().into())?;
    make_region(&app, &call, id, body).await
}

async fn make_region(app: &App, call: &Call, id: String, body: Map) -> Result<Reply> {
    let new = Region::new(id, fields::<RegionFields>(body, "region")?);
    let cx = call.cx.clone();
    let region = call.write(&app.cell, move |tx| super::create_region(tx, &cx, new.clone())).await?;
    Ok(Reply::created(&wire::one(call, "region", "regions", region_view(&region))))
}

async fn show_region(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let region = super::region(&state, call.param("region_id"))?;
    Ok(Reply::ok(&wire::one(&call, "region", "regions", region_view(region))))
}

async fn change_region(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (call.param("region_id").to_string(), call.cx.clone());
    let mut patch = body(&call, "region")?;
    fixed(&mut patch, "id", &id.clone().into())?;
    let region = call.write(&app.cell, move |tx| {
        let new = merged(&super::region(tx, &id)?.fields, patch.clone(), "region")?;
        super::update_region(tx, &cx, &id, new)
    });
    let region = region.await?;
    Ok(Reply::ok(&wire::one(&call, "region", "regions", region_view(&region))))
}

async fn remove_region(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (call.param("region_id").to_string(), call.cx.clone());
    call.write(&app.cell, move |tx| super::delete_region(tx, &cx, &id)).await?;
    Ok(Reply::no_content())
}

fn service_view(service: &Service) -> Map {
    with_id(wire::map(&service.fields), service.id)
}

async fn list_services(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let services = state.all::<Service>().map(|s| service_view(s));
    many(&call, "services", "services", &["type", "name"], services)
}

async fn post_service(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "service")?;
    body.remove("id");
    let (new, cx) = (fields::<ServiceFields>(body, "service")?, call.cx.clone());
    let service = call.write(&app.cell, move |tx| super::create_service(tx, &cx, new.clone())).await?;
    Ok(Reply::created(&wire::one(&call, "service", "services", service_view(&service))))
}

async fn show_service(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let service = super::service(&state, call.id("service_id", "Service")?)?;
    Ok(Reply::ok(&wire::one(&call, "service", "services", service_view(service))))
}

async fn change_service(app: App, call: Call) -> Result<Reply> {
    let (id, cx): (Id<Service>, _) = (call.id("service_id", "Service")?, call.cx.clone());
    let mut patch = body(&call, "service")?;
    fixed(&mut patch, "id", &id.to_string().into())?;
    let service = call.write(&app.cell, move |tx| {
        let new = merged(&super::service(tx, id)?.fields, patch.clone(), "service")?;
        super::update_service(tx, &cx, id, new)
    });
    let service = service.await?;
    Ok(Reply::ok(&wire::one(&call, "service", "services", service_view(&service))))
}

async fn remove_service(app: App, call: Call) -> Result<Reply> {
    let (id, cx): (Id<Service>, _) = (call.id("service_id", "Service")?, call.cx.clone());
    call.write(&app.cell, move |tx| super::delete_service(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}

/// A relative URL is shown as this caller would reach it.
pub(crate) fn endpoint_view(call: &Call, endpoint: &Endpoint) -> Map {
    let mut view = with_id(wire::map(&endpoint.fields), endpoint.id);
    view.insert("region".into(), endpoint.fields.region_id.clone().into());
    if endpoint.fields.url.starts_with('/') {
        view.insert("url".into(), format!("{}{}", call.origin, endpoint.fields.url).into());
    }
    view
}

const FILTERS: &[&str] = &["interface", "service_id", "region_id", "region"];

async fn list_endpoints(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let endpoints = state.all::<Endpoint>().map(|e| endpoint_view(&call, e));
    many(&call, "endpoints", "endpoints", FILTERS, endpoints)
}

/// Reads `region`, the older name of `region_id`.
fn renamed(body: &mut Map) {
    body.remove("id");
    if let Some(region) = body.remove("region").filter(|r| !r.is_null()) {
        body.entry("region_id").or_insert(region);
    }
}

async fn post_endpoint(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, "endpoint")?;
    renamed(&mut body);
    let (new, cx) = (fields::<EndpointFields>(body, "endpoint")?, call.cx.clone());
    let endpoint = call.write(&app.cell, move |tx| super::create_endpoint(tx, &cx, new.clone())).await?;
    Ok(Reply::created(&wire::one(&call, "endpoint", "endpoints", endpoint_view(&call, &endpoint))))
}

async fn show_endpoint(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let endpoint = super::endpoint(&state, call.id("endpoint_id", "Endpoint")?)?;
    Ok(Reply::ok(&wire::one(&call, "endpoint", "endpoints", endpoint_view(&call, endpoint))))
}

async fn change_endpoint(app: App, call: Call) -> Result<Reply> {
    let (id, cx): (Id<Endpoint>, _) = (call.id("endpoint_id", "Endpoint")?, call.cx.clone());
    let mut patch = body(&call, "endpoint")?;
    fixed(&mut patch, "id", &Value::String(id.to_string()))?;
    renamed(&mut patch);
    let endpoint = call.write(&app.cell, move |tx| {
        let new = merged(&super::endpoint(tx, id)?.fields, patch.clone(), "endpoint")?;
        super::update_endpoint(tx, &cx, id, new)
    });
    let endpoint = endpoint.await?;
    Ok(Reply::ok(&wire::one(&call, "endpoint", "endpoints", endpoint_view(&call, &endpoint))))
}

async fn remove_endpoint(app: App, call: Call) -> Result<Reply> {
    let (id, cx): (Id<Endpoint>, _) = (call.id("endpoint_id", "Endpoint")?, call.cx.clone());
    call.write(&app.cell, move |tx| super::delete_endpoint(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}
