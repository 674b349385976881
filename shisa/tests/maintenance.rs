//! A node's maintenance as an operator does it, on simulated nodes: from the drain over a switch of planes and a crash to
//! the deadline, and back.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{Cloud, run};

/// What takes a second on an idle machine.
const MAX: Duration = Duration::from_secs(60);
/// Long enough for what is to be seen before the deadline, on a busy machine.
const DEADLINE: &str = "20s";

struct Ground {
    cloud: Cloud,
    state: PathBuf,
    token: String,
    dir: tempfile::TempDir,
}

fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !seen() {
        assert!(begin.elapsed() < MAX, "not in {MAX:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Ground {
    fn up(more: &[&str]) -> Ground {
        let dir = tempfile::tempdir().unwrap();
        let (state, image) = (dir.path().join("cloud"), dir.path().join("disk.raw"));
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let words =
            ["--machine", "simulated", "--nodes", "2", "--planes", "2", "--image", image.to_str().unwrap()];
        let mut cloud = Cloud::up_with(&state, &[&words, more].concat());
        if !cloud.said.iter().any(|line| line.contains(" image ")) {
            cloud.until(" image ");
        }
        let token = cloud.token(&state);
        Ground { cloud, state, token, dir }
    }

    fn well(&self, words: &[&str]) -> String {
        let output = run(&self.state, words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn call(&self, method: &str, path: &str, body: Value, expect: u16) -> Value {
        let headers = [("x-auth-token", self.token.as_str()), ("openstack-api-version", "compute 2.53")];
        let (status, _, answer) = self.cloud.call_with(method, path, &headers, body);
        assert_eq!(status, expect, "{method} {path}: {answer}");
        answer
    }

    fn get(&self, path: &str) -> Value {
        self.call("GET", path, Value::Null, 200)
    }

    fn server(&self, node: &str, name: &str, metadata: Value) -> String {
        let image = self.get("/image/v2/images?name=guest")["images"][0]["id"].clone();
        let flavor = self.get("/compute/v2.1/flavors")["flavors"][0]["id"].clone();
        let server = json!({
            "name": name, "imageRef": image, "flavorRef": flavor, "networks": "none", "metadata": metadata,
            "availability_zone": format!("nova:{node}"),
        });
        let made = self.call("POST", "/compute/v2.1/servers", json!({"server": server}), 202);
        let id = made["server"]["id"].as_str().unwrap().to_string();
        self.is(&id, "ACTIVE");
        id
    }

    fn status(&self, server: &str) -> String {
        let server = self.get(&format!("/compute/v2.1/servers/{server}"));
        server["server"]["status"].as_str().unwrap().into()
    }

    fn is(&self, server: &str, status: &str) {
        until(&format!("{server} is {status}"), || self.status(server) == status);
    }

    fn node(&self) -> String {
        let nodes = self.get("/maintenance/v1/nodes");
        nodes["nodes"][0]["name"].as_str().unwrap().into()
    }

    /// Its running and all servers.
    fn left(&self, node: &str) -> (u64, u64) {
        let node = self.get(&format!("/maintenance/v1/nodes/{node}"));
        (node["node"]["running"].as_u64().unwrap(), node["node"]["servers"].as_u64().unwrap())
    }
}

#[test]
fn a_drain_outlives_a_switch_of_planes_and_a_crash_and_its_end_starts_what_it_stopped() {
    let ground = Ground::up(&[]);
    let node = ground.node();
    let servers: Vec<String> = (0..3).map(|n| ground.server(&node, &format!("s{n}"), json!({}))).collect();
    let stop = |server: &str| {
        ground.call("POST", &format!("/compute/v2.1/servers/{server}/action"), json!({"os-stop": null}), 202)
    };
    let words = ["node", "drain", &node, "--deadline", DEADLINE, "--reason", "new disks", "--no-wait"];
    let text = ground.well(&words);
    assert!(text.contains("draining, 3 servers left") && text.contains("new disks"), "{text}");
    let services = ground.get("/compute/v2.1/os-services");
    let service =
        services["services"].as_array().unwrap().iter().find(|s| s["host"] == node.as_str()).unwrap();
    assert_eq!(service["status"], "disabled");
    assert!(service["disabled_reason"].as_str().unwrap().ends_with(": new disks"), "{service}");
    let listed = ground.well(&["node", "list"]);
    let line = listed.lines().find(|line| line.starts_with(&node)).unwrap();
    assert!(line.contains("3 servers, 3 run, takes no new ones; draining, 3 servers left"), "{line}");
    assert!(ground.well(&["status"]).contains(&format!("{node}: draining, 3 servers left")));
    stop(&servers[0]);
    ground.is(&servers[0], "SHUTOFF");

    // The other plane carries it on; then that one is killed, and the first does.
    ground.well(&["plane", "promote", "green"]);
    assert_eq!(ground.status(&servers[1]), "ACTIVE");
    let planes = ground.well(&["plane", "list"]);
    let green = planes.lines().find(|line| line.starts_with("green")).unwrap();
    let pid = green.split_whitespace().skip_while(|word| *word != "process").nth(1).unwrap();
    assert!(std::process::Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
    // Asked again, it is watched until nothing runs.
    let text = ground.well(&["node", "drain", &node]);
    assert!(
        text.contains("of 3 servers run") && text.contains("runs nothing: 3 servers on it are stopped"),
        "{text}"
    );
    assert_eq!(ground.left(&node), (0, 3));
    servers.iter().for_each(|server| ground.is(server, "SHUTOFF"));
    let start = format!("/compute/v2.1/servers/{}/action", servers[0]);
    ground.call("POST", &start, json!({"os-start": null}), 409);
    assert!(ground.well(&["node", "list"]).contains("; in maintenance since "));

    let text = ground.well(&["node", "undrain", &node]);
    assert!(
        text.contains("completed") && text.contains("started again, as the drain stopped them: 2"),
        "{text}"
    );
    servers[1..].iter().for_each(|server| ground.is(server, "ACTIVE"));
    assert_eq!(ground.status(&servers[0]), "SHUTOFF", "its owner stopped it");
    assert_eq!(ground.left(&node), (2, 3));
    ground.call("POST", &start, json!({"os-start": null}), 202);
    ground.is(&servers[0], "ACTIVE");
    let refused = support::refusal(&run(&ground.state, &["node", "undrain", &node]), 1);
    assert!(refused.contains("is not drained"), "{refused}");
    let refused = support::refusal(&run(&ground.state, &["node", "drain", &node]), 1);
    assert!(refused.contains("--deadline"), "{refused}");
    let Ground { cloud, dir: _dir, .. } = ground;
    cloud.stop();
}
