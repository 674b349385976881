//! `/v3/role_assignments`: the grants as they are, or with `effective` as they work out.

use super::{Actor, Grant, Reach, Target};
use crate::project::{self, Project};
use crate::wire::{Map, listed};
use crate::{App, aim, domain, group, role, user};
use api::{Call, Reply, Route};
use base::{DomainId, Error, GroupId, IdKind, ProjectId, Result, RoleId, UserId};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use store::State;

pub fn routes() -> Vec<Route<App>> {
    vec![api::get("/v3/role_assignments", "identity:list_role_assignments", list).target(aim::domain)]
}

/// What the query asks for.
#[derive(Default)]
struct Filter {
    user: Option<UserId>,
    group: Option<GroupId>,
    role: Option<RoleId>,
    project: Option<ProjectId>,
    domain: Option<DomainId>,
    system: bool,
    inherited: bool,
    effective: bool,
    names: bool,
    subtree: bool,
}

fn asked<K: IdKind>(call: &Call, name: &str) -> Result<Option<base::Id<K>>> {
    let bad = |_| Error::invalid(format!("{name} is not an id."));
    call.query.get(name).filter(|v| !v.is_empty()).map(|v| v.parse().map_err(bad)).transpose()
}

fn filter(call: &Call) -> Result<Filter> {
    let flag = |name: &str| call.query.get(name).is_some_and(|v| !crate::wire::is_no(v));
    let filter = Filter {
        user: asked(call, "user.id")?,
        group: asked(call, "group.id")?,
        role: asked(call, "role.id")?,
        project: asked(call, "scope.project.id")?,
        domain: asked(call, "scope.domain.id")?,
        system: call.query.has("scope.system"),
        inherited: call.query.has("scope.OS-INHERIT:inherited_to"),
        effective: flag("effective"),
        names: flag("include_names"),
        subtree: flag("include_subtree"),
    };
    match () {
        _ if filter.user.is_some() && filter.group.is_some() => {
            Err(Error::invalid("Specify a user or group, not both."))
        }
        _ if filter.project.is_some() && filter.domain.is_some() => {
            Err(Error::invalid("Specify a domain or project, not both."))
        }
        _ if filter.effective && filter.group.is_some() => {
            Err(Error::invalid("Combining effective and group filter will always result in an empty list."))
        }
        _ if filter.effective && filter.inherited && filter.domain.is_some() => Err(Error::invalid(
            "Combining effective, domain and inherited filters will always result in an empty list.",
        )),
        _ if filter.subtree && filter.project.is_none() => {
            Err(Error::invalid("scope.project.id must be specified if include_subtree is also specified"))
        }
        _ => Ok(filter),
    }
}

/// A grant and where it came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    grant: Grant,
    /// The grant's own target, when it was inherited.
    from: Option<Target>,
    /// The group that gave it to a user.
    by_group: Option<GroupId>,
    /// The role that implied this one.
    prior: Option<RoleId>,
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let filter = filter(&call)?;
    let only = aim::own_domain(&call);
    let mut lines: BTreeSet<Line> = BTreeSet::new();
    for grant in candidates(&state, &filter) {
        let plain = Line { grant, from: None, by_group: None, prior: None };
        match filter.effective {
            false => drop(lines.insert(plain)),
            true => lines.extend(worked_out(&state, plain)),
        }
    }
    let tree = wanted_projects(&state, &filter);
    let kept = lines.iter().filter(|l| holds(l, &filter, &tree) && is_in(&state, l.grant.target, only));
    let views = kept.take(crate::wire::LIST_MAX).map(|l| view(&state, &call, l, filter.names)).collect();
    Ok(Reply::ok(&listed(&call, "role_assignments", views)))
}

fn is_in(state: &State, target: Target, only: Option<DomainId>) -> bool {
    only.is_none_or(|only| super::target_domain(state, target).is_ok_and(|d| d == Some(only)))
}

/// The grants that can matter, by the narrowest index.
fn candidates(state: &State, filter: &Filter) -> Vec<Grant> {
    let actors = match (filter.user, filter.group) {
        (Some(user), _) if filter.effective => super::actors(state, user),
        (Some(user), _) => vec![Actor::User(user)],
        (None, Some(group)) => vec![Actor::Group(group)],
        (None, None) => return state.all::<Grant>().map(|g| **g).collect(),
    };
    actors.into_iter().flat_map(|a| state.by(&super::BY_ACTOR, a)).map(|g| **g).collect()
}

fn wanted_projects(state: &State, filter: &Filter) -> BTreeSet<ProjectId> {
    let Some(top) = filter.project else { return BTreeSet::new() };
    let below = if filter.subtree { project::subtree(state, top) } else { Vec::new() };
    below.iter().map(|p| p.id).chain([top]).collect()
}

fn holds(line: &Line, filter: &Filter, tree: &BTreeSet<ProjectId>) -> bool {
    let grant = &line.grant;
    let actor = match grant.actor {
        Actor::User(id) => filter.group.is_none() && filter.user.is_none_or(|u| u == id),
        Actor::Group(id) => filter.user.is_none() && filter.group.is_none_or(|g| g == id),
    };
    let unscoped = filter.project.is_none() && filter.domain.is_none() && !filter.system;
    let target = match grant.target {
        Target::Project(id) => unscoped || tree.contains(&id),
        Target::Domain(id) => unscoped || filter.domain == Some(id),
        Target::System => unscoped || filter.system,
    };
    let inherited = line.from.is_some() || grant.reach == Reach::Below;
    actor && target && filter.role.is_none_or(|r| r == grant.role) && (!filter.inherited || inherited)
}

