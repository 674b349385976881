//! The plane's process, and a client of its APIs that is none of ours.

use crate::Outcome;
use crate::hosts::until;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const API: &str = "192.0.2.100:5000";
const NODES: &str = "192.0.2.100:5443";
const UP_MAX: Duration = Duration::from_secs(60);

pub struct Plane {
    state: PathBuf,
    log: PathBuf,
    disk: PathBuf,
    pub token: PathBuf,
    process: Option<Child>,
}

impl Plane {
    pub fn new(work: &Path) -> Plane {
        let at = |name: &str| work.join(name);
        std::fs::write(at("disk.raw"), vec![0; 1 << 20]).unwrap();
        Plane {
            state: at("plane"),
            log: at("plane.log"),
            disk: at("disk.raw"),
            token: at("token"),
            process: None,
        }
    }

    pub fn start(&mut self) -> Outcome<()> {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.shisa(&["up", "--machine", "simulated", "--nodes", "0"]);
        command.args(["--listen", API, "--node-listen", NODES, "--image"]).arg(&self.disk);
        self.process = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let up = || {
            self.said()
                .lines()
                .last()
                .is_some_and(|_| self.is_up())
                .then_some(())
                .ok_or("the plane is not up".into())
        };
        until(UP_MAX, up)
    }

    fn is_up(&self) -> bool {
        TcpStream::connect(API).is_ok() && self.said().contains(" up ")
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn make_token(&self, uses: usize) -> Outcome<()> {
        let mut command = self.shisa(&["node", "token", "--uses", &uses.to_string()]);
        let output = command.arg("--out").arg(&self.token).output().unwrap();
        output
            .status
            .success()
            .then_some(())
            .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn shisa(&self, words: &[&str]) -> Command {
        let mut command = Command::new(crate::shisa());
        command.args(words).arg("--state").arg(&self.state).stdin(Stdio::null());
        command
    }

    pub fn admin_password(&self) -> String {
        let yaml = std::fs::read_to_string(self.state.join("clouds.yaml")).unwrap();
        yaml.lines().find_map(|line| line.trim().strip_prefix("password: ")).unwrap().to_string()
    }
}

/// The administrator, in one project.
#[derive(Clone)]
pub struct Api {
    token: String,
    pub user: String,
    pub project: String,
}

impl Api {
    pub fn login(password: &str, project: &str) -> Outcome<Api> {
        let user = json!({"name": "admin", "domain": {"id": "default"}, "password": password});
        let scope = json!({"project": {"name": project, "domain": {"id": "default"}}});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let nobody = Api { token: String::new(), user: String::new(), project: String::new() };
        let body = json!({"auth": {"identity": identity, "scope": scope}});
        let (head, answer) = nobody.exchange("POST", "/identity/v3/auth/tokens", &body)?;
        let token = head.lines().find_map(|l| l.strip_prefix("x-subject-token: "));
        let token = token.ok_or_else(|| format!("no token: {answer}"))?.to_string();
        Ok(Api {
            token,
            user: text(&answer["token"]["user"]["id"]),
            project: text(&answer["token"]["project"]["id"]),
        })
    }

    /// Errors: the answer, when it is not of the 200s.
    pub fn call(&self, method: &str, path: &str, body: Value) -> Outcome<Value> {
        let path = match path.starts_with("/v2.0/") {
            true => format!("/network{path}"),
            false => path.to_string(),
        };
        let (head, answer) = self.exchange(method, &path, &body)?;
        match head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
            true => Ok(answer),
            false => Err(format!("{method} {path}: {} {answer}", head.lines().next().unwrap_or_default())),
        }
    }

    pub fn get(&self, path: &str) -> Outcome<Value> {
        self.call("GET", path, Value::Null)
    }

    pub fn put(&self, path: &str, body: Value) -> Outcome<Value> {
        self.call("PUT", path, body)
    }

    pub fn delete(&self, path: &str) -> Outcome<()> {
        self.call("DELETE", path, Value::Null).map(drop)
    }

    /// Makes one of Networking's things: `("network", {..})`.
    pub fn make(&self, kind: &str, body: Value) -> Outcome<Value> {
        let path = match kind.strip_suffix('y') {
            Some(stem) => format!("/v2.0/{stem}ies"),
            None => format!("/v2.0/{kind}s").replace('_', "-").replace("floatingip-", "floatingip_"),
        };
        Ok(self.call("POST", &path, json!({kind: body}))?[kind].take())
    }

    fn exchange(&self, method: &str, path: &str, body: &Value) -> Outcome<(String, Value)> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {API}\r\nx-auth-token: {}\r\nopenstack-api-version: compute 2.74\r\n\
             content-length: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
            self.token,
            body.len()
        );
        let lost = |e: std::io::Error| format!("{method} {path}: {e}");
        let mut socket = TcpStream::connect(API).map_err(lost)?;
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all((head + &body).as_bytes()).map_err(lost)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map_err(lost)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("half an answer")?;
        Ok((head.to_string(), serde_json::from_str(body).unwrap_or(Value::Null)))
    }
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}
