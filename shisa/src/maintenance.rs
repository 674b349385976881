//! `shisa node list`, `drain` and `undrain`: asked of the plane that is up, as the administrator.
//!
//! A drain goes on without whoever asked for it: Ctrl-C ends the watching only, and the same command watches again.

use crate::cli::seconds;
use crate::http::{Client, text};
use crate::image;
use crate::progress::{Progress, say};
use crate::state::Directory;
use base::{Error, Kind, Result, Timestamp};
use clap::Args;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often a drain that is watched is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A cloud that does not answer for this long is not watched any more; a switch of planes takes less.
const AWAY_MAX: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub struct NodeName {
    /// As `shisa node list` says it
    pub name: String,
}

#[derive(Args, Debug)]
pub struct Drain {
    /// As `shisa node list` says it
    pub name: String,
    /// When servers that still run are stopped: after 30s, 10m, 2h, 1d, or at 2026-01-31T22:00Z (without a zone: UTC)
    #[arg(long, value_name = "TIME", value_parser = when)]
    pub deadline: Option<When>,
    /// When it is expected to be over, for the owners
    #[arg(long, value_name = "TIME", value_parser = when, requires = "deadline")]
    pub until: Option<When>,
    /// What the owners are told of it
    #[arg(long, value_name = "TEXT", requires = "deadline")]
    pub reason: Option<String>,
    /// Do not wait until nothing runs on it
    #[arg(long)]
    pub no_wait: bool,
}

/// A time, or how long until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Seconds.
    In(i64),
    At(Timestamp),
}

impl When {
    pub fn after(self, now: Timestamp) -> Timestamp {
        match self {
            When::In(secs) => now.plus_secs(secs),
            When::At(at) => at,
        }
    }
}

/// `30s`, `10m`, `1h`, `2d`, or a time in ISO 8601
fn when(text: &str) -> Result<When, String> {
    let parsed = seconds(text).map(When::In).ok().or_else(|| Timestamp::parse(text).map(When::At));
    parsed.ok_or_else(|| "a number with s, m, h or d behind it, or a time as 2026-01-31T22:00Z".into())
}

/// `shisa node list`
pub async fn list(directory: &Directory) -> Result<()> {
    directory.need_running()?;
    let nodes = image::admin(directory).await?.get("/maintenance/v1/nodes").await?;
    let nodes: Vec<&Value> = nodes["nodes"].as_array().into_iter().flatten().collect();
    if nodes.is_empty() {
        say("there are no nodes");
    }
    let width = nodes.iter().map(|node| text(&node["name"]).len()).max().unwrap_or_default();
    nodes.iter().for_each(|node| say(line(node, width)));
    Ok(())
}

/// One node: name, state, servers, maintenance.
fn line(node: &Value, width: usize) -> String {
    let state = if node["state"] == "up" { "alive" } else { "down" };
    let open = if node["status"] == "enabled" { "" } else { ", takes no new ones" };
    let maintenance = about(&node["maintenance"]).map_or_else(String::new, |what| format!("; {what}"));
    let (name, servers) = (text(&node["name"]), text(&node["servers"]));
    let notices = &node["maintenance"]["notices"];
    let count = |which: &str, what: &str| match notices[which].as_u64().unwrap_or_default() {
        0 => String::new(),
        n => format!("; {n} notices {what}"),
    };
    let maintenance =
        [maintenance, count("waiting", "wait for an answer"), count("untold", "were not taken")].concat();
    format!("{name:width$}  {state:<5}  {servers} servers, {} run{open}{maintenance}", node["running"])
}

/// What a node's maintenance is, in words; nothing where there is none.
pub fn about(maintenance: &Value) -> Option<String> {
    let (deadline, reason) = (text(&maintenance["deadline"]), text(&maintenance["reason"]));
    let left = &maintenance["running"];
    match maintenance["state"].as_str()? {
        "scheduled" => Some(format!("draining, {left} servers left, stopped at {deadline}: {reason}")),
        _ => Some(format!("in maintenance since {deadline}, {left} servers left: {reason}")),
    }
}

