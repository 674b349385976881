//! Two planes, a front door, twenty simulated nodes and an open-loop load through the real API, while planes are
//! switched, taken back, killed and stopped: `make planes-test`, and a short form of it among the ordinary tests.
//!
//! What each client was told is kept, and compared with what the cloud knows in the end: nothing that was answered is
//! lost, doubled or older than what was told before; no revoked token passes; no address is given twice.
//!
//! Words: `--full` for the long form, which is over each of the store's engines with a real server of its own;
//! `--engine NAME` for one of them; `--switches N`, `--rollbacks N` and `--kills N` for other numbers.

#![allow(clippy::unwrap_used, reason = "a test")]

mod history;
mod load;
mod planes;
#[allow(dead_code, reason = "of the engines' own tests")]
#[path = "../../../store/tests/engines/servers.rs"]
mod servers;
#[path = "../support/mod.rs"]
mod support;

use history::History;
use load::Load;
use planes::Planes;
use servers::{Server, Which};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What happens in which measure.
struct Plan {
    rate: u32,
    control: Duration,
    switches: usize,
    rollbacks: usize,
    kills: usize,
    pauses: usize,
    /// Times are held to their bounds: not among the ordinary tests, where other work is on the machine.
    timed: bool,
}

const SHORT: Plan = Plan {
    rate: 100,
    control: Duration::from_secs(2),
    switches: 8,
    rollbacks: 4,
    kills: 8,
    pauses: 1,
    timed: false,
};
const FULL: Plan = Plan {
    rate: 500,
    control: Duration::from_secs(20),
    switches: 100,
    rollbacks: 100,
    kills: 200,
    pauses: 5,
    timed: true,
};

const ENGINES: [(&str, Which); 3] =
    [("sqlite", Which::Sqlite), ("postgres", Which::Postgres), ("etcd", Which::Etcd)];

/// How often an owner that woke up is asked, past the door.
const WOKEN_TIMES: usize = 20;
/// A stopped owner is followed by then.
const FOLLOWED_MAX: Duration = Duration::from_secs(10);

/// Checks, as they come.
#[derive(Default)]
pub struct Checks {
    failed: Vec<String>,
    count: usize,
}

