//! `/v3/credentials`, and the same for EC2 under `/v3/users/{user_id}/credentials/OS-EC2`.
//!
//! What is minted under a trust or an application credential never reaches further than it: neither may make or change
//! credentials. Owner, project and type are fixed at creation. Source: OSSA-2020-004, OSSA-2026-005.

use super::{BY_USER, Credential, create, delete, get};
use crate::wire::{self, Map, body, fixed, many, take};
use crate::{App, aim, assignment, token};
use api::{Call, Reply, Route, Target};
use base::{Error, ProjectId, Result, Secret, UserId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write;

pub fn routes() -> Vec<Route<App>> {
    const ONE: &str = "/v3/credentials/{credential_id}";
    const ALL_EC2: &str = "/v3/users/{user_id}/credentials/OS-EC2";
    const ONE_EC2: &str = "/v3/users/{user_id}/credentials/OS-EC2/{access}";
    vec![
        api::get("/v3/credentials", "identity:list_credentials", list).target(own),
        api::post("/v3/credentials", "identity:create_credential", post).target(aim::new_credential),
        api::get(ONE, "identity:get_credential", show).target(aim::path),
        api::patch(ONE, "identity:update_credential", change).target(aim::path),
        api::delete(ONE, "identity:delete_credential", remove).target(aim::path),
        api::get(ALL_EC2, "identity:ec2_list_credentials", list_ec2),
        api::post(ALL_EC2, "identity:ec2_create_credential", post_ec2).target(of_user),
        api::get(ONE_EC2, "identity:ec2_get_credential", show_ec2).target(of_user),
        api::delete(ONE_EC2, "identity:ec2_delete_credential", remove_ec2).target(of_user),
    ]
}

/// A list may be asked for by everybody; what it shows is what each one may see.
fn own(_: &App, call: &Call, target: &mut Target) {
    target.insert("target.credential.user_id".into(), call.cx.user().to_string());
}

fn of_user(_: &App, call: &Call, target: &mut Target) {
    target.insert("target.credential.user_id".into(), call.param("user_id").to_string());
}

/// Errors: `Forbidden` to who acts for another.
fn not_delegated(call: &Call) -> Result<()> {
    match call.cx.who.delegated {
        true => Err(Error::forbidden("A delegated token may not make or change credentials.")),
        false => Ok(()),
    }
}

fn view(credential: &Credential) -> Map {
    wire::map(&json!({
        "id": credential.id,
        "user_id": credential.user,
        "project_id": credential.project,
        "type": credential.kind,
        "blob": credential.blob.expose(),
    }))
}

fn owned_by(credential: &Credential) -> Target {
    Target::from([("target.credential.user_id".to_string(), credential.user.to_string())])
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let seen = state.all::<Credential>().filter(|c| call.may("identity:get_credential", &owned_by(c)));
    many(&call, "credentials", "credentials", &["user_id", "type"], seen.map(|c| view(c)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The id of an EC2 key; others get a fresh one.
fn id_of(kind: &str, blob: &str) -> Result<String> {
    if kind != "ec2" {
        return Ok(fresh());
    }
    let blob: Value = serde_json::from_str(blob).map_err(|_| Error::invalid("Invalid blob in credential"))?;
    let access = blob.get("access").and_then(Value::as_str);
    access.map(|a| hex(&Sha256::digest(a))).ok_or_else(|| Error::invalid("Invalid blob in credential"))
}

fn fresh() -> String {
    token::new_audit().to_string()
}

async fn post(app: App, call: Call) -> Result<Reply> {
    not_delegated(&call)?;
    let mut body = body(&call, "credential")?;
    let lacks = |name| move || Error::invalid(format!("'{name}' is a required property"));
    let user: UserId = take(&mut body, "user_id")?.unwrap_or(call.cx.user());
    let project: Option<ProjectId> = take(&mut body, "project_id")?;
    let kind: String = take(&mut body, "type")?.ok_or_else(lacks("type"))?;
    let blob = text(body.remove("blob").ok_or_else(lacks("blob"))?);
    if kind == "ec2" && project.is_none() {
        return Err(Error::invalid("project_id is required for an ec2 credential."));
    }
    let new = Credential { id: id_of(&kind, &blob)?, user, project, kind, blob: Secret::new(blob) };
    let cx = call.cx.clone();
    let made = call.write(&app.cell, move |tx| create(tx, &cx, new.clone())).await?;
    Ok(Reply::created(&wire::one(&call, "credential", "credentials", view(&made))))
}

/// A blob may come as text or as an object.
fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let credential = get(&state, call.param("credential_id"))?;
    Ok(Reply::ok(&wire::one(&call, "credential", "credentials", view(credential))))
}

/// Only the blob changes; of an EC2 key not its access key's delegation.
async fn change(app: App, call: Call) -> Result<Reply> {
    not_delegated(&call)?;
    let id = call.param("credential_id").to_string();
    let patch = body(&call, "credential")?;
    let made = call.write(&app.cell, move |tx| {
        let mut credential = Credential::clone(get(tx, &id)?);
        let (mut patch, now) = (patch.clone(), view(&credential));
        ["id", "user_id", "project_id", "type"]
            .iter()
            .try_for_each(|key| fixed(&mut patch, key, &now[*key]))?;
        if let Some(blob) = patch.remove("blob") {
            credential.blob = Secret::new(text(blob));
        }
        Ok(tx.put(credential)?)
    });
    Ok(Reply::ok(&wire::one(&call, "credential", "credentials", view(&*made.await?))))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    not_delegated(&call)?;
    let (id, cx) = (call.param("credential_id").to_string(), call.cx.clone());
    call.write(&app.cell, move |tx| delete(tx, &cx, &id)).await?;
    Ok(Reply::no_content())
}

/// An EC2 key in the shape of its own API.
fn ec2_view(call: &Call, credential: &Credential) -> Value {
    let blob: Value = serde_json::from_str(credential.blob.expose()).unwrap_or_default();
    let here = format!("{}/v3/users/{}/credentials/OS-EC2", call.base, credential.user);
    json!({
        "user_id": credential.user,
        "tenant_id": credential.project,
        "access": blob["access"],
        "secret": blob["secret"],
        "trust_id": null,
        "links": {"self": format!("{here}/{}", blob["access"].as_str().unwrap_or_default())},
    })
}

async fn list_ec2(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let user: UserId = call.id("user_id", "User")?;
    let keys = state.by(&BY_USER, user).filter(|c| c.kind == "ec2");
    let keys: Vec<Value> = keys.map(|c| ec2_view(&call, c)).collect();
    Ok(Reply::ok(&wire::listed(&call, "credentials", keys)))
}

async fn post_ec2(app: App, call: Call) -> Result<Reply> {
    not_delegated(&call)?;
    let user: UserId = call.id("user_id", "User")?;
    let mut body: Map = call.json()?;
    let project: ProjectId =
        take(&mut body, "tenant_id")?.ok_or_else(|| Error::invalid("'tenant_id' is a required property"))?;
    let (access, secret) = (fresh(), fresh());
    let blob = json!({"access": access, "secret": secret}).to_string();
    let (id, kind) = (id_of("ec2", &blob)?, "ec2".to_string());
    let new = Credential { id, user, project: Some(project), kind, blob: Secret::new(blob) };
    let cx = call.cx.clone();
    let made = call.write(&app.cell, move |tx| {
        if assignment::roles_on_project(tx, user, project).is_empty() {
            return Err(Error::forbidden("The user has no role on this project."));
        }
        create(tx, &cx, new.clone())
    });
    Ok(Reply::created(&json!({"credential": ec2_view(&call, &*made.await?)})))
}

/// The user's key that the path names by its access key.
fn found_ec2(app: &App, call: &Call) -> Result<std::sync::Arc<Credential>> {
    let user: UserId = call.id("user_id", "User")?;
    let access = call.param("access");
    let state = app.cell.read();
    let found = get(&state, &hex(&Sha256::digest(access))).ok().filter(|c| c.user == user).cloned();
    found.ok_or_else(|| wire::missing("credential", access.escape_default()))
}

async fn show_ec2(app: App, call: Call) -> Result<Reply> {
    let found = found_ec2(&app, &call)?;
    Ok(Reply::ok(&json!({"credential": ec2_view(&call, &found)})))
}

async fn remove_ec2(app: App, call: Call) -> Result<Reply> {
    not_delegated(&call)?;
    let (id, cx) = (found_ec2(&app, &call)?.id.clone(), call.cx.clone());
    call.write(&app.cell, move |tx| delete(tx, &cx, &id)).await?;
    Ok(Reply::no_content())
}
