//! `shisa status`: what a cloud is now, asked through its own API; or whether a node of a cloud elsewhere is up.

use crate::http::text;
use crate::image;
use crate::maintenance;
use crate::progress::say;
use crate::state::{Directory, Membership};
use base::{Kind, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

/// Nodes that are named; those that are down come first.
const NODES_SHOWN: usize = 50;

/// A cloud that is not up, as service managers expect it.
const NOT_UP: u8 = 3;

pub async fn run(directory: &Directory) -> Result<ExitCode> {
    if let Some(node) = directory.membership()? {
        return Ok(of_node(directory, &node));
    }
    let ids = directory.need_ids()?;
    let Some(running) = directory.running() else {
        say(format_args!("not up; its state is in {}", directory.path().display()));
        return Ok(ExitCode::from(NOT_UP));
    };
    say(format_args!("up: {} (process {})", running.address, running.process.pid));
    let admin = image::admin(directory).await?;
    let nodes = admin.get("/compute/v2.1/os-hypervisors/detail").await?;
    let up = count(&nodes["hypervisors"], "state");
    say(format_args!("nodes: {} (machine {})", told(&up), format!("{:?}", ids.machine).to_lowercase()));
    lines(&nodes["hypervisors"]).iter().for_each(say);
    match admin.get("/fleet/v1/programs").await {
        Ok(programs) => run_by(&programs["programs"]).iter().for_each(say),
        // A plane of a version before does not know.
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    match admin.get("/maintenance/v1/nodes").await {
        Ok(nodes) => drained(&nodes["nodes"]).iter().for_each(say),
        // A plane of a version before does not know it.
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    let agents = admin.get("/network/v2.0/agents?fields=host&fields=configurations").await?;
    slow(&agents["agents"]).iter().for_each(say);
    let servers = admin.get("/compute/v2.1/servers/detail?all_tenants=1").await?;
    say(format_args!("servers: {}", told(&count(&servers["servers"], "status"))));
    Ok(ExitCode::SUCCESS)
}

fn of_node(directory: &Directory, node: &Membership) -> ExitCode {
    let what = format!("node {} of https://{}", node.name, node.plane);
    match directory.running() {
        Some(running) => {
            say(format_args!("up: {what} (process {})", running.process.pid));
            ExitCode::SUCCESS
        }
        None => {
            say(format_args!("not up: {what}"));
            ExitCode::from(NOT_UP)
        }
    }
}

/// Each node: alive or down, name, address, machine.
fn lines(nodes: &Value) -> Vec<String> {
    let mut nodes: Vec<&Value> = nodes.as_array().into_iter().flatten().collect();
    nodes.sort_by_key(|node| (node["state"] != "down", text(&node["hypervisor_hostname"])));
    let one = |node: &&Value| {
        let state = if node["state"] == "up" { "alive" } else { "down" };
        let machine = text(&node["hypervisor_type"]).to_lowercase();
        format!("  {state:<5}  {}  {}  {machine}", text(&node["hypervisor_hostname"]), text(&node["host_ip"]))
    };
    let mut lines: Vec<String> = nodes.iter().take(NODES_SHOWN).map(one).collect();
    if nodes.len() > NODES_SHOWN {
        lines.push(format!("  and {} more", nodes.len() - NODES_SHOWN));
    }
    lines
}

/// Each program, how many nodes run it, and which, where not all run the same.
fn run_by(programs: &Value) -> Vec<String> {
    let programs: Vec<&Value> = programs.as_array().into_iter().flatten().collect();
    let one = |program: &&Value| {
        let names: Vec<String> = program["nodes"].as_array().into_iter().flatten().map(text).collect();
        let count = program["count"].as_u64().unwrap_or(0);
        let shown = program["program"].as_str().unwrap_or("a version that does not say");
        let nodes = if count == 1 { "node" } else { "nodes" };
        let which = match (programs.len(), count as usize - names.len()) {
            (1, _) => String::new(),
            (_, 0) => format!(": {}", names.join(", ")),
            (_, more) => format!(": {} and {more} more", names.join(", ")),
        };
        format!("  runs   {shown}: {count} {nodes}{which}")
    };
    programs.iter().map(one).collect()
}

/// Nodes that are drained, or worked on.
fn drained(nodes: &Value) -> Vec<String> {
    let nodes = nodes.as_array().into_iter().flatten();
    let lines = nodes.filter_map(|node| {
        maintenance::about(&node["maintenance"]).map(|what| format!("  {}: {what}", text(&node["name"])))
    });
    lines.take(NODES_SHOWN).collect()
}

/// Nodes whose kernel's calls cost many times what they cost on the others.
fn slow(agents: &Value) -> BTreeSet<String> {
    let agents = agents.as_array().into_iter().flatten();
    let lines = agents.flat_map(|agent| {
        let words = agent["configurations"]["kernel_slow"].as_array().into_iter().flatten();
        words.map(|what| format!("  slow   {}: {}", text(&agent["host"]), text(what)))
    });
    lines.take(NODES_SHOWN).collect()
}

/// How many there are of each word in a field.
fn count(list: &Value, field: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in list.as_array().into_iter().flatten() {
        *counts.entry(text(&one[field])).or_default() += 1;
    }
    counts
}

fn told(counts: &BTreeMap<String, usize>) -> String {
    let words: Vec<_> = counts.iter().map(|(word, n)| format!("{n} {word}")).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_slow_kernel_is_said_once() {
        let agent = |slow: Value| json!({"host": "b", "configurations": {"kernel_slow": slow}});
        let agents = json!([agent(json!(["links cost 9 times"])), agent(json!(["links cost 9 times"])), agent(json!([])),
            {"host": "c", "configurations": {}}]);
        assert_eq!(slow(&agents).into_iter().collect::<Vec<_>>(), ["  slow   b: links cost 9 times"]);
    }

    #[test]
    fn nodes_are_named_where_they_run_different_programs() {
        let of = |program: Value, count: u64, nodes: &[&str]| json!({"program": program, "count": count, "nodes": nodes});
        let same = json!([of(json!("1 (ab)"), 2, &["a", "b"])]);
        assert_eq!(run_by(&same), ["  runs   1 (ab): 2 nodes"]);
        let some = json!([of(Value::Null, 1, &["c"]), of(json!("1 (ab)"), 9, &["a", "b"])]);
        assert_eq!(
            run_by(&some),
            ["  runs   a version that does not say: 1 node: c", "  runs   1 (ab): 9 nodes: a, b and 7 more"]
        );
    }

    #[test]
    fn those_that_are_down_come_first_and_many_are_counted() {
        let node = |name: &str, state: &str| json!({"hypervisor_hostname": name, "state": state, "host_ip": "10.0.0.1", "hypervisor_type": "QEMU"});
        let few = json!([node("b", "up"), node("a", "up"), node("c", "down")]);
        assert_eq!(
            lines(&few),
            ["  down   c  10.0.0.1  qemu", "  alive  a  10.0.0.1  qemu", "  alive  b  10.0.0.1  qemu"]
        );
        let many: Vec<Value> = (0..60).map(|n| node(&format!("n{n}"), "up")).collect();
        assert_eq!(lines(&json!(many)).last().unwrap(), "  and 10 more");
    }
}
