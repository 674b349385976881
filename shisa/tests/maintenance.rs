//! A node's maintenance as an operator does it, on simulated nodes: from the drain over a switch of planes and a crash to
//! the deadline, and back.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Cloud, run};

/// What takes a second on an idle machine.
const MAX: Duration = Duration::from_secs(60);
/// Long enough for what is to be seen before the deadline, on a busy machine.
const DEADLINE: &str = "30s";

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

/// A webhook's receiver: what it was sent, and what it answers.
#[derive(Clone)]
struct Receiver {
    url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// This many are answered 500 first.
    failing: Arc<Mutex<usize>>,
}

#[derive(Clone, Debug)]
struct Heard {
    status: u16,
    signature: Option<String>,
    raw: String,
    body: Value,
}

impl Receiver {
    fn new(failing: usize) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook?word=1", listener.local_addr().unwrap());
        let receiver = Receiver { url, heard: Arc::default(), failing: Arc::new(Mutex::new(failing)) };
        let listening = receiver.clone();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|socket| listening.answer(socket)));
        receiver
    }

    fn answer(&self, mut socket: std::net::TcpStream) {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        let whole = |text: &str| {
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            (body.len() == length.parse::<usize>().ok()?).then(|| (head.to_string(), body.to_string()))
        };
        let (head, raw) = loop {
            if let Some(whole) = whole(&text) {
                break whole;
            }
            match socket.read(&mut bytes) {
                Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&bytes[..n])),
                _ => return,
            }
        };
        assert!(head.starts_with("POST /hook?word=1 HTTP/1.1\r\n"), "{head}");
        let fails = {
            let mut failing = self.failing.lock().unwrap();
            *failing = failing.saturating_sub(1);
            *failing > 0
        };
        let status = if fails { 500 } else { 200 };
        let signature = head.lines().find_map(|line| line.strip_prefix("x-hub-signature-256: "));
        let heard = Heard {
            status,
            signature: signature.map(String::from),
            body: serde_json::from_str(&raw).unwrap(),
            raw,
        };
        self.heard.lock().unwrap().push(heard);
        let _ = write!(socket, "HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n");
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// The states that were answered, of a server.
    fn states(&self, server: &str) -> Vec<String> {
        let heard = self.heard();
        let of = heard.iter().filter(|h| h.status == 200 && h.body["server"]["id"] == server);
        of.map(|h| h.body["state"].as_str().unwrap().to_string()).collect()
    }

    /// And perhaps more already.
    fn has(&self, server: &str, states: &[&str]) {
        let begins =
            || self.states(server).iter().zip(states).filter(|(a, b)| a == *b).count() == states.len();
        until(&format!("{states:?} of {server}"), begins);
    }
}

#[test]
fn the_operator_and_owners_are_told_once_of_each_state_and_again_where_it_was_not_answered() {
    use hmac::{Hmac, Mac};
    const SECRET: &str = "a secret of the test's own";
    let (operator, owner, secret) = (Receiver::new(0), Receiver::new(3), tempfile::tempdir().unwrap());
    let file = secret.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let words = ["--maintenance-webhook", &operator.url, "--webhook-secret", file.to_str().unwrap()];
    let ground = Ground::up(&[&words[..], &["--webhook-allow", "127.0.0.0/8"]].concat());
    let node = ground.node();
    let named = ground.server(&node, "named", json!({"maintenance_webhook": owner.url}));
    let plain = ground.server(&node, "plain", json!({}));
    let wrong = ground.server(&node, "wrong", json!({"maintenance_webhook": "file:///etc/passwd"}));
    let servers = [&named, &plain, &wrong];
    ground.well(&["node", "drain", &node, "--deadline", DEADLINE, "--reason", "new disks", "--no-wait"]);
    servers.iter().for_each(|server| operator.has(server, &["scheduled"]));
    owner.has(&named, &["scheduled"]);
    // What was answered is answered for the next plane, too.
    ground.well(&["plane", "promote", "green"]);
    ground.well(&["node", "drain", &node]);
    servers.iter().for_each(|server| operator.has(server, &["scheduled", "started"]));
    ground.well(&["plane", "promote", "blue"]);
    ground.well(&["node", "undrain", &node]);
    servers.iter().for_each(|server| operator.has(server, &["scheduled", "started", "completed"]));
    owner.has(&named, &["scheduled", "started", "completed"]);
    servers.iter().for_each(|server| ground.is(server, "ACTIVE"));
    // Once each, as all were answered.
    servers.iter().for_each(|s| assert_eq!(operator.states(s), ["scheduled", "started", "completed"]));

    let tries = owner.heard();
    let states: Vec<_> = tries.iter().map(|h| (h.status, h.body["state"].as_str().unwrap())).collect();
    let expect =
        [(500, "scheduled"), (500, "scheduled"), (200, "scheduled"), (200, "started"), (200, "completed")];
    assert_eq!(states, expect);
    assert!(tries.iter().all(|h| h.signature.is_none() && h.body["id"] == tries[0].body["id"]));
    assert!(operator.heard().iter().all(|h| h.body["id"] != Value::Null && h.body["reason"] == "new disks"));
    for heard in operator.heard() {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(heard.raw.as_bytes());
        let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(heard.signature, Some(format!("sha256={hex}")));
        assert!(!heard.raw.contains(&node), "nobody is told which node it is: {}", heard.raw);
    }
    // Nothing more comes of what is over.
    ground.well(&["node", "drain", &node, "--deadline", "1h", "--no-wait"]);
    owner.has(&named, &["scheduled", "started", "completed", "scheduled"]);
    ground.well(&["node", "undrain", &node]);
    owner.has(&named, &["scheduled", "started", "completed", "scheduled", "cancelled"]);
    assert_eq!(operator.states(&plain)[..3], ["scheduled", "started", "completed"]);
    let Ground { cloud, dir: _dir, .. } = ground;
    cloud.stop();
}

#[test]
fn an_owners_webhook_leads_nowhere_inside_unless_it_is_allowed() {
    let owner = Receiver::new(0);
    let ground = Ground::up(&[]);
    let node = ground.node();
    let named = ground.server(&node, "named", json!({"maintenance_webhook": owner.url}));
    ground.well(&["node", "drain", &node, "--deadline", "1h", "--no-wait"]);
    // It was tried, and waits for the next try.
    let log = || {
        let logs = ["blue", "green"].map(|plane| ground.state.join("planes").join(plane).join("log"));
        logs.iter().filter_map(|log| std::fs::read_to_string(log).ok()).collect::<String>()
    };
    until("it was tried", || log().contains("its host has no address that may be reached"));
    assert!(ground.well(&["node", "list"]).contains("1 notices wait for an answer"));
    ground.well(&["node", "undrain", &node]);
    assert_eq!(ground.status(&named), "ACTIVE");
    assert_eq!(owner.heard().len(), 0);
    let Ground { cloud, dir: _dir, .. } = ground;
    cloud.stop();
}
