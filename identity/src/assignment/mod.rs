//! Grants: an actor (user or group) has a role on a target (project, domain, the system), or inherits it below one.
//!
//! What a token may do is computed from these when it is checked, so a grant that is taken away is gone at once.

pub mod list;
pub mod rest;

use crate::domain::Domain;
use crate::project::{self, Project};
use crate::role::{self, Role};
use crate::{domain, group};
use base::{Context, DomainId, Error, GroupId, ProjectId, Result, RoleId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    User(UserId),
    Group(GroupId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Project(ProjectId),
    Domain(DomainId),
    System,
}

/// Whether a grant holds on its target or on the projects below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    Here,
    Below,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Grant {
    pub actor: Actor,
    pub target: Target,
    pub role: RoleId,
    pub reach: Reach,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Actor::User(id) => write!(f, "user:{id}"),
            Actor::Group(id) => write!(f, "group:{id}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Target::Project(id) => write!(f, "project:{id}"),
            Target::Domain(id) => write!(f, "domain:{id}"),
            Target::System => f.write_str("system"),
        }
    }
}

impl IndexPart for Actor {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Actor::User(id) => (false, *id).put(out),
            Actor::Group(id) => (true, *id).put(out),
        }
    }
}

impl IndexPart for Target {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Target::Project(id) => (1_u32, *id).put(out),
            Target::Domain(id) => (2_u32, *id).put(out),
            Target::System => 3_u32.put(out),
        }
    }
}

pub const BY_ACTOR: Index<Grant> = Index::many("actor", |g, keys| keys.push(g.actor.key()));
pub const BY_TARGET: Index<Grant> = Index::many("target", |g, keys| keys.push(g.target.key()));
pub const BY_BOTH: Index<Grant> = Index::many("both", |g, keys| keys.push((g.actor, g.target).key()));
pub const BY_ROLE: Index<Grant> = Index::many("role", |g, keys| keys.push(g.role.key()));

impl Record for Grant {
    const KIND: &'static str = "grant";
    type Key = String;
    const INDEXES: &'static [Index<Grant>] = &[BY_ACTOR, BY_TARGET, BY_BOTH, BY_ROLE];

    fn key(&self) -> String {
        let reach = if self.reach == Reach::Below { "/below" } else { "" };
        format!("{}/{}/{}{reach}", self.actor, self.target, self.role)
    }
}

fn actor_is_there(state: &State, actor: Actor) -> Result<Option<DomainId>> {
    match actor {
        Actor::User(id) => crate::user::get(state, id).map(|u| Some(u.domain)),
        Actor::Group(id) => group::get(state, id).map(|g| Some(g.domain)),
    }
}

fn target_domain(state: &State, target: Target) -> Result<Option<DomainId>> {
    match target {
        Target::Project(id) => project::get(state, id).map(|p| Some(p.domain)),
        Target::Domain(id) => domain::get(state, id).map(|d| Some(d.id)),
        Target::System => Ok(None),
    }
}

/// Errors: `NotFound` for whatever is not there, `Forbidden` when a domain's role leaves its domain.
pub fn create(tx: &mut Tx, _cx: &Context, grant: Grant) -> Result<()> {
    actor_is_there(tx, grant.actor)?;
    let place = target_domain(tx, grant.target)?;
    let home = role::get(tx, grant.role)?.domain;
    if home.is_some() && home != place {
        return Err(Error::forbidden("A role of a domain is granted only inside of that domain."));
    }
    tx.put(grant)?;
    Ok(())
}

/// Errors: `NotFound` when there is no such grant.
pub fn check(state: &State, grant: &Grant) -> Result<()> {
    actor_is_there(state, grant.actor)?;
    target_domain(state, grant.target)?;
    let missing = || {
        Error::not_found(format!(
            "Could not find role assignment with role: {}, user or group: {}, project, domain, or system: {}.",
            grant.role, grant.actor, grant.target
        ))
    };
    state.get::<Grant>(&grant.key()).map(drop).ok_or_else(missing)
}

pub fn delete(tx: &mut Tx, _cx: &Context, grant: &Grant) -> Result<()> {
    check(tx, grant)?;
    tx.delete::<Grant>(&grant.key());
    Ok(())
}

fn forget(tx: &mut Tx, grants: Vec<String>) {
    grants.iter().for_each(|g| drop(tx.delete::<Grant>(g)));
}

