//! The door is replaced while clients ask: by another process of the same binary, by binaries that are none, and after
//! it was killed.

use crate::kept::Kept;
use crate::support::{Cloud, run};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const UPGRADES: usize = 3;
/// Doors that drain, at most.
const DRAINING_MAX: usize = 4;
/// The old door closes quiet connections after five seconds.
const DRAINED_MAX: Duration = Duration::from_secs(30);

struct State {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn state() -> State {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cloud");
    State { _dir: dir, path }
}

/// Who has the clients' connections: process and whether it drains.
fn doors(state: &Path) -> Vec<(u32, bool)> {
    let text = String::from_utf8(run(state, &["plane", "list"]).stdout).unwrap();
    let door = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[0] == "door").then(|| (words[3].parse().unwrap(), words[1] == "draining"))
    };
    text.lines().filter_map(door).collect()
}

fn serving(state: &Path) -> Option<u32> {
    doors(state).into_iter().find(|(_, draining)| !draining).map(|(pid, _)| pid)
}

fn open(cloud: &Cloud) -> Kept<TcpStream> {
    let socket = TcpStream::connect(cloud.address.strip_prefix("http://").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    Kept(socket)
}

/// Clients that ask one request after the other, half on kept connections and half each on one of its own.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    fn start(cloud: &Cloud, token: &str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |n: usize| {
            let (stop, token) = (stop.clone(), token.to_string());
            let authority = cloud.address.strip_prefix("http://").unwrap().to_string();
            std::thread::spawn(move || client(n, &authority, &token, &stop))
        };
        Load { clients: (0..8).map(client).collect(), stop }
    }

    /// How many were answered, and what failed.
    fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let told = self.clients.into_iter().map(|client| client.join().unwrap());
        told.fold((0, Vec::new()), |(count, mut all), (n, failed)| {
            all.extend(failed);
            (count + n, all)
        })
    }
}

fn client(n: usize, authority: &str, token: &str, stop: &AtomicBool) -> (usize, Vec<String>) {
    let connect = || {
        let socket = TcpStream::connect(authority).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Kept(socket)
    };
    let (mut count, mut failed, mut kept) = (0, Vec::new(), connect());
    while !stop.load(Ordering::SeqCst) {
        let (method, path, body, expect) = match (n + count) % 3 {
            0 => {
                let project = json!({"project": {"name": format!("p-{n}-{count}")}});
                ("POST", "/identity/v3/projects", project.to_string(), 201)
            }
            1 => ("GET", "/network/v2.0/networks", String::new(), 200),
            _ => ("GET", "/compute/v2.1/flavors/detail", String::new(), 200),
        };
        let answer = kept.ask(method, path, token, &body);
        let again = answer.as_ref().map_or(true, |answer| answer.close) || n % 2 == 1;
        match answer {
            Ok(answer) if answer.status == expect => count += 1,
            other => failed.push(format!("client {n}, {method} {path}: {other:?}")),
        }
        if again {
            kept = connect();
        }
    }
    (count, failed)
}