impl Checks {
    pub fn that(&mut self, name: &str, good: bool, detail: impl std::fmt::Display) {
        self.count += 1;
        println!("{} {name}: {detail}", if good { "ok    " } else { "FAILED" });
        if !good {
            self.failed.push(name.replace(' ', "-"));
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let said = |word: &str| words.iter().any(|w| w == word);
    if said("--list") {
        // Test runners ask so; the long form is none of theirs.
        if !said("--ignored") {
            println!("short: test");
        }
        return ExitCode::SUCCESS;
    }
    let after = |word: &str| words.iter().position(|w| w == word).and_then(|at| words.get(at + 1));
    let number = |word: &str, usual: usize| after(word).map_or(usual, |n| n.parse().unwrap());
    let plan = if said("--full") { FULL } else { SHORT };
    let plan = Plan {
        switches: number("--switches", plan.switches),
        rollbacks: number("--rollbacks", plan.rollbacks),
        kills: number("--kills", plan.kills),
        ..plan
    };
    let engine = after("--engine");
    let wanted = |(name, _): &&(&str, Which)| engine.map_or(plan.timed || *name == "sqlite", |e| e == name);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut checks = Checks::default();
    for (name, which) in ENGINES.iter().filter(wanted) {
        println!("over {name}:");
        let server = Server::start(*which);
        runtime.block_on(run(&plan, &server.url(), &mut checks));
    }
    runtime.shutdown_background();
    if !checks.failed.is_empty() {
        println!("failed: {}", checks.failed.join(" "));
    }
    println!("{} checks, {} failed, 0 skipped", checks.count, checks.failed.len());
    if checks.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(plan: &Plan, store: &str, checks: &mut Checks) {
    let begin = Instant::now();
    let mut planes = Planes::up(store);
    let load = Load::prepare(&planes).await;
    println!("two planes, 20 nodes after {:.1} s; {} requests/s", begin.elapsed().as_secs_f64(), plan.rate);

    let running = load.start(plan.rate);
    tokio::time::sleep(plan.control).await;
    let control = running.stop().await;
    println!("control run: {}", control.summary());
    checks.that("control run fails nothing", control.failed() == 0, format!("{} failed", control.failed()));

    let running = load.start(plan.rate);
    let held = switches(&planes, plan.switches).await;
    let switched = running.stop().await;
    println!("switches: {}", switched.summary());
    checks.that("no request fails in switches", switched.failed() == 0, switched.failures());
    quantile(checks, plan.timed, "writes held in a switch", &held, 0.99, 250.0, 1_000.0);

    let running = load.start(plan.rate);
    let back = rollbacks(&planes, plan.rollbacks).await;
    let taken_back = running.stop().await;
    println!("rollbacks: {}", taken_back.summary());
    checks.that("no request fails in rollbacks", taken_back.failed() == 0, taken_back.failures());
    quantile(checks, plan.timed, "back from the trigger", &back, 1.0, 1_000.0, 1_000.0);

    let running = load.start(plan.rate);
    let away = kills(&mut planes, &load, plan.kills).await;
    let killed = running.stop().await;
    println!("kills: {}", killed.summary());
    checks.that("no request fails in kills", killed.failed() == 0, killed.failures());
    quantile(checks, plan.timed, "reads and writes back after kill -9", &away, 0.99, 1_000.0, f64::MAX);

    let (first, second, count) = load.twice_at(&planes.socket(&planes.active())).await;
    let detail = format!("answered {first} and {second}, {count} there");
    checks.that(
        "what is asked twice is done once",
        first.is_string() && first == second && count == 1,
        detail,
    );

    let running = load.start(plan.rate);
    let (mut taken, mut old) = (0, 0);
    for _ in 0..plan.pauses {
        let (followed, answers) = pause(&planes, &load).await;
        taken += usize::from(followed);
        old += answers;
    }
    checks.that("an owner that wakes up answers nothing old", old == 0, format!("{old} answers were old"));
    checks.that("a stopped owner is followed", taken == plan.pauses, format!("{taken} of {}", plan.pauses));
    let paused = running.stop().await;
    println!("stopped owners: {}", paused.summary());
    checks.that(
        "no request fails when an owner is stopped and wakes",
        paused.failed() == 0,
        paused.failures(),
    );

    let told = [control, switched, taken_back, killed, paused];
    let mut history = History::of(told.into_iter().flat_map(|run| run.operations));
    history.check(checks, &load, "now").await;
    planes = planes.restart();
    let load = load.at(&planes).await;
    history.check(checks, &load, "after a restart").await;
    if !checks.failed.is_empty() {
        println!("what was said:\n{}", planes.said());
    }
    println!("{:.0} s", begin.elapsed().as_secs_f64());
}

/// Prints the middle, the wanted quantile and the largest of some milliseconds.
fn quantile(checks: &mut Checks, timed: bool, name: &str, ms: &[f64], at: f64, most: f64, ever: f64) {
    let mut sorted = ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let pick = |q: f64| sorted[((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len()) - 1];
    let good = pick(at) <= most && pick(1.0) <= ever;
    let (half, p99, max) = (pick(0.5), pick(0.99), pick(1.0));
    let detail = format!("{} times, p50 {half:.1} ms, p99 {p99:.1} ms, max {max:.1} ms", ms.len());
    match timed {
        true => checks.that(name, good, detail),
        false => println!("       {name}: {detail}"),
    }
}

/// How long mutations were held in each. A switch that does not succeed in its time goes back by itself, which is no
/// failure while other work is on the machine; it is told, and made again.
async fn switches(planes: &Planes, count: usize) -> Vec<f64> {
    let (mut held, mut back) = (Vec::new(), 0);
    while held.len() < count {
        match planes.promote(&planes.standby()) {
            Ok((_, ms)) => held.push(ms),
            Err(why) => {
                back += 1;
                println!("       a switch went back: {}", why.trim());
                assert!(back <= count, "switches do not succeed");
                planes.both_there().await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    held
}

/// A switch, and as soon as it is made the way back; how long that takes from its trigger.
async fn rollbacks(planes: &Planes, count: usize) -> Vec<f64> {
    let mut back = Vec::new();
    for _ in 0..count {
        switches(planes, 1).await;
        let begin = Instant::now();
        while let Err(why) = planes.promote(&planes.standby()) {
            println!("       a rollback is tried again: {}", why.trim());
            planes.both_there().await;
        }
        back.push(begin.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    back
}

/// Kills the active plane at moments that follow no pattern; how long until a read and a write that began after it are
/// answered.
async fn kills(planes: &mut Planes, load: &Load, count: usize) -> Vec<f64> {
    let mut away = Vec::new();
    for n in 0..count {
        planes.both_there().await;
        tokio::time::sleep(Duration::from_millis((n as u64 * 7_919) % 211)).await;
        let begin = Instant::now();
        planes.kill_active();
        load.read_and_write().await;
        away.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    planes.both_there().await;
    away
}

/// Stops the active plane: the other one takes over when the lease is over, or, where the stopped one holds SQLite's lock
/// on writing, when the keeper has ended it. The first one wakes up to find that it owns nothing. Whether it was
/// followed; how often what it then said of the register was older than what was answered before.
async fn pause(planes: &Planes, load: &Load) -> (bool, usize) {
    planes.both_there().await;
    let (name, pid) = planes.active_process();
    planes::signal(pid, "STOP");
    let begin = Instant::now();
    let mut followed = false;
    while !followed && begin.elapsed() < FOLLOWED_MAX {
        tokio::time::sleep(Duration::from_millis(500)).await;
        followed = planes.active() != name;
    }
    planes::wake(pid);
    let (socket, mut old) = (planes.socket(&name), 0);
    for _ in 0..WOKEN_TIMES {
        old += usize::from(load.is_old_at(&socket).await);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    (followed, old)
}
