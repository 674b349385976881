//! What the keeper of planes asks of a plane and tells it, over a socket that only its user opens.

use super::services::Services;
use super::{again, broken, programs};
use crate::first;
use api::{Faults, Query, Reply, listen};
use base::{Error, Result, Secret};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use store::{Cause, Form, Role};
use tokio::net::UnixListener;

/// A form of digests that both planes of a rollout may know.
pub const SORTED: &str = "sorted";
/// The question whether the store answers.
pub const STORED: &str = "/stored";
/// A store that takes longer counts as away.
const STORED_MAX: Duration = Duration::from_millis(500);
const BODY_MAX: usize = 64 << 10;
/// A question that waits is answered after this anyway.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// What a plane says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Word {
    pub name: String,
    pub version: String,
    /// It owns the cell.
    pub owner: bool,
    /// Of the newest entry that it has, or that it owns the cell under.
    pub epoch: u64,
    pub revision: u64,
    pub rss_bytes: u64,
    /// CPU time so far.
    pub cpu_ms: u64,
    /// The first start was.
    pub first_done: bool,
    /// IPv4 ranges of external networks.
    pub ranges: Vec<Ipv4Net>,
}

/// What a new cloud is to have.
#[derive(Serialize, Deserialize)]
pub struct First {
    pub password_hash: String,
    pub range: Ipv4Net,
}

#[derive(Deserialize)]
struct StandBy {
    yes: bool,
}

#[derive(Deserialize)]
struct Died {
    epoch: u64,
}

pub async fn serve(listener: UnixListener, services: Arc<Services>, name: &str) {
    let name: Arc<str> = name.into();
    let answer = move |request, _| {
        let (services, name) = (services.clone(), name.clone());
        async move {
            let reply = answer(&services, &name, request).await;
            reply.unwrap_or_else(|error| Faults::Identity.reply(&error, "")).into_response()
        }
    };
    listen(listener, answer, std::future::pending()).await;
}

async fn answer(services: &Services, name: &str, request: Request<Incoming>) -> Result<Reply> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await;
    let body = body.map_err(|e| Error::invalid("the body cannot be read").because(e))?.to_bytes();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let cell = &services.cell;
    match (&head.method, head.uri.path()) {
        (&Method::GET, "/word") => {}
        (&Method::GET, STORED) => {
            let late = |e| Error::unavailable("The store does not answer.").because(e);
            tokio::time::timeout(STORED_MAX, cell.current()).await.map_err(late)??;
        }
        (&Method::GET, "/owner") => {
            let owned = |role: &Role| matches!(role, Role::Owner(_));
            let _ = tokio::time::timeout(WAIT_MAX, cell.role().wait_for(owned)).await;
        }
        (&Method::POST, "/stand-by") => cell.stand_by(api::call::parse::<StandBy>(&body)?.yes),
        (&Method::POST, "/died") => cell.died(api::call::parse::<Died>(&body)?.epoch),
        (&Method::POST, "/release") => {
            broken::release()?;
            cell.release().await?;
        }
        (&Method::POST, "/first") => {
            let first: First = api::call::parse(&body)?;
            first::start(cell, Secret::new(first.password_hash), first.range).await?;
        }
        (&Method::POST, "/finalise") => {
            let raised = cell.write(Cause::step("finalise"), store::format::finalise).await?;
            return Ok(Reply::ok(&json!({"before": raised.0, "format": raised.1})));
        }
        (&Method::POST, "/again") => {
            cell.current().await?;
            return Ok(Reply::ok(&again::answer(services, &api::call::parse(&body)?).await?));
        }
        (&Method::GET, "/far") => {
            let after = query.get("after").unwrap_or_default();
            return Ok(Reply::ok(&programs::page(services, after)));
        }
        (&Method::POST, "/far/look") => {
            return Ok(Reply::ok(&programs::look(services, &api::call::parse(&body)?)));
        }
        (&Method::POST, "/far/orders") => programs::order(services, api::call::parse(&body)?).await?,
        (&Method::GET, "/digests") => {
            cell.current().await?;
            let newest = cell.read().revision();
            let revision = query.get("revision").and_then(|text| text.parse().ok()).unwrap_or(newest);
            let cell = cell.clone();
            let form = if query.get("form") == Some(SORTED) { Form::Sorted } else { Form::Written };
            let digests = tokio::task::spawn_blocking(move || cell.digests(revision, form)).await;
            let mut digests = digests.map_err(|e| Error::internal("a digest was cut off").because(e))??;
            broken::digests(&mut digests);
            let form = (form == Form::Sorted).then_some(SORTED);
            return Ok(Reply::ok(&json!({"revision": revision, "kinds": digests, "form": form})));
        }
        _ => return Err(Error::not_found("a plane has no such control")),
    }
    Ok(Reply::ok(&word(services, name)))
}

fn word(services: &Services, name: &str) -> Word {
    let state = services.cell.read();
    let epoch = match *services.cell.role().borrow() {
        Role::Owner(epoch) => Some(epoch),
        Role::Follower | Role::Ended => None,
    };
    let (rss_bytes, cpu_ms) = used();
    Word {
        name: name.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        owner: epoch.is_some(),
        epoch: epoch.unwrap_or(state.epoch()),
        revision: state.revision(),
        rss_bytes,
        cpu_ms,
        first_done: first::done(&state),
        ranges: first::ranges(&state),
    }
}

/// Resident bytes and CPU time of this process; zero where the kernel does not say.
fn used() -> (u64, u64) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let number =
        |text: &str, n: usize| text.split(' ').nth(n).and_then(|f| f.trim().parse::<u64>().ok()).unwrap_or(0);
    let pages = number(&read("/proc/self/statm"), 1);
    let stat = read("/proc/self/stat");
    // Behind the name, which may hold anything: user and system ticks are fields 14 and 15.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = number(rest, 11) + number(rest, 12);
    (pages * rustix::param::page_size() as u64, ticks * 1000 / rustix::param::clock_ticks_per_second())
}
