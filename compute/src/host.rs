//! Nodes as Nova shows them: hypervisors, services, availability zones.

use crate::App;
use crate::maintenance;
use crate::schedule::CPU_RATIO;
use crate::server::{BY_HOST, Phase, Server};
use crate::text::page_links;
use api::page::Page;
use api::{Call, Reply, v};
use base::{Error, Id, Result, Timestamp};
use fleet::Node;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::State;

/// GET /os-availability-zone
pub async fn zones(app: App, _: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"availabilityZoneInfo": zone_views(&app, false)})))
}

/// GET /os-availability-zone/detail
pub async fn zones_detail(app: App, _: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"availabilityZoneInfo": zone_views(&app, true)})))
}

/// GET /os-aggregates: there are none yet, and clients ask when they show a hypervisor.
pub async fn aggregates(_: App, _: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"aggregates": []})))
}

fn zone_views(app: &App, hosts: bool) -> Vec<Value> {
    let state = app.cell.read();
    let mut zones: BTreeMap<String, Vec<Arc<Node>>> = BTreeMap::new();
    for node in state.all::<Node>() {
        zones.entry(node.zone.clone()).or_default().push(node.clone());
    }
    if zones.is_empty() {
        zones.insert(fleet::node::ZONE.into(), Vec::new());
    }
    let service = |node: &Node| {
        let up = is_up(app, node);
        json!({"nova-compute": {"active": node.enabled, "available": up, "updated_at": updated(node, up).micros()}})
    };
    let mut views: Vec<Value> = zones
        .iter()
        .map(|(name, nodes)| {
            let of: Map<String, Value> = nodes.iter().map(|n| (n.hello.name.clone(), service(n))).collect();
            let available = nodes.iter().any(|n| n.enabled) || nodes.is_empty();
            json!({"zoneName": name, "zoneState": {"available": available}, "hosts": if hosts { json!(of) } else { Value::Null }})
        })
        .collect();
    if hosts {
        views.push(json!({"zoneName": "internal", "zoneState": {"available": true}, "hosts": {}}));
    }
    views
}

fn is_up(app: &App, node: &Node) -> bool {
    !node.forced_down && app.fleet.alive(&node.hello.name)
}

/// Nodes are heard all the time, without a record of it: one that is up was heard just now.
fn updated(node: &Node, up: bool) -> Timestamp {
    if up { Timestamp::wall() } else { node.updated }
}

fn uuids(call: &Call) -> bool {
    call.version >= v(2, 53)
}

fn id_view(call: &Call, node: &Node) -> Value {
    if uuids(call) { json!(node.id) } else { json!(node.number + 1) }
}

/// GET /os-services
pub async fn services(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let mut nodes: Vec<&Arc<Node>> = state.all::<Node>().collect();
    nodes.sort_by(|a, b| a.hello.name.cmp(&b.hello.name));
    nodes.retain(|n| call.query.get("host").is_none_or(|h| h == n.hello.name));
    let wanted = call.query.get("binary").is_none_or(|b| b == "nova-compute");
    let views: Vec<_> = nodes.iter().filter(|_| wanted).map(|n| service_view(&app, &call, n)).collect();
    Ok(Reply::ok(&json!({"services": views})))
}

