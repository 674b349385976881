//! Domains: who owns names. A domain is disabled before it is deleted; what it holds goes with it.
//!
//! Limits: a domain with more records than a transaction may change is deleted after its projects and users are.

pub mod config;
pub mod rest;

use crate::project::{self, Project};
use crate::wire::{Map, Name, may_change, missing, or_default, yes};
use crate::{group, role, user};
use base::{Context, DomainId, Error, ProjectId, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, IndexPart, Record, Revision, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    pub id: DomainId,
    pub fields: DomainFields,
    /// Tokens issued at an earlier revision, for the domain or to its users, are void.
    #[serde(default)]
    pub tokens_from: Revision,
}

/// What a client writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainFields {
    pub name: Name<64>,
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default)]
    pub tags: Vec<project::Tag>,
    #[serde(default)]
    pub options: Map,
    #[serde(flatten)]
    pub extra: Map,
}

pub const BY_NAME: Index<Domain> = Index::unique("name", |d, keys| keys.push(d.fields.name.as_str().key()));

impl Record for Domain {
    const KIND: &'static str = "domain";
    type Key = DomainId;
    const INDEXES: &'static [Index<Domain>] = &[BY_NAME];

    fn key(&self) -> DomainId {
        self.id
    }
}

pub fn get(state: &State, id: DomainId) -> Result<&Arc<Domain>> {
    state.get::<Domain>(&id).ok_or_else(|| missing("domain", id))
}

/// Whether the domain lets its users and projects in.
pub fn is_enabled(state: &State, id: DomainId) -> bool {
    state.get::<Domain>(&id).is_some_and(|d| d.fields.enabled)
}

/// A domain, seen as the project that it also is.
pub fn as_project(id: DomainId) -> ProjectId {
    ProjectId::from_uuid(id.uuid())
}

pub fn create(tx: &mut Tx, _cx: &Context, id: Option<DomainId>, fields: DomainFields) -> Result<Arc<Domain>> {
    let id = id.unwrap_or_else(|| tx.new_id());
    if tx.get::<Domain>(&id).is_some() {
        return Err(Error::conflict(format!("There is already a domain {id}.")));
    }
    keep(tx, Domain { id, fields, tokens_from: 0 })
}

/// Disabling ends every token of the domain and of its users.
pub fn update(tx: &mut Tx, _cx: &Context, id: DomainId, fields: DomainFields) -> Result<Arc<Domain>> {
    let mut domain = Domain::clone(get(tx, id)?);
    if domain.fields.enabled && !fields.enabled {
        domain.tokens_from = tx.next_revision();
    }
    domain.fields = fields;
    keep(tx, domain)
}

fn keep(tx: &mut Tx, domain: Domain) -> Result<Arc<Domain>> {
    let name = domain.fields.name.clone();
    tx.put(domain).map_err(|_| {
        Error::conflict(format!(
            "Conflict occurred attempting to store domain - Duplicate entry found with name {name}."
        ))
    })
}

/// Deletes a disabled domain with its projects, users, groups, roles and grants.
///
/// Errors: `Forbidden` while it is enabled.
pub fn delete(tx: &mut Tx, cx: &Context, id: DomainId) -> Result<()> {
    let fields = &get(tx, id)?.fields;
    may_change(&fields.options, "domain", id)?;
    if fields.enabled {
        return Err(Error::forbidden("Cannot delete a domain that is enabled, please disable it first."));
    }
    let projects: Vec<_> = tx.by(&project::BY_DOMAIN, id).map(|p| p.id).collect();
    projects.into_iter().for_each(|p| project::remove(tx, p));
    let users: Vec<_> = tx.by(&user::BY_DOMAIN, id).map(|u| u.id).collect();
    users.into_iter().try_for_each(|u| user::delete(tx, cx, u))?;
    let groups: Vec<_> = tx.by(&group::BY_DOMAIN, id).map(|g| g.id).collect();
    groups.into_iter().try_for_each(|g| group::delete(tx, cx, g))?;
    let roles: Vec<_> = tx.by(&role::BY_DOMAIN, id).map(|r| r.id).collect();
    roles.into_iter().try_for_each(|r| role::delete(tx, cx, r))?;
    crate::assignment::forget_target(tx, crate::assignment::Target::Domain(id));
    crate::unified_limit::forget_holder(tx, crate::unified_limit::Holder::Domain(id));
    tx.delete::<config::DomainConfig>(&id);
    tx.delete::<Domain>(&id);
    Ok(())
}

/// The domain as `GET /v3/projects/{id}` shows it.
pub fn project_view(domain: &Domain) -> Map {
    let mut view = view(domain);
    view.insert("is_domain".into(), true.into());
    view.insert("domain_id".into(), serde_json::Value::Null);
    view.insert("parent_id".into(), serde_json::Value::Null);
    view
}

pub fn view(domain: &Domain) -> Map {
    let mut view = crate::wire::map(&domain.fields);
    view.insert("id".into(), domain.id.to_string().into());
    view
}

/// All children of a domain in the tree of projects.
pub fn children(state: &State, id: DomainId) -> impl Iterator<Item = &Arc<Project>> {
    state.by(&project::BY_DOMAIN, id).filter(|p| p.parent.is_none())
}
