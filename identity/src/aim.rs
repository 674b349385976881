//! What a rule may ask about the thing in the path, the body or the list: `target.user.domain_id` and its like.

use crate::project::Project;
use crate::{App, credential, domain, group, project, role, trust, user};
use api::{Call, Target};
use base::context::Scope;
use base::{DomainId, ProjectId};
use serde_json::Value;

/// The domain that the caller's token is scoped to: lists show only that, unless the caller sees everything.
pub fn own_domain(call: &Call) -> Option<DomainId> {
    match call.cx.who.scope {
        Scope::Domain(id) if !call.cx.has_role("admin") => Some(id),
        Scope::Domain(_) | Scope::Project { .. } | Scope::System | Scope::Unscoped => None,
    }
}

/// Where something new belongs when the body does not say.
pub fn home_domain(call: &Call) -> DomainId {
    match call.cx.who.scope {
        Scope::Domain(id) => id,
        Scope::Project { domain, .. } => domain,
        Scope::System | Scope::Unscoped => call.cx.who.user_domain,
    }
}

fn set(target: &mut Target, key: &str, value: impl ToString) {
    target.insert(format!("target.{key}"), value.to_string());
}

/// Lists: the domain asked for, else the caller's own.
pub fn domain(_: &App, call: &Call, target: &mut Target) {
    let own = match call.cx.who.scope {
        Scope::Domain(id) => Some(id.to_string()),
        Scope::Project { .. } | Scope::System | Scope::Unscoped => None,
    };
    let asked = call.query.get("domain_id").or(call.query.get("scope.domain.id"));
    let Some(domain) = asked.map(str::to_string).or(own) else { return };
    for key in ["domain_id", "domain.id", "group.domain_id", "user.domain_id", "project.domain_id"] {
        set(target, key, &domain);
    }
}

/// Whatever the path's parameters name.
pub fn path(app: &App, call: &Call, target: &mut Target) {
    let state = app.cell.read();
    for (name, text) in &call.params {
        match *name {
            "user_id" => {
                set(target, "user.id", text);
                if let Some(user) = text.parse().ok().and_then(|id| user::get(&state, id).ok()) {
                    set(target, "user.domain_id", user.domain);
                }
            }
            "group_id" => {
                if let Some(group) = text.parse().ok().and_then(|id| group::get(&state, id).ok()) {
                    set(target, "group.domain_id", group.domain);
                }
            }
            "project_id" => {
                let found = text.parse::<ProjectId>().ok();
                if let Some(project) = found.and_then(|id| project::get(&state, id).ok()) {
                    target.extend(of_project(project));
                }
            }
            "domain_id" => {
                if let Some(domain) = text.parse().ok().and_then(|id| domain::get(&state, id).ok()) {
                    set(target, "domain.id", domain.id);
                }
            }
            "role_id" => {
                if let Some(role) = text.parse().ok().and_then(|id| role::get(&state, id).ok()) {
                    set(target, "role.name", &role.fields.name);
                    match role.domain {
                        Some(domain) => set(target, "role.domain_id", domain),
                        None => set(target, "role.global", "true"),
                    }
                }
            }
            "credential_id" => credential::aim(&state, text, target),
            "trust_id" => {
                trust::aim(&state, text, target);
                // One that is not there counts as the caller's own: the answer is then 404.
                target.entry("target.trust.trustor_user_id".into()).or_insert(call.cx.user().to_string());
            }
            _ => {}
        }
    }
}

pub fn of_project(project: &Project) -> Target {
    let mut target = Target::new();
    set(&mut target, "project.id", project.id);
    set(&mut target, "project.domain_id", project.domain);
    target
}

fn in_body(call: &Call, key: &str, field: &str) -> Option<String> {
    let body: Value = serde_json::from_slice(call.bytes()).ok()?;
    body.get(key)?.get(field)?.as_str().map(str::to_string)
}

fn new_in_domain(call: &Call, target: &mut Target, what: &str) {
    let domain = in_body(call, what, "domain_id").unwrap_or_else(|| home_domain(call).to_string());
    set(target, &format!("{what}.domain_id"), domain);
}

pub fn new_user(_: &App, call: &Call, target: &mut Target) {
    new_in_domain(call, target, "user");
}

pub fn new_group(_: &App, call: &Call, target: &mut Target) {
    new_in_domain(call, target, "group");
}

/// A project is in the domain of its parent, whatever else the body says.
pub fn new_project(app: &App, call: &Call, target: &mut Target) {
    new_in_domain(call, target, "project");
    let parent = in_body(call, "project", "parent_id").and_then(|p| p.parse::<ProjectId>().ok());
    if let Some(parent) = parent.and_then(|id| project::get(&app.cell.read(), id).ok().cloned()) {
        set(target, "project.domain_id", parent.domain);
    }
}

/// The owner that the body of a credential names, else the caller.
pub fn new_credential(_: &App, call: &Call, target: &mut Target) {
    let owner = in_body(call, "credential", "user_id").unwrap_or_else(|| call.cx.user().to_string());
    set(target, "credential.user_id", owner);
}

/// The trustor that the body names.
pub fn new_trust(_: &App, call: &Call, target: &mut Target) {
    if let Some(owner) = in_body(call, "trust", "trustor_user_id") {
        set(target, "trust.trustor_user_id", owner);
    }
}
