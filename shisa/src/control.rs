//! `shisa plane ...`: asked of the process that is up, over a socket in the state directory that only its user opens.

use crate::cli::Planes as Words;
use crate::doors::{Doors, Seen};
use crate::planes::{COLOURS, Listed, Planes, State, Switch};
use crate::progress::say;
use crate::rollout::Rollouts;
use crate::state::Directory;
use api::{Faults, Reply, listen};
use base::{Error, Result};
use fleet::door::ask;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixListener;

const BODY_MAX: usize = 64 << 10;
/// A plane that is added may load for long.
const ANSWER_MAX: Duration = Duration::from_secs(180);

#[derive(Serialize, Deserialize)]
struct New {
    binary: PathBuf,
}

/// Serves until it is dropped.
pub async fn serve(listener: UnixListener, planes: Planes, rollouts: Rollouts, doors: Doors) {
    let answer = move |request, _| {
        let (planes, rollouts, doors) = (planes.clone(), rollouts.clone(), doors.clone());
        async move {
            // Whoever asks may go away; what was begun is finished.
            let task = tokio::spawn(async move { answer(&planes, &rollouts, &doors, request).await });
            let reply = task.await.unwrap_or_else(|e| Err(Error::internal("it broke off").because(e)));
            reply.unwrap_or_else(|error| Faults::Identity.reply(&error, "")).into_response()
        }
    };
    listen(listener, answer, std::future::pending()).await;
}

async fn answer(
    planes: &Planes,
    rollouts: &Rollouts,
    doors: &Doors,
    request: Request<Incoming>,
) -> Result<Reply> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await;
    let body = body.map_err(|e| Error::invalid("the body cannot be read").because(e))?.to_bytes();
    let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    match (&head.method, path.as_slice()) {
        (&Method::GET, ["planes"]) => {
            let (listed, told) = (planes.list().await, planes.door().figures().tell());
            Ok(Reply::ok(&json!({"planes": listed, "door": told, "doors": doors.list()})))
        }
        (&Method::POST, ["planes"]) => {
            let _turn = rollouts.turn()?;
            let new: New = api::call::parse(&body)?;
            let used: Vec<String> = planes.list().await.into_iter().map(|p| p.name).collect();
            let free = COLOURS.iter().find(|colour| !used.iter().any(|name| name == *colour));
            let full = || Error::conflict("there are two planes already: drain the one that is not active");
            let name = free.ok_or_else(full)?;
            let word = planes.add(name, &new.binary).await?;
            planes.stand_by(name).await?;
            Ok(Reply::ok(&word))
        }
        (&Method::POST, ["door"]) => {
            let _turn = rollouts.turn()?;
            let new: New = api::call::parse(&body)?;
            Ok(Reply::ok(&doors.upgrade(&new.binary).await?))
        }
        (&Method::POST, ["planes", name, "promote"]) => {
            let _turn = rollouts.turn()?;
            Ok(Reply::ok(&planes.promote(name).await?))
        }
        (&Method::DELETE, ["planes", name]) => {
            let _turn = rollouts.turn()?;
            planes.remove(name).await?;
            Ok(Reply::no_content())
        }
        (&Method::POST, ["rollouts"]) => Ok(Reply::ok(&rollouts.start(api::call::parse(&body)?)?)),
        (&Method::GET, ["rollouts", "last"]) => {
            let none = || Error::not_found("there was no rollout");
            Ok(Reply::ok(&rollouts.last().ok_or_else(none)?))
        }
        (&Method::POST, ["rollouts", "last", "rollback"]) => Ok(Reply::ok(&rollouts.rollback().await?)),
        (&Method::POST, ["rollouts", "last", "finalise"]) => Ok(Reply::ok(&rollouts.finalise(doors).await?)),
        _ => Err(Error::not_found("there is no such control")),
    }
}

/// The command, of whoever types it.
pub async fn run(directory: &Directory, words: &Words) -> Result<()> {
    directory.need_running()?;
    let told = |method, path: String, body: Value| async move {
        ask(&directory.control(), method, &path, &body, ANSWER_MAX).await
    };
    match words {
        Words::List => {
            let answer = told(Method::GET, "/planes".into(), Value::Null).await?;
            let planes: Vec<Listed> = read(answer["planes"].clone())?;
            planes.iter().for_each(|plane| say(line(plane)));
            let doors: Vec<Seen> = read(answer["doors"].clone())?;
            for door in &doors {
                let state = if door.draining { "draining" } else { "serving" };
                let (pid, version, binary) = (door.pid, &door.version, door.binary.display());
                say(format_args!("door   {state:<8} process {pid:<8} version {version}  {binary}"));
            }
            let door = &answer["door"];
            say(format_args!(
                "door: {} requests, {} failed, {} sent again, mutations held {} times, at most {} ms",
                door["requests"], door["failed"], door["again"], door["held"], door["held_max_ms"]
            ));
        }
        Words::Add(add) => {
            let binary = add.binary.clone().map_or_else(std::env::current_exe, std::fs::canonicalize)?;
            let word: crate::plane::Word =
                read(told(Method::POST, "/planes".into(), json!({"binary": binary})).await?)?;
            say(format_args!("{} follows at revision {} and stands by", word.name, word.revision));
        }
        Words::Promote(named) => {
            let path = format!("/planes/{}/promote", named.name);
            let switch: Switch = read(told(Method::POST, path, Value::Null).await?)?;
            say(format_args!(
                "{} is active under epoch {} from revision {}; mutations were held {:.1} ms",
                switch.to, switch.epoch, switch.revision, switch.held_ms
            ));
        }
        Words::Drain(named) => {
            told(Method::DELETE, format!("/planes/{}", named.name), Value::Null).await?;
            say(format_args!("{} has ended", named.name));
        }
        // Carried out elsewhere.
        Words::Run(_) | Words::Rollback | Words::Finalise => {}
    }
    Ok(())
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| Error::internal("the answer is none").because(e))
}

fn line(plane: &Listed) -> String {
    let state = match plane.state {
        State::Boot => "boot",
        State::Follow => "follow",
        State::Standby => "standby",
        State::Active => "active",
    };
    let told = plane.word.as_ref().map_or("does not answer".into(), |word| {
        let mib = word.rss_bytes >> 20;
        let store = if plane.without_store { ", its store does not answer" } else { "" };
        let (epoch, revision, version) = (word.epoch, word.revision, &word.version);
        format!("epoch {epoch}, revision {revision}, version {version}, {mib} MiB{store}")
    });
    let pid = plane.pid.map_or("-".into(), |pid| pid.to_string());
    format!("{:<6} {state:<8} process {pid:<8} {told}  {}", plane.name, plane.binary.display())
}
