//! Security groups in Nova's old shapes, until 2.35: a view of the network service.

use crate::App;
use api::{Call, Reply};
use base::node::Direction;
use base::{Error, Id, Result};
use network::resource::{self, Resource, Wanted};
use network::security_group::{self, BY_GROUP, Remote, SecurityGroup, SecurityGroupRule};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use store::State;

pub fn group_view(state: &State, group: &SecurityGroup) -> Value {
    let inward = |r: &&Arc<SecurityGroupRule>| r.direction == Direction::Ingress;
    let rules: Vec<_> = state.by(&BY_GROUP, group.id).filter(inward).map(|r| rule_view(state, r)).collect();
    json!({
        "id": group.id, "name": group.meta.name, "description": group.meta.description,
        "tenant_id": group.meta.project, "rules": rules,
    })
}

fn rule_view(state: &State, rule: &SecurityGroupRule) -> Value {
    let name = |id: &Id<SecurityGroup>| {
        state
            .get::<SecurityGroup>(id)
            .map_or_else(|| json!({}), |g| json!({"name": g.meta.name, "tenant_id": g.meta.project}))
    };
    let (range, group) = match &rule.remote {
        Remote::Any => (json!({"cidr": if rule.v6 { "::/0" } else { "0.0.0.0/0" }}), json!({})),
        Remote::Cidr(net) => (json!({"cidr": net}), json!({})),
        Remote::Group(id) => (json!({}), name(id)),
        // Nova had no word for it.
        Remote::Addresses(_) => (json!({}), json!({})),
    };
    // A rule without ports is shown with all of them where its protocol has ports.
    let all = rule.protocol.is_some().then_some((-1, -1));
    let (from, to) = match (rule.min, rule.max) {
        (Some(min), max) => (json!(min), max.map_or(json!(-1), |m| json!(m))),
        (None, _) => all.map_or((Value::Null, Value::Null), |(a, b)| (json!(a), json!(b))),
    };
    json!({
        "id": rule.id, "parent_group_id": rule.group, "ip_protocol": rule.protocol, "from_port": from, "to_port": to,
        "ip_range": range, "group": group,
    })
}

fn id(call: &Call) -> Result<Id<SecurityGroup>> {
    call.id("id", "Security group")
}

pub async fn list(app: App, call: Call) -> Result<Reply> {
    let project = call.cx.project();
    if security_group::find_default(&app.cell.read(), project).is_none() {
        call.write(&app.cell, move |tx| security_group::default(tx, project)).await?;
    }
    let state = app.cell.read();
    let everyone = call.cx.everywhere && call.query.flag("all_tenants")?.unwrap_or(false);
    let seen = state.all::<SecurityGroup>().filter(|g| everyone || g.meta.project == project);
    let views: Vec<_> = seen.map(|g| group_view(&state, g)).collect();
    Ok(Reply::ok(&json!({"security_groups": views})))
}

pub async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let group = resource::get::<SecurityGroup>(&state, &call.cx, id(&call)?)?;
    Ok(Reply::ok(&json!({"security_group": group_view(&state, &group)})))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    description: String,
}

pub async fn create(app: App, call: Call) -> Result<Reply> {
    let group: Group = call.json_in("security_group")?;
    let cx = call.cx.clone();
    let view = call
        .write(&app.cell, move |tx| {
            let body = Wanted::parse(json!({"name": group.name, "description": group.description}))?;
            let group = SecurityGroup::create(tx, &cx, cx.project(), &body)?;
            Ok(group_view(tx, &group))
        })
        .await?;
    Ok(Reply::ok(&json!({"security_group": view})))
}

pub async fn update(app: App, call: Call) -> Result<Reply> {
    let group: Group = call.json_in("security_group")?;
    let (id, cx) = (id(&call)?, call.cx.clone());
    let view = call
        .write(&app.cell, move |tx| {
            let old = resource::own::<SecurityGroup>(tx, &cx, id)?;
            let body = Wanted::parse(json!({"name": group.name, "description": group.description}))?;
            let group =
                SecurityGroup::update(tx, &cx, &old, &body).map_err(|e| Error::invalid(e.message()))?;
            Ok(group_view(tx, &group))
        })
        .await?;
    Ok(Reply::ok(&json!({"security_group": view})))
}

pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (id(&call)?, call.cx.clone());
    call.write(&app.cell, move |tx| {
        let old = resource::own::<SecurityGroup>(tx, &cx, id)?;
        SecurityGroup::delete(tx, &cx, &old).map_err(|e| Error::invalid(e.message()))
    })
    .await?;
    Ok(Reply::accepted_empty())
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRule {
    parent_group_id: Id<SecurityGroup>,
    ip_protocol: Option<Value>,
    from_port: Option<Value>,
    to_port: Option<Value>,
    cidr: Option<String>,
    group_id: Option<Id<SecurityGroup>>,
}

pub async fn create_rule(app: App, call: Call) -> Result<Reply> {
    let new: NewRule = call.json_in("security_group_rule")?;
    let number = |name: &str, value: &Option<Value>| -> Result<Option<i64>> {
        let Some(value) = value.as_ref().filter(|v| !v.is_null()) else { return Ok(None) };
        let number = value.as_i64().or_else(|| value.as_str()?.parse().ok());
        let bad = || Error::invalid(format!("Invalid input for field/attribute {name}. Value: {value}."));
        number.map(Some).ok_or_else(bad)
    };
    let (from, to) = (number("from_port", &new.from_port)?, number("to_port", &new.to_port)?);
    let cidr = new
        .cidr
        .clone()
        .filter(|c| !c.is_empty())
        .or_else(|| new.group_id.is_none().then(|| "0.0.0.0/0".into()));
    let v6 = cidr.as_deref().is_some_and(|c| c.contains(':'));
    let mut body = json!({
        "security_group_id": new.parent_group_id, "direction": "ingress", "ethertype": if v6 { "IPv6" } else { "IPv4" },
        "protocol": new.ip_protocol, "remote_ip_prefix": cidr, "remote_group_id": new.group_id,
    });
    if let (Some(from), Some(to)) = (from.filter(|n| *n >= 0), to.filter(|n| *n >= 0)) {
        body["port_range_min"] = json!(from);
        body["port_range_max"] = json!(to);
    }
    let cx = call.cx.clone();
    let view = call
        .write(&app.cell, move |tx| {
            let body = Wanted::parse(body.clone())?;
            let rule =
                SecurityGroupRule::create(tx, &cx, cx.project(), &body).map_err(|e| match e.kind() {
                    base::Kind::Conflict => Error::invalid(e.message()),
                    _ => e,
                })?;
            Ok(rule_view(tx, &rule))
        })
        .await?;
    Ok(Reply::ok(&json!({"security_group_rule": view})))
}

pub async fn delete_rule(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (call.id::<SecurityGroupRule>("id", "Security group rule")?, call.cx.clone());
    call.write(&app.cell, move |tx| {
        let old = resource::own::<SecurityGroupRule>(tx, &cx, id)?;
        SecurityGroupRule::delete(tx, &cx, &old)
    })
    .await?;
    Ok(Reply::accepted_empty())
}
