//! The binary as a child process, and a client that is none of ours.

#![allow(dead_code, clippy::unwrap_used)]

pub mod real;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A start on a busy machine, with a guest's boot under emulation.
const UP_MAX: Duration = Duration::from_secs(180);

pub fn shisa() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shisa"));
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn run(state: &Path, words: &[&str]) -> Output {
    finish(shisa().args(words).arg("--state").arg(state))
}

/// Runs to the end, which comes in time or is made.
pub fn finish(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if ended.recv_timeout(UP_MAX).is_err() {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    guard.join().unwrap();
    output
}

/// The one line on stderr of a command that failed with this code.
pub fn refusal(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().strip_prefix("shisa: ").unwrap().to_string()
}

/// A cloud that is up; killed with the test.
pub struct Cloud {
    child: Child,
    pub address: String,
    /// What it has said so far.
    pub said: Vec<String>,
    out: BufReader<std::process::ChildStdout>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cloud {
    /// On simulated nodes and a free port.
    pub fn up(state: &Path) -> Cloud {
        Cloud::up_with(state, &["--machine", "simulated"])
    }

    pub fn up_with(state: &Path, words: &[&str]) -> Cloud {
        Cloud::up_as(Path::new(env!("CARGO_BIN_EXE_shisa")), state, words)
    }

    /// By this program.
    pub fn up_as(binary: &Path, state: &Path, words: &[&str]) -> Cloud {
        let mut command = Command::new(binary);
        command.stdin(Stdio::null());
        command.args(["up", "--listen", "127.0.0.1:0"]).args(words).arg("--state").arg(state);
        let mut child = command.stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut cloud = Cloud { child, address: String::new(), said: Vec::new(), out };
        cloud.until(" up ");
        let api = cloud.said.iter().find(|line| line.contains(" api ")).unwrap();
        cloud.address = api.split_whitespace().last().unwrap().into();
        cloud
    }

    /// Reads on until a line has this.
    pub fn until(&mut self, word: &str) -> &str {
        let begin = Instant::now();
        loop {
            let mut line = String::new();
            let n = self.out.read_line(&mut line).unwrap();
            assert!(n > 0 && begin.elapsed() < UP_MAX, "no '{word}' in:\n{}", self.said.join(""));
            self.said.push(line);
            if self.said.last().unwrap().contains(word) {
                return self.said.last().unwrap();
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As Ctrl-C would; the rest of what it said.
    pub fn stop(mut self) -> String {
        // A terminal tells the whole group.
        let group = format!("-{}", self.pid());
        assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        rest
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// One request; status, token in the answer's head, answer.
    pub fn call(&self, method: &str, path: &str, token: &str, body: Value) -> (u16, String, Value) {
        self.call_with(method, path, &[("x-auth-token", token)], body)
    }

    pub fn call_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (u16, String, Value) {
        call(&self.address, method, path, headers, body)
    }

    /// The administrator's token, by the password in `clouds.yaml`.
    pub fn token(&self, state: &Path) -> String {
        login(&self.address, state).0
    }
}

/// One request of whoever is at this address: status, token in the answer's head, answer.
pub fn call(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, String, Value) {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let authority = address.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(authority).unwrap();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\n{headers}content-length: {}\r\n\
         content-type: application/json\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let token = head.lines().find_map(|l| l.strip_prefix("x-subject-token: ")).unwrap_or_default();
    (status, token.to_string(), serde_json::from_str(body).unwrap_or(Value::Null))
}

/// The administrator of `clouds.yaml` logs in at this address: the token, and what it says of itself.
pub fn login(address: &str, state: &Path) -> (String, Value) {
    let yaml = std::fs::read_to_string(state.join("clouds.yaml")).unwrap();
    let password = yaml.lines().find_map(|line| line.trim().strip_prefix("password: ")).unwrap();
    let user = json!({"name": "admin", "domain": {"id": "default"}, "password": password});
    let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let body = json!({"auth": {"identity": identity, "scope": scope}});
    let (status, token, answer) = call(address, "POST", "/identity/v3/auth/tokens", &[], body);
    assert_eq!(status, 201, "{answer}");
    (token, answer)
}

/// A node on a machine of its own, as far as it knows; killed with the test.
pub struct Member {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Member {
    /// Starts it, and waits until it is up.
    pub fn start(state: &Path, words: &[&str]) -> Member {
        Member::start_as(Path::new(env!("CARGO_BIN_EXE_shisa")), state, words)
    }

    /// By this program.
    pub fn start_as(binary: &Path, state: &Path, words: &[&str]) -> Member {
        let mut command = Command::new(binary);
        command.stdin(Stdio::null());
        let mut child =
            command.arg("node").args(words).arg("--state").arg(state).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains(" up ") {
            assert!(out.read_line(&mut said).unwrap() > 0, "it ended: {said}");
        }
        Member { child, out }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// As a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As Ctrl-C would; the rest of what it said.
    pub fn stop(mut self) -> String {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        rest
    }
}
