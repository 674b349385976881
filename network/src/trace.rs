//! Which way a packet from a port would take, and what would stop it: the fabric's simulator over what the nodes are
//! told now. An operator's question, beyond OpenStack's API; no packet is sent.
//!
//! Limits: `NODES_MAX` nodes.

use crate::App;
use crate::port::Port;
use crate::resource;
use api::{Call, Reply};
use base::{Error, Id, Result};
use fabric::Place;
use fabric::trace::{End, Flow, Way, World};
use fleet::Node;
use serde_json::{Value, json};
use std::net::IpAddr;
use store::State;

const NODES_MAX: usize = 1_000;

/// GET /ports/{id}/trace?to=ADDRESS&protocol=tcp&port=22
pub async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let text = call.param("id");
    let id: Option<Id<Port>> = text.parse().ok();
    let port = id.and_then(|id| state.get::<Port>(&id)).ok_or_else(|| resource::not_found::<Port>(text))?;
    let flow = flow(&call)?;
    if port.host.is_empty() {
        return Err(Error::conflict(format!("Port {text} is on no node: no packet comes from it.")));
    }
    let way = world(&app, &state)?.trace(port.id.uuid(), flow).map_err(Error::invalid)?;
    Ok(Reply::ok(&json!({"trace": view(&way)})))
}

fn flow(call: &Call) -> Result<Flow> {
    let bad = |what: &str| Error::invalid(format!("Bad trace request: {what}.")).named("BadRequest");
    let to: IpAddr =
        call.query.get("to").and_then(|to| to.parse().ok()).ok_or_else(|| bad("'to' is to be an address"))?;
    let icmp = if to.is_ipv4() { 1 } else { 58 };
    let protocol = match call.query.get("protocol").unwrap_or("icmp") {
        "icmp" | "ipv6-icmp" => icmp,
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        number => number.parse().map_err(|_| bad("'protocol' is icmp, tcp, udp, sctp or a number"))?,
    };
    let port =
        call.query.get("port").map(str::parse).transpose().map_err(|_| bad("'port' is a number to 65535"))?;
    match (matches!(protocol, 6 | 17 | 33 | 132 | 136), port) {
        (true, None) => Err(bad("this protocol needs a 'port'")),
        (false, Some(_)) => Err(bad("this protocol has no ports")),
        (_, port) => Ok(Flow { to, protocol, port }),
    }
}

/// All nodes with what they are told.
fn world(app: &App, state: &State) -> Result<World> {
    if state.count::<Node>() > NODES_MAX {
        return Err(Error::unavailable(format!(
            "A trace looks at {NODES_MAX} nodes at most, and there are more."
        )));
    }
    let mut world = World::default();
    for node in state.all::<Node>() {
        let settings = fabric::Settings {
            cloud: 0,
            node_address: node.hello.address,
            vxlan_port: fabric::vxlan_port(0),
            uplink: None,
            physical: node.hello.physical.iter().map(|name| (name.clone(), name.clone())).collect(),
        };
        world.node(&node.hello.name, &settings, app.fleet.document_at(state, &node.hello.name));
    }
    Ok(world)
}

fn view(way: &Way) -> Value {
    let hops = way.hops.iter().map(|hop| {
        let (kind, id) = match hop.place {
            Place::Host => ("host", None),
            Place::Network(id) => ("network", Some(id)),
            Place::Router(id) => ("router", Some(id)),
        };
        json!({"host": hop.node, "kind": kind, "id": id, "what": hop.what})
    });
    let (result, rule) = match &way.end {
        End::Delivered { .. } => ("delivered", None),
        End::Answered => ("answered", None),
        End::Left { .. } => ("left", None),
        End::Dropped { chain, rule } => ("dropped", Some(format!("{chain}: {rule}"))),
        End::Lost { .. } => ("lost", None),
    };
    json!({"hops": hops.collect::<Vec<_>>(), "result": result, "detail": way.end.to_string(), "rule": rule})
}
