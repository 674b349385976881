//! From the first start to the last: the binary as a child process on simulated nodes.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use support::{Cloud, finish, refusal, run, shisa};

/// A state directory that does not exist yet.
fn state() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("cloud");
    (dir, state)
}

#[test]
fn the_first_start_gives_all_that_a_cloud_has() {
    let (_dir, state) = state();
    let cloud = Cloud::up_with(&state, &["--machine", "simulated", "--nodes", "3"]);
    for secret in ["clouds.yaml", "cell.key", "state.db"] {
        let mode = state.join(secret).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let token = cloud.token(&state);
    let count = |path: &str, key: &str| {
        let (status, _, answer) = cloud.call("GET", path, &token, Value::Null);
        assert_eq!(status, 200, "{path}: {answer}");
        answer[key].as_array().unwrap().len()
    };
    assert_eq!(count("/identity/v3/roles", "roles"), 5);
    assert_eq!(count("/identity/v3/services", "services"), 5);
    assert_eq!(count("/compute/v2.1/flavors", "flavors"), 7);
    assert_eq!(count("/compute/v2.1/os-hypervisors", "hypervisors"), 3);
    assert_eq!(count("/network/v2.0/networks?router:external=true", "networks"), 1);
    assert_eq!(count("/network/v2.0/subnets?enable_dhcp=false&name=public", "subnets"), 1);
    let status = run(&state, &["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && text.contains("nodes: 3 up (machine simulated)"), "{text}");
    let env = String::from_utf8(run(&state, &["env", "admin"]).stdout).unwrap();
    assert!(env.contains(&format!("export OS_AUTH_URL={}/identity/v3\n", cloud.address)), "{env}");
    assert!(cloud.stop().contains("stopped"));
    assert_eq!(run(&state, &["status"]).status.code(), Some(3));
}

#[test]
fn a_crash_loses_nothing_and_a_restart_makes_nothing_twice() {
    let (_dir, state) = state();
    let cloud = Cloud::up(&state);
    let token = cloud.token(&state);
    let project = json!({"project": {"name": "kept"}});
    assert_eq!(cloud.call("POST", "/identity/v3/projects", &token, project).0, 201);
    let before = cloud.call("GET", "/network/v2.0/networks", &token, Value::Null).2;
    let yaml = std::fs::read_to_string(state.join("clouds.yaml")).unwrap();
    let old = cloud.address.clone();
    cloud.kill();
    let again = Cloud::up(&state);
    // The token of before is still good, and so is the password.
    let kept = again.call("GET", "/identity/v3/projects?name=kept", &token, Value::Null).2;
    assert_eq!(kept["projects"].as_array().map(Vec::len), Some(1), "{kept}");
    assert_eq!(again.call("GET", "/network/v2.0/networks", &again.token(&state), Value::Null).2, before);
    let moved = std::fs::read_to_string(state.join("clouds.yaml")).unwrap();
    assert_eq!(moved, yaml.replace(&old, &again.address));
}

#[test]
fn a_second_start_on_one_state_is_refused_in_a_sentence() {
    let (_dir, state) = state();
    let cloud = Cloud::up(&state);
    let said = refusal(&run(&state, &["up", "--listen", "127.0.0.1:0"]), 1);
    assert!(said.contains("is up already") && said.contains(&cloud.address), "{said}");
    cloud.token(&state);
}

#[test]
fn a_busy_port_is_said_and_nothing_is_made() {
    let (_dir, state) = state();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let said = refusal(&run(&state, &["up", "--machine", "simulated", "--listen", &address]), 1);
    assert!(said.starts_with(&format!("{address} is in use")), "{said}");
    assert!(!state.join("state.db").exists());
    drop(busy);
    Cloud::up(&state);
}

#[test]
fn the_state_of_a_newer_version_is_left_as_it_is() {
    let (_dir, state) = state();
    Cloud::up(&state).stop();
    let path = state.join("cloud.json");
    let newer = std::fs::read_to_string(&path).unwrap().replace("\"format\": 1", "\"format\": 2");
    std::fs::write(&path, &newer).unwrap();
    let records = std::fs::read(state.join("state.db")).unwrap();
    for words in [&["up"][..], &["down", "--wipe"], &["status"]] {
        let said = refusal(&run(&state, words), 1);
        assert!(said.contains("written by a newer version (format 2, this one reads 1)"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    assert_eq!(std::fs::read(state.join("state.db")).unwrap(), records);
}

#[test]
fn slips_of_the_command_line_are_one_sentence_each() {
    let (dir, state) = state();
    let check = |words: &[&str], code: i32, expect: &str| {
        let said = refusal(&run(&state, words), code);
        assert!(said.contains(expect), "{words:?}: {said}");
        assert!(!state.exists(), "{words:?} made something");
    };
    check(&["up", "--nodse", "3"], 2, "unexpected argument '--nodse'");
    check(&["up", "--listen", "here"], 2, "invalid value 'here' for '--listen");
    check(&["up", "--machine", "abacus"], 2, "invalid value 'abacus' for '--machine");
    check(&["up", "--machine", "simulated", "--nodes", "-1"], 2, "unexpected argument '-1'");
    check(&["up", "--machine", "simulated", "--node-url", "a:1"], 2, "--node-listen");
    check(&["node"], 1, "this machine is no node yet");
    check(&["node", "--token", "/no/such"], 1, "/no/such cannot be read");
    check(&["node", "token", "--ttl", "1w"], 2, "invalid value '1w' for '--ttl");
    check(&["node", "token"], 1, "there is no cloud in");
    check(&["node", "list"], 1, "there is no cloud in");
    check(&["node", "drain", "n", "--deadline", "soon"], 2, "invalid value 'soon' for '--deadline");
    check(&["node", "drain", "n", "--reason", "disks"], 2, "--deadline");
    check(&["node", "drain", "n", "--deadline", "1h"], 1, "there is no cloud in");
    check(&["node", "undrain", "n"], 1, "there is no cloud in");
    check(&["up", "--machine", "simulated", "--image", "/no/such"], 1, "/no/such cannot be read");
    check(&["up", "--machine", "simulated", "--policy", "/no/such"], 1, "/no/such cannot be read");
    let webhook = ["up", "--machine", "simulated", "--maintenance-webhook"];
    check(&[&webhook[..], &["ftp://a"]].concat(), 1, "begins with http:// or https://");
    check(
        &[&webhook[..], &["http://a", "--webhook-secret", "/no/such"]].concat(),
        1,
        "/no/such cannot be read",
    );
    check(&["up", "--machine", "simulated", "--webhook-allow", "here"], 2, "'here' for '--webhook-allow");
    check(&["status"], 1, "there is no cloud in");
    check(&["down"], 1, "there is no cloud in");
    check(&["demo"], 1, "there is no cloud in");
    check(&["env"], 1, "there is no cloud in");
    // Without its programs, or without root, a machine is no node.
    let mut bare = shisa();
    bare.args(["up", "--machine", "qemu", "--state"]).arg(&state).env("PATH", dir.path());
    let said = refusal(&finish(&mut bare), 1);
    assert!(said.starts_with("the machine qemu needs "), "{said}");
    assert!(!state.exists());
}

#[test]
fn two_clouds_stand_side_by_side_and_down_ends_one() {
    let (_one, one) = state();
    let (_two, two) = state();
    let (first, second) = (Cloud::up(&one), Cloud::up(&two));
    let token = second.token(&two);
    // The token of one is nothing to the other.
    assert_eq!(first.call("GET", "/identity/v3/projects", &token, Value::Null).0, 401);
    let down = run(&one, &["down"]);
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    assert_eq!(run(&one, &["status"]).status.code(), Some(3));
    assert_eq!(second.call("GET", "/identity/v3/projects", &token, Value::Null).0, 200);
    // Again, after a crash, and with everything.
    second.kill();
    assert!(run(&two, &["down", "--wipe"]).status.success());
    assert!(!two.exists() && one.join("state.db").exists());
}

#[test]
fn a_policy_file_replaces_rules() {
    let (dir, state) = state();
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, "\"identity:list_projects\": \"!\"\n").unwrap();
    let words = ["--machine", "simulated", "--policy", file.to_str().unwrap()];
    let cloud = Cloud::up_with(&state, &words);
    let token = cloud.token(&state);
    assert_eq!(cloud.call("GET", "/identity/v3/projects", &token, Value::Null).0, 403);
    cloud.stop();
    std::fs::write(&file, "\"identity:list_projects\": \"role:admin and (\"\n").unwrap();
    let words = ["up", "--listen", "127.0.0.1:0", "--policy", file.to_str().unwrap()];
    assert!(refusal(&run(&state, &words), 1).contains("identity:list_projects"));
}
