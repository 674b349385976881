//! Projects: a tree inside of a domain, with tags, options and whatever attributes a client adds.
//!
//! Limits: `DEPTH_MAX` levels, `TAGS_MAX` tags. A project with children is not deleted.

pub mod rest;
pub mod tags;

use crate::assignment::{self, Target};
use crate::domain::{self, Domain};
use crate::unified_limit::{self, Holder};
use crate::wire::{Map, Name, may_change, missing, or_default, yes};
use base::{Context, DomainId, Error, ProjectId, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use store::{Index, IndexPart, Record, Revision, State, Tx};

/// Levels of projects under a domain.
pub const DEPTH_MAX: usize = 5;
pub const TAGS_MAX: usize = 80;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Project {
    pub id: ProjectId,
    pub domain: DomainId,
    /// The project above; none directly under the domain.
    pub parent: Option<ProjectId>,
    pub fields: ProjectFields,
    /// Tokens issued for the project at an earlier revision are void.
    #[serde(default)]
    pub tokens_from: Revision,
}

/// What a client writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProjectFields {
    pub name: Name<64>,
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default)]
    pub tags: Vec<Tag>,
    #[serde(default)]
    pub options: Map,
    #[serde(flatten)]
    pub extra: Map,
}

/// A tag: 1 to 255 characters, no slash and no comma.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Tag(String);

