//! A server's interfaces: `/servers/{id}/os-interface`.

use super::rest::{id, plug_network, plug_port};
use super::{Server, changeable, get, life, put, view};
use crate::App;
use api::{Call, Reply, v};
use base::{Error, Id, Result};
use network::network::Network;
use network::port::{self, Port};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;

fn shown(call: &Call, port: &Port) -> Value {
    let fixed: Vec<_> =
        port.fixed.iter().map(|f| json!({"ip_address": f.address, "subnet_id": f.subnet})).collect();
    let mut shown = json!({
        "net_id": port.network, "port_id": port.id, "mac_addr": port.mac, "port_state": port.status(),
        "fixed_ips": fixed,
    });
    if call.version >= v(2, 70) {
        shown["tag"] = Value::Null;
    }
    shown
}

pub async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let server = get(&state, &call.cx, id(&call)?)?;
    let all: Vec<_> = view::ports(&state, &server).iter().map(|p| shown(&call, p)).collect();
    Ok(Reply::ok(&json!({"interfaceAttachments": all})))
}

fn missing(call: &Call) -> Error {
    let (port, server) = (call.param("port_id").escape_default(), call.param("id").escape_default());
    Error::not_found(format!("Instance {server} has no interface with port {port}."))
}

pub async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let server = get(&state, &call.cx, id(&call)?)?;
    let port = view::ports(&state, &server).into_iter().find(|p| p.id.to_string() == call.param("port_id"));
    let port = port.ok_or_else(|| missing(&call))?;
    Ok(Reply::ok(&json!({"interfaceAttachment": shown(&call, &port)})))
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attach {
    port_id: Option<Id<Port>>,
    net_id: Option<Id<Network>>,
    fixed_ips: Option<Vec<FixedIp>>,
    #[serde(rename = "tag")]
    _tag: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedIp {
    ip_address: IpAddr,
}

pub async fn attach(app: App, call: Call) -> Result<Reply> {
    let wanted: Attach = call.json_in("interfaceAttachment")?;
    if wanted.port_id.is_some() && (wanted.net_id.is_some() || wanted.fixed_ips.is_some()) {
        return Err(Error::invalid("Must not input both network_id and port_id"));
    }
    if wanted.fixed_ips.is_some() && wanted.net_id.is_none() {
        return Err(Error::invalid("Must input network_id when request IP address"));
    }
    let (id, cx) = (id(&call)?, call.cx.clone());
    let port = call
        .write(&app.cell, move |tx| {
            let mut server = Server::clone(&*changeable(tx, &cx, id)?);
            life::allowed(&server, "attach_interface", &["active", "stopped", "paused"])?;
            if let Some(port) = wanted.port_id {
                let port = plug_port(tx, &cx, &server, port).map_err(|e| as_missing(e, "Port"))?;
                put(tx, server)?;
                return Ok(port);
            }
            let network = match wanted.net_id {
                Some(id) => network::resource::get::<Network>(tx, &cx, id)?.id,
                None => network::network::automatic(tx, cx.project())?
                    .ok_or_else(|| Error::invalid("No free network was found for the interface."))?,
            };
            let fixed = wanted.fixed_ips.as_ref().and_then(|f| f.first()).map(|f| f.ip_address);
            let port = plug_network(tx, &mut server, network, fixed, None)?;
            put(tx, server)?;
            Ok(port)
        })
        .await?;
    Ok(Reply::ok(&json!({"interfaceAttachment": shown(&call, &port)})))
}

/// A port that is not there is 404 here, and 400 in the body of a create.
fn as_missing(error: Error, what: &str) -> Error {
    match error.kind() == base::Kind::Invalid && error.message().starts_with(what) {
        true => Error::not_found(error.message()),
        false => error,
    }
}

pub async fn detach(app: App, call: Call) -> Result<Reply> {
    let (id, cx, wanted, absent) = (
        id(&call)?,
        call.cx.clone(),
        call.param("port_id").to_string(),
        missing(&call).message().to_string(),
    );
    call.write(&app.cell, move |tx| {
        let mut server = Server::clone(&*changeable(tx, &cx, id)?);
        life::allowed(&server, "detach_interface", &["active", "stopped", "paused"])?;
        let ports = port::of_device(tx, &server.id.to_string(), server.project);
        let port = ports
            .iter()
            .find(|p| p.id.to_string() == wanted)
            .ok_or_else(|| Error::not_found(absent.clone()))?;
        match server.own_ports.remove(&port.id) {
            true => port::delete(tx, port.id)?,
            false => drop(port::unbind(tx, port.id)?),
        }
        put(tx, server).map(drop)
    })
    .await?;
    Ok(Reply::accepted_empty())
}