/// An upload that is not at its end, and its path.
fn slow_upload(cloud: &Cloud, token: &str) -> (Kept<TcpStream>, String) {
    let image = json!({"name": "slow", "disk_format": "raw", "container_format": "bare"});
    let (status, _, image) = cloud.call("POST", "/image/v2/images", token, image);
    assert_eq!(status, 201, "{image}");
    let mut upload = open(cloud);
    let path = format!("/image/v2/images/{}/file", image["id"].as_str().unwrap());
    write!(
        upload.0,
        "PUT {path} HTTP/1.1\r\nhost: cloud.example\r\nx-auth-token: {token}\r\n\
         content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    )
    .unwrap();
    (upload, path)
}

/// Errors: what it said.
fn upgrade(state: &Path, binary: &str) -> Result<(), String> {
    let output = run(state, &["door", "upgrade", "--binary", binary]);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A program that is no door.
fn script(state: &State, name: &str, text: &str) -> String {
    let path = state._dir.path().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn no_request_fails_while_the_door_is_replaced() {
    let state = state();
    let cloud = Cloud::up(&state.path);
    let token = cloud.token(&state.path);
    let first = serving(&state.path).unwrap();
    let load = Load::start(&cloud, &token);

    // Begun at the first door, and still on its way when that has been replaced.
    let (mut upload, path) = slow_upload(&cloud, &token);
    let upgrade = |binary: &str| upgrade(&state.path, binary);
    for _ in 0..UPGRADES {
        upgrade(env!("CARGO_BIN_EXE_shisa")).unwrap();
    }
    let last = serving(&state.path).unwrap();
    assert!(last != first && doors(&state.path).contains(&(first, true)), "{:?}", doors(&state.path));

    let broken = [
        (script(&state, "ends", "echo 'shisa: it is broken' >&2; exit 1"), "it is broken"),
        (script(&state, "is-none", "exec sleep 0.3"), "it ended"),
    ];
    for (binary, why) in &broken {
        let said = upgrade(binary).unwrap_err();
        assert!(said.contains("the door stays as it is") && said.contains(why), "{said}");
        assert_eq!(serving(&state.path), Some(last));
    }
    let (count, failed) = load.stop();
    assert!(failed.is_empty() && count > 100, "{count} answered, failed: {failed:#?}");

    write!(upload.0, "4\r\nlast\r\n0\r\n\r\n").unwrap();
    let answer = upload.answer().unwrap();
    assert_eq!((answer.status, answer.close), (204, true), "{answer:?}");
    let (status, _, image) = cloud.call("GET", path.trim_end_matches("/file"), &token, Value::Null);
    assert_eq!((status, &image["size"]), (200, &json!(9)), "{image}");
    let begin = Instant::now();
    while doors(&state.path) != [(last, false)] {
        assert!(begin.elapsed() < DRAINED_MAX, "{:?}", doors(&state.path));
        std::thread::sleep(Duration::from_millis(100));
    }
    // Figures of all doors are summed up.
    let text = String::from_utf8(run(&state.path, &["plane", "list"]).stdout).unwrap();
    let told =
        text.lines().find_map(|line| line.strip_prefix("door: ")?.split(' ').next()?.parse::<usize>().ok());
    assert!(told.unwrap() > count && text.contains(" 0 failed"), "{count} asked: {text}");
    assert!(cloud.stop().contains("stopped"));
}

#[test]
fn doors_that_drain_are_few_and_end_with_the_cloud() {
    let state = state();
    let cloud = Cloud::up(&state.path);
    let token = cloud.token(&state.path);
    let drains = |_| {
        let (upload, _) = slow_upload(&cloud, &token);
        upgrade(&state.path, env!("CARGO_BIN_EXE_shisa")).unwrap();
        upload
    };
    let uploads: Vec<_> = (0..DRAINING_MAX).map(drains).collect();
    let all = doors(&state.path);
    let said = upgrade(&state.path, env!("CARGO_BIN_EXE_shisa")).unwrap_err();
    assert!(said.contains("4 doors before it still finish what they were asked"), "{said}");
    assert!(doors(&state.path) == all && all.len() == DRAINING_MAX + 1, "{all:?}");

    assert!(cloud.stop().contains("stopped"));
    // Each cut its own upload off, though the way that it drained by gave that an hour.
    let log = |file: &str| std::fs::read_to_string(state.path.join(file)).unwrap();
    assert!(!log("log").contains("it is killed"), "{}", log("log"));
    assert_eq!(
        log("door/log").matches("1 connections are cut off").count(),
        DRAINING_MAX,
        "{}",
        log("door/log")
    );
    drop(uploads);
}

#[test]
fn the_log_has_the_address_that_the_door_saw() {
    let state = state();
    let cloud = Cloud::up(&state.path);
    let token = cloud.token(&state.path);
    let forged = [
        ("x-auth-token", token.as_str()),
        ("x-forwarded-for", "198.51.100.66"),
        ("x-shisa-mutation", "forged"),
    ];
    let project = json!({"project": {"name": "from-somewhere"}});
    assert_eq!(cloud.call_with("POST", "/identity/v3/projects", &forged, project).0, 201);
    let log = String::from_utf8(run(&state.path, &["store", "log", "--last", "20"]).stdout).unwrap();
    let line = log.lines().find(|line| line.contains("POST /v3/projects")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("  127.0.0.1  ") && !log.contains("198.51.100.66"), "{log}");
    cloud.stop();
}

#[test]
fn what_was_asked_before_ctrl_c_is_answered() {
    let state = state();
    let cloud = Cloud::up(&state.path);
    let token = cloud.token(&state.path);
    let (status, _, image) = cloud.call(
        "POST",
        "/image/v2/images",
        &token,
        json!({"name": "slow", "disk_format": "raw", "container_format": "bare"}),
    );
    assert_eq!(status, 201, "{image}");
    let mut upload = open(&cloud);
    let path = format!("/image/v2/images/{}/file", image["id"].as_str().unwrap());
    let head = format!("PUT {path} HTTP/1.1\r\nhost: cloud.example\r\nx-auth-token: {token}\r\n");
    write!(upload.0, "{head}content-type: application/octet-stream\r\ncontent-length: 9\r\n\r\nfirst")
        .unwrap();
    // It is at the plane, or will be.
    let stopping = std::thread::spawn(move || cloud.stop());
    std::thread::sleep(Duration::from_millis(500));
    write!(upload.0, "last").unwrap();
    let answer = upload.answer().unwrap();
    assert_eq!((answer.status, answer.close), (204, true), "{answer:?}");
    assert!(stopping.join().unwrap().contains("stopped"));
}

#[test]
fn a_door_that_is_killed_is_there_again() {
    let state = state();
    let cloud = Cloud::up(&state.path);
    let token = cloud.token(&state.path);
    let first = serving(&state.path).unwrap();
    assert!(Command::new("kill").args(["-KILL", &first.to_string()]).status().unwrap().success());
    // Whoever comes meanwhile waits in the kernel, unless it is taken by the door that ends.
    let begin = Instant::now();
    while serving(&state.path).is_none_or(|pid| pid == first) {
        assert!(begin.elapsed() < DRAINED_MAX);
    }
    assert_eq!(cloud.call("GET", "/network/v2.0/networks", &token, Value::Null).0, 200);
    let log = std::fs::read_to_string(state.path.join("log")).unwrap();
    assert!(log.contains(&format!("the door, process {first}, ended")), "{log}");
    cloud.stop();
}
