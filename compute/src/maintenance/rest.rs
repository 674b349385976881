//! What operators ask of maintenance, under `/maintenance`. Not OpenStack's: Nova's word for it is a disabled service,
//! which a drain makes, too.

use super::{Drain, Left, Maintenance, active, drain, left, undrain};
use crate::App;
use api::{Call, Faults, Mounted, Reply, Rule, Service, get, post};
use base::{Error, Result, Timestamp};
use fleet::Node;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use store::State;

const LIST: &str = "maintenance:nodes:list";
const DRAIN: &str = "maintenance:nodes:drain";

const RULES: &[Rule] = &[
    Rule { name: LIST, check: "role:admin", about: "See nodes with their maintenance" },
    Rule { name: DRAIN, check: "role:admin", about: "Drain nodes for maintenance, and end it" },
];

/// The service under `/maintenance`.
pub fn service(app: App) -> Mounted {
    let service = Service {
        name: "maintenance",
        prefix: "/maintenance",
        faults: Faults::Compute,
        microversions: None,
        project_in_path: false,
        request_id_header: None,
        rules: &[RULES],
        routes: vec![
            get("/v1/nodes", LIST, list),
            get("/v1/nodes/{name}", LIST, show),
            post("/v1/nodes/{name}/drain", DRAIN, begin),
            post("/v1/nodes/{name}/undrain", DRAIN, end),
        ],
    };
    service.mount(app)
}

/// GET /v1/nodes
async fn list(app: App, _: Call) -> Result<Reply> {
    let state = app.cell.read();
    let mut nodes: Vec<&Arc<Node>> = state.all::<Node>().collect();
    nodes.sort_by(|a, b| a.hello.name.cmp(&b.hello.name));
    let views: Vec<Value> = nodes.iter().map(|node| node_view(&app, &state, node)).collect();
    Ok(Reply::ok(&json!({"nodes": views})))
}

/// GET /v1/nodes/{name}
async fn show(app: App, call: Call) -> Result<Reply> {
    let (state, name) = (app.cell.read(), call.param("name"));
    let node = super::node_of(&state, name)?;
    Ok(Reply::ok(&json!({"node": node_view(&app, &state, &node)})))
}

fn node_view(app: &App, state: &State, node: &Node) -> Value {
    let name = &node.hello.name;
    let up = !node.forced_down && app.fleet.alive(name);
    let Left { servers, running, .. } = left(state, name);
    json!({
        "name": name, "state": if up { "up" } else { "down" }, "status": if node.enabled { "enabled" } else { "disabled" },
        "servers": servers, "running": running,
        "maintenance": active(state, name).map(|m| view(state, m)),
    })
}

fn view(state: &State, m: &Maintenance) -> Value {
    let Left { servers, running, stopped, waiting } = left(state, &m.node);
    json!({
        "id": m.id, "node": m.node, "state": m.stage.word(), "reason": m.reason, "user_id": m.user,
        "begun_at": m.begun.zulu(), "deadline": m.deadline.zulu(), "until": m.until.map(Timestamp::zulu),
        "servers": servers, "running": running, "stopped": stopped, "notices": {"waiting": waiting, "untold": m.untold},
    })
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewDrain {
    deadline: String,
    until: Option<String>,
    reason: Option<String>,
}

fn time(field: &str, text: &str) -> Result<Timestamp> {
    let wrong = || Error::invalid(format!("{field}: '{}' is not an ISO 8601 time.", text.escape_default()));
    Timestamp::parse(text).ok_or_else(wrong)
}

/// POST /v1/nodes/{name}/drain: 200 with what there is when it is drained already.
async fn begin(app: App, call: Call) -> Result<Reply> {
    let new: NewDrain = call.json_in("drain")?;
    let until = new.until.as_deref().map(|text| time("until", text)).transpose()?;
    let asked = Drain { deadline: time("deadline", &new.deadline)?, until, reason: new.reason };
    let (cx, name) = (call.cx.clone(), call.param("name").to_string());
    let (new, m) = call
        .write(&app.cell, move |tx| {
            let new = active(tx, &name).is_none();
            Ok((new, drain(tx, &cx, &name, &asked)?))
        })
        .await?;
    let answer = json!({"maintenance": view(&app.cell.read(), &m)});
    Ok(if new { Reply::created(&answer) } else { Reply::ok(&answer) })
}

/// POST /v1/nodes/{name}/undrain: `stopped` in the answer are started.
async fn end(app: App, call: Call) -> Result<Reply> {
    let name = call.param("name").to_string();
    let (m, left) = call
        .write(&app.cell, move |tx| {
            let left = left(tx, &name);
            Ok((undrain(tx, &name)?, left))
        })
        .await?;
    let mut view = view(&app.cell.read(), &m);
    view["stopped"] = json!(left.stopped);
    Ok(Reply::ok(&json!({"maintenance": view})))
}
