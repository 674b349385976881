//! The records of a cloud as a whole: saved while it is up, brought back, copied to another store, looked through.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::{Cloud, refusal, run};

fn projects(cloud: &Cloud, state: &Path) -> Vec<String> {
    let token = cloud.token(state);
    let answer = cloud.call("GET", "/identity/v3/projects", &token, Value::Null).2;
    answer["projects"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap().to_string()).collect()
}

fn make(cloud: &Cloud, state: &Path, name: &str) {
    let body = json!({"project": {"name": name}});
    assert_eq!(cloud.call("POST", "/identity/v3/projects", &cloud.token(state), body).0, 201);
}

fn said(state: &Path, words: &[&str]) -> String {
    let output = run(state, words);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_backup_of_a_cloud_that_is_up_brings_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (dir.path().join("cloud"), dir.path().join("monday.db"));
    let file = file.to_str().unwrap();
    let cloud = Cloud::up(&state);
    make(&cloud, &state, "before");
    assert!(said(&state, &["store", "backup", file]).contains("are equal in both"));
    assert!(refusal(&run(&state, &["store", "backup", file]), 1).contains("is there already"));
    make(&cloud, &state, "after");
    let log = said(&state, &["store", "log", "--last", "2"]);
    assert!(log.contains("POST /v3/projects") && log.contains("project/"), "{log}");
    // What a node said is a step of that node.
    let log = said(&state, &["store", "log", "--last", "500"]);
    assert!(log.contains("  hello  node "), "{log}");
    assert!(said(&state, &["store", "verify"]).contains("records of"));
    let restore = ["store", "restore", file, "--replace"];
    assert!(refusal(&run(&state, &restore), 1).contains("the cloud is up"));
    cloud.stop();
    assert!(refusal(&run(&state, &restore[..3]), 1).contains("has records"));
    said(&state, &restore);
    let cloud = Cloud::up(&state);
    let there = projects(&cloud, &state);
    assert!(there.contains(&"before".into()) && !there.contains(&"after".into()), "{there:?}");
    make(&cloud, &state, "again");
    cloud.stop();
}

#[test]
fn a_cloud_moves_to_another_store_and_stays_there() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("cloud");
    let cloud = Cloud::up(&state);
    make(&cloud, &state, "mine");
    let (from, to) =
        (format!("sqlite:{}/state.db", state.display()), format!("sqlite:{}/other.db", dir.path().display()));
    let copy = ["store", "copy", from.as_str(), to.as_str()];
    assert!(refusal(&run(&state, &copy), 1).contains("is in use by"));
    cloud.stop();
    said(&state, &copy);
    assert!(refusal(&run(&state, &copy), 1).contains("has records"));
    let cloud = Cloud::up_with(&state, &["--machine", "simulated", "--store", &to]);
    assert!(projects(&cloud, &state).contains(&"mine".into()));
    make(&cloud, &state, "there");
    cloud.stop();
    // The store is said once.
    let cloud = Cloud::up(&state);
    assert!(projects(&cloud, &state).contains(&"there".into()));
    cloud.stop();
}
