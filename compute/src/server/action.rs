//! POST /servers/{id}/action, and what hangs on a server: addresses, groups, password.

use super::rest::{find_group, id, plug_network};
use super::{Server, changeable, get, life, put, view};
use crate::App;
use crate::maintenance::may_start;
use api::{Call, Reply, v};
use base::node::Power;
use base::{Context, Error, Result};
use network::floating_ip::FloatingIp;
use network::port::{self, Port};
use network::resource::{self, Resource, Wanted};
use network::security_group::SecurityGroup;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use store::Tx;

/// Changes a server that may be changed; 202.
pub(super) async fn change(
    app: &App,
    call: &Call,
    f: impl Fn(&mut Tx, &Context, &mut Server) -> Result<()> + Send + 'static,
) -> Result<Reply> {
    let (id, cx) = (id(call)?, call.cx.clone());
    call.write(&app.cell, move |tx| {
        let mut server = Server::clone(&*changeable(tx, &cx, id)?);
        f(tx, &cx, &mut server)?;
        put(tx, server).map(drop)
    })
    .await?;
    Ok(Reply::accepted_empty())
}

/// Changes a server whatever its state.
async fn set(app: &App, call: &Call, f: impl Fn(&Tx, &mut Server) + Send + 'static) -> Result<()> {
    let (id, cx) = (id(call)?, call.cx.clone());
    call.write(&app.cell, move |tx| {
        let mut server = Server::clone(&*get(tx, &cx, id)?);
        f(tx, &mut server);
        put(tx, server).map(drop)
    })
    .await
}

/// The argument of an action that takes none is null or empty.
fn no_argument(call: &Call, action: &str) -> Result<()> {
    match call.json_in::<Value>(action)? {
        Value::Null => Ok(()),
        Value::Object(map) if map.is_empty() => Ok(()),
        Value::String(s) if s.is_empty() => Ok(()),
        other => Err(super::rest::bad(action, &format!("{other} is not of type 'null'"))),
    }
}

pub async fn start(app: App, call: Call) -> Result<Reply> {
    no_argument(&call, "os-start")?;
    change(&app, &call, |tx, _, server| {
        life::allowed(server, "start", &["stopped"])?;
        may_start(tx, server)?;
        server.start();
        Ok(())
    })
    .await
}

