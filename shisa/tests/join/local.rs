//! The process that is the nodes of the planes' machine.

use crate::cloud::{Plane, User, until};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// The process that is the nodes of a cloud's own machine.
fn local(state: &Path) -> i64 {
    let text = std::fs::read_to_string(state.join("local/lock")).unwrap_or_default();
    serde_json::from_str::<Value>(&text).map_or(0, |process| process["pid"].as_i64().unwrap_or(0))
}

fn lives(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn kill(pid: i64, signal: &str) {
    let pid = pid.to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[test]
fn the_nodes_of_the_planes_machine_are_a_process_that_comes_again_and_ends_with_its_keeper() {
    let plane = Plane::new();
    let cloud = plane.up_with("2");
    let user = User::of(&cloud, &plane.state());
    user.nodes_are(&[("node-1", "up"), ("node-2", "up")]);
    let first = user.server_on("node-1");
    user.status_is(&first, Some("ACTIVE"));
    let before = local(&plane.state());
    kill(before, "-KILL");
    until("another process has the nodes", || ![0, before].contains(&local(&plane.state())));
    let second = user.server_on("node-2");
    user.status_is(&second, Some("ACTIVE"));
    assert_eq!(user.status(&first).as_deref(), Some("ACTIVE"));

    // With their keeper they end; one that hangs is ended by whoever comes next.
    let before = local(&plane.state());
    cloud.kill();
    until("the nodes end with their keeper", || !lives(before));
    let cloud = plane.up_with("2");
    let hangs = local(&plane.state());
    kill(hangs, "-STOP");
    cloud.kill();
    let cloud = plane.up_with("2");
    assert!(!lives(hangs) && local(&plane.state()) != hangs);
    let user = User::of(&cloud, &plane.state());
    let third = user.server_on("node-1");
    user.status_is(&third, Some("ACTIVE"));
    let last = local(&plane.state());
    cloud.stop();
    assert!(!lives(last));
}
