//! Rollouts as an operator does them, on simulated nodes and under a small load.
//!
//! `SHISA_CANDIDATE=PATH` with `SHISA_EXPECT=STEP` adds a candidate that is broken on purpose and the step that must find
//! it: `make rollout-test-broken`.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use support::{Cloud, refusal, run};

/// Failed requests before a trigger, at most.
const FAILED_MAX: usize = 20;

struct Ground {
    cloud: Cloud,
    state: PathBuf,
    dir: tempfile::TempDir,
    token: String,
}

impl Ground {
    fn up(planes: &str) -> Ground {
        Ground::up_with(planes, &[])
    }

    fn up_with(planes: &str, more: &[&str]) -> Ground {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("cloud");
        let words = ["--machine", "simulated", "--nodes", "3", "--planes", planes];
        let cloud = Cloud::up_with(&state, &[&words, more].concat());
        let token = cloud.token(&state);
        Ground { cloud, state, dir, token }
    }

    /// This binary under another path.
    fn candidate(&self) -> String {
        let path = self.dir.path().join("candidate");
        if !path.exists() {
            std::fs::hard_link(env!("CARGO_BIN_EXE_shisa"), &path)
                .or_else(|_| std::fs::copy(env!("CARGO_BIN_EXE_shisa"), &path).map(drop))
                .unwrap();
        }
        path.display().to_string()
    }

