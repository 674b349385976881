//! Access rules: service, method and path that an application credential is for.
//!
//! They are kept and listed; requests are not yet matched against them, so a credential with rules is refused at login.

use crate::app_credential::AppCredential;
use crate::wire::{self, Map, many, missing};
use crate::{App, aim};
use api::{Call, Reply, Route};
use base::{Error, Id, IdKind, Result, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccessRule {
    pub id: Id<AccessRule>,
    pub user: UserId,
    pub service: String,
    pub method: String,
    pub path: String,
}

pub const BY_USER: Index<AccessRule> = Index::many("user", |r, keys| keys.push(r.user.key()));

impl IdKind for AccessRule {
    const HEX: bool = true;
}

impl Record for AccessRule {
    const KIND: &'static str = "access_rule";
    type Key = Id<AccessRule>;
    const INDEXES: &'static [Index<AccessRule>] = &[BY_USER];

    fn key(&self) -> Id<AccessRule> {
        self.id
    }
}

/// The rule that a body names by its id or by what it says; made when there is none yet.
pub(crate) fn found_or_made(tx: &mut Tx, user: UserId, asked: &Map) -> Result<Id<AccessRule>> {
    let text = |key: &str| asked.get(key).and_then(Value::as_str);
    if let Some(id) = text("id") {
        return Ok(get(tx, user, id)?.id);
    }
    let (Some(service), Some(method), Some(path)) = (text("service"), text("method"), text("path")) else {
        return Err(Error::invalid("An access rule has service, method and path."));
    };
    let same = |r: &&Arc<AccessRule>| r.service == service && r.method == method && r.path == path;
    if let Some(rule) = tx.by(&BY_USER, user).find(same) {
        return Ok(rule.id);
    }
    let id = tx.new_id();
    tx.put(AccessRule { id, user, service: service.into(), method: method.into(), path: path.into() })?;
    Ok(id)
}

fn get<'a>(state: &'a State, user: UserId, id: &str) -> Result<&'a Arc<AccessRule>> {
    let found = id.parse().ok().and_then(|id| state.get::<AccessRule>(&id)).filter(|r| r.user == user);
    found.ok_or_else(|| missing("access rule", id.escape_default()))
}

pub fn view(rule: &AccessRule) -> Map {
    wire::map(&json!({"id": rule.id, "service": rule.service, "method": rule.method, "path": rule.path}))
}

pub fn routes() -> Vec<Route<App>> {
    const ONE: &str = "/v3/users/{user_id}/access_rules/{rule_id}";
    vec![
        api::get("/v3/users/{user_id}/access_rules", "identity:list_access_rules", list).target(aim::path),
        api::get(ONE, "identity:get_access_rule", show).target(aim::path),
        api::delete(ONE, "identity:delete_access_rule", remove).target(aim::path),
    ]
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let user: UserId = call.id("user_id", "User")?;
    let rules = state.by(&BY_USER, user).map(|r| view(r));
    many(&call, "access_rules", "access_rules", &["service", "method", "path"], rules)
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let rule = get(&state, call.id("user_id", "User")?, call.param("rule_id"))?;
    Ok(Reply::ok(&wire::one(&call, "access_rule", "access_rules", view(rule))))
}

/// Errors: `Forbidden` while an application credential names it.
async fn remove(app: App, call: Call) -> Result<Reply> {
    let user: UserId = call.id("user_id", "User")?;
    let id = call.param("rule_id").to_string();
    call.write(&app.cell, move |tx| {
        let id = get(tx, user, &id)?.id;
        let uses = |a: &Arc<AppCredential>| a.access_rules.as_ref().is_some_and(|rules| rules.contains(&id));
        if tx.by(&crate::app_credential::BY_USER, user).any(uses) {
            return Err(Error::forbidden("The access rule is in use by an application credential."));
        }
        tx.delete::<AccessRule>(&id);
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}

pub(crate) fn forget_user(tx: &mut Tx, user: UserId) {
    let rules: Vec<_> = tx.by(&BY_USER, user).map(|r| r.id).collect();
    rules.iter().for_each(|r| drop(tx.delete::<AccessRule>(r)));
}
