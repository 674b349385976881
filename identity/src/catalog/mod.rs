//! The catalogue: regions, services, endpoints, and how a token sees them.
//!
//! A URL that starts with a slash is relative to where the client reached us; every URL may hold `%(project_id)s` and
//! the like. An endpoint that needs what a token lacks is left out of its catalogue.

#[cfg(feature = "next-format")]
pub mod next;
pub mod rest;

use crate::wire::{Map, missing, or_default, yes};
use base::context::{Scope, Who};
use base::{Context, Error, Id, IdKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Region {
    pub id: String,
    pub fields: RegionFields,
    #[cfg(feature = "next-format")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<next::Noted>,
}

impl Region {
    pub fn new(id: String, fields: RegionFields) -> Region {
        Region {
            #[cfg(feature = "next-format")]
            next: next::noted(&fields),
            id,
            fields,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct RegionFields {
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    #[serde(default)]
    pub parent_region_id: Option<String>,
    #[serde(flatten)]
    pub extra: Map,
}

pub const CHILDREN: Index<Region> =
    Index::many("parent", |r, keys| keys.extend(r.fields.parent_region_id.as_ref().map(|p| p.key())));

impl Record for Region {
    const KIND: &'static str = "region";
    type Key = String;
    const INDEXES: &'static [Index<Region>] = &[CHILDREN];

    fn key(&self) -> String {
        self.id.clone()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: Id<Service>,
    pub fields: ServiceFields,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceFields {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(flatten)]
    pub extra: Map,
}

impl IdKind for Service {
    const HEX: bool = true;
}

impl Record for Service {
    const KIND: &'static str = "service";
    type Key = Id<Service>;

    fn key(&self) -> Id<Service> {
        self.id
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    Public,
    Internal,
    Admin,
    #[cfg(feature = "next-format")]
    Next,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub id: Id<Endpoint>,
    pub fields: EndpointFields,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointFields {
    pub service_id: Id<Service>,
    pub interface: Interface,
    #[serde(default)]
    pub region_id: Option<String>,
    pub url: String,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(flatten)]
    pub extra: Map,
}

pub const BY_SERVICE: Index<Endpoint> =
    Index::many("service", |e, keys| keys.push(e.fields.service_id.key()));
pub const BY_REGION: Index<Endpoint> =
    Index::many("region", |e, keys| keys.extend(e.fields.region_id.as_ref().map(|r| r.key())));

impl IdKind for Endpoint {
    const HEX: bool = true;
}

impl Record for Endpoint {
    const KIND: &'static str = "endpoint";
    type Key = Id<Endpoint>;
    const INDEXES: &'static [Index<Endpoint>] = &[BY_SERVICE, BY_REGION];

    fn key(&self) -> Id<Endpoint> {
        self.id
    }
}

/// What a token finds where: services with their endpoints, URLs filled in.
pub fn view(state: &State, origin: &str, who: &Who) -> Vec<Value> {
    let services = state.all::<Service>().filter(|s| s.fields.enabled);
    let seen = |service: &Service| -> Vec<Value> {
        let endpoints = state.by(&BY_SERVICE, service.id).filter(|e| e.fields.enabled);
        endpoints.filter_map(|e| Some(endpoint_view(e, &fill(&e.fields.url, origin, who)?))).collect()
    };
    services
        .map(|s| json!({"id": s.id, "type": s.fields.kind, "name": s.fields.name, "endpoints": seen(s)}))
        .collect()
}

fn endpoint_view(endpoint: &Endpoint, url: &str) -> Value {
    let fields = &endpoint.fields;
    json!({"id": endpoint.id, "interface": fields.interface, "region": fields.region_id,
        "region_id": fields.region_id, "url": url})
}

/// `$(name)s` and `%(name)s`, filled in. `None`: the token lacks what a name stands for.
fn fill(url: &str, origin: &str, who: &Who) -> Option<String> {
    let mut out = if url.starts_with('/') { origin.to_string() } else { String::new() };
    let mut rest = url;
    while let Some(at) = rest.find("$(").into_iter().chain(rest.find("%(")).min() {
        let (name, after) = rest[at + 2..].split_once(")s")?;
        out.push_str(&rest[..at]);
        match (name, who.scope) {
            ("project_id" | "tenant_id", Scope::Project { project, .. }) => {
                out.push_str(&project.to_string())
            }
            ("user_id", _) => out.push_str(&who.user.to_string()),
            _ => return None,
        }
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

pub fn region<'a>(state: &'a State, id: &str) -> Result<&'a Arc<Region>> {
    state.get::<Region>(&id.to_string()).ok_or_else(|| missing("region", id))
}

pub fn create_region(tx: &mut Tx, _cx: &Context, region: Region) -> Result<Arc<Region>> {
    if region.id.is_empty() || region.id.chars().count() > 255 {
        return Err(Error::invalid("A region's id has 1 to 255 characters."));
    }
    if tx.get::<Region>(&region.id).is_some() {
        return Err(Error::conflict(format!("Duplicate ID, {}.", region.id)));
    }
    keep_region(tx, region)
}

pub fn update_region(tx: &mut Tx, _cx: &Context, id: &str, fields: RegionFields) -> Result<Arc<Region>> {
    let mut region = Region::clone(self::region(tx, id)?);
    let mut above = fields.parent_region_id.clone();
    while let Some(at) = above {
        if at == region.id {
            return Err(Error::invalid("A region cannot be above itself."));
        }
        above = tx.get::<Region>(&at).and_then(|r| r.fields.parent_region_id.clone());
    }
    region.fields = fields;
    keep_region(tx, region)
}

fn keep_region(tx: &mut Tx, new: Region) -> Result<Arc<Region>> {
    if let Some(parent) = &new.fields.parent_region_id {
        region(tx, parent)?;
    }
    #[cfg(feature = "next-format")]
    next::seen(tx, &new.id)?;
    Ok(tx.put(new)?)
}

/// Errors: `Conflict` while there are endpoints or regions in it.
pub fn delete_region(tx: &mut Tx, _cx: &Context, id: &str) -> Result<()> {
    let id = region(tx, id)?.id.clone();
    if tx.by(&BY_REGION, &id).next().is_some() || tx.by(&CHILDREN, &id).next().is_some() {
        return Err(Error::conflict(format!("The region {id} still has endpoints or regions in it.")));
    }
    tx.delete::<Region>(&id);
    Ok(())
}

pub fn service(state: &State, id: Id<Service>) -> Result<&Arc<Service>> {
    state.get::<Service>(&id).ok_or_else(|| missing("service", id))
}

pub fn create_service(tx: &mut Tx, _cx: &Context, fields: ServiceFields) -> Result<Arc<Service>> {
    let id = tx.new_id();
    keep_service(tx, Service { id, fields })
}

pub fn update_service(
    tx: &mut Tx,
    _cx: &Context,
    id: Id<Service>,
    fields: ServiceFields,
) -> Result<Arc<Service>> {
    service(tx, id)?;
    keep_service(tx, Service { id, fields })
}

fn keep_service(tx: &mut Tx, service: Service) -> Result<Arc<Service>> {
    match service.fields.kind.is_empty() || service.fields.kind.chars().count() > 255 {
        true => Err(Error::invalid("A service's type has 1 to 255 characters.")),
        false => Ok(tx.put(service)?),
    }
}

/// Deletes a service with its endpoints.
pub fn delete_service(tx: &mut Tx, _cx: &Context, id: Id<Service>) -> Result<()> {
    service(tx, id)?;
    let endpoints: Vec<_> = tx.by(&BY_SERVICE, id).map(|e| e.id).collect();
    endpoints.iter().for_each(|e| drop(tx.delete::<Endpoint>(e)));
    crate::unified_limit::forget_service(tx, id);
    tx.delete::<Service>(&id);
    Ok(())
}

pub fn endpoint(state: &State, id: Id<Endpoint>) -> Result<&Arc<Endpoint>> {
    state.get::<Endpoint>(&id).ok_or_else(|| missing("endpoint", id))
}

pub fn create_endpoint(tx: &mut Tx, cx: &Context, fields: EndpointFields) -> Result<Arc<Endpoint>> {
    let id = tx.new_id();
    keep_endpoint(tx, cx, Endpoint { id, fields })
}

pub fn update_endpoint(
    tx: &mut Tx,
    cx: &Context,
    id: Id<Endpoint>,
    fields: EndpointFields,
) -> Result<Arc<Endpoint>> {
    endpoint(tx, id)?;
    keep_endpoint(tx, cx, Endpoint { id, fields })
}

/// An endpoint in a region that nobody has made yet makes it.
fn keep_endpoint(tx: &mut Tx, cx: &Context, endpoint: Endpoint) -> Result<Arc<Endpoint>> {
    let fields = &endpoint.fields;
    let (service, url) = (fields.service_id, &fields.url);
    tx.get::<Service>(&service)
        .ok_or_else(|| Error::invalid(format!("Could not find service: {service}.")))?;
    if !url.starts_with('/') && !url.contains("://") {
        return Err(Error::invalid(format!("The endpoint URL is invalid: {}", url.escape_default())));
    }
    #[cfg(feature = "next-format")]
    next::may(tx, fields)?;
    if let Some(id) = fields.region_id.clone().filter(|id| tx.get::<Region>(id).is_none()) {
        create_region(tx, cx, Region::new(id, RegionFields::default()))?;
    }
    Ok(tx.put(endpoint)?)
}

pub fn delete_endpoint(tx: &mut Tx, _cx: &Context, id: Id<Endpoint>) -> Result<()> {
    endpoint(tx, id)?;
    tx.delete::<Endpoint>(&id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{DomainId, ProjectId};

    fn check(url: &str, scope: Scope, expect: Option<&str>) {
        let who = Who { scope, ..Who::default() };
        assert_eq!(fill(url, "http://here:1", &who).as_deref(), expect, "{url}");
    }

    #[test]
    fn urls_are_filled_in() {
        let project = Scope::Project { project: ProjectId::ZERO, domain: DomainId::ZERO };
        check("/compute/v2.1", Scope::Unscoped, Some("http://here:1/compute/v2.1"));
        check(
            "https://there/v1/AUTH_%(tenant_id)s",
            project,
            Some("https://there/v1/AUTH_00000000000000000000000000000000"),
        );
        check(
            "https://there/$(project_id)s/x",
            project,
            Some("https://there/00000000000000000000000000000000/x"),
        );
        check("https://there/$(project_id)s/x", Scope::System, None);
        check("https://there/%(password)s", project, None);
    }
}
