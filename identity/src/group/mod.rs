//! Groups of users: a grant to a group is one to each member.

pub mod rest;

use crate::assignment::{self, Actor};
use crate::domain::Domain;
use crate::user::{self, User};
use crate::wire::{Map, Name, missing, or_default};
use base::{Context, DomainId, Error, GroupId, Result, UserId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub id: GroupId,
    pub domain: DomainId,
    pub fields: GroupFields,
}

/// What a client writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupFields {
    pub name: Name<64>,
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    #[serde(flatten)]
    pub extra: Map,
}

pub const BY_NAME: Index<Group> =
    Index::unique("name", |g, keys| keys.push((g.domain, g.fields.name.as_str()).key()));
pub const BY_DOMAIN: Index<Group> = Index::many("domain", |g, keys| keys.push(g.domain.key()));

impl Record for Group {
    const KIND: &'static str = "group";
    type Key = GroupId;
    const INDEXES: &'static [Index<Group>] = &[BY_NAME, BY_DOMAIN];

    fn key(&self) -> GroupId {
        self.id
    }
}

/// That a user is in a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Membership {
    pub group: GroupId,
    pub user: UserId,
}

pub const OF_USER: Index<Membership> = Index::many("user", |m, keys| keys.push(m.user.key()));
pub const OF_GROUP: Index<Membership> = Index::many("group", |m, keys| keys.push(m.group.key()));

impl Record for Membership {
    const KIND: &'static str = "membership";
    type Key = String;
    const INDEXES: &'static [Index<Membership>] = &[OF_USER, OF_GROUP];

    fn key(&self) -> String {
        key(self.group, self.user)
    }
}

fn key(group: GroupId, user: UserId) -> String {
    format!("{group}/{user}")
}

pub fn get(state: &State, id: GroupId) -> Result<&Arc<Group>> {
    state.get::<Group>(&id).ok_or_else(|| missing("group", id))
}

pub fn of_user(state: &State, user: UserId) -> impl Iterator<Item = GroupId> {
    state.by(&OF_USER, user).map(|m| m.group)
}

pub fn members(state: &State, group: GroupId) -> impl Iterator<Item = &Arc<User>> {
    state.by(&OF_GROUP, group).filter_map(|m| user::get(state, m.user).ok())
}

pub fn has(state: &State, group: GroupId, user: UserId) -> bool {
    state.get::<Membership>(&key(group, user)).is_some()
}

pub fn create(tx: &mut Tx, _cx: &Context, domain: DomainId, fields: GroupFields) -> Result<Arc<Group>> {
    tx.get::<Domain>(&domain).ok_or_else(|| missing("domain", domain))?;
    let id = tx.new_id();
    keep(tx, Group { id, domain, fields })
}

pub fn update(tx: &mut Tx, _cx: &Context, id: GroupId, fields: GroupFields) -> Result<Arc<Group>> {
    let group = Group { fields, ..Group::clone(get(tx, id)?) };
    keep(tx, group)
}

fn keep(tx: &mut Tx, group: Group) -> Result<Arc<Group>> {
    let (name, domain) = (group.fields.name.clone(), group.domain);
    tx.put(group).map_err(|_| {
        Error::conflict(format!(
            "Conflict occurred attempting to store group - Duplicate entry found with name {name} at domain ID {domain}."
        ))
    })
}

pub fn delete(tx: &mut Tx, _cx: &Context, id: GroupId) -> Result<()> {
    get(tx, id)?;
    assignment::forget_actor(tx, Actor::Group(id));
    let members: Vec<_> = tx.by(&OF_GROUP, id).map(|m| m.key()).collect();
    members.iter().for_each(|m| drop(tx.delete::<Membership>(m)));
    tx.delete::<Group>(&id);
    Ok(())
}

pub fn add(tx: &mut Tx, _cx: &Context, group: GroupId, user: UserId) -> Result<()> {
    get(tx, group)?;
    user::get(tx, user)?;
    tx.put(Membership { group, user })?;
    Ok(())
}

pub fn remove(tx: &mut Tx, _cx: &Context, group: GroupId, user: UserId) -> Result<()> {
    get(tx, group)?;
    match tx.delete::<Membership>(&key(group, user)) {
        Some(_) => Ok(()),
        None => Err(Error::not_found(format!("User {user} not found in group {group}."))),
    }
}

pub(crate) fn forget_user(tx: &mut Tx, user: UserId) {
    let groups: Vec<_> = tx.by(&OF_USER, user).map(|m| m.key()).collect();
    groups.iter().for_each(|m| drop(tx.delete::<Membership>(m)));
}

pub fn view(group: &Group) -> Map {
    let mut view = crate::wire::map(&group.fields);
    view.insert("id".into(), group.id.to_string().into());
    view.insert("domain_id".into(), group.domain.to_string().into());
    view
}