    /// The file that the nodes of this machine run.
    fn nodes_run(&self) -> String {
        let lock = std::fs::read(self.state.join("local/lock")).unwrap();
        let process: Value = serde_json::from_slice(&lock).unwrap();
        let program = std::fs::read_link(format!("/proc/{}/exe", process["pid"])).unwrap();
        program.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// This binary, but for a command that fails.
    fn broken(&self, command: &str) -> String {
        let path = self.dir.path().join(format!("broken-{command}"));
        let real = env!("CARGO_BIN_EXE_shisa");
        let script = format!(
            "#!/bin/sh\nfor word; do\n  [ \"$word\" != {command} ] || {{ echo 'shisa: broken on purpose' >&2; exit 1; }}\n\
             done\nexec {real} \"$@\"\n"
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    /// What `shisa plane list` says of a plane, and whether it runs this file.
    fn is(&self, name: &str, state: &str, binary: &str) -> bool {
        let text = said(&run(&self.state, &["plane", "list"]));
        let binary = Path::new(binary).file_name().unwrap().to_str().unwrap();
        text.lines().any(|line| {
            line.starts_with(name)
                && line.contains(&format!(" {state} "))
                && line.ends_with(&format!("/{binary}"))
        })
    }

    /// Does something while clients read and write; how many requests there were, and how many failed with 5xx or
    /// without an answer.
    fn under_load<T>(&self, doing: impl FnOnce() -> T) -> (T, usize, usize) {
        let (stop, all, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let client = |n: usize| {
            for turn in 0.. {
                if stop.load(Relaxed) {
                    return;
                }
                let network = json!({"network": {"name": format!("n-{n}-{turn}")}});
                let (method, path, body) = match turn % 3 {
                    0 => ("POST", "/network/v2.0/networks", network),
                    1 => ("GET", "/network/v2.0/networks?limit=5", Value::Null),
                    _ => ("GET", "/compute/v2.1/flavors", Value::Null),
                };
                let (status, ..) = self.cloud.call(method, path, &self.token, body);
                all.fetch_add(1, Relaxed);
                failed.fetch_add(usize::from(status >= 500), Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let outcome = std::thread::scope(|scope| {
            let client = &client;
            (0..3).for_each(|n| drop(scope.spawn(move || client(n))));
            std::thread::sleep(Duration::from_millis(500));
            let outcome = doing();
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Relaxed);
            outcome
        });
        (outcome, all.load(Relaxed), failed.load(Relaxed))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn quotas(ground: &Ground) {
    let (_, _, answer) = ground.cloud.call("GET", "/identity/v3/auth/projects", &ground.token, Value::Null);
    let project = answer["projects"][0]["id"].as_str().unwrap();
    let body = json!({"quota": {"network": -1}});
    let path = format!("/network/v2.0/quotas/{project}");
    assert_eq!(ground.cloud.call("PUT", &path, &ground.token, body).0, 200);
}

#[test]
fn a_new_binary_comes_and_goes_and_comes_and_no_request_fails() {
    let ground = Ground::up("2");
    quotas(&ground);
    let candidate = ground.candidate();
    let (output, all, failed) = ground
        .under_load(|| run(&ground.state, &["rollout", "start", "--binary", &candidate, "--bake", "2s"]));
    let text = said(&output);
    println!("{text}{all} requests, {failed} failed");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(all > 20 && failed == 0, "{failed} of {all} failed");
    let gates = ["start", "digest", "reads", "changes", "cost", "copy", "conformance", "rehearsal"];
    for step in gates.iter().chain(&["switch", "bake", "local"]) {
        assert!(text.contains(&format!(" s  {step} ")), "{step} is not in:\n{text}");
    }
    assert!(text.contains(" changes of clients are equal when tried again"), "{text}");
    assert!(
        text.contains("calls of the built-in suite are answered")
            && text.contains(" requests and none failed"),
        "{text}"
    );
    assert!(!ground.state.join("rehearsal").exists(), "the copy is gone");
    assert!(text.contains("was drained") && text.contains("0 of "), "{text}");
    assert!(ground.is("green", "active", &candidate) && ground.is("blue", "standby", "shisa"));
    assert_eq!(ground.nodes_run(), "candidate");
    let show = said(&run(&ground.state, &["rollout", "show"]));
    assert!(show.contains("rollout 1: the candidate is active") && show.contains("not rehearsed"), "{show}");

    let (output, _, failed) = ground.under_load(|| run(&ground.state, &["plane", "rollback"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(failed, 0);
    assert!(ground.is("blue", "active", "shisa") && ground.is("green", "standby", "shisa"));
    assert_eq!(ground.nodes_run(), "shisa");
    let again = refusal(&run(&ground.state, &["plane", "rollback"]), 1);
    assert!(again.starts_with("there is no rollout to take back"), "{again}");

    let words = ["rollout", "start", "--binary", &candidate, "--bake", "1s", "--without-copy", "--no-nodes"];
    let output = run(&ground.state, &words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said(&output).contains("conformance"), "{}", said(&output));
    assert_eq!(ground.nodes_run(), "shisa");
    assert!(said(&run(&ground.state, &["rollout", "show"])).contains("--without-copy"));
    let output = run(&ground.state, &["plane", "finalise"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(ground.is("green", "active", &candidate) && ground.is("blue", "standby", &candidate));
    let all = said(&run(&ground.state, &["rollout", "show", "--all"]));
    assert!(all.contains("rollout 1: rolled back") && all.contains("rollout 2: finalised"), "{all}");
    ground.cloud.stop();
}

#[test]
fn what_is_no_candidate_is_stopped_at_the_start() {
    let ground = Ground::up("1");
    let start = |binary: &str| run(&ground.state, &["rollout", "start", "--binary", binary]);
    let none = refusal(&start("/nowhere/shisa"), 1);
    assert!(none.starts_with("there is no program at /nowhere/shisa"), "{none}");
    let same = refusal(&start(env!("CARGO_BIN_EXE_shisa")), 1);
    assert!(same.contains("put the new version elsewhere"), "{same}");
    let (output, _, failed) = ground.under_load(|| start("/bin/false"));
    let why = refusal(&output, 1);
    assert!(why.contains("(stopped before the switch) at start: "), "{why}");
    assert!(why.ends_with("--version does not answer as Shisa does"), "{why}");
    assert_eq!(failed, 0);
    assert!(
        ground.is("blue", "active", "shisa")
            && !said(&run(&ground.state, &["plane", "list"])).contains("green")
    );
    ground.cloud.stop();
}

#[test]
fn an_operators_suite_tries_the_candidate_on_a_copy_and_its_exit_code_decides() {
    let ground = Ground::up("1");
    let (candidate, seen) = (ground.candidate(), ground.dir.path().join("seen"));
    let suite = |end: &str| {
        let seen = seen.display();
        format!(
            "env | grep ^OS_ > {seen}; test -d {}/rehearsal; echo words; exit {end}",
            ground.state.display()
        )
    };
    let start = |command: &str| {
        run(
            &ground.state,
            &["rollout", "start", "--binary", &candidate, "--bake", "1s", "--conformance", command],
        )
    };
    let why = refusal(&start(&suite("3")), 1);
    assert!(
        why.contains("(stopped before the switch) at conformance: ") && why.contains("exit status: 3"),
        "{why}"
    );
    let log = ground.state.join("conformance.log");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "words\n");
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let seen = std::fs::read_to_string(&seen).unwrap();
    let url = seen.lines().find_map(|line| line.strip_prefix("OS_AUTH_URL=")).unwrap();
    assert!(url.ends_with("/identity/v3") && !url.starts_with(&ground.cloud.address), "{url}");
    assert!(seen.contains("OS_PASSWORD=") && !seen.contains("OS_CLOUD="), "{seen}");
    assert!(!ground.state.join("rehearsal").exists(), "the copy is gone");
    let is_plane = |line: &&str| line.contains("process") && !line.starts_with("door");
    let planes = |text: &str| text.lines().filter(is_plane).count();
    assert_eq!(planes(&said(&run(&ground.state, &["plane", "list"]))), 1);

    let output = start(&suite("0"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said(&output).contains("ended well"), "{}", said(&output));
    assert!(ground.is("green", "active", &candidate));

    // As a finalise leaves it that was cut off: the other plane runs the new binary already.
    assert!(run(&ground.state, &["plane", "drain", "blue"]).status.success());
    assert!(run(&ground.state, &["plane", "add", "--binary", &candidate]).status.success());
    let why = refusal(&run(&ground.state, &["plane", "rollback"]), 1);
    assert!(why.starts_with("there is no way back: blue runs ") && why.contains("finalise"), "{why}");
    assert!(ground.is("green", "active", &candidate));
    let output = run(&ground.state, &["plane", "finalise"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let show = said(&run(&ground.state, &["rollout", "show"]));
    assert!(
        show.contains("finalised") && show.contains("blue stands by with ") && show.contains("already"),
        "{show}"
    );
    ground.cloud.stop();
}

#[test]
fn a_candidate_whose_nodes_do_not_work_is_taken_back() {
    let ground = Ground::up("1");
    let candidate = ground.broken("nodes");
    let words = ["rollout", "start", "--binary", &candidate, "--bake", "1s", "--without-copy"];
    let (output, all, failed) = ground.under_load(|| run(&ground.state, &words));
    let why = refusal(&output, 1);
    assert!(why.contains("(taken back) at local: ") && why.ends_with(": broken on purpose"), "{why}");
    assert_eq!(failed, 0, "{failed} of {all} failed");
    assert_eq!(ground.nodes_run(), "shisa");
    assert!(ground.is("blue", "active", "shisa"));
    let status = said(&run(&ground.state, &["status"]));
    assert!(status.contains("nodes: 3 up"), "{status}");
    ground.cloud.stop();
}

#[test]
fn a_copy_leads_nobody_to_another_cloud() {
    let ground =
        Ground::up_with("1", &["--public-url", "https://cloud.example", "--node-listen", "127.0.0.1:0"]);
    let (candidate, seen, go) =
        (ground.candidate(), ground.dir.path().join("seen"), ground.dir.path().join("go"));
    let made = |path: &str, body: Value| {
        let (status, _, answer) = ground.cloud.call("POST", path, &ground.token, body);
        assert_eq!(status, 201, "{answer}");
        answer
    };
    let service = json!({"service": {"type": "object-store", "name": "swift"}});
    let service = made("/identity/v3/services", service)["service"]["id"].clone();
    let url = "https://swift.example/v1/AUTH_%(project_id)s";
    made(
        "/identity/v3/endpoints",
        json!({"endpoint": {"service_id": service, "interface": "public", "url": url}}),
    );
    let urls = |token: &Value| -> Vec<String> {
        let services = token["token"]["catalog"].as_array().unwrap().iter();
        let endpoints = services.flat_map(|s| s["endpoints"].as_array().unwrap());
        endpoints.map(|e| e["url"].as_str().unwrap().to_string()).collect()
    };
    let real = urls(&support::login(&ground.cloud.address, &ground.state).1);
    assert!(real.iter().all(|url| url.contains(".example/")) && real.len() > 10, "{real:?}");

    let command = format!(
        "env | grep ^OS_ > {0}.part; mv {0}.part {0}; while ! test -e {1}; do sleep 0.1; done",
        seen.display(),
        go.display()
    );
    let words = ["rollout", "start", "--binary", &candidate, "--bake", "1s", "--conformance", &command];
    std::thread::scope(|scope| {
        let rollout = scope.spawn(|| run(&ground.state, &words));
        while !seen.exists() {
            assert!(!rollout.is_finished(), "{}", said(&run(&ground.state, &["rollout", "show"])));
            std::thread::sleep(Duration::from_millis(20));
        }
        let env = std::fs::read_to_string(&seen).unwrap();
        let url = env.lines().find_map(|line| line.strip_prefix("OS_AUTH_URL=")).unwrap();
        let copy = url.strip_suffix("/identity/v3").unwrap();
        let (token, answer) = support::login(copy, &ground.state);
        let inside = urls(&answer);
        let projects = |address: &str, token: &str| {
            support::call(
                address,
                "GET",
                "/identity/v3/auth/projects",
                &[("x-auth-token", token)],
                Value::Null,
            )
            .0
        };
        let real_cloud = ground.cloud.address.as_str();
        let opened =
            [(copy, &token), (copy, &ground.token), (real_cloud, &token), (real_cloud, &ground.token)]
                .map(|(address, token)| projects(address, token));
        std::fs::write(&go, "").unwrap();
        assert_eq!(inside.len(), real.len());
        assert!(inside.iter().all(|url| url.starts_with(&format!("{copy}/"))), "{inside:?}");
        // Neither cloud's tokens open the other.
        assert_eq!(opened, [200, 401, 401, 200]);
        let output = rollout.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    ground.cloud.stop();
}

#[test]
fn an_operator_ends_a_suite_and_nothing_of_it_is_left() {
    let ground = Ground::up("1");
    let (candidate, mark) = (ground.candidate(), ground.dir.path().join("pid"));
    let command = format!("sh -c 'echo $$ > {0}.part; mv {0}.part {0}; sleep 600'; true", mark.display());
    let mut following = support::shisa();
    following.args(["rollout", "start", "--binary", &candidate, "--conformance", &command, "--state"]);
    let mut following = following.arg(&ground.state).stderr(Stdio::piped()).spawn().unwrap();
    while !mark.exists() {
        assert!(following.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = std::fs::read_to_string(&mark).unwrap();
    assert!(Path::new("/proc").join(pid.trim()).exists() && ground.state.join("rehearsal").exists());
    let output = run(&ground.state, &["plane", "rollback"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let why = refusal(&following.wait_with_output().unwrap(), 1);
    assert!(why.contains("at conformance: an operator ended it"), "{why}");
    let gone = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    assert!(gone(pid.trim()) && !ground.state.join("rehearsal").exists());
    let running =
        Command::new("pgrep").args(["-f", &format!("{}/rehearsal", ground.state.display())]).output();
    assert!(running.unwrap().stdout.is_empty(), "planes of the copy are left");
    ground.cloud.stop();
}

#[test]
fn an_operator_ends_a_rollout_that_goes_on_and_there_is_one_at_a_time() {
    let mut ground = Ground::up("1");
    let candidate = ground.candidate();
    let words = ["rollout", "start", "--binary", &candidate, "--bake", "1h"];
    let mut following = support::shisa();
    let following = following.args(words).arg("--state").arg(&ground.state).stdout(Stdio::piped());
    let mut child = following.spawn().unwrap();
    let show = || said(&run(&ground.state, &["rollout", "show"]));
    while !show().contains("is watched for") {
        assert!(child.try_wait().unwrap().is_none(), "{}", show());
    }
    // Whoever follows it may leave.
    child.kill().unwrap();
    child.wait().unwrap();
    let busy = refusal(&run(&ground.state, &words), 1);
    assert!(busy.starts_with("a rollout is going on"), "{busy}");
    let busy = refusal(&run(&ground.state, &["plane", "promote", "blue"]), 1);
    assert!(busy.starts_with("a rollout is going on"), "{busy}");
    let output = run(&ground.state, &["plane", "rollback"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(ground.is("blue", "active", "shisa"));
    assert!(
        show().contains("rollout 1: taken back") && show().contains("an operator ended it"),
        "{}",
        show()
    );

    // What the process of the cloud does not finish is cut off, and says so after the next start.
    let mut child = support::shisa();
    let mut child = child.args(words).arg("--state").arg(&ground.state).spawn().unwrap();
    while !show().contains("is watched for") || !show().contains("rollout 2: it goes on") {
        assert!(child.try_wait().unwrap().is_none(), "{}", show());
    }
    ground.cloud.kill();
    assert!(!child.wait().unwrap().success());
    ground.cloud = Cloud::up(&ground.state);
    let last = || said(&run(&ground.state, &["rollout", "show"]));
    assert!(last().contains("rollout 2: cut off"), "{}", last());
    ground.cloud.stop();
}

#[test]
fn a_candidate_that_ends_after_the_switch_is_taken_back_and_no_request_fails() {
    let ground = Ground::up("2");
    quotas(&ground);
    let candidate = ground.candidate();
    let (output, all, failed) = ground.under_load(|| {
        let mut following = support::shisa();
        following.args(["rollout", "start", "--binary", &candidate, "--bake", "1h", "--state"]);
        let following = following.arg(&ground.state).stderr(Stdio::piped()).spawn().unwrap();
        while !said(&run(&ground.state, &["rollout", "show"])).contains("is watched for") {}
        let text = said(&run(&ground.state, &["plane", "list"]));
        let line = text.lines().find(|line| line.starts_with("green")).unwrap();
        let pid = line.split_whitespace().nth(3).unwrap();
        assert!(Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
        following.wait_with_output().unwrap()
    });
    let why = refusal(&output, 1);
    assert!(why.contains("(taken back) at bake: green"), "{why}");
    assert_eq!(failed, 0, "{failed} of {all} failed");
    assert!(ground.is("blue", "active", "shisa") && ground.is("green", "standby", "shisa"));
    ground.cloud.stop();
}

#[test]
#[ignore = "needs a candidate that is broken on purpose: make rollout-test-broken"]
fn a_broken_candidate_is_found() {
    let candidate = std::env::var("SHISA_CANDIDATE").unwrap();
    let expect = std::env::var("SHISA_EXPECT").unwrap();
    let ground = Ground::up("2");
    quotas(&ground);
    let (output, all, failed) = ground
        .under_load(|| run(&ground.state, &["rollout", "start", "--binary", &candidate, "--bake", "10s"]));
    println!("{}{all} requests, {failed} failed", said(&output));
    let why = refusal(&output, 1);
    println!("{why}");
    assert!(why.contains(&format!(" at {expect}: ")), "{why}");
    let most = if expect == "bake" { FAILED_MAX } else { 0 };
    assert!(failed <= most, "{failed} of {all} failed");
    assert!(ground.is("blue", "active", "shisa") && ground.is("green", "standby", "shisa"));
    ground.cloud.stop();
}
