//! Images of tens of MiB on their way while planes are switched and killed: none is cut off, all are whole.

use crate::kept::Kept;
use crate::support::{Cloud, run};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const SIZE: usize = 40 * MIB;
/// Between two MiB: an upload takes three seconds.
const PAUSE: Duration = Duration::from_millis(75);
const BACK_MAX: Duration = Duration::from_secs(30);

/// Bytes that look like no format, and are others for each `n`.
fn byte(n: usize, at: usize) -> u8 {
    ((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n as u64) >> 29) as u8
}

fn piece(n: usize, mib: usize) -> Vec<u8> {
    (mib * MIB..(mib + 1) * MIB).map(|at| byte(n, at)).collect()
}

fn connect(authority: &str) -> TcpStream {
    let socket = TcpStream::connect(authority).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// An upload that takes its time, chunked or not.
fn upload(cloud: &Cloud, token: &str, n: usize) -> JoinHandle<(usize, String)> {
    let new = json!({"name": format!("large-{n}"), "disk_format": "raw", "container_format": "bare"});
    let (status, _, image) = cloud.call("POST", "/image/v2/images", token, new);
    assert_eq!(status, 201, "{image}");
    let (id, token) = (image["id"].as_str().unwrap().to_string(), token.to_string());
    let authority = cloud.address.strip_prefix("http://").unwrap().to_string();
    std::thread::spawn(move || {
        let mut kept = Kept(connect(&authority));
        let chunked = n % 2 == 1;
        let length =
            if chunked { "transfer-encoding: chunked".into() } else { format!("content-length: {SIZE}") };
        write!(
            kept.0,
            "PUT /image/v2/images/{id}/file HTTP/1.1\r\nhost: cloud.example\r\nx-auth-token: {token}\r\n\
             content-type: application/octet-stream\r\n{length}\r\n\r\n"
        )
        .unwrap();
        for mib in 0..SIZE / MIB {
            if chunked {
                write!(kept.0, "{MIB:x}\r\n").unwrap();
            }
            kept.0.write_all(&piece(n, mib)).unwrap();
            if chunked {
                write!(kept.0, "\r\n").unwrap();
            }
            std::thread::sleep(PAUSE);
        }
        if chunked {
            write!(kept.0, "0\r\n\r\n").unwrap();
        }
        let answer = kept.answer().unwrap();
        assert_eq!(answer.status, 204, "upload {n}: {}", answer.body);
        (n, id)
    })
}

/// The image is what was sent.
fn check(cloud: &Cloud, token: &str, n: usize, id: &str) {
    let (_, _, image) = cloud.call("GET", &format!("/image/v2/images/{id}"), token, Value::Null);
    assert_eq!((&image["status"], &image["size"]), (&json!("active"), &json!(SIZE)), "{image}");
    let mut socket = connect(cloud.address.strip_prefix("http://").unwrap());
    write!(
        socket,
        "GET /image/v2/images/{id}/file HTTP/1.1\r\nhost: cloud.example\r\nx-auth-token: {token}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let begin = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let same = answer[begin..].iter().enumerate().all(|(at, got)| *got == byte(n, at));
    assert!(same && answer.len() - begin == SIZE, "image {n} has {} bytes", answer.len() - begin);
}

fn planes(state: &Path) -> String {
    String::from_utf8(run(state, &["plane", "list"]).stdout).unwrap()
}

/// The process of the plane in a state.
fn process(state: &Path, of: &str) -> Option<u32> {
    let text = planes(state);
    let line =
        text.lines().find(|line| line.split_whitespace().nth(1) == Some(of) && line.contains("epoch"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn until_standby(state: &Path) {
    let begin = Instant::now();
    while process(state, "standby").is_none() {
        assert!(begin.elapsed() < BACK_MAX, "{}", planes(state));
    }
}

#[test]
fn large_uploads_pass_switches_and_crashes_of_planes() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("cloud");
    let cloud = Cloud::up_with(&state, &["--machine", "simulated", "--planes", "2"]);
    let token = cloud.token(&state);

    let uploads: Vec<_> = (0..3).map(|n| upload(&cloud, &token, n)).collect();
    std::thread::sleep(Duration::from_millis(500));
    for name in ["green", "blue"] {
        let switched = run(&state, &["plane", "promote", name]);
        assert!(switched.status.success(), "{}", String::from_utf8_lossy(&switched.stderr));
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(uploads.iter().all(|upload| !upload.is_finished()), "they were to be on their way");
    let done: Vec<_> = uploads.into_iter().map(|upload| upload.join().unwrap()).collect();
    done.iter().for_each(|(n, id)| check(&cloud, &token, *n, id));

    until_standby(&state);
    let uploads: Vec<_> = (3..5).map(|n| upload(&cloud, &token, n)).collect();
    std::thread::sleep(Duration::from_millis(500));
    let active = process(&state, "active").unwrap();
    assert!(Command::new("kill").args(["-KILL", &active.to_string()]).status().unwrap().success());
    let done: Vec<_> = uploads.into_iter().map(|upload| upload.join().unwrap()).collect();
    done.iter().for_each(|(n, id)| check(&cloud, &token, *n, id));
    assert!(planes(&state).contains(" 0 failed"), "{}", planes(&state));
    let left = std::fs::read_dir(state.join("door")).unwrap().flatten();
    assert!(left.map(|entry| entry.file_name()).all(|name| name == "api" || name == "log"));
    cloud.stop();
}
