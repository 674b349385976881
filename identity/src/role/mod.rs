//! Roles, and which role implies which: admin, manager, member, reader from the first start on.
//!
//! A role of a domain is granted inside of it and never stands in a token itself; what it implies does.

pub mod rest;

use crate::assignment;
use crate::domain::Domain;
use crate::wire::{Map, Name, may_change, missing};
use base::{Context, DomainId, Error, Result, RoleId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Role {
    pub id: RoleId,
    pub domain: Option<DomainId>,
    pub fields: RoleFields,
}

/// What a client writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleFields {
    pub name: Name,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub options: Map,
    #[serde(flatten)]
    pub extra: Map,
}

pub const BY_NAME: Index<Role> =
    Index::unique("name", |r, keys| keys.push((r.domain, r.fields.name.as_str()).key()));
pub const BY_DOMAIN: Index<Role> = Index::many("domain", |r, keys| keys.extend(r.domain.map(|d| d.key())));

impl Record for Role {
    const KIND: &'static str = "role";
    type Key = RoleId;
    const INDEXES: &'static [Index<Role>] = &[BY_NAME, BY_DOMAIN];

    fn key(&self) -> RoleId {
        self.id
    }
}

/// That who has the role `prior` has `implied` too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inference {
    pub prior: RoleId,
    pub implied: RoleId,
}

pub const BY_PRIOR: Index<Inference> = Index::many("prior", |i, keys| keys.push(i.prior.key()));
pub const BY_IMPLIED: Index<Inference> = Index::many("implied", |i, keys| keys.push(i.implied.key()));

impl Record for Inference {
    const KIND: &'static str = "inference";
    type Key = String;
    const INDEXES: &'static [Index<Inference>] = &[BY_PRIOR, BY_IMPLIED];

    fn key(&self) -> String {
        key(self.prior, self.implied)
    }
}

fn key(prior: RoleId, implied: RoleId) -> String {
    format!("{prior}/{implied}")
}

pub fn get(state: &State, id: RoleId) -> Result<&Arc<Role>> {
    state.get::<Role>(&id).ok_or_else(|| missing("role", id))
}

/// The global role called `name`.
pub fn named<'a>(state: &'a State, name: &str) -> Option<&'a Arc<Role>> {
    state.one(&BY_NAME, (None::<DomainId>, name))
}

pub fn create(tx: &mut Tx, _cx: &Context, domain: Option<DomainId>, fields: RoleFields) -> Result<Arc<Role>> {
    if let Some(domain) = domain {
        tx.get::<Domain>(&domain).ok_or_else(|| missing("domain", domain))?;
    }
    let id = tx.new_id();
    keep(tx, Role { id, domain, fields })
}

pub fn update(tx: &mut Tx, _cx: &Context, id: RoleId, fields: RoleFields) -> Result<Arc<Role>> {
    let role = Role { fields, ..Role::clone(get(tx, id)?) };
    keep(tx, role)
}

fn keep(tx: &mut Tx, role: Role) -> Result<Arc<Role>> {
    let name = role.fields.name.clone();
    tx.put(role).map_err(|_| {
        Error::conflict(format!(
            "Conflict occurred attempting to store role - Duplicate entry found with name {name}."
        ))
    })
}

/// Deletes a role with its grants and inferences.
pub fn delete(tx: &mut Tx, _cx: &Context, id: RoleId) -> Result<()> {
    may_change(&get(tx, id)?.fields.options, "role", id)?;
    assignment::forget_role(tx, id);
    let rules: Vec<_> = tx.by(&BY_PRIOR, id).chain(tx.by(&BY_IMPLIED, id)).map(|i| i.key()).collect();
    rules.iter().for_each(|r| drop(tx.delete::<Inference>(r)));
    tx.delete::<Role>(&id);
    Ok(())
}

/// Errors: `Invalid` when it would be a circle, `Forbidden` when `admin` or a domain's role would be implied.
pub fn imply(tx: &mut Tx, _cx: &Context, prior: RoleId, implied: RoleId) -> Result<()> {
    let (above, role) = (get(tx, prior)?, get(tx, implied)?);
    if above.domain.is_none() && role.domain.is_some() {
        return Err(Error::forbidden("A role of the whole cloud cannot imply one of a domain."));
    }
    if role.domain.is_none() && role.fields.name.as_str() == "admin" {
        return Err(Error::forbidden(format!("The role {implied} cannot be an implied role.")));
    }
    if closure(tx, [implied]).contains(&prior) {
        return Err(Error::invalid("A role cannot imply itself, directly or through others."));
    }
    tx.put(Inference { prior, implied })?;
    Ok(())
}

pub fn implies(state: &State, prior: RoleId, implied: RoleId) -> Result<()> {
    let found = state.get::<Inference>(&key(prior, implied));
    found.map(drop).ok_or_else(|| Error::not_found(format!("{prior} does not imply {implied}.")))
}

pub fn imply_no_more(tx: &mut Tx, _cx: &Context, prior: RoleId, implied: RoleId) -> Result<()> {
    implies(tx, prior, implied)?;
    tx.delete::<Inference>(&key(prior, implied));
    Ok(())
}

pub fn implied_by(state: &State, prior: RoleId) -> impl Iterator<Item = RoleId> {
    state.by(&BY_PRIOR, prior).map(|i| i.implied)
}

/// `roles` and all that they imply.
pub fn closure(state: &State, roles: impl IntoIterator<Item = RoleId>) -> BTreeSet<RoleId> {
    let mut open: Vec<RoleId> = roles.into_iter().collect();
    let mut all = BTreeSet::new();
    while let Some(role) = open.pop() {
        if all.insert(role) {
            open.extend(implied_by(state, role));
        }
    }
    all
}

pub fn view(role: &Role) -> Map {
    let mut view = crate::wire::map(&role.fields);
    view.insert("id".into(), role.id.to_string().into());
    view.insert("domain_id".into(), role.domain.map(|d| d.to_string()).into());
    view
}
