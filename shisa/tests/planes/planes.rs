//! The cloud under test, and its planes as an operator's commands show and move them.

use crate::support::{Cloud, run};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Of a log, when something failed.
const LINES: usize = 60;
/// A binary of another build.
const OTHER: &str = "SHISA_OTHER";
const BACK_MAX: Duration = Duration::from_secs(30);

pub struct Planes {
    pub cloud: Cloud,
    pub state: PathBuf,
    store: String,
    _dir: tempfile::TempDir,
}

struct Line {
    name: String,
    state: String,
    pid: u32,
    answers: bool,
}

impl Planes {
    pub fn up(store: &str) -> Planes {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("cloud");
        let cloud = start(&state, store);
        Planes { cloud, state, store: store.into(), _dir: dir }
    }

    pub fn restart(self) -> Planes {
        self.cloud.stop();
        let cloud = start(&self.state, &self.store);
        Planes { cloud, ..self }
    }

    /// The ends of the logs.
    pub fn said(&self) -> String {
        let end = |name: &str| {
            let text = std::fs::read_to_string(self.state.join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("{name}:\n{}\n", lines[lines.len().saturating_sub(LINES)..].join("\n"))
        };
        ["log", "planes/blue/log", "planes/green/log"].iter().map(|name| end(name)).collect()
    }

    fn lines(&self) -> Vec<Line> {
        let output = run(&self.state, &["plane", "list"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(2) == Some(&"process")).then(|| Line {
                name: words[0].into(),
                state: words[1].into(),
                pid: words[3].parse().unwrap_or(0),
                answers: words.get(4) == Some(&"epoch"),
            })
        };
        text.lines().filter_map(line).collect()
    }

    fn of_state(&self, state: &str) -> Line {
        let begin = Instant::now();
        loop {
            if let Some(line) = self.lines().into_iter().find(|line| line.state == state) {
                return line;
            }
            assert!(begin.elapsed() < BACK_MAX, "no plane is {state}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where the door asks a plane.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.state.join("planes").join(name).join("api")
    }

    pub fn active(&self) -> String {
        self.of_state("active").name
    }

    pub fn standby(&self) -> String {
        self.of_state("standby").name
    }

    pub fn active_process(&self) -> (String, u32) {
        let line = self.of_state("active");
        (line.name, line.pid)
    }

    /// Milliseconds of the whole command, and how long mutations were held; or why it went back.
    pub fn promote(&self, name: &str) -> Result<(f64, f64), String> {
        let begin = Instant::now();
        let output = run(&self.state, &["plane", "promote", name]);
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        let text = String::from_utf8(output.stdout).unwrap();
        let held = text.rsplit_once("were held ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let why = || format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        Ok((took, held.ok_or_else(why)?))
    }

    pub fn kill_active(&mut self) {
        signal(self.active_process().1, "KILL");
    }

    /// One plane is active and the other stands by.
    pub async fn both_there(&self) {
        let begin = Instant::now();
        loop {
            let lines = self.lines();
            let there = |state| lines.iter().any(|line| line.state == state && line.answers);
            if there("active") && there("standby") {
                return;
            }
            assert!(begin.elapsed() < BACK_MAX, "a plane does not come back");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Two planes; the second one of another build, where the environment names one.
fn start(state: &std::path::Path, store: &str) -> Cloud {
    let other = std::env::var(OTHER);
    let planes = if other.is_ok() { "1" } else { "2" };
    let words = ["--machine", "simulated", "--nodes", "20", "--planes", planes, "--store", store];
    let cloud = Cloud::up_with(state, &words);
    if let Ok(other) = other {
        let output = run(state, &["plane", "add", "--binary", &other]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    cloud
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

/// Lets a stopped process go on, if it was not ended meanwhile.
pub fn wake(pid: u32) {
    let _ =
        Command::new("kill").arg("-CONT").arg(pid.to_string()).stderr(std::process::Stdio::null()).status();
}
