//! Credentials: secrets kept for a user by type (`ec2`, `totp`, `cert`), sealed.

pub mod rest;

use crate::wire::missing;
use crate::{project, user};
use api::Target;
use base::{Context, Error, ProjectId, Result, Secret, UserId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credential {
    /// 32 hex digits; of an EC2 key, 64: the SHA-256 of its access key.
    pub id: String,
    pub user: UserId,
    pub project: Option<ProjectId>,
    #[serde(rename = "type")]
    pub kind: String,
    pub blob: Secret,
}

pub const BY_USER: Index<Credential> = Index::many("user", |c, keys| keys.push(c.user.key()));
pub const BY_PROJECT: Index<Credential> =
    Index::many("project", |c, keys| keys.extend(c.project.map(|p| p.key())));

impl Record for Credential {
    const KIND: &'static str = "credential";
    type Key = String;
    const INDEXES: &'static [Index<Credential>] = &[BY_USER, BY_PROJECT];

    fn key(&self) -> String {
        self.id.clone()
    }
}

pub fn get<'a>(state: &'a State, id: &str) -> Result<&'a Arc<Credential>> {
    state.get::<Credential>(&id.to_string()).ok_or_else(|| missing("credential", id))
}

pub fn create(tx: &mut Tx, _cx: &Context, new: Credential) -> Result<Arc<Credential>> {
    user::get(tx, new.user)?;
    if let Some(project) = new.project {
        project::get(tx, project)?;
    }
    if tx.get::<Credential>(&new.id).is_some() {
        return Err(Error::conflict("There is already a credential with this access key."));
    }
    Ok(tx.put(new)?)
}

pub fn delete(tx: &mut Tx, _cx: &Context, id: &str) -> Result<()> {
    let id = get(tx, id)?.id.clone();
    tx.delete::<Credential>(&id);
    Ok(())
}

fn forget(tx: &mut Tx, all: Vec<String>) {
    all.iter().for_each(|id| drop(tx.delete::<Credential>(id)));
}

pub(crate) fn forget_user(tx: &mut Tx, user: UserId) {
    let all = tx.by(&BY_USER, user).map(|c| c.id.clone()).collect();
    forget(tx, all);
}

pub(crate) fn forget_project(tx: &mut Tx, project: ProjectId) {
    let all = tx.by(&BY_PROJECT, project).map(|c| c.id.clone()).collect();
    forget(tx, all);
}

/// Whose the credential in the path is.
pub(crate) fn aim(state: &State, id: &str, target: &mut Target) {
    if let Ok(credential) = get(state, id) {
        target.insert("target.credential.user_id".into(), credential.user.to_string());
    }
}
