//! A cloud whose nodes are processes of their own, and a user of its APIs.

use crate::support::{Cloud, Member, run};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A node that is silent counts as down after 25 s; this is for a busy machine.
const DOWN_MAX: Duration = Duration::from_secs(60);

/// A plane without nodes of its own; its directory and its nodes'.
pub struct Plane {
    pub dir: tempfile::TempDir,
    pub nodes_at: String,
    pub token: PathBuf,
}

impl Plane {
    pub fn new() -> Plane {
        let dir = tempfile::tempdir().unwrap();
        // A restarted plane listens where it did. Nobody else gets the port so soon.
        let nodes_at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        std::fs::write(dir.path().join("disk.raw"), vec![0; 1 << 20]).unwrap();
        let token = dir.path().join("token");
        Plane { dir, nodes_at, token }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("plane")
    }

    pub fn node_state(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn up(&self) -> Cloud {
        self.up_with("0")
    }

    /// With nodes of its own machine, too.
    pub fn up_with(&self, nodes: &str) -> Cloud {
        let image = self.dir.path().join("disk.raw");
        let words = ["--machine", "simulated", "--nodes", nodes, "--node-listen", &self.nodes_at];
        Cloud::up_with(&self.state(), &[&words[..], &["--image", image.to_str().unwrap()]].concat())
    }

    pub fn new_token(&self, words: &[&str]) {
        let out = ["node", "token", "--out", self.token.to_str().unwrap()];
        let output = run(&self.state(), &[&out[..], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn first_words<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        vec!["--token", self.token.to_str().unwrap(), "--machine", "simulated", "--name", name]
    }

    /// Joins, and then is a node.
    pub fn join(&self, name: &str) -> Member {
        Member::start(&self.node_state(name), &self.first_words(name))
    }
}

/// A user of the plane's APIs.
pub struct User<'a> {
    cloud: &'a Cloud,
    token: String,
}

impl User<'_> {
    pub fn of<'a>(cloud: &'a Cloud, state: &Path) -> User<'a> {
        User { cloud, token: cloud.token(state) }
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, _, answer) = self.cloud.call("GET", path, &self.token, Value::Null);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Each node with its state.
    pub fn nodes(&self) -> Vec<(String, String)> {
        let answer = self.get("/compute/v2.1/os-hypervisors");
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let list = answer["hypervisors"].as_array().unwrap().iter();
        let mut nodes: Vec<_> = list.map(|h| (text(&h["hypervisor_hostname"]), text(&h["state"]))).collect();
        nodes.sort();
        nodes
    }

    pub fn nodes_are(&self, expect: &[(&str, &str)]) {
        let expect: Vec<_> = expect.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        until(&format!("nodes are {expect:?}"), || self.nodes() == expect);
    }

    pub fn server_on(&self, node: &str) -> String {
        self.create(&format!("nova:{node}"), &format!("on-{node}"))
    }

    pub fn create(&self, zone: &str, name: &str) -> String {
        let image = self.get("/image/v2/images?name=guest")["images"][0]["id"].clone();
        let server = json!({
            "name": name, "imageRef": image, "flavorRef": self.flavor(), "networks": "none",
            "availability_zone": zone,
        });
        let (status, answer) = self.newer("POST", "/compute/v2.1/servers", json!({"server": server}));
        assert_eq!(status, 202, "{answer}");
        answer["server"]["id"].as_str().unwrap().to_string()
    }

    pub fn flavor(&self) -> Value {
        self.get("/compute/v2.1/flavors")["flavors"][0]["id"].clone()
    }

    /// At a microversion that has what we ask.
    pub fn newer(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let headers = [("x-auth-token", self.token.as_str()), ("openstack-api-version", "compute 2.53")];
        let (status, _, answer) = self.cloud.call_with(method, path, &headers, body);
        (status, answer)
    }

    pub fn status(&self, server: &str) -> Option<String> {
        let path = format!("/compute/v2.1/servers/{server}");
        let (_, _, answer) = self.cloud.call("GET", &path, &self.token, Value::Null);
        answer["server"]["status"].as_str().map(String::from)
    }

    pub fn status_is(&self, server: &str, expect: Option<&str>) {
        until(&format!("{server} is {expect:?}"), || self.status(server).as_deref() == expect);
    }

    pub fn delete(&self, server: &str) -> u16 {
        self.newer("DELETE", &format!("/compute/v2.1/servers/{server}"), Value::Null).0
    }

    pub fn delete_all(&self) {
        for server in self.get("/compute/v2.1/servers")["servers"].as_array().unwrap() {
            assert_eq!(self.delete(server["id"].as_str().unwrap()), 204);
        }
    }

    /// Takes a node out of the cloud; the answer's status.
    pub fn remove(&self, node: &str) -> u16 {
        let (_, services) = self.newer("GET", &format!("/compute/v2.1/os-services?host={node}"), Value::Null);
        let id = services["services"][0]["id"].as_str().unwrap();
        self.newer("DELETE", &format!("/compute/v2.1/os-services/{id}"), Value::Null).0
    }

    pub fn console(&self, server: &str) -> (u16, Value) {
        let path = format!("/compute/v2.1/servers/{server}/action");
        self.newer("POST", &path, json!({"os-getConsoleOutput": {}}))
    }
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DOWN_MAX, "it never came that {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
