//! `make bench-nodes`: thousands of simulated nodes follow one plane, each over a connection of its own.
//!
//! The nodes are in this process and speak as those of a machine do; the plane is the release binary. Measured are the
//! times from a request's start until a node acts on what it changed, with the request itself in them. `NODES` in the
//! environment: another number than `NODES_USUAL`.
//!
//! There are as many servers as nodes, all of one project, `NETWORK_SIZE` on a network. What all nodes share is the
//! project's default security group, which names itself: each node has the addresses of all servers.
//!
//! Both sides share the machine's cores: what nodes on machines of their own would do costs time here.

use base::node::{Document, Section, SectionKey};
use bench::{Cloud, Request, Result, process};
use node::remote::Remote;
use node::{Node, Settings, Simulated};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;
use uuid::Uuid;

const NODES_USUAL: usize = 10_000;
/// Servers of one network.
const NETWORK_SIZE: usize = 100;
/// Servers that one request makes.
const TOGETHER: usize = 10;
/// Servers that are made one after the other.
const ONE_BY_ONE: usize = 200;
/// Changes of a set that every node holds.
const SHARED: usize = 20;
/// What nodes saw and nobody has looked at yet.
const SEEN_MAX: usize = 1 << 16;
const PAUSE: Duration = Duration::from_millis(700);
const WAIT_MAX: Duration = Duration::from_secs(120);

/// The newest that any node was told.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// What a node acted on.
struct Seen {
    at: Instant,
    node: usize,
    what: What,
}

#[derive(PartialEq)]
enum What {
    Epoch(u64),
    Vm(Uuid),
    /// How many there are of the set.
    Members(usize),
}

