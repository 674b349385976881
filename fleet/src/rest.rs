//! What operators ask of the fleet, under `/fleet`: tokens that let machines join, and what nodes run.
//!
//! Not OpenStack's: it has no word for this. The nodes themselves are Compute's services and hypervisors, and removed as
//! such.

use crate::plane::Plane;
use crate::{Fleet, Node};
use api::{Call, Faults, Mounted, Reply, Rule, Service};
use base::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the handlers share: the plane and where nodes reach it, when it listens for them.
#[derive(Clone)]
pub struct App {
    pub fleet: Fleet,
    pub plane: Option<(Arc<Plane>, String)>,
}

const RULES: &[Rule] = &[
    Rule { name: "fleet:create_join_token", check: "role:admin", about: "Let machines join as nodes" },
    Rule { name: "fleet:list_programs", check: "role:admin", about: "See which programs nodes run" },
];

/// The service under `/fleet`.
pub fn service(app: App) -> Mounted {
    let service = Service {
        name: "fleet",
        prefix: "/fleet",
        faults: Faults::Identity,
        microversions: None,
        project_in_path: false,
        request_id_header: None,
        rules: &[RULES],
        routes: vec![
            api::post("/v1/join_tokens", "fleet:create_join_token", create_token),
            api::get("/v1/programs", "fleet:list_programs", list_programs),
        ],
    };
    service.mount(app)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    uses: u32,
    ttl_secs: i64,
}

/// POST /v1/join_tokens
async fn create_token(app: App, call: Call) -> Result<Reply> {
    let new: NewToken = call.json_in("join_token")?;
    let deaf = || Error::conflict("This plane does not listen for nodes: start it with --node-listen.");
    let (plane, authority) = app.plane.as_ref().ok_or_else(deaf)?;
    let (token, expires) = plane.token(call.cause(), authority, new.uses, new.ttl_secs).await?;
    let (token, expires) = (token.to_string(), expires.zulu());
    Ok(Reply::created(&json!({"join_token": {"token": token, "uses": new.uses, "expires_at": expires}})))
}

/// Nodes that are named for a program.
const NODES_NAMED: usize = 20;

/// GET /v1/programs: each with how many nodes run it, and the first of them.
async fn list_programs(app: App, _: Call) -> Result<Reply> {
    let state = app.fleet.cell().read();
    let mut programs: BTreeMap<Option<String>, Vec<&str>> = BTreeMap::new();
    for node in state.all::<Node>() {
        let runs = node.hello.runs.as_ref().map(|runs| runs.program.shown());
        programs.entry(runs).or_default().push(&node.hello.name);
    }
    let view = |(program, mut nodes): (Option<String>, Vec<&str>)| {
        nodes.sort_unstable();
        json!({"program": program, "count": nodes.len(), "nodes": &nodes[..nodes.len().min(NODES_NAMED)]})
    };
    let programs: Vec<_> = programs.into_iter().map(view).collect();
    Ok(Reply::ok(&json!({"programs": programs})))
}
