//! The main job on real input: a cloud with a real guest, seen through SSH and the unmodified `openstack` client.
//!
//! Needs root, QEMU, nft, ssh, ping and `guest/build`; the client's part needs `conformance/clients`. What a machine
//! cannot do is said and skipped.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use support::real::{Real, lacks, text, top};
use support::{Cloud, Member, finish, run};

/// The goal for an idle machine is 20 s; this is for one that is busy with other tests.
const SSH_MAX_SECS: f64 = 120.0;

/// One guest at a time: each takes a processor.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Real {
    /// Runs a command in the demo's guest.
    fn ssh(&self, address: &str, command: &str) -> Output {
        self.ssh_by(&self.state, address, command)
    }

    /// By the key in this directory.
    fn ssh_by(&self, keys: &Path, address: &str, command: &str) -> Output {
        let mut ssh = Command::new("ssh");
        ssh.arg("-i").arg(keys.join("demo.key")).args([
            "-oStrictHostKeyChecking=no",
            "-oUserKnownHostsFile=/dev/null",
            "-oLogLevel=ERROR",
            "-oBatchMode=yes",
            "-oConnectTimeout=10",
        ]);
        finish(ssh.arg(format!("cirros@{address}")).arg(command).stdin(Stdio::null()))
    }

    /// The unmodified client, as a user of `clouds.yaml`; its answer as JSON.
    fn client(&self, cloud: &str, words: &str) -> Value {
        let mut client = Command::new(top().join(".venv/bin/openstack"));
        client.args(["--os-cloud", cloud]).args(words.split(' ')).args(["-f", "json"]);
        client.env("OS_CLIENT_CONFIG_FILE", self.state.join("clouds.yaml")).current_dir(&self.state);
        let output = finish(&mut client);
        assert!(output.status.success(), "openstack {words}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn node(&self) -> String {
        let listed = said(&run(&self.state, &["node", "list"]));
        listed.split_whitespace().next().unwrap().into()
    }

    /// The guests' processes: pid and start time, as the node wrote them down.
    fn guests(&self) -> Vec<Value> {
        let folders = std::fs::read_dir(self.state.join("nodes")).unwrap().flatten();
        let vms = folders.flat_map(|node| std::fs::read_dir(node.path().join("vms")).unwrap().flatten());
        let runs = vms.filter_map(|vm| std::fs::read(vm.path().join("run.json")).ok());
        runs.map(|run| serde_json::from_slice::<Value>(&run).unwrap()["process"].clone()).collect()
    }
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// The demo's address, once its SSH has answered; and when that was.
fn answered(cloud: &mut Cloud) -> (String, f64) {
    let line = cloud.said.iter().find(|line| line.contains(" ssh ")).unwrap();
    assert!(line.contains("answers at"), "{}", cloud.said.join(""));
    let words: Vec<&str> = line.split_whitespace().collect();
    (words[5].trim_end_matches(':').to_string(), words[0].parse().unwrap())
}

/// Pings until it is told to stop; what was lost, in percent.
struct Ping(std::process::Child);

impl Ping {
    fn start(address: &str) -> Ping {
        let mut ping = Command::new("ping");
        Ping(ping.args(["-i", "0.2", "-q", address]).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn lost(self) -> String {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lost = text.split(", ").find_map(|part| part.split_once("% packet loss").map(|(n, _)| n));
        lost.unwrap_or_else(|| panic!("{text}")).to_string()
    }
}

#[test]
fn a_real_guest_outlives_a_crash_and_comes_back_after_a_stop() {
    if let Some(what) = lacks() {
        println!("skipped: this machine has no {what}");
        return;
    }
    let _turn = turn();
    let real = Real::new();
    let mut cloud = real.up();
    let (address, seconds) = answered(&mut cloud);
    println!("SSH answered {seconds} s after the start");
    assert!(seconds < SSH_MAX_SECS);
    assert_eq!(said(&real.ssh(&address, "hostname; echo kept > kept")), "demo");
    client(&real);

    // A crash: the same process goes on, and nothing is lost on the way to it.
    let guests = real.guests();
    assert_eq!(guests.len(), 1);
    let ping = Ping::start(&address);
    cloud.kill();
    let mut cloud = real.up();
    assert_eq!(answered(&mut cloud).0, address);
    assert_eq!(ping.lost(), "0");
    assert_eq!(real.guests(), guests);

    // Nor does another binary of the node's process touch it.
    let uptime = || said(&real.ssh(&address, "cut -d. -f1 /proc/uptime")).parse::<u64>().unwrap();
    let (before, ping) = (uptime(), Ping::start(&address));
    let candidate = real.state.with_file_name("candidate");
    std::fs::copy(env!("CARGO_BIN_EXE_shisa"), &candidate).unwrap();
    let candidate = candidate.to_str().unwrap();
    let words = ["rollout", "start", "--binary", candidate, "--bake", "1s", "--without-copy"];
    assert!(said(&run(&real.state, &words)).contains("the nodes of this machine are process"));
    assert!(uptime() >= before);
    assert_eq!(ping.lost(), "0");
    assert_eq!(real.guests(), guests);

    // A stop leaves nothing, and the next start brings the server back with its files.
    let begin = Instant::now();
    assert!(cloud.stop().contains("stopped"));
    println!("the stop took {:?}", begin.elapsed());
    assert_eq!(leftovers(&real), Vec::<String>::new());
    let mut cloud = real.up();
    assert_eq!(answered(&mut cloud).0, address);
    assert_eq!(said(&real.ssh(&address, "cat kept")), "kept");
    assert_ne!(real.guests(), guests);
    maintenance(&real, &address);
    cloud.kill();
    // What a crash left is ended, too.
    assert!(run(&real.state, &["down"]).status.success());
    assert_eq!(leftovers(&real), Vec::<String>::new());
}

#[test]
fn a_real_guest_runs_on_while_its_node_becomes_another_program_and_back() {
    if let Some(what) = lacks() {
        println!("skipped: this machine has no {what}");
        return;
    }
    let _turn = turn();
    // Everything of the node ends with the test.
    let node = Real::new();
    let plane = node.state.with_file_name("plane");
    let image = top().join("guest/out/guest.qcow2");
    let words = ["--machine", "simulated", "--nodes", "0", "--node-listen", "127.0.0.1:0", "--image"];
    let cloud = Cloud::up_with(&plane, &[&words[..], &[image.to_str().unwrap()]].concat());
    let token = plane.with_file_name("token");
    said(&run(&plane, &["node", "token", "--out", token.to_str().unwrap()]));
    let words = ["--token", token.to_str().unwrap(), "--machine", "qemu", "--name", "real"];
    let member = Member::start(&node.state, &words);
    std::fs::remove_file(&token).unwrap();
    let demo = said(&run(&plane, &["demo"]));
    // The plane's own machine is simulated, so the demo does not wait for SSH.
    let address = demo.lines().find(|line| line.contains(" demo at ")).unwrap();
    let address = address.split_whitespace().last().unwrap().to_string();
    until("the guest answers", || node.ssh_by(&plane, &address, "true").status.success());
    let uptime = || {
        let seconds = said(&node.ssh_by(&plane, &address, "cut -d. -f1 /proc/uptime"));
        seconds.parse::<u64>().unwrap()
    };
    let (guests, before, ping) = (node.guests(), uptime(), Ping::start(&address));
    assert_eq!(guests.len(), 1);

    let candidate = plane.with_file_name("candidate");
    std::fs::copy(env!("CARGO_BIN_EXE_shisa"), &candidate).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&candidate).unwrap();
    std::io::Write::write_all(&mut file, b"\n").unwrap();
    drop(file);
    let exe = || std::fs::read_link(format!("/proc/{}/exe", member.pid())).unwrap();
    let first = exe();
    let words = ["rollout", "start", "--bake", "1s", "--without-copy", "--binary"];
    let text = said(&run(&plane, &[&words[..], &[candidate.to_str().unwrap()]].concat()));
    assert!(text.contains("wave 1 of 1: real: done"), "{text}");
    let second = exe();
    assert!(second != first && second.starts_with(node.state.join("programs")), "{}", second.display());
    assert!(uptime() >= before);
    said(&run(&plane, &["plane", "rollback"]));
    assert!(exe() != second);
    assert!(uptime() >= before);
    assert_eq!(ping.lost(), "0");
    assert_eq!(node.guests(), guests);
    // It still ends what it adopted.
    assert!(member.stop().contains("stopped"));
    assert_eq!(node.guests(), Vec::<Value>::new());
    cloud.stop();
}

/// The guest is told of its node's maintenance, powers off at the deadline, and comes back with its files.
fn maintenance(real: &Real, address: &str) {
    let node = real.node();
    let well = |words: &[&str]| said(&run(&real.state, words));
    let told = |path: &str| -> Value {
        let text = said(&real.ssh(address, &format!("curl -s http://169.254.169.254/{path}")));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    };
    let (openstack, ec2) =
        ("openstack/latest/maintenance.json", "latest/meta-data/events/maintenance/scheduled");
    assert_eq!((told(openstack), told(ec2)), (json!([]), json!([])));
    well(&["node", "drain", &node, "--deadline", "1h", "--reason", "new disks", "--no-wait"]);
    until("the guest is told", || told(openstack) != json!([]));
    let event = &told(openstack)[0];
    assert_eq!((&event["state"], &event["code"]), (&json!("scheduled"), &json!("instance-stop")));
    assert_eq!(told(ec2)[0]["Description"], "new disks");
    well(&["node", "undrain", &node]);
    until("the guest is told that nothing is to come", || told(openstack) == json!([]));

    let begin = Instant::now();
    let text = well(&["node", "drain", &node, "--deadline", "2s"]);
    assert!(text.contains("runs nothing"), "{text}");
    println!("the guest was off {:?} after the drain", begin.elapsed());
    assert_eq!(real.guests(), Vec::<Value>::new());
    let text = well(&["node", "undrain", &node]);
    assert!(text.contains("started again, as the drain stopped them: 1"), "{text}");
    let up = || real.ssh(address, "cat kept").status.success();
    until("the guest is back", up);
    assert_eq!(said(&real.ssh(address, "cat kept")), "kept");
}

fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !seen() {
        assert!(begin.elapsed().as_secs_f64() < SSH_MAX_SECS, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// What the kernel still has of the cloud: guests, devices, namespaces.
fn leftovers(real: &Real) -> Vec<String> {
    let ids: Value = serde_json::from_slice(&std::fs::read(real.state.join("cloud.json")).unwrap()).unwrap();
    let cloud = format!("{:08x}", ids["cloud"].as_u64().unwrap());
    let names = |folder: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let kept = names("/sys/class/net").into_iter().chain(names("/run/netns"));
    let kept = kept.filter(|name| name.contains(&cloud));
    kept.chain(real.guests().iter().map(Value::to_string)).collect()
}

/// What a person does with the unmodified client.
fn client(real: &Real) {
    if !top().join(".venv/bin/openstack").exists() {
        println!("skipped: there is no .venv/bin/openstack (conformance/clients)");
        return;
    }
    let demo = |words: &str| real.client("shisa-demo", words);
    let admin = |words: &str| real.client("shisa-admin", words);
    assert_eq!(demo("token issue")["project_id"].as_str().map(str::len), Some(32));
    assert_eq!(admin("catalog list").as_array().map(Vec::len), Some(5));
    assert_eq!(demo("server list --long")[0]["Status"], "ACTIVE");
    assert_eq!(demo("server show demo")["key_name"], "demo");
    assert_eq!(admin("hypervisor list")[0]["State"], "up");
    demo("server create --image guest --flavor m1.nano --network demo --wait second");
    assert_eq!(demo("server show second")["status"], "ACTIVE");
    assert_eq!(demo("server list").as_array().map(Vec::len), Some(2));
    let mut log = Command::new(top().join(".venv/bin/openstack"));
    log.args(["--os-cloud", "shisa-demo", "console", "log", "show", "demo"]);
    log.env("OS_CLIENT_CONFIG_FILE", real.state.join("clouds.yaml"));
    assert!(said(&finish(&mut log)).contains("ssh ready"));
    let mut delete = Command::new(top().join(".venv/bin/openstack"));
    delete.args(["--os-cloud", "shisa-demo", "server", "delete", "--wait", "second"]);
    delete.env("OS_CLIENT_CONFIG_FILE", real.state.join("clouds.yaml"));
    said(&finish(&mut delete));
}