/// `shisa node undrain NAME`
pub async fn undrain(directory: &Directory, node: &NodeName) -> Result<()> {
    directory.need_running()?;
    let admin = image::admin(directory).await?;
    let ended = admin.post(&path(&node.name, "undrain"), Value::Null).await?;
    let ended = &ended["maintenance"];
    say(format_args!("{} is drained no more: {}", node.name, text(&ended["state"])));
    if ended["stopped"] != 0 {
        say(format_args!("started again, as the drain stopped them: {}", ended["stopped"]));
    }
    Ok(())
}

/// `shisa node drain NAME`
pub async fn drain(directory: &Directory, args: &Drain, begin: Instant) -> Result<()> {
    directory.need_running()?;
    let admin = image::admin(directory).await?;
    let now = Timestamp::wall();
    let asked = match &args.deadline {
        Some(deadline) => {
            let until = args.until.map(|until| until.after(now).micros_zulu());
            let new = json!({"drain": {
                "deadline": deadline.after(now).micros_zulu(), "until": until, "reason": args.reason,
            }});
            admin.post(&path(&args.name, "drain"), new).await?["maintenance"].clone()
        }
        None => {
            let node = admin.get(&path(&args.name, "")).await?;
            let none = || Error::invalid(format!("{} is not drained: say by --deadline when", args.name));
            Some(node["node"]["maintenance"].clone()).filter(|m| !m.is_null()).ok_or_else(none)?
        }
    };
    let progress = Progress::since(begin);
    progress.step("drain", format_args!("{}: {}", args.name, about(&asked).unwrap_or_default()));
    let differs = |deadline: &When| match deadline {
        When::At(at) => text(&asked["deadline"]) != at.zulu(),
        // Another one began at another time.
        When::In(_) => text(&asked["deadline"]) != deadline.after(now).zulu(),
    };
    if args.deadline.as_ref().is_some_and(differs) {
        let stays =
            "it was drained already, and its deadline stays: `shisa node undrain` first gives it another";
        progress.step("drain", stays);
    }
    if args.no_wait {
        return Ok(());
    }
    watch(directory, admin, &args.name, &text(&asked["id"]), progress).await
}

/// Says what is left until nothing runs.
async fn watch(
    directory: &Directory,
    mut admin: Client,
    name: &str,
    id: &str,
    progress: Progress,
) -> Result<()> {
    let (mut said, mut heard) = (String::new(), Instant::now());
    loop {
        let node = match admin.get(&path(name, "")).await {
            Ok(answer) => {
                heard = Instant::now();
                answer["node"].clone()
            }
            // Tokens end before a long drain does.
            Err(error) if error.kind() == Kind::Unauthorized => {
                admin = image::admin(directory).await?;
                continue;
            }
            Err(error) if error.kind() == Kind::Unavailable && heard.elapsed() < AWAY_MAX => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if node["maintenance"]["id"] != id {
            progress.step("drain", format_args!("{name} is drained no more"));
            return Ok(());
        }
        let (servers, running) = (&node["servers"], &node["running"]);
        if *running == 0 {
            progress.step("drain", format_args!("{name} runs nothing: {servers} servers on it are stopped"));
            return Ok(());
        }
        let now = format!("{running} of {servers} servers run");
        if now != said {
            progress.step("drain", &now);
            said = now;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn path(node: &str, verb: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let encode = |c: char| match plain(c) {
        true => c.to_string(),
        false => c.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect(),
    };
    let node: String = node.chars().map(encode).collect();
    format!("/maintenance/v1/nodes/{node}{}{verb}", if verb.is_empty() { "" } else { "/" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_one_line_with_its_maintenance() {
        let node = |maintenance: Value| {
            json!({"name": "n1", "state": "up", "status": "disabled", "servers": 3, "running": 2,
                "maintenance": maintenance})
        };
        assert_eq!(line(&node(Value::Null), 4), "n1    alive  3 servers, 2 run, takes no new ones");
        let m = |state: &str| json!({"state": state, "running": 2, "deadline": "T", "reason": "disks"});
        assert!(line(&node(m("scheduled")), 2).ends_with("; draining, 2 servers left, stopped at T: disks"));
        assert!(line(&node(m("started")), 2).ends_with("; in maintenance since T, 2 servers left: disks"));
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        assert_eq!(path("a/../b", "drain"), "/maintenance/v1/nodes/a%2F..%2Fb/drain");
        assert_eq!(path("n-1.x", ""), "/maintenance/v1/nodes/n-1.x");
    }
}