fn main() -> Result<()> {
    let count = std::env::var("NODES").map_or(Ok(NODES_USUAL), |text| text.parse())?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::up(&bench::cloud::binary()?, dir.path(), "0")?;
    let runtime = tokio::runtime::Runtime::new()?;
    println!("{count} nodes; load average {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    let outcome = runtime.block_on(run(&cloud, dir.path(), count));
    runtime.shutdown_background();
    outcome
}

async fn run(cloud: &Cloud, state: &Path, count: usize) -> Result<()> {
    let plane = plane_of(cloud)?;
    println!("plane without nodes: {:.0} MiB", process::memory(plane)?);
    let begin = Instant::now();
    let (told, mut seen) = channel(SEEN_MAX);
    let socket = state.join("planes/blue/nodes");
    (0..count).for_each(|n| start(n, socket.clone(), told.clone()));
    let all = all_of(&mut seen, count, |what| matches!(what, What::Epoch(_))).await?;
    println!("all nodes have a document after {:.1} s", last(&all, begin).as_secs_f64());

    let mut networks = vec![cloud.network("crowd")?];
    for n in 1..=count / NETWORK_SIZE {
        networks.push(cloud.network_of(&format!("crowd-{n}"), &format!("10.{n}.0.0/16"))?);
    }
    let image = cloud.image("crowd")?;
    let server = |name: String, network: usize, most: usize| {
        let network = &networks[network % networks.len()];
        let body = json!({"server": {"name": name, "flavorRef": "1", "imageRef": image, "max_count": most,
            "networks": [{"uuid": network}]}});
        Request::new("POST", "/compute/v2.1/servers", Some(&body))
    };

    let begin = Instant::now();
    let made = cloud.api.whole(16, count / TOGETHER, |n| server(format!("crowd-{n}"), n, TOGETHER))?;
    println!(
        "{} requests for {TOGETHER} servers each: {:.1} s",
        made.times.len(),
        begin.elapsed().as_secs_f64()
    );
    let servers = made.times.len() * TOGETHER;
    let vms = |what: &What| matches!(what, What::Vm(_));
    let all = some_of(&mut seen, servers, vms).await?;
    println!("{servers} servers, each known on its node: {:.1} s", last(&all, begin).as_secs_f64());
    println!("plane with them: {:.0} MiB", process::memory(plane)?);
    settle(&mut seen).await;

    let (mut answered, mut own) = (Vec::new(), Vec::new());
    for n in 0..ONE_BY_ONE {
        let begin = Instant::now();
        let answer = cloud.api.run(1, 1, |_| server(format!("one-{n}"), n, 1))?;
        answered.push(begin.elapsed());
        let id = Uuid::parse_str(&answer.ids("server")?[0])?;
        own.push(some_of(&mut seen, 1, |what| *what == What::Vm(id)).await?[0].duration_since(begin));
    }
    print("a server's request, one after the other", answered, "none");
    print("its own section with its node", own, "50 ms");
    settle(&mut seen).await;

    let mut shared = Vec::new();
    for n in 0..SHARED {
        let begin = Instant::now();
        cloud.api.run(1, 1, |_| server(format!("shared-{n}"), n, 1))?;
        // Who holds the set has it when its size is what it is now.
        let members = servers + ONE_BY_ONE + n + 1;
        let all = all_of(&mut seen, count, |what| *what == What::Members(members)).await?;
        shared.extend(all.into_iter().map(|at| at.duration_since(begin)));
        tokio::time::sleep(PAUSE).await;
    }
    print("shared section, at rest", shared, "100 ms");

    let epoch = EPOCH.load(Relaxed);
    let begin = Instant::now();
    kill_process(Pid::from_raw(plane.try_into()?).ok_or("no pid")?, Signal::KILL)?;
    let all = all_of(&mut seen, count, |what| matches!(what, What::Epoch(e) if *e > epoch)).await?;
    println!(
        "kill -9 of the plane, all caught up after {:.1} s (budget 5 s)",
        last(&all, begin).as_secs_f64()
    );
    println!("plane after it: {:.0} MiB", process::memory(plane_of(cloud)?)?);
    Ok(())
}

/// A node, and one that watches what it acts on.
fn start(n: usize, socket: PathBuf, told: Sender<Seen>) {
    // An address of its own, as on machines.
    let address = IpAddr::V4(Ipv4Addr::from(0x0a80_0000 + n as u32));
    let id = Uuid::from_u128(0x5150_0000 + n as u128);
    let settings = Settings::simulated(&format!("n{n:05}"), id, address, Simulated::default());
    let plane = Remote::near(&settings.name, move || Some(socket.clone()));
    let node = Node::new(settings);
    let mut documents = node.document();
    tokio::spawn(async move {
        if let Err(error) = node.run(plane.link(), std::future::pending()).await {
            eprintln!("a node ended: {}", error.chain());
        }
    });
    tokio::spawn(async move {
        let mut before = Arc::<Document>::default();
        while documents.changed().await.is_ok() {
            let (at, now) = (Instant::now(), documents.borrow_and_update().clone());
            for what in differences(&before, &now) {
                // Nobody may be listening any more.
                let _ = told.send(Seen { at, node: n, what }).await;
            }
            before = now;
        }
    });
}

fn differences(before: &Document, now: &Document) -> Vec<What> {
    let mut found = Vec::new();
    if now.generation.epoch > before.generation.epoch {
        EPOCH.fetch_max(now.generation.epoch, Relaxed);
        found.push(What::Epoch(now.generation.epoch));
    }
    for (key, section) in &now.sections {
        match (key, section) {
            (SectionKey::Vm(id), _) if !before.sections.contains_key(key) => found.push(What::Vm(*id)),
            (_, Section::Group(group)) => {
                let old = match before.sections.get(key) {
                    Some(Section::Group(old)) => old.members.len(),
                    _ => 0,
                };
                if group.members.len() != old {
                    found.push(What::Members(group.members.len()));
                }
            }
            _ => {}
        }
    }
    found
}

/// When each of `count` nodes first saw it.
async fn all_of(
    seen: &mut Receiver<Seen>,
    count: usize,
    wanted: impl Fn(&What) -> bool,
) -> Result<Vec<Instant>> {
    let (mut nodes, mut times) = (BTreeSet::new(), Vec::new());
    while times.len() < count {
        let one = timeout(WAIT_MAX, seen.recv()).await;
        let one =
            one.map_err(|_| format!("{} of {count} nodes saw it", times.len()))?.ok_or("none is left")?;
        if wanted(&one.what) && nodes.insert(one.node) {
            times.push(one.at);
        }
    }
    Ok(times)
}

/// When `count` of it were seen, by whichever nodes.
async fn some_of(
    seen: &mut Receiver<Seen>,
    count: usize,
    wanted: impl Fn(&What) -> bool,
) -> Result<Vec<Instant>> {
    let mut times = Vec::new();
    while times.len() < count {
        let one = timeout(WAIT_MAX, seen.recv()).await;
        let one = one.map_err(|_| format!("{} of {count} were seen", times.len()))?.ok_or("none is left")?;
        if wanted(&one.what) {
            times.push(one.at);
        }
    }
    Ok(times)
}

/// Until nothing was seen for a while.
async fn settle(seen: &mut Receiver<Seen>) {
    while timeout(2 * PAUSE, seen.recv()).await.is_ok_and(|seen| seen.is_some()) {}
}

fn last(times: &[Instant], begin: Instant) -> Duration {
    times.iter().max().map_or(Duration::ZERO, |at| at.duration_since(begin))
}

fn print(what: &str, mut times: Vec<Duration>, budget: &str) {
    times.sort_unstable();
    let at = |q: f64| times[((times.len() as f64 * q) as usize).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!(
        "{what}: {} times, p50 {:.1} ms, p99 {:.1} ms (budget {budget}), max {:.1} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// The process of the one plane.
fn plane_of(cloud: &Cloud) -> Result<u32> {
    let is = |pid: &u32| {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.contains("\0plane\0run\0")
    };
    let begin = Instant::now();
    while begin.elapsed() < WAIT_MAX {
        if let Some(pid) = cloud.api.processes.members()?.into_iter().find(is) {
            return Ok(pid);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err("there is no plane".into())
}
