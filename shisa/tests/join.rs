//! Nodes on other machines: processes of their own that join a plane by token and certificate.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{Cloud, Member, refusal, run};

/// A node that is silent counts as down after 25 s; this is for a busy machine.
const DOWN_MAX: Duration = Duration::from_secs(60);

/// A plane without nodes of its own; its directory and its nodes'.
struct Plane {
    dir: tempfile::TempDir,
    nodes_at: String,
    token: PathBuf,
}

impl Plane {
    fn new() -> Plane {
        let dir = tempfile::tempdir().unwrap();
        // A restarted plane listens where it did. Nobody else gets the port so soon.
        let nodes_at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        std::fs::write(dir.path().join("disk.raw"), vec![0; 1 << 20]).unwrap();
        let token = dir.path().join("token");
        Plane { dir, nodes_at, token }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("plane")
    }

    fn node_state(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn up(&self) -> Cloud {
        self.up_with("0")
    }

    /// With nodes of its own machine, too.
    fn up_with(&self, nodes: &str) -> Cloud {
        let image = self.dir.path().join("disk.raw");
        let words = ["--machine", "simulated", "--nodes", nodes, "--node-listen", &self.nodes_at];
        Cloud::up_with(&self.state(), &[&words[..], &["--image", image.to_str().unwrap()]].concat())
    }

    fn new_token(&self, words: &[&str]) {
        let out = ["node", "token", "--out", self.token.to_str().unwrap()];
        let output = run(&self.state(), &[&out[..], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn first_words<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        vec!["--token", self.token.to_str().unwrap(), "--machine", "simulated", "--name", name]
    }

    /// Joins, and then is a node.
    fn join(&self, name: &str) -> Member {
        Member::start(&self.node_state(name), &self.first_words(name))
    }
}

/// A user of the plane's APIs.
struct User<'a> {
    cloud: &'a Cloud,
    token: String,
}

impl User<'_> {
    fn of<'a>(cloud: &'a Cloud, state: &Path) -> User<'a> {
        User { cloud, token: cloud.token(state) }
    }

    fn get(&self, path: &str) -> Value {
        let (status, _, answer) = self.cloud.call("GET", path, &self.token, Value::Null);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Each node with its state.
    fn nodes(&self) -> Vec<(String, String)> {
        let answer = self.get("/compute/v2.1/os-hypervisors");
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let list = answer["hypervisors"].as_array().unwrap().iter();
        let mut nodes: Vec<_> = list.map(|h| (text(&h["hypervisor_hostname"]), text(&h["state"]))).collect();
        nodes.sort();
        nodes
    }

    fn nodes_are(&self, expect: &[(&str, &str)]) {
        let expect: Vec<_> = expect.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        until(&format!("nodes are {expect:?}"), || self.nodes() == expect);
    }

    fn server_on(&self, node: &str) -> String {
        self.create(&format!("nova:{node}"), &format!("on-{node}"))
    }

    fn create(&self, zone: &str, name: &str) -> String {
        let image = self.get("/image/v2/images?name=guest")["images"][0]["id"].clone();
        let server = json!({
            "name": name, "imageRef": image, "flavorRef": self.flavor(), "networks": "none",
            "availability_zone": zone,
        });
        let (status, answer) = self.newer("POST", "/compute/v2.1/servers", json!({"server": server}));
        assert_eq!(status, 202, "{answer}");
        answer["server"]["id"].as_str().unwrap().to_string()
    }

    fn flavor(&self) -> Value {
        self.get("/compute/v2.1/flavors")["flavors"][0]["id"].clone()
    }

    /// At a microversion that has what we ask.
    fn newer(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let headers = [("x-auth-token", self.token.as_str()), ("openstack-api-version", "compute 2.53")];
        let (status, _, answer) = self.cloud.call_with(method, path, &headers, body);
        (status, answer)
    }

    fn status(&self, server: &str) -> Option<String> {
        let path = format!("/compute/v2.1/servers/{server}");
        let (_, _, answer) = self.cloud.call("GET", &path, &self.token, Value::Null);
        answer["server"]["status"].as_str().map(String::from)
    }

    fn status_is(&self, server: &str, expect: Option<&str>) {
        until(&format!("{server} is {expect:?}"), || self.status(server).as_deref() == expect);
    }

    fn delete(&self, server: &str) -> u16 {
        self.newer("DELETE", &format!("/compute/v2.1/servers/{server}"), Value::Null).0
    }

    fn delete_all(&self) {
        for server in self.get("/compute/v2.1/servers")["servers"].as_array().unwrap() {
            assert_eq!(self.delete(server["id"].as_str().unwrap()), 204);
        }
    }

    /// Takes a node out of the cloud; the answer's status.
    fn remove(&self, node: &str) -> u16 {
        let (_, services) = self.newer("GET", &format!("/compute/v2.1/os-services?host={node}"), Value::Null);
        let id = services["services"][0]["id"].as_str().unwrap();
        self.newer("DELETE", &format!("/compute/v2.1/os-services/{id}"), Value::Null).0
    }

    fn console(&self, server: &str) -> (u16, Value) {
        let path = format!("/compute/v2.1/servers/{server}/action");
        self.newer("POST", &path, json!({"os-getConsoleOutput": {}}))
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DOWN_MAX, "it never came that {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

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
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
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