fn service_view(app: &App, call: &Call, node: &Node) -> Value {
    let up = is_up(app, node);
    let mut view = json!({
        "id": id_view(call, node), "binary": "nova-compute", "host": node.hello.name, "zone": node.zone,
        "status": if node.enabled { "enabled" } else { "disabled" }, "state": if up { "up" } else { "down" },
        "updated_at": updated(node, up).micros(), "disabled_reason": node.disabled_reason,
    });
    if call.version >= v(2, 11) {
        view["forced_down"] = json!(node.forced_down);
    }
    view
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceChange {
    status: Option<ServiceStatus>,
    disabled_reason: Option<String>,
    forced_down: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ServiceStatus {
    Enabled,
    Disabled,
}

/// PUT /os-services/{id}, from 2.53
pub async fn update_service(app: App, call: Call) -> Result<Reply> {
    let change: ServiceChange = call.json()?;
    let id = call.id::<Node>("id", "Service")?;
    if change.disabled_reason.is_some() && change.status != Some(ServiceStatus::Disabled) {
        return Err(Error::invalid("Specifying disabled_reason requires that status is disabled."));
    }
    let node = call
        .write(&app.cell, move |tx| {
            let now = tx.now();
            if change.status == Some(ServiceStatus::Enabled)
                && let Some(node) = tx.get::<Node>(&id)
                && let Some(m) = maintenance::active(tx, &node.hello.name)
            {
                return Err(Error::conflict(format!(
                    "Service {id} is drained for maintenance from {}: shisa node undrain {} ends that.",
                    m.deadline.zulu(),
                    m.node
                )));
            }
            let updated = tx.update::<Node>(&id, |node| {
                if let Some(status) = change.status {
                    node.enabled = status == ServiceStatus::Enabled;
                    node.disabled_reason = change.disabled_reason.clone();
                }
                node.forced_down = change.forced_down.unwrap_or(node.forced_down);
                node.updated = now;
            })?;
            updated.ok_or_else(|| Error::not_found(format!("Service {id} could not be found.")))
        })
        .await?;
    Ok(Reply::ok(&json!({"service": service_view(&app, &call, &node)})))
}

/// DELETE /os-services/{id}: the node is no longer the cloud's. Servers that were to go are gone when an operator has
/// said that the node is down for good.
///
/// Errors: `Conflict` while it has servers.
pub async fn delete_service(app: App, call: Call) -> Result<Reply> {
    let missing = |id: &str| Error::not_found(format!("Service {} could not be found.", id.escape_default()));
    let id = find(&app.cell.read(), &call).map_err(|_| missing(call.param("id")))?.id;
    call.write(&app.cell, move |tx| {
        let node = tx.get::<Node>(&id).cloned().ok_or_else(|| missing(&id.to_string()))?;
        let on: Vec<Arc<Server>> = tx.by(&BY_HOST, node.hello.name.as_str()).cloned().collect();
        if on.iter().any(|s| !node.forced_down || s.phase != Phase::Deleting) {
            return Err(Error::conflict(
                "Unable to delete compute service that is hosting instances. Migrate or delete the instances first.",
            ));
        }
        on.iter().for_each(|s| drop(tx.delete::<Server>(&s.id)));
        maintenance::end(tx, &node.hello.name)?;
        fleet::node::remove(tx, &id)
    })
    .await?;
    Ok(Reply::no_content())
}

/// GET /os-hypervisors
pub async fn hypervisors(app: App, call: Call) -> Result<Reply> {
    answer(&app, &call, false)
}

/// GET /os-hypervisors/detail
pub async fn hypervisors_detail(app: App, call: Call) -> Result<Reply> {
    answer(&app, &call, true)
}

fn answer(app: &App, call: &Call, detail: bool) -> Result<Reply> {
    let state = app.cell.read();
    let mut nodes: Vec<&Arc<Node>> = state.all::<Node>().collect();
    nodes.sort_by_key(|n| n.number);
    if let Some(pattern) = call.query.get("hypervisor_hostname_pattern").filter(|_| uuids(call)) {
        nodes.retain(|n| n.hello.name.contains(pattern));
        if nodes.is_empty() {
            return Err(Error::not_found(format!(
                "No hypervisor matching '{}' could be found.",
                pattern.escape_default()
            )));
        }
    }
    let paged = call.version >= v(2, 33);
    let page = if paged { Page::of(&call.query)? } else { Page { limit: usize::MAX, marker: None } };
    let id = |n: &&Arc<Node>| id_view(call, n).to_string().trim_matches('"').to_string();
    let (nodes, more) = page.cut(nodes, id)?;
    let servers = call.query.flag("with_servers")?.unwrap_or(false) && uuids(call);
    let views: Vec<_> =
        nodes.iter().map(|n| hypervisor_view(app, call, &state, n, detail, servers)).collect();
    let mut body = json!({"hypervisors": views});
    page_links(call, &mut body, "hypervisors_links", nodes.last().map(id).as_deref().filter(|_| more));
    Ok(Reply::ok(&body))
}

fn hypervisor_view(app: &App, call: &Call, state: &State, node: &Node, detail: bool, servers: bool) -> Value {
    let up = is_up(app, node);
    let mut view = json!({
        "id": id_view(call, node), "hypervisor_hostname": node.hello.name, "state": if up { "up" } else { "down" },
        "status": if node.enabled { "enabled" } else { "disabled" },
    });
    if servers {
        let on: Vec<_> = state
            .by(&BY_HOST, node.hello.name.as_str())
            .map(|s| json!({"uuid": s.id, "name": s.name}))
            .collect();
        if !on.is_empty() || call.version < v(2, 75) {
            view["servers"] = json!(on);
        }
    }
    if detail {
        details(call, state, node, &mut view);
    }
    view
}

fn details(call: &Call, state: &State, node: &Node, view: &mut Value) {
    let hello = &node.hello;
    view["host_ip"] = json!(hello.address);
    view["hypervisor_type"] = json!(if hello.machine == "qemu" { "QEMU" } else { "simulated" });
    view["hypervisor_version"] = json!(hello.hypervisor_version);
    view["service"] =
        json!({"id": id_view(call, node), "host": hello.name, "disabled_reason": node.disabled_reason});
    if call.version >= v(2, 88) {
        view["uptime"] = json!(uptime(node));
        return;
    }
    let used = usage(state, node);
    let info: Value = serde_json::from_str(&hello.cpu_info).unwrap_or_else(|_| json!({}));
    view["cpu_info"] = if call.version >= v(2, 28) { info } else { json!(info.to_string()) };
    let figures = json!({
        "vcpus": hello.vcpus, "memory_mb": hello.memory_mib, "local_gb": hello.disk_gib, "vcpus_used": used.vcpus,
        "memory_mb_used": used.memory_mib, "local_gb_used": used.disk_gib,
        "free_ram_mb": hello.memory_mib as i64 - used.memory_mib, "free_disk_gb": hello.disk_gib as i64 - used.disk_gib,
        "disk_available_least": hello.disk_gib as i64 - used.disk_gib, "running_vms": used.servers, "current_workload": 0,
    });
    if let (Value::Object(view), Value::Object(figures)) = (view, figures) {
        view.extend(figures);
    }
}

/// What the servers of a node use together.
#[derive(Default)]
struct Usage {
    vcpus: i64,
    memory_mib: i64,
    disk_gib: i64,
    servers: usize,
}

fn usage(state: &State, node: &Node) -> Usage {
    let servers = state.by(&BY_HOST, node.hello.name.as_str()).map(|s| Server::need(s));
    servers.fold(Usage::default(), |sum, need| Usage {
        vcpus: sum.vcpus + need.vcpus,
        memory_mib: sum.memory_mib + need.memory_mib,
        disk_gib: sum.disk_gib + need.disk_gib,
        servers: sum.servers + 1,
    })
}

/// In `uptime`'s words, as Nova hands them on.
fn uptime(node: &Node) -> String {
    // A simulated machine boots when it joins.
    let booted = if node.hello.booted == 0 { node.created.secs() } else { node.hello.booted };
    let seconds = (Timestamp::wall().secs() - booted).max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    format!("up {days} days, {hours:2}:{minutes:02}")
}

fn find(state: &State, call: &Call) -> Result<Arc<Node>> {
    let text = call.param("id");
    let number = |n: &&Arc<Node>| (n.number + 1).to_string() == text;
    let found = match uuids(call) {
        true => text.parse::<Id<Node>>().ok().and_then(|id| state.get::<Node>(&id)),
        false => state.all::<Node>().find(number),
    };
    let missing =
        || Error::not_found(format!("Hypervisor with ID '{}' could not be found.", text.escape_default()));
    found.cloned().ok_or_else(missing)
}

/// GET /os-hypervisors/{id}
pub async fn hypervisor(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let node = find(&state, &call)?;
    let servers = call.query.flag("with_servers")?.unwrap_or(false);
    Ok(Reply::ok(&json!({"hypervisor": hypervisor_view(&app, &call, &state, &node, true, servers)})))
}

/// GET /os-hypervisors/{pattern}/search and /servers, until 2.52
pub async fn search(app: App, call: Call) -> Result<Reply> {
    let (state, pattern) = (app.cell.read(), call.param("id"));
    let mut nodes: Vec<&Arc<Node>> = state.all::<Node>().filter(|n| n.hello.name.contains(pattern)).collect();
    nodes.sort_by_key(|n| n.number);
    if nodes.is_empty() {
        return Err(Error::not_found(format!(
            "No hypervisor matching '{}' could be found.",
            pattern.escape_default()
        )));
    }
    let servers = call.path.ends_with("/servers");
    let one = |node: &&Arc<Node>| {
        let mut view = hypervisor_view(&app, &call, &state, node, false, false);
        if servers {
            view["servers"] = json!(servers_on(&state, node));
        }
        view
    };
    Ok(Reply::ok(&json!({"hypervisors": nodes.iter().map(one).collect::<Vec<_>>()})))
}

fn servers_on(state: &State, node: &Node) -> Vec<Value> {
    state.by(&BY_HOST, node.hello.name.as_str()).map(|s| json!({"uuid": s.id, "name": s.name})).collect()
}

/// GET /os-hypervisors/{id}/uptime, until 2.87
pub async fn hypervisor_uptime(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let node = find(&state, &call)?;
    let mut view = hypervisor_view(&app, &call, &state, &node, false, false);
    view["uptime"] = json!(uptime(&node));
    Ok(Reply::ok(&json!({"hypervisor": view})))
}

/// GET /os-hypervisors/statistics, until 2.87
pub async fn statistics(app: App, _: Call) -> Result<Reply> {
    let state = app.cell.read();
    let mut sum = json!({});
    let mut add = |name: &str, n: i64| sum[name] = json!(sum[name].as_i64().unwrap_or(0) + n);
    for node in state.all::<Node>() {
        let (hello, used) = (&node.hello, usage(&state, node));
        let (memory, disk) = (hello.memory_mib as i64, hello.disk_gib as i64);
        for (name, n) in [
            ("count", 1),
            ("vcpus", hello.vcpus.into()),
            ("memory_mb", memory),
            ("local_gb", disk),
            ("vcpus_used", used.vcpus),
            ("memory_mb_used", used.memory_mib),
            ("local_gb_used", used.disk_gib),
            ("free_ram_mb", memory - used.memory_mib),
            ("free_disk_gb", disk - used.disk_gib),
            ("disk_available_least", disk - used.disk_gib),
            ("running_vms", used.servers as i64),
            ("current_workload", 0),
        ] {
            add(name, n);
        }
    }
    Ok(Reply::ok(&json!({"hypervisor_statistics": sum})))
}

/// GET /placement/resource_providers: one a node.
pub async fn providers(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let named = |n: &&Arc<Node>| {
        call.query.get("name").is_none_or(|name| name == n.hello.name)
            && call.query.get("uuid").is_none_or(|id| id == n.id.to_string())
    };
    let views: Vec<_> = state.all::<Node>().filter(named).map(|n| provider_view(n)).collect();
    Ok(Reply::ok(&json!({"resource_providers": views})))
}

fn provider_view(node: &Node) -> Value {
    let path = format!("/placement/resource_providers/{}", node.id);
    let rels = ["", "inventories", "usages"];
    let links: Vec<_> = rels
        .iter()
        .map(|r| match *r {
            "" => json!({"rel": "self", "href": path}),
            rel => json!({"rel": rel, "href": format!("{path}/{rel}")}),
        })
        .collect();
    json!({
        "uuid": node.id, "name": node.hello.name, "generation": 1, "links": links, "root_provider_uuid": node.id,
        "parent_provider_uuid": null,
    })
}

fn provider(state: &State, call: &Call) -> Result<Arc<Node>> {
    let id: Id<Node> = call.id("id", "Resource provider")?;
    let missing = || Error::not_found(format!("No resource provider with uuid {id} found"));
    state.get::<Node>(&id).cloned().ok_or_else(missing)
}

pub async fn provider_show(app: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&provider_view(&*provider(&app.cell.read(), &call)?)))
}

pub async fn inventories(app: App, call: Call) -> Result<Reply> {
    let node = provider(&app.cell.read(), &call)?;
    let one = |total: u64, ratio: i64| {
        json!({
            "total": total, "reserved": 0, "min_unit": 1, "max_unit": total, "step_size": 1, "allocation_ratio": ratio as f64,
        })
    };
    let (hello, ratio) = (&node.hello, CPU_RATIO);
    let all = json!({
        "VCPU": one(hello.vcpus.into(), ratio), "MEMORY_MB": one(hello.memory_mib, 1), "DISK_GB": one(hello.disk_gib, 1),
    });
    Ok(Reply::ok(&json!({"resource_provider_generation": 1, "inventories": all})))
}

pub async fn usages(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let used = usage(&state, &*provider(&state, &call)?);
    let all = json!({"VCPU": used.vcpus, "MEMORY_MB": used.memory_mib, "DISK_GB": used.disk_gib});
    Ok(Reply::ok(&json!({"resource_provider_generation": 1, "usages": all})))
}
