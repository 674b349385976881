//! Trusts: a trustor lets a trustee use some of its roles on a project, for a time or a number of uses.
//!
//! What the trustor loses the trust loses; a token made by it never makes another.

pub mod rest;

use crate::token::refused;
use crate::wire::missing;
use crate::{App, assignment, domain, project, role, user};
use api::Target;
use base::{Context, Error, Id, IdKind, ProjectId, Result, RoleId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trust {
    pub id: Id<Trust>,
    pub trustor: UserId,
    pub trustee: UserId,
    pub project: Option<ProjectId>,
    pub roles: Vec<RoleId>,
    pub impersonation: bool,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Tokens that may still be made; none: as many as one likes.
    #[serde(default)]
    pub remaining_uses: Option<u32>,
}

pub const BY_TRUSTOR: Index<Trust> = Index::many("trustor", |t, keys| keys.push(t.trustor.key()));
pub const BY_TRUSTEE: Index<Trust> = Index::many("trustee", |t, keys| keys.push(t.trustee.key()));
pub const BY_PROJECT: Index<Trust> =
    Index::many("project", |t, keys| keys.extend(t.project.map(|p| p.key())));

impl IdKind for Trust {
    const HEX: bool = true;
}

impl Record for Trust {
    const KIND: &'static str = "trust";
    type Key = Id<Trust>;
    const INDEXES: &'static [Index<Trust>] = &[BY_TRUSTOR, BY_TRUSTEE, BY_PROJECT];

    fn key(&self) -> Id<Trust> {
        self.id
    }
}

pub fn get(state: &State, id: Id<Trust>) -> Result<&Arc<Trust>> {
    state.get::<Trust>(&id).ok_or_else(|| missing("trust", id))
}

/// The trust, if `trustee` may act by it now.
///
/// Errors: `Unauthorized`.
pub fn live(state: &State, id: Id<Trust>, trustee: UserId) -> Result<Arc<Trust>> {
    let trust = state.get::<Trust>(&id).filter(|t| t.trustee == trustee).ok_or_else(refused)?;
    let open = |id: UserId| {
        user::get(state, id).is_ok_and(|u| u.fields.enabled && domain::is_enabled(state, u.domain))
    };
    match open(trust.trustor) && open(trust.trustee) {
        true => Ok(trust.clone()),
        false => Err(refused()),
    }
}

/// A trust to be. Its trustor has the roles on the project.
pub fn create(tx: &mut Tx, _cx: &Context, mut trust: Trust) -> Result<Arc<Trust>> {
    user::get(tx, trust.trustee)?;
    user::get(tx, trust.trustor)?;
    if let Some(project) = trust.project {
        project::get(tx, project)?;
        let has = assignment::roles_on_project(tx, trust.trustor, project);
        for role in &trust.roles {
            role::get(tx, *role)?;
            if !has.contains(role) {
                return Err(Error::forbidden("The trustor does not have the roles that it would delegate."));
            }
        }
    }
    if trust.expires_at.is_some_and(|at| at <= tx.now()) {
        return Err(Error::invalid("expires_at must be in the future."));
    }
    trust.id = tx.new_id();
    Ok(tx.put(trust)?)
}

pub fn delete(tx: &mut Tx, _cx: &Context, id: Id<Trust>) -> Result<()> {
    get(tx, id)?;
    tx.delete::<Trust>(&id);
    Ok(())
}

/// Counts one token made by the trust, where uses are counted.
///
/// Errors: `Unauthorized` when none is left or its time is over.
pub async fn use_once(app: &App, id: Id<Trust>) -> Result<()> {
    let state = app.cell.read();
    let trust = state.get::<Trust>(&id).ok_or_else(refused)?;
    if trust.expires_at.is_some_and(|at| at <= Timestamp::wall()) {
        return Err(refused());
    }
    if trust.remaining_uses.is_none() {
        return Ok(());
    }
    let spend = move |tx: &mut Tx| {
        let mut trust = Trust::clone(tx.get::<Trust>(&id).ok_or_else(refused)?);
        let left = trust.remaining_uses.and_then(|n| n.checked_sub(1)).ok_or_else(refused)?;
        trust.remaining_uses = Some(left);
        tx.put(trust)?;
        Ok(())
    };
    app.cell.write(store::Cause::step("login"), spend).await
}

fn forget(tx: &mut Tx, trusts: Vec<Id<Trust>>) {
    trusts.iter().for_each(|t| drop(tx.delete::<Trust>(t)));
}

pub(crate) fn forget_user(tx: &mut Tx, user: UserId) {
    let trusts = tx.by(&BY_TRUSTOR, user).chain(tx.by(&BY_TRUSTEE, user)).map(|t| t.id).collect();
    forget(tx, trusts);
}

pub(crate) fn forget_project(tx: &mut Tx, project: ProjectId) {
    let trusts = tx.by(&BY_PROJECT, project).map(|t| t.id).collect();
    forget(tx, trusts);
}

/// Whose the trust in the path is.
pub(crate) fn aim(state: &State, id: &str, target: &mut Target) {
    if let Some(trust) = id.parse().ok().and_then(|id| state.get::<Trust>(&id)) {
        target.insert("target.trust.trustor_user_id".into(), trust.trustor.to_string());
        target.insert("target.trust.trustee_user_id".into(), trust.trustee.to_string());
    }
}