/// Groups become their members, inherited grants those on the projects, roles also what they imply. Roles of domains
/// take no effect themselves.
fn worked_out(state: &State, plain: Line) -> Vec<Line> {
    let members = match plain.grant.actor {
        Actor::User(_) => vec![plain],
        Actor::Group(id) => group::members(state, id)
            .map(|u| Line {
                grant: Grant { actor: Actor::User(u.id), ..plain.grant },
                by_group: Some(id),
                ..plain
            })
            .collect(),
    };
    let placed = members.into_iter().flat_map(|line| {
        projects(state, &line.grant).into_iter().map(move |target| match line.grant.reach {
            Reach::Here => line,
            Reach::Below => Line {
                grant: Grant { target, reach: Reach::Here, ..line.grant },
                from: Some(line.grant.target),
                ..line
            },
        })
    });
    let lines = placed.flat_map(|line| implied(state, line));
    lines.filter(|line| role::get(state, line.grant.role).is_ok_and(|r| r.domain.is_none())).collect()
}

fn projects(state: &State, grant: &Grant) -> Vec<Target> {
    let target = |p: &Project| Target::Project(p.id);
    match (grant.reach, grant.target) {
        (Reach::Here, target) => vec![target],
        (Reach::Below, Target::Project(id)) => {
            project::subtree(state, id).iter().map(|p| target(p)).collect()
        }
        (Reach::Below, Target::Domain(id)) => state.by(&project::BY_DOMAIN, id).map(|p| target(p)).collect(),
        (Reach::Below, Target::System) => Vec::new(),
    }
}

fn implied(state: &State, line: Line) -> Vec<Line> {
    let mut out = vec![line];
    let mut at = 0;
    while let Some(prior) = out.get(at).map(|l| l.grant.role) {
        for role in role::implied_by(state, prior) {
            if out.iter().all(|l| l.grant.role != role) {
                out.push(Line { grant: Grant { role, ..line.grant }, prior: Some(prior), ..line });
            }
        }
        at += 1;
    }
    out
}

fn view(state: &State, call: &Call, line: &Line, names: bool) -> Value {
    let grant = &line.grant;
    let base = format!("{}/v3", call.base);
    let (actor, actor_path) = match grant.actor {
        Actor::User(id) => (json!({"user": user_ref(state, id, names)}), format!("users/{id}")),
        Actor::Group(id) => (json!({"group": group_ref(state, id, names)}), format!("groups/{id}")),
    };
    let source = line.from.unwrap_or(grant.target);
    let source_path = match source {
        Target::Project(id) => format!("projects/{id}"),
        Target::Domain(id) => format!("domains/{id}"),
        Target::System => "system".to_string(),
    };
    let inherited = grant.reach == Reach::Below || line.from.is_some();
    let held_by = line.by_group.map_or(actor_path, |g| format!("groups/{g}"));
    let held_role = line.prior.unwrap_or(grant.role);
    let link = match inherited {
        true => format!("{base}/OS-INHERIT/{source_path}/{held_by}/roles/{held_role}/inherited_to_projects"),
        false => format!("{base}/{source_path}/{held_by}/roles/{held_role}"),
    };
    let mut scope = match grant.target {
        Target::Project(id) => json!({"project": project_ref(state, id, names)}),
        Target::Domain(id) => json!({"domain": domain_ref(state, id, names)}),
        Target::System => json!({"system": {"all": true}}),
    };
    if inherited {
        scope["OS-INHERIT:inherited_to"] = "projects".into();
    }
    let mut links = json!({"assignment": link});
    if let (Some(group), Actor::User(user)) = (line.by_group, grant.actor) {
        links["membership"] = format!("{base}/groups/{group}/users/{user}").into();
    }
    if let Some(prior) = line.prior {
        links["prior_role"] = format!("{base}/prior_role/{prior}/implies/{}", grant.role).into();
    }
    let mut view: Map = crate::wire::map(&actor);
    view.insert("role".into(), role_ref(state, grant.role, names));
    view.insert("scope".into(), scope);
    view.insert("links".into(), links);
    Value::Object(view)
}

fn with_domain(state: &State, id: String, name: &str, home: DomainId) -> Value {
    json!({"id": id, "name": name, "domain": domain_ref(state, home, true)})
}

fn domain_ref(state: &State, id: DomainId, names: bool) -> Value {
    match domain::get(state, id) {
        Ok(domain) if names => json!({"id": id, "name": domain.fields.name}),
        Ok(_) | Err(_) => json!({"id": id}),
    }
}

fn user_ref(state: &State, id: UserId, names: bool) -> Value {
    match user::get(state, id) {
        Ok(user) if names => with_domain(state, id.to_string(), user.fields.name.as_str(), user.domain),
        Ok(_) | Err(_) => json!({"id": id}),
    }
}

fn group_ref(state: &State, id: GroupId, names: bool) -> Value {
    match group::get(state, id) {
        Ok(group) if names => with_domain(state, id.to_string(), group.fields.name.as_str(), group.domain),
        Ok(_) | Err(_) => json!({"id": id}),
    }
}

fn project_ref(state: &State, id: ProjectId, names: bool) -> Value {
    match project::get(state, id) {
        Ok(project) if names => {
            with_domain(state, id.to_string(), project.fields.name.as_str(), project.domain)
        }
        Ok(_) | Err(_) => json!({"id": id}),
    }
}

fn role_ref(state: &State, id: RoleId, names: bool) -> Value {
    match role::get(state, id) {
        Ok(role) if names => match role.domain {
            Some(home) => with_domain(state, id.to_string(), role.fields.name.as_str(), home),
            None => json!({"id": id, "name": role.fields.name}),
        },
        Ok(_) | Err(_) => json!({"id": id}),
    }
}
