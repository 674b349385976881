//! Tags of any resource: `/v2.0/{resource}/{id}/tags`.

use crate::App;
use crate::attr::Meta;
use crate::resource::{self, Resource};
use api::{Call, Reply};
use base::{Context, Error, Id, Result};
use serde_json::json;
use std::collections::BTreeSet;
use store::{State, Tx};

/// Tags of one resource, characters of one tag. Source: neutron-lib `MAX_TAG_LEN`.
const TAGS_MAX: usize = 50;
const TAG_MAX: usize = 255;

/// A resource whose tags can be written.
pub trait Tagged: Resource {
    fn meta_mut(&mut self) -> &mut Meta;
}

macro_rules! tagged {
    ($($t:ty),*) => { $(impl Tagged for $t { fn meta_mut(&mut self) -> &mut Meta { &mut self.meta } })* };
}

tagged!(
    crate::network::Network,
    crate::subnet::Subnet,
    crate::subnet_pool::SubnetPool,
    crate::port::Port,
    crate::router::Router,
    crate::floating_ip::FloatingIp,
    crate::security_group::SecurityGroup,
    crate::address_group::AddressGroup
);

fn id<R: Resource>(call: &Call) -> Result<Id<R>> {
    call.param("id").parse().map_err(|_| resource::not_found::<R>(call.param("id")))
}

fn tags<R: Tagged>(state: &State, cx: &Context, id: Id<R>) -> Result<BTreeSet<String>> {
    Ok(resource::get::<R>(state, cx, id)?.meta().tags.clone())
}

async fn change<R: Tagged>(
    app: &App,
    call: &Call,
    f: impl Fn(&mut BTreeSet<String>) -> Result<()> + Send + 'static,
) -> Result<BTreeSet<String>> {
    let (id, cx) = (id::<R>(call)?, call.cx.clone());
    call.write(&app.cell, move |tx: &mut Tx| {
        let mut found = R::clone(&*resource::own::<R>(tx, &cx, id)?);
        f(&mut found.meta_mut().tags)?;
        let mut meta = found.meta().clone();
        meta.touch(tx);
        *found.meta_mut() = meta;
        match found.meta().tags.len() <= TAGS_MAX {
            true => Ok(tx.put(found)?.meta().tags.clone()),
            false => Err(Error::invalid(format!("A resource has at most {TAGS_MAX} tags."))),
        }
    })
    .await
}

fn check(tag: &str) -> Result<()> {
    let good = !tag.is_empty() && tag.chars().count() <= TAG_MAX && !tag.contains(['/', ',']);
    if good { Ok(()) } else { Err(Error::invalid(format!("'{}' is not a tag.", tag.escape_default()))) }
}

pub async fn list<R: Tagged>(app: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"tags": tags::<R>(&app.cell.read(), &call.cx, id(&call)?)?})))
}

pub async fn show<R: Tagged>(app: App, call: Call) -> Result<Reply> {
    let has = tags::<R>(&app.cell.read(), &call.cx, id(&call)?)?.contains(call.param("tag"));
    if has { Ok(Reply::no_content()) } else { Err(missing(&call)) }
}

fn missing(call: &Call) -> Error {
    Error::not_found(format!("Tag {} could not be found.", call.param("tag").escape_default()))
        .named("TagNotFound")
}

pub async fn replace<R: Tagged>(app: App, call: Call) -> Result<Reply> {
    let wanted: BTreeSet<String> = call.json_in("tags")?;
    wanted.iter().try_for_each(|t| check(t))?;
    let tags = change::<R>(&app, &call, move |tags| {
        *tags = wanted.clone();
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&json!({"tags": tags})))
}

/// POST: adds those that are not there.
pub async fn create<R: Tagged>(app: App, call: Call) -> Result<Reply> {
    let wanted: BTreeSet<String> = call.json_in("tags")?;
    wanted.iter().try_for_each(|t| check(t))?;
    let answer = Reply::created(&json!({"tags": wanted}));
    change::<R>(&app, &call, move |tags| {
        tags.extend(wanted.iter().cloned());
        Ok(())
    })
    .await?;
    Ok(answer)
}

pub async fn add<R: Tagged>(app: App, call: Call) -> Result<Reply> {
    let tag = call.param("tag").to_string();
    check(&tag)?;
    change::<R>(&app, &call, move |tags| {
        tags.insert(tag.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::new(http::StatusCode::CREATED))
}

pub async fn remove<R: Tagged>(app: App, call: Call) -> Result<Reply> {
    let (tag, error) = (call.param("tag").to_string(), missing(&call).message().to_string());
    change::<R>(&app, &call, move |tags| match tags.remove(&tag) {
        true => Ok(()),
        false => Err(Error::not_found(error.clone()).named("TagNotFound")),
    })
    .await?;
    Ok(Reply::no_content())
}

pub async fn clear<R: Tagged>(app: App, call: Call) -> Result<Reply> {
    change::<R>(&app, &call, |tags| {
        tags.clear();
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}
