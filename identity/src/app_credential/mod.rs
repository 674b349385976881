//! Application credentials: a secret of a user's own for one project, with some of its roles and maybe an end.

pub mod rest;

use crate::access_rule::AccessRule;
use crate::token::refused;
use crate::wire::missing;
use crate::{assignment, role};
use base::{Context, Error, Id, IdKind, ProjectId, Result, RoleId, Secret, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppCredential {
    pub id: Id<AppCredential>,
    pub name: String,
    pub user: UserId,
    pub project: ProjectId,
    pub roles: Vec<RoleId>,
    /// The hash of the secret.
    pub secret: Secret,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// May make trusts and credentials of its own.
    #[serde(default)]
    pub unrestricted: bool,
    #[serde(default)]
    pub access_rules: Option<Vec<Id<AccessRule>>>,
}

pub const BY_USER: Index<AppCredential> = Index::many("user", |a, keys| keys.push(a.user.key()));
pub const BY_NAME: Index<AppCredential> =
    Index::unique("name", |a, keys| keys.push((a.user, a.name.as_str()).key()));
pub const BY_PROJECT: Index<AppCredential> = Index::many("project", |a, keys| keys.push(a.project.key()));

impl IdKind for AppCredential {
    const HEX: bool = true;
}

impl Record for AppCredential {
    const KIND: &'static str = "application_credential";
    type Key = Id<AppCredential>;
    const INDEXES: &'static [Index<AppCredential>] = &[BY_USER, BY_NAME, BY_PROJECT];

    fn key(&self) -> Id<AppCredential> {
        self.id
    }
}

pub fn get(state: &State, id: Id<AppCredential>) -> Result<&Arc<AppCredential>> {
    state.get::<AppCredential>(&id).ok_or_else(|| missing("application credential", id))
}

/// The credential, if `user` may act by it now.
///
/// Errors: `Unauthorized`.
pub fn live(state: &State, id: Id<AppCredential>, user: UserId) -> Result<Arc<AppCredential>> {
    let found = state.get::<AppCredential>(&id).filter(|a| a.user == user);
    found.cloned().ok_or_else(refused)
}

/// Errors: `Invalid` for a role that the user does not have, `Conflict` for the name.
pub fn create(tx: &mut Tx, _cx: &Context, mut new: AppCredential) -> Result<Arc<AppCredential>> {
    let has = assignment::roles_on_project(tx, new.user, new.project);
    for id in &new.roles {
        role::get(tx, *id)?;
        if !has.contains(id) {
            return Err(Error::invalid("An application credential has only roles that its user has."));
        }
    }
    if new.expires_at.is_some_and(|at| at <= tx.now()) {
        return Err(Error::invalid("expires_at must be in the future."));
    }
    new.id = tx.new_id();
    let name = new.name.clone();
    tx.put(new).map_err(|_| {
        Error::conflict(format!(
            "Conflict occurred attempting to store application_credential - Duplicate entry found with name {name}."
        ))
    })
}

pub fn delete(tx: &mut Tx, _cx: &Context, id: Id<AppCredential>) -> Result<()> {
    get(tx, id)?;
    tx.delete::<AppCredential>(&id);
    Ok(())
}

fn forget(tx: &mut Tx, all: Vec<Id<AppCredential>>) {
    all.iter().for_each(|id| drop(tx.delete::<AppCredential>(id)));
}

pub(crate) fn forget_user(tx: &mut Tx, user: UserId) {
    let all = tx.by(&BY_USER, user).map(|a| a.id).collect();
    forget(tx, all);
}

pub(crate) fn forget_project(tx: &mut Tx, project: ProjectId) {
    let all = tx.by(&BY_PROJECT, project).map(|a| a.id).collect();
    forget(tx, all);
}
