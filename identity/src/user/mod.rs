//! Users: a name in a domain, passwords as hashes, and whatever attributes a client adds.
//!
//! What ends a user's tokens (a new password, being disabled or deleted) is a revision on the record: tokens issued before
//! are void. Hashing is done outside of the lane, see `password`.

pub mod password;
pub mod rest;

use crate::assignment::{self, Actor};
use crate::domain::Domain;
use crate::wire::{Map, Name, missing, yes};
use crate::{group, project};
use base::{Context, DomainId, Error, ProjectId, Result, Secret, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use store::{Index, IndexPart, Record, Revision, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    pub id: UserId,
    pub domain: DomainId,
    pub fields: UserFields,
    /// Newest last; what is older is kept for the password history.
    #[serde(default)]
    pub passwords: Vec<Password>,
    /// Wrong passwords in a row, counted when lockout is on.
    #[serde(default)]
    pub failures: u32,
    #[serde(default)]
    pub failed_at: Timestamp,
    /// Tokens issued at an earlier revision are void.
    #[serde(default)]
    pub tokens_from: Revision,
}

/// What a client writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserFields {
    pub name: Name,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_project_id: Option<ProjectId>,
    #[serde(default)]
    pub options: Map,
    #[serde(flatten)]
    pub extra: Map,
}

/// A password as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Password {
    pub hash: Secret,
    pub created: Timestamp,
    #[serde(default)]
    pub expires: Option<Timestamp>,
    /// Set by an administrator: does not count for the minimum age.
    #[serde(default)]
    pub by_admin: bool,
}

pub const BY_NAME: Index<User> =
    Index::unique("name", |u, keys| keys.push((u.domain, u.fields.name.as_str()).key()));
pub const BY_DOMAIN: Index<User> = Index::many("domain", |u, keys| keys.push(u.domain.key()));

impl Record for User {
    const KIND: &'static str = "user";
    type Key = UserId;
    const INDEXES: &'static [Index<User>] = &[BY_NAME, BY_DOMAIN];

    fn key(&self) -> UserId {
        self.id
    }
}

impl User {
    pub fn password(&self) -> Option<&Password> {
        self.passwords.last()
    }

    pub fn option(&self, name: &str) -> bool {
        self.fields.options.get(name).and_then(Value::as_bool).unwrap_or(false)
    }
}

pub fn get(state: &State, id: UserId) -> Result<&Arc<User>> {
    state.get::<User>(&id).ok_or_else(|| missing("user", id))
}

pub fn named<'a>(state: &'a State, domain: DomainId, name: &str) -> Option<&'a Arc<User>> {
    state.one(&BY_NAME, (domain, name))
}

/// Errors: `NotFound` for the domain, `Invalid` for the default project, `Conflict` for the name.
pub fn create(
    tx: &mut Tx,
    _cx: &Context,
    domain: DomainId,
    fields: UserFields,
    password: Option<Password>,
) -> Result<Arc<User>> {
    tx.get::<Domain>(&domain).ok_or_else(|| missing("domain", domain))?;
    checked_default(tx, &fields)?;
    let id = tx.new_id();
    let passwords = password.into_iter().collect();
    keep(
        tx,
        User { id, domain, fields, passwords, failures: 0, failed_at: Timestamp::default(), tokens_from: 0 },
    )
}

fn checked_default(state: &State, fields: &UserFields) -> Result<()> {
    let project = fields.default_project_id;
    match project
        .is_some_and(|id| state.get::<crate::domain::Domain>(&DomainId::from_uuid(id.uuid())).is_some())
    {
        true => Err(Error::invalid("A domain cannot be a user's default project.")),
        false => Ok(()),
    }
}

/// Disabling, and a new password, end every token of the user.
pub fn update(
    tx: &mut Tx,
    _cx: &Context,
    id: UserId,
    fields: UserFields,
    password: Option<Password>,
    history: usize,
) -> Result<Arc<User>> {
    checked_default(tx, &fields)?;
    let mut user = User::clone(get(tx, id)?);
    if user.fields.enabled && !fields.enabled {
        user.tokens_from = tx.next_revision();
    }
    if !user.fields.enabled && fields.enabled {
        user.failures = 0;
    }
    user.fields = fields;
    if let Some(password) = password {
        set_password(&mut user, password, history, tx.next_revision());
    }
    keep(tx, user)
}

/// The user's own change of password.
pub fn change_password(tx: &mut Tx, id: UserId, new: Password, history: usize) -> Result<()> {
    let mut user = User::clone(get(tx, id)?);
    set_password(&mut user, new, history, tx.next_revision());
    keep(tx, user).map(drop)
}

fn set_password(user: &mut User, new: Password, history: usize, revision: Revision) {
    user.passwords.push(new);
    let excess = user.passwords.len().saturating_sub(history.max(1));
    user.passwords.drain(..excess);
    user.tokens_from = revision;
    user.failures = 0;
}

fn keep(tx: &mut Tx, user: User) -> Result<Arc<User>> {
    let (name, domain) = (user.fields.name.clone(), user.domain);
    tx.put(user).map_err(|_| {
        Error::conflict(format!(
            "Conflict occurred attempting to store user - Duplicate entry found with name {name} at domain ID {domain}."
        ))
    })
}

/// Deletes a user with grants, memberships, credentials and trusts; tokens end with it.
pub fn delete(tx: &mut Tx, _cx: &Context, id: UserId) -> Result<()> {
    get(tx, id)?;
    assignment::forget_actor(tx, Actor::User(id));
    group::forget_user(tx, id);
    crate::credential::forget_user(tx, id);
    crate::trust::forget_user(tx, id);
    crate::app_credential::forget_user(tx, id);
    crate::access_rule::forget_user(tx, id);
    tx.delete::<User>(&id);
    Ok(())
}

/// Counts a wrong password, or forgets the ones before a right one.
pub fn note_attempt(tx: &mut Tx, id: UserId, right: bool) -> Result<()> {
    let now = tx.now();
    tx.update::<User>(&id, |user| {
        user.failures = if right { 0 } else { user.failures.saturating_add(1) };
        user.failed_at = now;
    })?;
    Ok(())
}

pub fn view(user: &User) -> Map {
    let mut view = crate::wire::map(&user.fields);
    let expires = user.password().and_then(|p| p.expires).filter(|_| !user.option("ignore_password_expiry"));
    view.insert("id".into(), user.id.to_string().into());
    view.insert("domain_id".into(), user.domain.to_string().into());
    view.insert("password_expires_at".into(), expires.map(Timestamp::micros).into());
    view
}

/// The project that a login without scope gets: the user's own choice, if it still may.
pub fn default_project(state: &State, user: &User) -> Option<ProjectId> {
    let id = user.fields.default_project_id?;
    let project = project::get(state, id).ok()?;
    let open = project.fields.enabled && crate::domain::is_enabled(state, project.domain);
    (open && !assignment::roles_on_project(state, user.id, id).is_empty()).then_some(id)
}
