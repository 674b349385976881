//! A server's metadata and tags.

use super::rest::{bad, id};
use super::{Server, changeable, get, put};
use crate::text::Metadata;
use crate::{App, METADATA_ITEMS};
use api::{Call, Reply};
use base::{Error, Result};
use http::StatusCode;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Tags of one server, characters of one tag. Source: nova's `MAX_TAG_COUNT`, `MAX_TAG_LENGTH`.
const TAGS_MAX: usize = 50;
const TAG_MAX: usize = 60;

/// Changes the metadata; what it is then.
async fn change(
    app: &App,
    call: &Call,
    f: impl Fn(&mut BTreeMap<String, String>) -> Result<()> + Send + 'static,
) -> Result<BTreeMap<String, String>> {
    let (id, cx) = (id(call)?, call.cx.clone());
    call.write(&app.cell, move |tx| {
        let mut server = Server::clone(&*changeable(tx, &cx, id)?);
        f(&mut server.metadata)?;
        if server.metadata.len() as i64 > METADATA_ITEMS.default {
            return Err(Error::forbidden("Maximum number of metadata items exceeds 128"));
        }
        Ok(put(tx, server)?.metadata.clone())
    })
    .await
}

pub async fn list(app: App, call: Call) -> Result<Reply> {
    let server = get(&app.cell.read(), &call.cx, id(&call)?)?;
    Ok(Reply::ok(&json!({"metadata": server.metadata})))
}

pub async fn replace(app: App, call: Call) -> Result<Reply> {
    let new: Metadata = call.json_in("metadata")?;
    let all = change(&app, &call, move |m| {
        *m = new.0.clone();
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&json!({"metadata": all})))
}

pub async fn add(app: App, call: Call) -> Result<Reply> {
    let new: Metadata = call.json_in("metadata")?;
    let all = change(&app, &call, move |m| {
        m.extend(new.0.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&json!({"metadata": all})))
}

fn missing() -> Error {
    Error::not_found("Metadata item was not found")
}

pub async fn show_item(app: App, call: Call) -> Result<Reply> {
    let server = get(&app.cell.read(), &call.cx, id(&call)?)?;
    let key = call.param("key");
    let value = server.metadata.get(key).ok_or_else(missing)?;
    Ok(Reply::ok(&json!({"meta": {key: value}})))
}

pub async fn put_item(app: App, call: Call) -> Result<Reply> {
    let new: Metadata = call.json_in("meta")?;
    if new.0.len() != 1 || !new.0.contains_key(call.param("key")) {
        return Err(Error::invalid("Request body and URI mismatch"));
    }
    let item = new.0.clone();
    change(&app, &call, move |m| {
        m.extend(new.0.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&json!({"meta": item})))
}

pub async fn delete_item(app: App, call: Call) -> Result<Reply> {
    let key = call.param("key").to_string();
    change(&app, &call, move |m| m.remove(&key).map(drop).ok_or_else(missing)).await?;
    Ok(Reply::no_content())
}

/// Changes the tags; what they are then.
async fn retag(
    app: &App,
    call: &Call,
    f: impl Fn(&mut BTreeSet<String>) -> Result<()> + Send + 'static,
) -> Result<BTreeSet<String>> {
    let (id, cx) = (id(call)?, call.cx.clone());
    call.write(&app.cell, move |tx| {
        let mut server = Server::clone(&*changeable(tx, &cx, id)?);
        f(&mut server.tags)?;
        match server.tags.len() <= TAGS_MAX {
            true => Ok(put(tx, server)?.tags.clone()),
            false => {
                Err(Error::invalid(format!("The number of tags exceeded the per-server limit {TAGS_MAX}")))
            }
        }
    })
    .await
}

fn check_tag(tag: &str) -> Result<()> {
    let good = (1..=TAG_MAX).contains(&tag.chars().count()) && !tag.contains(['/', ',']);
    if good { Ok(()) } else { Err(bad("tag", &format!("'{}' is not a tag", tag.escape_default()))) }
}

pub async fn tags(app: App, call: Call) -> Result<Reply> {
    let server = get(&app.cell.read(), &call.cx, id(&call)?)?;
    Ok(Reply::ok(&json!({"tags": server.tags})))
}

pub async fn replace_tags(app: App, call: Call) -> Result<Reply> {
    let wanted: BTreeSet<String> = call.json_in("tags")?;
    wanted.iter().try_for_each(|t| check_tag(t))?;
    let tags = retag(&app, &call, move |tags| {
        *tags = wanted.clone();
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&json!({"tags": tags})))
}

pub async fn clear_tags(app: App, call: Call) -> Result<Reply> {
    retag(&app, &call, |tags| {
        tags.clear();
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}

fn no_tag(call: &Call) -> Error {
    Error::not_found(format!(
        "Server {} has no tag '{}'",
        call.param("id"),
        call.param("tag").escape_default()
    ))
}

pub async fn has_tag(app: App, call: Call) -> Result<Reply> {
    let server = get(&app.cell.read(), &call.cx, id(&call)?)?;
    if server.tags.contains(call.param("tag")) { Ok(Reply::no_content()) } else { Err(no_tag(&call)) }
}

pub async fn add_tag(app: App, call: Call) -> Result<Reply> {
    let tag = call.param("tag").to_string();
    check_tag(&tag)?;
    let had = get(&app.cell.read(), &call.cx, id(&call)?)?.tags.contains(&tag);
    let location = format!("{}{}", call.base, call.path);
    retag(&app, &call, move |tags| {
        tags.insert(tag.clone());
        Ok(())
    })
    .await?;
    let status = if had { StatusCode::NO_CONTENT } else { StatusCode::CREATED };
    Ok(Reply::new(status).header("location", location))
}

pub async fn remove_tag(app: App, call: Call) -> Result<Reply> {
    let (tag, absent) = (call.param("tag").to_string(), no_tag(&call).message().to_string());
    let remove = move |tags: &mut BTreeSet<String>| match tags.remove(&tag) {
        true => Ok(()),
        false => Err(Error::not_found(absent.clone())),
    };
    retag(&app, &call, remove).await?;
    Ok(Reply::no_content())
}