impl Tag {
    pub fn parse(text: &str) -> Result<Tag> {
        match text.is_empty() || text.chars().count() > 255 || text.contains(['/', ',']) {
            true => Err(Error::invalid("A tag has 1 to 255 characters, no slash and no comma.")),
            false => Ok(Tag(text.to_string())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Tag, D::Error> {
        Tag::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

pub const BY_NAME: Index<Project> =
    Index::unique("name", |p, keys| keys.push((p.domain, p.fields.name.as_str()).key()));
pub const BY_DOMAIN: Index<Project> = Index::many("domain", |p, keys| keys.push(p.domain.key()));
pub const BY_PARENT: Index<Project> = Index::many("parent", |p, keys| keys.extend(p.parent.map(|p| p.key())));

impl Record for Project {
    const KIND: &'static str = "project";
    type Key = ProjectId;
    const INDEXES: &'static [Index<Project>] = &[BY_NAME, BY_DOMAIN, BY_PARENT];

    fn key(&self) -> ProjectId {
        self.id
    }
}

/// A project to be.
#[derive(Clone, Debug)]
pub struct NewProject {
    pub domain: DomainId,
    pub parent: Option<ProjectId>,
    pub fields: ProjectFields,
}

pub fn get(state: &State, id: ProjectId) -> Result<&Arc<Project>> {
    state.get::<Project>(&id).ok_or_else(|| missing("project", id))
}

/// The project called `name` in a domain.
pub fn named<'a>(state: &'a State, domain: DomainId, name: &str) -> Option<&'a Arc<Project>> {
    state.one(&BY_NAME, (domain, name))
}

/// The projects above, nearest first.
pub fn parents(state: &State, id: ProjectId) -> Vec<Arc<Project>> {
    let up = |id: &ProjectId| state.get::<Project>(id)?.parent;
    std::iter::successors(up(&id), up).filter_map(|id| state.get::<Project>(&id).cloned()).collect()
}

/// The projects below, each level after the one above it.
pub fn subtree(state: &State, id: ProjectId) -> Vec<Arc<Project>> {
    let mut found: Vec<Arc<Project>> = state.by(&BY_PARENT, id).cloned().collect();
    let mut at = 0;
    while let Some(next) = found.get(at).map(|p| p.id) {
        found.extend(state.by(&BY_PARENT, next).cloned());
        at += 1;
    }
    found
}

/// Errors: `NotFound` for the domain or parent, `Invalid` when the parent is elsewhere, `Forbidden` when it is too deep or
/// its parent disabled, `Conflict` for the name.
pub fn create(tx: &mut Tx, _cx: &Context, new: NewProject) -> Result<Arc<Project>> {
    let domain = tx.get::<Domain>(&new.domain).ok_or_else(|| missing("domain", new.domain))?;
    if !domain.fields.enabled {
        return Err(Error::forbidden(format!("The domain {} is disabled.", domain.id)));
    }
    if let Some(parent) = new.parent {
        may_hold(tx, get(tx, parent)?, new.domain)?;
    }
    let id = tx.new_id();
    keep(tx, Project { id, domain: new.domain, parent: new.parent, fields: new.fields, tokens_from: 0 })
}

fn may_hold(state: &State, parent: &Project, domain: DomainId) -> Result<()> {
    if parent.domain != domain {
        return Err(Error::invalid("A project is in the same domain as its parent."));
    }
    if !parent.fields.enabled {
        return Err(Error::forbidden(format!("The parent project {} is disabled.", parent.id)));
    }
    match parents(state, parent.id).len() + 2 > DEPTH_MAX {
        true => Err(Error::forbidden(format!("Projects are at most {DEPTH_MAX} levels deep."))),
        false => Ok(()),
    }
}

/// Disabling ends every token of the project.
///
/// Errors: `Forbidden` when it would be disabled above an enabled child or enabled under a disabled parent.
pub fn update(tx: &mut Tx, _cx: &Context, id: ProjectId, fields: ProjectFields) -> Result<Arc<Project>> {
    let mut project = Project::clone(get(tx, id)?);
    match (project.fields.enabled, fields.enabled) {
        (true, false) => {
            if tx.by(&BY_PARENT, id).any(|p| p.fields.enabled) {
                return Err(Error::forbidden("Cannot disable a project with enabled projects under it."));
            }
            project.tokens_from = tx.next_revision();
        }
        (false, true) => {
            if parents(tx, id).iter().any(|p| !p.fields.enabled) {
                return Err(Error::forbidden("Cannot enable a project under a disabled one."));
            }
        }
        (true, true) | (false, false) => {}
    }
    project.fields = fields;
    keep(tx, project)
}

fn keep(tx: &mut Tx, mut project: Project) -> Result<Arc<Project>> {
    let tags = &mut project.fields.tags;
    tags.sort();
    tags.dedup();
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid(format!("A project has at most {TAGS_MAX} tags.")));
    }
    let (name, domain) = (project.fields.name.clone(), project.domain);
    tx.put(project).map_err(|_| {
        Error::conflict(format!(
            "Conflict occurred attempting to store project - Duplicate entry found with name {name} at domain ID {domain}."
        ))
    })
}

/// Deletes a project with its grants; its tokens end with it.
///
/// Errors: `Forbidden` when there are projects under it.
pub fn delete(tx: &mut Tx, _cx: &Context, id: ProjectId) -> Result<()> {
    may_change(&get(tx, id)?.fields.options, "project", id)?;
    if tx.by(&BY_PARENT, id).next().is_some() {
        return Err(Error::forbidden("Cannot delete a project with projects under it."));
    }
    remove(tx, id);
    Ok(())
}

/// Removes a project and what hangs on it, whatever is below.
pub(crate) fn remove(tx: &mut Tx, id: ProjectId) {
    assignment::forget_target(tx, Target::Project(id));
    crate::credential::forget_project(tx, id);
    crate::trust::forget_project(tx, id);
    crate::app_credential::forget_project(tx, id);
    crate::endpoint_filter::forget_project(tx, id);
    unified_limit::forget_holder(tx, Holder::Project(id));
    tx.delete::<Project>(&id);
}

/// The wire shape; a project directly under its domain has that as its parent.
pub fn view(project: &Project) -> Map {
    let mut view = crate::wire::map(&project.fields);
    let parent = project.parent.map_or_else(|| project.domain.to_string(), |p| p.to_string());
    view.insert("id".into(), project.id.to_string().into());
    view.insert("domain_id".into(), project.domain.to_string().into());
    view.insert("parent_id".into(), parent.into());
    view.insert("is_domain".into(), Value::Bool(false));
    view
}

/// The domain that is meant by an id in the place of a project's.
pub fn acting_domain(state: &State, id: &str) -> Option<Arc<Domain>> {
    domain::get(state, id.parse().ok()?).ok().cloned()
}