pub(crate) fn forget_actor(tx: &mut Tx, actor: Actor) {
    let grants = tx.by(&BY_ACTOR, actor).map(|g| g.key()).collect();
    forget(tx, grants);
}

pub(crate) fn forget_target(tx: &mut Tx, target: Target) {
    let grants = tx.by(&BY_TARGET, target).map(|g| g.key()).collect();
    forget(tx, grants);
}

pub(crate) fn forget_role(tx: &mut Tx, role: RoleId) {
    let grants = tx.by(&BY_ROLE, role).map(|g| g.key()).collect();
    forget(tx, grants);
}

/// The user and its groups.
pub fn actors(state: &State, user: UserId) -> Vec<Actor> {
    let groups = group::of_user(state, user).map(Actor::Group);
    std::iter::once(Actor::User(user)).chain(groups).collect()
}

/// Where a grant may stand that reaches a project: the project, those above it, its domain.
fn reaching(state: &State, id: ProjectId) -> Vec<(Target, Reach)> {
    let Some(project) = state.get::<Project>(&id) else { return Vec::new() };
    let above = project::parents(state, id).into_iter().map(|p| Target::Project(p.id));
    let below = std::iter::once(Target::Project(id)).chain(above).chain([Target::Domain(project.domain)]);
    std::iter::once((Target::Project(id), Reach::Here))
        .chain(below.skip(1).map(|t| (t, Reach::Below)))
        .collect()
}

fn granted(state: &State, user: UserId, places: &[(Target, Reach)]) -> BTreeSet<RoleId> {
    let mut roles = Vec::new();
    for actor in actors(state, user) {
        for (target, reach) in places {
            roles.extend(state.by(&BY_BOTH, (actor, *target)).filter(|g| g.reach == *reach).map(|g| g.role));
        }
    }
    role::closure(state, roles)
}

/// All roles of a user on a project: granted, inherited, by group, and what they imply.
pub fn roles_on_project(state: &State, user: UserId, id: ProjectId) -> BTreeSet<RoleId> {
    granted(state, user, &reaching(state, id))
}

pub fn roles_on_domain(state: &State, user: UserId, id: DomainId) -> BTreeSet<RoleId> {
    granted(state, user, &[(Target::Domain(id), Reach::Here)])
}

pub fn roles_on_system(state: &State, user: UserId) -> BTreeSet<RoleId> {
    granted(state, user, &[(Target::System, Reach::Here)])
}

/// The roles that may stand in a token: those of the whole cloud.
pub fn global(state: &State, roles: impl IntoIterator<Item = RoleId>) -> Vec<Arc<Role>> {
    let roles = roles.into_iter().filter_map(|id| state.get::<Role>(&id));
    roles.filter(|r| r.domain.is_none()).cloned().collect()
}

/// The projects that a user may sign in to, by id.
pub fn projects_of(state: &State, user: UserId) -> Vec<Arc<Project>> {
    let mut found: BTreeMap<ProjectId, Arc<Project>> = BTreeMap::new();
    let mut add = |p: &Arc<Project>| drop(found.insert(p.id, p.clone()));
    for grant in actors(state, user).into_iter().flat_map(|a| state.by(&BY_ACTOR, a)) {
        match (grant.target, grant.reach) {
            (Target::Project(id), Reach::Here) => state.get::<Project>(&id).into_iter().for_each(&mut add),
            (Target::Project(id), Reach::Below) => project::subtree(state, id).iter().for_each(&mut add),
            (Target::Domain(id), Reach::Below) => state.by(&project::BY_DOMAIN, id).for_each(&mut add),
            (Target::Domain(_), Reach::Here) | (Target::System, _) => {}
        }
    }
    found.into_values().collect()
}

/// The domains that a user may sign in to, by id.
pub fn domains_of(state: &State, user: UserId) -> Vec<Arc<Domain>> {
    let mut found: BTreeMap<DomainId, Arc<Domain>> = BTreeMap::new();
    for grant in actors(state, user).into_iter().flat_map(|a| state.by(&BY_ACTOR, a)) {
        if let (Target::Domain(id), Reach::Here) = (grant.target, grant.reach)
            && let Some(domain) = state.get::<Domain>(&id)
        {
            found.insert(id, domain.clone());
        }
    }
    found.into_values().collect()
}
