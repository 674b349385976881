//! Configuration of a domain: options of the groups `identity` and `ldap`, kept and given back.
//!
//! Users are kept here and nowhere else, so no option changes where they come from.

use super::get;
use crate::App;
use crate::wire::{Map, missing};
use api::{Call, Reply, Route};
use base::{DomainId, Error, Result};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainConfig {
    pub domain: DomainId,
    /// Groups of options.
    pub groups: Map,
}

impl Record for DomainConfig {
    const KIND: &'static str = "domain_config";
    type Key = DomainId;

    fn key(&self) -> DomainId {
        self.domain
    }
}

pub fn routes() -> Vec<Route<App>> {
    const LEVELS: [[&str; 2]; 3] = [
        ["/v3/domains/{domain_id}/config", "/v3/domains/config/default"],
        ["/v3/domains/{domain_id}/config/{group}", "/v3/domains/config/{group}/default"],
        ["/v3/domains/{domain_id}/config/{group}/{option}", "/v3/domains/config/{group}/{option}/default"],
    ];
    let mut rows = vec![api::put(LEVELS[0][0], "identity:create_domain_config", put)];
    for [own, default] in LEVELS {
        rows.push(api::get(own, "identity:get_domain_config", show));
        rows.push(api::patch(own, "identity:update_domain_config", change));
        rows.push(api::delete(own, "identity:delete_domain_config", remove));
        rows.push(api::get(default, "identity:get_domain_config_default", show_default));
    }
    rows
}

/// What a domain without options of its own has.
fn defaults() -> Map {
    let ldap = json!({"url": "ldap://localhost", "user": null, "suffix": "cn=example,cn=com",
        "user_tree_dn": null, "group_tree_dn": null, "page_size": 0, "query_scope": "one"});
    let identity = json!({"driver": "sql", "list_limit": null});
    [("identity".to_string(), identity), ("ldap".to_string(), ldap)].into_iter().collect()
}

fn place(call: &Call) -> (Option<String>, Option<String>) {
    let of = |name: &str| call.params.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
    (of("group"), of("option"))
}

/// The part of `groups` that a path names, in its wire shape.
fn part(groups: &Map, call: &Call) -> Result<Value> {
    let lost = |name: &str| {
        Error::not_found(format!(
            "Could not find {} in the configuration of the domain.",
            name.escape_default()
        ))
    };
    let (group, option) = place(call);
    let Some(group) = group else { return Ok(json!({"config": groups})) };
    let options = groups.get(&group).ok_or_else(|| lost(&group))?;
    let Some(option) = option else { return Ok(json!({"config": {group: options}})) };
    let value = options.get(&option).ok_or_else(|| lost(&option))?;
    Ok(json!({"config": {option: value}}))
}

fn config(state: &State, id: DomainId) -> Result<Map> {
    get(state, id)?;
    let found = state.get::<DomainConfig>(&id).map(|c| c.groups.clone());
    found.ok_or_else(|| missing("domain configuration", id))
}

async fn show_default(_: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&part(&defaults(), &call)?))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let groups = config(&app.cell.read(), call.id("domain_id", "Domain")?)?;
    Ok(Reply::ok(&part(&groups, &call)?))
}

/// Errors: `Forbidden` for a group or option that nobody knows.
fn checked(groups: &Map) -> Result<()> {
    let known = defaults();
    let fits = groups.iter().all(|(group, options)| known.contains_key(group) && options.is_object());
    match fits && !groups.is_empty() {
        true => Ok(()),
        false => Err(Error::forbidden("A domain is configured by the groups identity and ldap.")),
    }
}

async fn put(app: App, call: Call) -> Result<Reply> {
    let id: DomainId = call.id("domain_id", "Domain")?;
    let groups: Map = call.json_in("config")?;
    checked(&groups)?;
    let made = call.write(&app.cell, move |tx| {
        get(tx, id)?;
        let status = if tx.get::<DomainConfig>(&id).is_some() { StatusCode::OK } else { StatusCode::CREATED };
        tx.put(DomainConfig { domain: id, groups: groups.clone() })?;
        Ok((status, groups.clone()))
    });
    let (status, groups) = made.await?;
    Ok(Reply::json(status, &json!({"config": groups})))
}

/// A patch names its place twice: in the path and in the body.
fn laid_over(groups: &mut Map, patch: Map, place: (Option<String>, Option<String>)) -> Result<()> {
    let patch = match place {
        (Some(group), Some(option)) => {
            let value = patch.get(&option).ok_or_else(|| Error::invalid("The body must name the option."))?;
            Map::from_iter([(group, json!({option: value}))])
        }
        (Some(group), None) if !patch.contains_key(&group) => {
            return Err(Error::invalid("The body must name the group."));
        }
        (_, _) => patch,
    };
    checked(&patch)?;
    for (group, options) in patch {
        let entry = groups.entry(group).or_insert_with(|| json!({}));
        if let (Value::Object(now), Value::Object(new)) = (entry, options) {
            now.extend(new);
        }
    }
    Ok(())
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let id: DomainId = call.id("domain_id", "Domain")?;
    let (patch, place): (Map, _) = (call.json_in("config")?, place(&call));
    let groups = call.write(&app.cell, move |tx| {
        let mut groups = config(tx, id)?;
        laid_over(&mut groups, patch.clone(), place.clone())?;
        tx.put(DomainConfig { domain: id, groups: groups.clone() })?;
        Ok(groups)
    });
    Ok(Reply::ok(&json!({"config": groups.await?})))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let id: DomainId = call.id("domain_id", "Domain")?;
    part(&config(&app.cell.read(), id)?, &call)?;
    let place = place(&call);
    call.write(&app.cell, move |tx| cut(tx, id, &place)).await?;
    Ok(Reply::no_content())
}

fn cut(tx: &mut Tx, id: DomainId, place: &(Option<String>, Option<String>)) -> Result<()> {
    let mut groups = config(tx, id)?;
    match place {
        (Some(group), Some(option)) => {
            if let Some(Value::Object(options)) = groups.get_mut(group) {
                options.remove(option);
            }
        }
        (Some(group), None) => drop(groups.remove(group)),
        (None, _) => groups.clear(),
    }
    match groups.is_empty() {
        true => drop(tx.delete::<DomainConfig>(&id)),
        false => drop(tx.put(DomainConfig { domain: id, groups })?),
    }
    Ok(())
}
