//! Agents: the parts of a node that clients of Networking ask for by name. Every node has one of each kind.
//!
//! An agent is a view of its node; only what an operator wrote of it is a record. Its id is the node's, mixed with a
//! constant of the kind, so that nothing has to be searched or stored to find it.
//!
//! Deliberately absent: the schedulers of DHCP and L3 agents. Every node answers DHCP and routes for its own servers, so
//! there is nothing to take from one.

use crate::App;
use crate::attr::{Flag, Text};
use crate::resource;
use api::{Call, Reply};
use base::{Error, Id, IdKind, Result};
use fleet::Node;
use fleet::cost::{self, Slow};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::{Index, Record, State, Tx};
use uuid::Uuid;

/// What an operator wrote of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    pub id: Id<Agent>,
    pub admin_up: bool,
    #[serde(default)]
    pub description: String,
}

impl IdKind for Agent {}

impl Record for Agent {
    const KIND: &'static str = "network_agent";
    type Key = Id<Agent>;
    const INDEXES: &'static [Index<Agent>] = &[];

    fn key(&self) -> Id<Agent> {
        self.id
    }
}

/// One kind of agent, and what makes its ids.
struct Kind {
    name: &'static str,
    topic: &'static str,
    mix: u128,
}

/// In Neutron's names: what plugs ports here is plain Linux bridges.
const KINDS: [Kind; 4] = [
    Kind { name: "Linux bridge agent", topic: "N/A", mix: 0x3d2c_8f61_09b7_4e15_a6f0_51c3_7be8_942d },
    Kind { name: "L3 agent", topic: "l3_agent", mix: 0x91e4_07b5_c83a_4f62_8d19_e6a0_2f5c_b374 },
    Kind { name: "DHCP agent", topic: "dhcp_agent", mix: 0x5a70_d1c9_64ef_4b38_b2c5_083d_91f6_ae47 },
    Kind { name: "Metadata agent", topic: "N/A", mix: 0xc6b8_325f_e014_4d9a_97e3_4c1f_d0a6_8b52 },
];
const BINARY: &str = "shisa";

fn id(node: &Node, kind: &Kind) -> Id<Agent> {
    Id::from_uuid(Uuid::from_u128(node.id.uuid().as_u128() ^ kind.mix))
}

/// The node and kind that an agent's id is made of.
fn find(state: &State, id: Id<Agent>) -> Option<(&Node, &'static Kind)> {
    KINDS.iter().find_map(|kind| {
        let node = Id::from_uuid(Uuid::from_u128(id.uuid().as_u128() ^ kind.mix));
        state.get::<Node>(&node).map(|node| (&**node, kind))
    })
}

fn not_found(id: &str) -> Error {
    Error::not_found(format!("Agent {} could not be found.", id.escape_default())).named("AgentNotFound")
}

/// Neutron's times of agents have a space and no zone.
fn time(at: base::Timestamp) -> String {
    at.zulu().replace('T', " ").trim_end_matches('Z').to_string()
}

fn view(app: &App, state: &State, node: &Node, kind: &Kind, slow: &[Slow]) -> Map<String, Value> {
    let id = id(node, kind);
    let written = state.get::<Agent>(&id);
    let alive = !node.forced_down && app.fleet.alive(&node.hello.name);
    let shown = json!({
        "id": id, "agent_type": kind.name, "binary": BINARY, "topic": kind.topic, "host": node.hello.name,
        "availability_zone": node.zone, "alive": alive, "admin_state_up": written.is_none_or(|w| w.admin_up),
        "description": written.map(|w| w.description.as_str()).filter(|d| !d.is_empty()),
        "created_at": time(node.created), "started_at": time(node.updated),
        "heartbeat_timestamp": time(node.updated), "resources_synced": null,
        "configurations": configurations(node, slow),
    });
    let Value::Object(map) = shown else { unreachable!("json! of braces is an object") };
    map
}

fn configurations(node: &Node, slow: &[Slow]) -> Value {
    let mut shown = json!({
        "machine": node.hello.machine, "tunnel_types": ["vxlan"], "tunneling_ip": node.hello.address,
    });
    if let Some(costs) = node.costs {
        shown["kernel_costs"] = json!(costs);
        shown["kernel_slow"] = slow.iter().map(|slow| slow.to_string()).collect();
    }
    shown
}

/// GET /agents: who is no administrator sees none.
pub async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let nodes = state.all::<Node>().filter(|_| call.cx.everywhere);
    let slow = cost::slow(&state);
    let of = |node: &Node| slow.get(&node.hello.name).map_or(&[][..], Vec::as_slice);
    let views = nodes.flat_map(|node| KINDS.iter().map(|kind| view(&app, &state, node, kind, of(node))));
    resource::answer(&call, "agents", views.collect())
}

/// GET /agents/{id}
pub async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let text = call.param("id");
    let found = text.parse().ok().filter(|_| call.cx.everywhere).and_then(|id| find(&state, id));
    let (node, kind) = found.ok_or_else(|| not_found(text))?;
    let slow = cost::slow(&state).remove(&node.hello.name).unwrap_or_default();
    let mut view = view(&app, &state, node, kind, &slow);
    resource::select(&call, &mut view);
    Ok(Reply::ok(&json!({"agent": view})))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    admin_state_up: Option<Flag>,
    description: Option<Text>,
}

/// PUT /agents/{id}
pub async fn update(app: App, call: Call) -> Result<Reply> {
    let body: Body = call.json_in("agent")?;
    let text = call.param("id").to_string();
    let id: Id<Agent> = text.parse().map_err(|_| not_found(&text))?;
    let write = call.write(&app.cell, move |tx: &mut Tx| {
        find(tx, id).ok_or_else(|| not_found(&text))?;
        let old = tx.get::<Agent>(&id).map(|a| Agent::clone(a));
        let mut agent = old.unwrap_or(Agent { id, admin_up: true, description: String::new() });
        agent.admin_up = body.admin_state_up.map_or(agent.admin_up, |f| f.0);
        if let Some(Text(description)) = &body.description {
            agent.description = description.clone();
        }
        tx.put(agent)?;
        Ok(())
    });
    write.await?;
    show(app, call).await
}

/// DELETE /agents/{id}: an agent goes with its node.
pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let text = call.param("id");
    let state = app.cell.read();
    let (node, kind) = text.parse().ok().and_then(|id| find(&state, id)).ok_or_else(|| not_found(text))?;
    let message =
        format!("The {} {text} is part of the node {} and goes with it.", kind.name, node.hello.name);
    Err(Error::conflict(message).named("Conflict"))
}
