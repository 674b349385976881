//! Limits: how much of a resource a project may use. Every quota API is a view of these and of the store's sums.
//!
//! A service declares its resources with their defaults as constants. A record exists only where somebody set another
//! value; the project of all zeroes holds a changed default (`quota-class-sets/default`).

use base::id::ProjectId;
use base::{Error, Result};
use serde::{Deserialize, Serialize};
use store::{Index, IndexPart, Record, State, Tx};

/// A countable thing, as a service declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `network:port`; the store sums amounts under this name.
    pub name: &'static str,
    /// What a project may use if nobody said otherwise; -1: no limit.
    pub default: i64,
}

/// A limit that somebody set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    pub project: ProjectId,
    pub resource: String,
    /// -1: no limit.
    pub limit: i64,
}

pub const BY_PROJECT: Index<Limit> = Index::many("project", |l, keys| keys.push(l.project.key()));

impl Record for Limit {
    const KIND: &'static str = "limit";
    type Key = String;
    const INDEXES: &'static [Index<Limit>] = &[BY_PROJECT];

    fn key(&self) -> String {
        key(self.project, &self.resource)
    }
}

/// The project whose limits are everybody's defaults.
pub const DEFAULTS: ProjectId = ProjectId::ZERO;

fn key(project: ProjectId, resource: &str) -> String {
    format!("{project}/{resource}")
}

/// The limit that somebody set for a resource by its name.
pub fn stored(state: &State, project: ProjectId, name: &str) -> Option<i64> {
    state.get::<Limit>(&key(project, name)).map(|l| l.limit)
}

/// Sets the limit of a resource by its name: for those that only their service knows as a `Resource`.
pub fn store(tx: &mut Tx, project: ProjectId, name: &str, limit: i64) -> Result<()> {
    tx.put(Limit { project, resource: name.into(), limit })?;
    Ok(())
}

/// Forgets the limit of a resource by its name.
pub fn forget(tx: &mut Tx, project: ProjectId, name: &str) {
    tx.delete::<Limit>(&key(project, name));
}

/// What `project` may use of `resource`; -1: no limit.
pub fn of(state: &State, project: ProjectId, resource: &Resource) -> i64 {
    let set = |project| state.get::<Limit>(&key(project, resource.name)).map(|l| l.limit);
    set(project).or_else(|| set(DEFAULTS)).unwrap_or(resource.default)
}

/// What `project` uses of `resource` now.
pub fn used(state: &State, project: ProjectId, resource: &Resource) -> i64 {
    state.sum(project, resource.name)
}

/// Checks that `n` more of `resource` fit, before the record that uses them is put.
///
/// Errors: `OverQuota`.
pub fn claim(tx: &Tx, project: ProjectId, resource: &Resource, n: i64) -> Result<()> {
    let (limit, used) = (of(tx, project, resource), used(tx, project, resource));
    if limit >= 0 && used + n > limit {
        let short = resource.name.split_once(':').map_or(resource.name, |(_, short)| short);
        return Err(Error::over_quota(format!(
            "Quota exceeded for {short}: requested {n}, but already used {used} of {limit}."
        )));
    }
    Ok(())
}

/// Sets the limit of a project.
pub fn set(tx: &mut Tx, project: ProjectId, resource: &Resource, limit: i64) -> Result<()> {
    tx.put(Limit { project, resource: resource.name.into(), limit })?;
    Ok(())
}

/// Forgets everything that was set for a project that is gone.
pub(crate) fn forget_project(tx: &mut Tx, project: ProjectId) {
    if project != DEFAULTS {
        let set: Vec<_> = tx.by(&BY_PROJECT, project).map(|l| l.key()).collect();
        set.iter().for_each(|key| drop(tx.delete::<Limit>(key)));
    }
}

/// Forgets what was set for a project of a service (`network`): the defaults hold again.
pub fn reset(tx: &mut Tx, project: ProjectId, service: &str) {
    let prefix = format!("{service}:");
    let set: Vec<_> =
        tx.by(&BY_PROJECT, project).filter(|l| l.resource.starts_with(&prefix)).map(|l| l.key()).collect();
    for key in set {
        tx.delete::<Limit>(&key);
    }
}
