//! Quotas and limits: views of `identity::limit` and of the store's sums.

use crate::{
    App, CORES, INSTANCES, KEY_PAIRS, METADATA_ITEMS, RAM, RESOURCES, SERVER_GROUP_MEMBERS, SERVER_GROUPS,
};
use api::{Call, Reply, Version, v};
use base::{Error, ProjectId, Result};
use identity::limit::{self, Resource};
use serde_json::{Map, Value, json};
use store::State;

fn word(resource: &Resource) -> &'static str {
    resource.name.split_once(':').map_or(resource.name, |(_, word)| word)
}

/// What older microversions show although this cloud has no such things: the network's and the files'.
fn gone(version: Version) -> &'static [(&'static str, i64)] {
    const FILES: [(&str, i64); 3] =
        [("injected_files", 5), ("injected_file_content_bytes", 10_240), ("injected_file_path_bytes", 255)];
    const ALL: [(&str, i64); 7] = [
        FILES[0],
        FILES[1],
        FILES[2],
        ("fixed_ips", -1),
        ("floating_ips", -1),
        ("security_groups", -1),
        ("security_group_rules", -1),
    ];
    match version {
        old if old < v(2, 36) => &ALL,
        old if old < v(2, 57) => ALL.split_at(3).0,
        _ => &[],
    }
}

/// A limit in the form that a shape wants it: alone, or with what is used.
fn shape(call: &Call, value: impl Fn(&Resource) -> Value, old: impl Fn(i64) -> Value) -> Map<String, Value> {
    let now = RESOURCES.iter().map(|r| (word(r).to_string(), value(r)));
    now.chain(gone(call.version).iter().map(|(name, n)| (name.to_string(), old(*n)))).collect()
}

fn set_view(call: &Call, state: &State, project: ProjectId) -> Map<String, Value> {
    shape(call, |r| json!(limit::of(state, project, r)), |n| json!(n))
}

fn project(call: &Call) -> Result<ProjectId> {
    let text = call.param("project_id");
    let id: ProjectId = text.parse().map_err(|_| {
        Error::invalid(format!("Project ID {} is not a valid project.", text.escape_default()))
    })?;
    match call.cx.sees(id) {
        true => Ok(id),
        false => Err(api::policy::denied(call.rule)),
    }
}

fn with_id(mut set: Map<String, Value>, id: &str) -> Reply {
    set.insert("id".into(), json!(id));
    Reply::ok(&json!({"quota_set": set}))
}

pub async fn show(app: App, call: Call) -> Result<Reply> {
    let project = project(&call)?;
    Ok(with_id(set_view(&call, &app.cell.read(), project), call.param("project_id")))
}

pub async fn defaults(app: App, call: Call) -> Result<Reply> {
    project(&call)?;
    Ok(with_id(set_view(&call, &app.cell.read(), limit::DEFAULTS), call.param("project_id")))
}

pub async fn detail(app: App, call: Call) -> Result<Reply> {
    let (state, project) = (app.cell.read(), project(&call)?);
    let figures = |limit: i64, used: i64| json!({"limit": limit, "in_use": used, "reserved": 0});
    let set = shape(
        &call,
        |r| figures(limit::of(&state, project, r), limit::used(&state, project, r)),
        |n| figures(n, 0),
    );
    Ok(with_id(set, call.param("project_id")))
}

/// The limits that a body sets, checked.
fn wanted(call: &Call, key: &str) -> Result<Vec<(Resource, i64)>> {
    let body: Map<String, Value> = call.json_in(key)?;
    let old = |name: &str| gone(call.version).iter().any(|(n, _)| *n == name);
    let mut set = Vec::new();
    for (name, value) in &body {
        if ["force", "tenant_id", "id"].contains(&name.as_str()) || old(name) {
            continue;
        }
        let unexpected = || {
            Error::invalid(format!(
                "Additional properties are not allowed ('{}' was unexpected)",
                name.escape_default()
            ))
        };
        let resource = RESOURCES.iter().find(|r| word(r) == name).ok_or_else(unexpected)?;
        let number = value
            .as_i64()
            .or_else(|| value.as_str()?.parse().ok())
            .filter(|n| (-1..=i32::MAX as i64).contains(n));
        let bad = || {
            Error::invalid(format!(
                "Invalid input for field/attribute {name}. {value} is not a number from -1 on."
            ))
        };
        set.push((*resource, number.ok_or_else(bad)?));
    }
    Ok(set)
}

pub async fn update(app: App, call: Call) -> Result<Reply> {
    let (project, set) = (project(&call)?, wanted(&call, "quota_set")?);
    call.write(&app.cell, move |tx| set.iter().try_for_each(|(r, n)| limit::set(tx, project, r, *n))).await?;
    Ok(Reply::ok(&json!({"quota_set": set_view(&call, &app.cell.read(), project)})))
}

pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let project = project(&call)?;
    call.write(&app.cell, move |tx| {
        limit::reset(tx, project, "compute");
        Ok(())
    })
    .await?;
    Ok(Reply::accepted_empty())
}

/// GET /os-quota-class-sets/{class}: the defaults, whatever the class.
pub async fn class(app: App, call: Call) -> Result<Reply> {
    let mut set = set_view(&call, &app.cell.read(), limit::DEFAULTS);
    set.insert("id".into(), json!(call.param("class")));
    Ok(Reply::ok(&json!({"quota_class_set": set})))
}

pub async fn update_class(app: App, call: Call) -> Result<Reply> {
    let set = wanted(&call, "quota_class_set")?;
    call.write(&app.cell, move |tx| set.iter().try_for_each(|(r, n)| limit::set(tx, limit::DEFAULTS, r, *n)))
        .await?;
    Ok(Reply::ok(&json!({"quota_class_set": set_view(&call, &app.cell.read(), limit::DEFAULTS)})))
}

/// GET /limits
pub async fn limits(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let asked = call.query.get("tenant_id").filter(|_| call.cx.everywhere).and_then(|p| p.parse().ok());
    let project = asked.unwrap_or(call.cx.project());
    let of = |r: &Resource| limit::of(&state, project, r);
    let used = |r: &Resource| limit::used(&state, project, r);
    let mut absolute = json!({
        "maxTotalInstances": of(&INSTANCES), "maxTotalCores": of(&CORES), "maxTotalRAMSize": of(&RAM),
        "maxTotalKeypairs": of(&KEY_PAIRS), "maxServerMeta": of(&METADATA_ITEMS),
        "maxServerGroups": of(&SERVER_GROUPS), "maxServerGroupMembers": of(&SERVER_GROUP_MEMBERS),
        "totalInstancesUsed": used(&INSTANCES), "totalCoresUsed": used(&CORES), "totalRAMUsed": used(&RAM),
        "totalServerGroupsUsed": 0,
    });
    if call.version < v(2, 57) {
        absolute["maxPersonality"] = json!(5);
        absolute["maxPersonalitySize"] = json!(10_240);
    }
    if call.version < v(2, 39) {
        absolute["maxImageMeta"] = json!(128);
    }
    if call.version < v(2, 36) {
        for (name, n) in [
            ("maxTotalFloatingIps", -1),
            ("maxSecurityGroups", -1),
            ("maxSecurityGroupRules", -1),
            ("totalFloatingIpsUsed", 0),
            ("totalSecurityGroupsUsed", 0),
        ] {
            absolute[name] = json!(n);
        }
    }
    Ok(Reply::ok(&json!({"limits": {"rate": [], "absolute": absolute}})))
}