pub async fn stop(app: App, call: Call) -> Result<Reply> {
    no_argument(&call, "os-stop")?;
    change(&app, &call, |_, _, server| {
        life::allowed(server, "stop", &["active", "error"])?;
        server.stop();
        Ok(())
    })
    .await
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reboot {
    #[serde(rename = "type")]
    kind: RebootKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
enum RebootKind {
    #[serde(rename = "SOFT", alias = "soft", alias = "Soft")]
    Soft,
    #[serde(rename = "HARD", alias = "hard", alias = "Hard")]
    Hard,
}

pub async fn reboot(app: App, call: Call) -> Result<Reply> {
    let reboot: Reboot = call.json_in("reboot")?;
    change(&app, &call, move |tx, _, server| {
        may_start(tx, server)?;
        let hard = reboot.kind == RebootKind::Hard;
        let states: &[&str] = if hard { &["active", "stopped", "paused", "error"] } else { &["active"] };
        // A hard reboot cuts a soft one short.
        if !(hard && life::status_of(server).task == Some("rebooting")) {
            life::allowed(server, "reboot", states)?;
        }
        server.desired = Power::On;
        server.reboots += 1;
        server.reboot_hard = hard;
        Ok(())
    })
    .await
}

#[derive(Clone, Debug, Deserialize)]
struct GroupName {
    name: String,
}

pub async fn add_group(app: App, call: Call) -> Result<Reply> {
    let group: GroupName = call.json_in("addSecurityGroup")?;
    groups(&app, &call, group.name, true).await
}

pub async fn remove_group(app: App, call: Call) -> Result<Reply> {
    let group: GroupName = call.json_in("removeSecurityGroup")?;
    groups(&app, &call, group.name, false).await
}

async fn groups(app: &App, call: &Call, name: String, add: bool) -> Result<Reply> {
    change(app, call, move |tx, cx, server| {
        let group = find_group(tx, cx, &name).map_err(|e| Error::not_found(e.message()))?;
        let ports = port::of_device(tx, &server.id.to_string(), server.project);
        if !add && !ports.iter().any(|p| p.groups.contains(&group)) {
            let why = format!("Security group {group} not associated with the instance {}", server.id);
            return Err(Error::not_found(why));
        }
        for port in ports.iter().filter(|p| p.port_security) {
            port::change(tx, port.id, |p| {
                if add {
                    p.groups.insert(group)
                } else {
                    p.groups.remove(&group)
                };
            })?;
        }
        Ok(())
    })
    .await
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddFixedIp {
    #[serde(rename = "networkId")]
    network: String,
}

/// addFixedIp: another address on the port of that network, or a port on it.
pub async fn add_fixed_ip(app: App, call: Call) -> Result<Reply> {
    let wanted: AddFixedIp = call.json_in("addFixedIp")?;
    let network = wanted.network.parse().map_err(|_| Error::invalid("networkId is not an id."))?;
    change(&app, &call, move |tx, cx, server| {
        resource::get::<network::network::Network>(tx, cx, network)?;
        let ports = port::of_device(tx, &server.id.to_string(), server.project);
        match ports.iter().find(|p| p.network == network) {
            Some(port) => port::add_address(tx, port.id).map(drop),
            None => plug_network(tx, server, network, None, None).map(drop),
        }
    })
    .await
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    address: IpAddr,
    #[serde(default)]
    fixed_address: Option<IpAddr>,
}

pub async fn remove_fixed_ip(app: App, call: Call) -> Result<Reply> {
    let wanted: Address = call.json_in("removeFixedIp")?;
    change(&app, &call, move |tx, _, server| {
        let has = |p: &&Arc<Port>| p.fixed.iter().any(|f| f.address == wanted.address);
        let ports = port::of_device(tx, &server.id.to_string(), server.project);
        let missing =
            || Error::invalid(format!("Fixed IP {} not found on instance {}.", wanted.address, server.id));
        let port = ports.iter().find(has).ok_or_else(missing)?;
        port::remove_address(tx, port.id, wanted.address).map(drop)
    })
    .await
}

/// addFloatingIp, until 2.43
pub async fn add_floating_ip(app: App, call: Call) -> Result<Reply> {
    let wanted: Address = call.json_in("addFloatingIp")?;
    change(&app, &call, move |tx, cx, server| {
        let floating = find_floating(tx, cx, wanted.address)?;
        let fits =
            |f: &port::Fixed| f.address.is_ipv4() && wanted.fixed_address.is_none_or(|a| a == f.address);
        let ports = port::of_device(tx, &server.id.to_string(), server.project);
        let port = ports.iter().find(|p| p.fixed.iter().any(fits));
        let port = port.ok_or_else(|| Error::invalid("No fixed IPs associated to instance"))?;
        let body = json!({"port_id": port.id, "fixed_ip_address": wanted.fixed_address});
        let body = Wanted::parse(body)?;
        FloatingIp::update(tx, cx, &floating, &body).map(drop)
    })
    .await
}

/// removeFloatingIp, until 2.43
pub async fn remove_floating_ip(app: App, call: Call) -> Result<Reply> {
    let wanted: Address = call.json_in("removeFloatingIp")?;
    change(&app, &call, move |tx, cx, server| {
        let floating = find_floating(tx, cx, wanted.address)?;
        let ports = port::of_device(tx, &server.id.to_string(), server.project);
        if !floating.association.as_ref().is_some_and(|a| ports.iter().any(|p| p.id == a.port)) {
            let why =
                format!("Floating IP {} is not associated with instance {}.", wanted.address, server.id);
            return Err(Error::conflict(why));
        }
        tx.update::<FloatingIp>(&floating.id, |f| f.association = None)?;
        Ok(())
    })
    .await
}

fn find_floating(tx: &Tx, cx: &Context, address: IpAddr) -> Result<Arc<FloatingIp>> {
    let found = tx.all::<FloatingIp>().find(|f| f.address == address && cx.sees(f.meta.project)).cloned();
    found.ok_or_else(|| Error::not_found(format!("floating IP {address} not found")))
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleOutput {
    #[serde(default)]
    length: Option<Value>,
}

pub async fn console_output(app: App, call: Call) -> Result<Reply> {
    let wanted: Option<ConsoleOutput> = call.json_in("os-getConsoleOutput")?;
    let lines = match wanted.unwrap_or_default().length {
        None | Some(Value::Null) => None,
        Some(value) => {
            let number = value.as_i64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
            let number = number.filter(|n| *n >= -1);
            let number = number.ok_or_else(|| super::rest::bad("length", "It is a number from -1 on."))?;
            usize::try_from(number).ok()
        }
    };
    let server = get(&app.cell.read(), &call.cx, id(&call)?)?;
    let not_ready = || Error::conflict(format!("Instance {} is not ready", server.id));
    let host = server.host.as_ref().filter(|_| server.observed.is_some()).ok_or_else(not_ready)?;
    let output = (app.console)(host, server.id.uuid(), lines).await?;
    Ok(Reply::ok(&json!({"output": output})))
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    locked_reason: Option<String>,
}

pub async fn lock(app: App, call: Call) -> Result<Reply> {
    let lock = call.json_in::<Option<Lock>>("lock")?.unwrap_or_default();
    if lock.locked_reason.is_some() && call.version < v(2, 73) {
        return Err(Error::invalid("Additional properties are not allowed ('locked_reason' was unexpected)"));
    }
    set(&app, &call, move |_, server| {
        server.locked = true;
        server.locked_reason = lock.locked_reason.clone();
    })
    .await?;
    Ok(Reply::accepted_empty())
}

pub async fn unlock(app: App, call: Call) -> Result<Reply> {
    set(&app, &call, |_, server| {
        server.locked = false;
        server.locked_reason = None;
    })
    .await?;
    Ok(Reply::accepted_empty())
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    state: ResetTo,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ResetTo {
    Active,
    Error,
}

/// os-resetState: an operator forgets or sets an error.
pub async fn reset_state(app: App, call: Call) -> Result<Reply> {
    let reset: Reset = call.json_in("os-resetState")?;
    set(&app, &call, move |tx, server| {
        let message = "An operator set the state to error.".into();
        let fault = super::Fault { code: 500, message, created: tx.now() };
        server.fault = (reset.state == ResetTo::Error).then_some(fault);
    })
    .await?;
    Ok(Reply::accepted_empty())
}

/// GET /servers/{id}/ips
pub async fn addresses(app: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"addresses": plain_addresses(&app, &call)?})))
}

/// GET /servers/{id}/ips/{network}
pub async fn addresses_of(app: App, call: Call) -> Result<Reply> {
    let (all, name) = (plain_addresses(&app, &call)?, call.param("network"));
    let list =
        all.get(name).ok_or_else(|| Error::not_found("Instance is not a member of specified network"))?;
    Ok(Reply::ok(&json!({name: list})))
}

/// Address and version only.
fn plain_addresses(app: &App, call: &Call) -> Result<serde_json::Map<String, Value>> {
    let state = app.cell.read();
    let server = get(&state, &call.cx, id(call)?)?;
    let all = view::addresses(&state, &view::ports(&state, &server));
    let plain = |list: &Vec<view::Address>| {
        list.iter().map(|one| json!({"addr": one.addr, "version": one.version})).collect()
    };
    Ok(all.iter().map(|(name, list)| (name.to_string(), plain(list))).collect())
}

/// GET /servers/{id}/os-security-groups
pub async fn security_groups(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let server = get(&state, &call.cx, id(&call)?)?;
    let mut ids: Vec<_> = view::ports(&state, &server).iter().flat_map(|p| p.groups.clone()).collect();
    ids.sort();
    ids.dedup();
    let groups = ids.iter().filter_map(|g| state.get::<SecurityGroup>(g));
    let views: Vec<Value> = groups.map(|g| crate::proxy::group_view(&state, g)).collect();
    Ok(Reply::ok(&json!({"security_groups": views})))
}

/// GET /servers/{id}/os-server-password
pub async fn password(app: App, call: Call) -> Result<Reply> {
    let server = get(&app.cell.read(), &call.cx, id(&call)?)?;
    Ok(Reply::ok(&json!({"password": server.password})))
}

/// DELETE /servers/{id}/os-server-password
pub async fn clear_password(app: App, call: Call) -> Result<Reply> {
    set(&app, &call, |_, server| server.password = String::new()).await?;
    Ok(Reply::no_content())
}
