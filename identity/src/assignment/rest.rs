//! The grant routes: paths of one shape, `/v3/[OS-INHERIT/]TARGET/ACTOR/roles[/{role_id}[/inherited_to_projects]]`.

use super::{Actor, BY_BOTH, Grant, Reach, Target, check, create, delete};
use crate::wire::many;
use crate::{App, aim, role};
use api::{Call, Reply, Route};
use base::{Result, RoleId};

/// Rows of one target and actor: list, check, create, delete.
macro_rules! rows {
    ($base:literal, $end:literal, $reach:expr, $rules:expr) => {
        [
            api::get(concat!($base, "/roles", $end), $rules[0], |a, c| list(a, c, $reach)).target(aim::path),
            api::get(concat!($base, "/roles/{role_id}", $end), $rules[1], |a, c| has(a, c, $reach))
                .target(aim::path),
            api::put(concat!($base, "/roles/{role_id}", $end), $rules[2], |a, c| put(a, c, $reach))
                .target(aim::path),
            api::delete(concat!($base, "/roles/{role_id}", $end), $rules[3], |a, c| take(a, c, $reach))
                .target(aim::path),
        ]
    };
}

const GRANT: [&str; 4] =
    ["identity:list_grants", "identity:check_grant", "identity:create_grant", "identity:revoke_grant"];
const SYSTEM_USER: [&str; 4] = [
    "identity:list_system_grants_for_user",
    "identity:check_system_grant_for_user",
    "identity:create_system_grant_for_user",
    "identity:revoke_system_grant_for_user",
];
const SYSTEM_GROUP: [&str; 4] = [
    "identity:list_system_grants_for_group",
    "identity:check_system_grant_for_group",
    "identity:create_system_grant_for_group",
    "identity:revoke_system_grant_for_group",
];

pub fn routes() -> Vec<Route<App>> {
    let here = [
        rows!("/v3/projects/{project_id}/users/{user_id}", "", Reach::Here, GRANT),
        rows!("/v3/projects/{project_id}/groups/{group_id}", "", Reach::Here, GRANT),
        rows!("/v3/domains/{domain_id}/users/{user_id}", "", Reach::Here, GRANT),
        rows!("/v3/domains/{domain_id}/groups/{group_id}", "", Reach::Here, GRANT),
        rows!("/v3/system/users/{user_id}", "", Reach::Here, SYSTEM_USER),
        rows!("/v3/system/groups/{group_id}", "", Reach::Here, SYSTEM_GROUP),
    ];
    macro_rules! below {
        ($base:literal) => {
            rows!($base, "/inherited_to_projects", Reach::Below, GRANT)
        };
    }
    let below = [
        below!("/v3/OS-INHERIT/projects/{project_id}/users/{user_id}"),
        below!("/v3/OS-INHERIT/projects/{project_id}/groups/{group_id}"),
        below!("/v3/OS-INHERIT/domains/{domain_id}/users/{user_id}"),
        below!("/v3/OS-INHERIT/domains/{domain_id}/groups/{group_id}"),
    ];
    here.into_iter().chain(below).flatten().collect()
}

/// Actor and target as the path names them.
fn parties(call: &Call) -> Result<(Actor, Target)> {
    let has = |name: &str| call.params.iter().any(|(n, _)| *n == name);
    let actor = match has("user_id") {
        true => Actor::User(call.id("user_id", "User")?),
        false => Actor::Group(call.id("group_id", "Group")?),
    };
    let target = match (has("project_id"), has("domain_id")) {
        (true, _) => Target::Project(call.id("project_id", "Project")?),
        (false, true) => Target::Domain(call.id("domain_id", "Domain")?),
        (false, false) => Target::System,
    };
    Ok((actor, target))
}

fn grant(call: &Call, reach: Reach) -> Result<Grant> {
    let (actor, target) = parties(call)?;
    let role: RoleId = call.id("role_id", "Role")?;
    Ok(Grant { actor, target, role, reach })
}

async fn list(app: App, call: Call, reach: Reach) -> Result<Reply> {
    let state = app.cell.read();
    let (actor, target) = parties(&call)?;
    super::actor_is_there(&state, actor)?;
    super::target_domain(&state, target)?;
    let grants = state.by(&BY_BOTH, (actor, target)).filter(|g| g.reach == reach);
    let roles = grants.filter_map(|g| role::get(&state, g.role).ok());
    many(&call, "roles", "roles", &["name"], roles.map(|r| role::view(r)))
}

async fn has(app: App, call: Call, reach: Reach) -> Result<Reply> {
    check(&app.cell.read(), &grant(&call, reach)?)?;
    Ok(Reply::no_content())
}

async fn put(app: App, call: Call, reach: Reach) -> Result<Reply> {
    let (grant, cx) = (grant(&call, reach)?, call.cx.clone());
    call.write(&app.cell, move |tx| create(tx, &cx, grant)).await?;
    Ok(Reply::no_content())
}

async fn take(app: App, call: Call, reach: Reach) -> Result<Reply> {
    let (grant, cx) = (grant(&call, reach)?, call.cx.clone());
    call.write(&app.cell, move |tx| delete(tx, &cx, &grant)).await?;
    Ok(Reply::no_content())
}
