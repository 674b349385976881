//! Nodes as processes of their own: those of other machines join by token and certificate, those of the planes' machine are
//! kept beside them; all are brought to another program while servers run.

#![allow(clippy::unwrap_used, reason = "a test")]

mod cloud;
mod local;
mod roll;
#[path = "../support/mod.rs"]
mod support;

use cloud::{Plane, User, until};
use std::os::unix::fs::PermissionsExt;
use support::{Member, refusal, run};

#[test]
fn servers_run_on_nodes_that_join_and_outlive_what_is_lost() {
    let plane = Plane::new();
    let cloud = plane.up();
    plane.new_token(&["--uses", "2"]);
    assert_eq!(plane.token.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let (a, b) = (plane.join("a"), plane.join("b"));
    let user = User::of(&cloud, &plane.state());
    user.nodes_are(&[("a", "up"), ("b", "up")]);
    let (on_a, on_b) = (user.server_on("a"), user.server_on("b"));
    user.status_is(&on_a, Some("ACTIVE"));
    user.status_is(&on_b, Some("ACTIVE"));
    let (status, answer) = user.console(&on_b);
    assert!(status == 200 && answer["output"].as_str().unwrap().contains("on-b"), "{answer}");

    let status = run(&plane.state(), &["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("  alive  a  127.0.0.1  simulated\n"), "{text}");
    assert!(run(&plane.node_state("a"), &["status"]).status.success());

    // A node is lost: it is down, its server stays, and a delete waits for it.
    b.kill();
    user.nodes_are(&[("a", "up"), ("b", "down")]);
    assert_eq!(user.status(&on_b).as_deref(), Some("ACTIVE"));
    // Nothing new comes to it.
    until("b is closed", || {
        let server = user.server_on("b");
        let status = user.status(&server);
        assert_eq!(user.delete(&server), 204);
        status.as_deref() == Some("ERROR")
    });
    assert_eq!(user.console(&on_b).0, 503);
    assert_eq!(user.delete(&on_b), 204);
    assert!(user.status(&on_b).is_some());

    // The plane is lost, and found again; the other node needs neither token nor address.
    cloud.kill();
    let cloud = plane.up();
    let user = User::of(&cloud, &plane.state());
    let more = user.server_on("a");
    user.status_is(&more, Some("ACTIVE"));
    std::fs::remove_file(&plane.token).unwrap();
    let b = Member::start(&plane.node_state("b"), &[]);
    user.nodes_are(&[("a", "up"), ("b", "up")]);
    user.status_is(&on_b, None);
    assert!(b.stop().contains("stopped"));

    // A node without servers is removed as a service of Compute, and then is not one of the cloud.
    assert_eq!(user.remove("a"), 409);
    user.delete_all();
    until("b is removed", || user.remove("b") == 204);
    assert_eq!(user.nodes(), [("a".to_string(), "up".to_string())]);
    assert!(run(&plane.node_state("a"), &["down"]).status.success());
    assert_eq!(run(&plane.node_state("a"), &["status"]).status.code(), Some(3));
    drop(a);
}

#[test]
fn nodes_follow_a_switch_and_do_not_see_a_new_door() {
    let plane = Plane::new();
    let cloud = plane.up();
    plane.new_token(&[]);
    let _a = plane.join("a");
    let user = User::of(&cloud, &plane.state());
    user.nodes_are(&[("a", "up")]);
    let before = user.server_on("a");
    user.status_is(&before, Some("ACTIVE"));
    let binary = ["door", "upgrade", "--binary", env!("CARGO_BIN_EXE_shisa")];
    let steps =
        [&["plane", "add"][..], &["plane", "promote", "green"], &binary, &["plane", "promote", "blue"]];
    for words in steps {
        let output = run(&plane.state(), words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        // Its connection was closed, and it has come to the plane that is active now.
        let server = user.create("nova:a", &words.join("-"));
        user.status_is(&server, Some("ACTIVE"));
        let (status, answer) = user.console(&server);
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(user.status(&before).as_deref(), Some("ACTIVE"));
    user.nodes_are(&[("a", "up")]);
}

#[test]
fn a_machine_that_may_not_join_is_told_why() {
    let plane = Plane::new();
    let cloud = plane.up();
    let refused = |name: &str, expect: &str| {
        let words = [&["node"][..], &plane.first_words(name)].concat();
        let said = refusal(&run(&plane.node_state(name), &words), 1);
        assert!(said.contains(expect), "{said}");
    };
    assert!(refusal(&run(&plane.node_state("x"), &["node"]), 1).contains("--token FILE"));
    assert!(!plane.node_state("x").exists());
    plane.new_token(&[]);
    let a = plane.join("a");
    refused("b", "used up");
    plane.new_token(&["--uses", "9"]);
    let again = [&["node"][..], &plane.first_words("a")].concat();
    let said = refusal(&run(&plane.node_state("other"), &again), 1);
    assert!(said.contains("There is a node a already"), "{said}");
    // Another cloud's token does not even say its secret here.
    let other = Plane::new();
    let _other = other.up();
    other.new_token(&[]);
    let words = [&["node", "--join", &plane.nodes_at][..], &other.first_words("d")].concat();
    let said = refusal(&run(&plane.node_state("d"), &words), 1);
    assert!(said.contains("is not this node's plane"), "{said}");
    let _up = (a, cloud);
}
