//! `cargo bench -p bench --bench store`: what the store has a budget for in DESIGN.md, on one synced file.
//!
//! Records have the size and indexes of servers and ports. Loading is measured in a process of its own, so that its
//! memory is that of a plane that has just started.

use base::id::ProjectId;
use base::units::Mac;
use base::{Id, IdKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};
use store::engine::sqlite::Sqlite;
use store::engine::{Append, Batch, Each, Head, Tail};
use store::lease::Sign;
use store::{Cause, Cell, Engine, Index, IndexPart, Options, Record, Revision, Schema, Steps, Tx};

const SERVERS: u64 = 100_000;
const PORTS: u64 = 300_000;
const PROJECTS: u64 = 500;
const HOSTS: u64 = 1_000;
const CLIENTS: usize = 256;
const RATE_BUDGET: f64 = 15_000.0;
const LOAD_ENV: &str = "BENCH_LOAD";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Server {
    id: Id<Server>,
    project: ProjectId,
    name: String,
    description: Option<String>,
    hostname: String,
    flavor: Flavor,
    image: Option<Id<Server>>,
    key_name: Option<String>,
    metadata: BTreeMap<String, String>,
    tags: BTreeSet<String>,
    zone: Option<String>,
    host: Option<String>,
    created: i64,
    updated: i64,
    desired: Power,
    reboots: u64,
    phase: Phase,
    observed: Option<Observed>,
    ports: Vec<Id<Port>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flavor {
    name: String,
    vcpus: u32,
    ram_mib: u64,
    disk_gib: u64,
    extra: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Power {
    Active,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase")]
enum Phase {
    Idle,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Observed {
    generation: u64,
    power: Power,
    since: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Port {
    id: Id<Port>,
    project: ProjectId,
    name: String,
    network: Id<Server>,
    mac: Mac,
    admin_up: bool,
    fixed: Vec<(Id<Server>, IpAddr)>,
    device: String,
    owner: String,
    groups: BTreeSet<String>,
    host: String,
    up: bool,
    created: i64,
    updated: i64,
}

impl IdKind for Server {}
impl IdKind for Port {}

impl Record for Server {
    const KIND: &'static str = "server";
    type Key = Id<Server>;
    const INDEXES: &'static [Index<Server>] = &[
        Index::many("project", |s, keys| keys.push((s.project, s.created as u64).key())),
        Index::many("host", |s, keys| keys.extend(s.host.iter().map(|h| h.key()))),
        Index::many("name", |s, keys| keys.push(s.name.key())),
        Index::many("image", |s, keys| keys.extend(s.image.iter().map(|i| i.key()))),
        Index::many("tag", |s, keys| keys.extend(s.tags.iter().map(|t| t.key()))),
    ];

    fn key(&self) -> Id<Server> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.project, "compute:servers", 1);
        add(self.project, "compute:cores", self.flavor.vcpus.into());
        add(self.project, "compute:ram", self.flavor.ram_mib as i64);
    }
}

impl Record for Port {
    const KIND: &'static str = "port";
    type Key = Id<Port>;
    const INDEXES: &'static [Index<Port>] = &[
        Index::many("project", |p, keys| keys.push(p.project.key())),
        Index::unique("mac", |p, keys| keys.push((p.network, p.mac).key())),
        Index::unique("address", |p, keys| {
            keys.extend(p.fixed.iter().map(|(subnet, a)| (*subnet, *a).key()))
        }),
        Index::many("device", |p, keys| keys.push(p.device.key())),
        Index::many("host", |p, keys| keys.push(p.host.key())),
    ];

    fn key(&self) -> Id<Port> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.project, "network:ports", 1);
    }
}

fn server(n: u64) -> Server {
    Server {
        id: Id::from_random(hash(n, 1)),
        project: ProjectId::from_random(hash(n % PROJECTS, 2)),
        name: format!("server-{n}"),
        description: None,
        hostname: format!("server-{n}"),
        flavor: Flavor {
            name: "m1.small".into(),
            vcpus: 2,
            ram_mib: 2048,
            disk_gib: 20,
            extra: BTreeMap::from([("hw:cpu_policy".into(), "shared".into())]),
        },
        image: Some(Id::from_random(hash(n % 20, 3))),
        key_name: Some("default".into()),
        metadata: BTreeMap::from([("role".into(), format!("web-{}", n % 7))]),
        tags: BTreeSet::from([format!("tag-{}", n % 50)]),
        zone: Some("nova".into()),
        host: Some(format!("host-{}", n % HOSTS)),
        created: n as i64,
        updated: n as i64,
        desired: Power::Active,
        reboots: 0,
        phase: Phase::Idle,
        observed: Some(Observed { generation: n, power: Power::Active, since: n as i64 }),
        ports: (0..3).map(|i| Id::from_random(hash(n * 3 + i, 4))).collect(),
    }
}

fn port(n: u64) -> Port {
    let mac = [0xfa, 0x16, (n >> 24) as u8, (n >> 16) as u8, (n >> 8) as u8, n as u8];
    Port {
        id: Id::from_random(hash(n, 4)),
        project: ProjectId::from_random(hash(n / 3 % PROJECTS, 2)),
        name: String::new(),
        network: Id::from_random(hash(n % 1_000, 5)),
        mac: Mac(mac),
        admin_up: true,
        fixed: vec![(Id::from_random(hash(n % 1_000, 6)), Ipv4Addr::from(0x0a00_0000 + n as u32).into())],
        device: Id::<Server>::from_random(hash(n / 3, 1)).to_string(),
        owner: "compute:nova".into(),
        groups: BTreeSet::from([Id::<Server>::from_random(hash(n % PROJECTS, 7)).to_string()]),
        host: format!("host-{}", n / 3 % HOSTS),
        up: true,
        created: n as i64,
        updated: n as i64,
    }
}

fn hash(n: u64, kind: u64) -> u128 {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    (u128::from(mix(n * 64 + kind)) << 64) | u128::from(mix(n * 64 + kind + 32))
}

fn main() -> Result<()> {
    if let Ok(dir) = std::env::var(LOAD_ENV) {
        return load(Path::new(&dir));
    }
    let dir = tempfile::tempdir()?;
    println!("{:<66}{:>16}{:>22}", "", "measured", "budget");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    runtime.block_on(async {
        let cell = open(dir.path())?;
        fill(&cell).await?;
        durable(&cell).await?;
        cell.close();
        Ok::<_, base::Error>(())
    })?;
    let this = std::env::current_exe()?;
    std::process::Command::new(this).env(LOAD_ENV, dir.path()).status()?;
    in_memory(dir.path())
}

fn line(what: &str, measured: String, budget: &str) {
    println!("{what:<66}{measured:>16}{budget:>22}");
}

fn schema() -> Schema {
    Schema::default().record::<Server>().record::<Port>()
}

fn options() -> Options {
    Options { twice: false, ..Options::default() }
}

fn open(dir: &Path) -> Result<Cell> {
    let engine = Sqlite::open(&dir.join("state.db"))?;
    Cell::open(Box::new(engine), schema(), store::cipher::CellKey::cipher([1; 32]), options())
}

async fn fill(cell: &Cell) -> Result<()> {
    const CHUNK: u64 = 500;
    let begin = Instant::now();
    for from in (0..SERVERS).step_by(CHUNK as usize) {
        let put = move |tx: &mut Tx| {
            for n in from..from + CHUNK {
                tx.put(server(n))?;
            }
            Ok(())
        };
        cell.write(Cause::step("fill"), put).await?;
    }
    for from in (0..PORTS).step_by(CHUNK as usize) {
        let put = move |tx: &mut Tx| {
            for n in from..from + CHUNK {
                tx.put(port(n))?;
            }
            Ok(())
        };
        cell.write(Cause::step("fill"), put).await?;
    }
    let rate = (SERVERS + PORTS) as f64 / begin.elapsed().as_secs_f64();
    line("records written, 500 a transaction, one client", format!("{rate:.0}/s"), "");
    Ok(())
}

/// A node's report: one record, one index untouched.
fn report(n: u64) -> impl Fn(&mut Tx) -> Result<()> + Send + 'static {
    let id = server(n % SERVERS).id;
    move |tx| {
        let generation = tx.next_revision();
        tx.update::<Server>(&id, |s| {
            s.observed = Some(Observed { generation, power: Power::Active, since: 0 })
        })?;
        Ok(())
    }
}

/// What a server create writes: the server, its port with address, and two records that change.
fn create(n: u64) -> impl Fn(&mut Tx) -> Result<()> + Send + 'static {
    let (server, port, other) = (server(SERVERS + n), port(PORTS + 3 * n), hash(n % PORTS, 4));
    move |tx| {
        tx.put(server.clone())?;
        tx.put(port.clone())?;
        let updated = tx.next_revision() as i64;
        tx.update::<Port>(&Id::from_random(other), |p| p.updated = updated)?;
        Ok(())
    }
}

fn cause() -> Cause {
    Cause {
        id: "req-7d9b0f6e-8f0b-4f5e-9d0a-0f6c2b9d4e11".into(),
        who: "5d2f 8a7c".into(),
        route: "POST /v2.1/servers".into(),
        version: "2.96".into(),
        body: None,
    }
}

async fn durable(cell: &Cell) -> Result<()> {
    let full = clients(cell, None, Duration::from_secs(6), report).await?;
    line("durable one-record transactions, 256 clients", format!("{:.0}/s", full.rate), "15,000/s");
    line("  p50, p99 at full load", full.latency(), "");
    let half = clients(cell, Some(RATE_BUDGET / 2.0), Duration::from_secs(6), report).await?;
    line("  p50, p99 at half of the budget", half.latency(), "p99 10 ms");
    line("  reached then", format!("{:.0}/s", half.rate), "7,500/s");
    let creates = clients(cell, None, Duration::from_secs(6), create).await?;
    line(
        "durable transactions as of a server create, 3 records",
        format!("{:.0}/s", creates.rate),
        "4,000/s",
    );
    line("  p50, p99 at full load", creates.latency(), "");
    Ok(())
}

struct Measured {
    rate: f64,
    latencies: Vec<Duration>,
}

impl Measured {
    fn latency(&self) -> String {
        let at = |p: usize| self.latencies[self.latencies.len() * p / 100].as_secs_f64() * 1e3;
        format!("{:.1}, {:.1} ms", at(50), at(99))
    }
}

/// Each client writes one after the other; at a rate, each at its own moments, and latency counts from the moment.
async fn clients<F, T>(cell: &Cell, rate: Option<f64>, time: Duration, f: F) -> Result<Measured>
where
    F: Fn(u64) -> T + Copy + Send + 'static,
    T: Fn(&mut Tx) -> Result<()> + Send + 'static,
{
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let cell = cell.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let every = rate.map(|rate| Duration::from_secs_f64(CLIENTS as f64 / rate));
            for n in 0.. {
                let mut asked = Instant::now();
                if let Some(every) = every {
                    let offset = every.mul_f64(client as f64 / CLIENTS as f64);
                    asked = begin + offset + every * n as u32;
                    tokio::time::sleep_until(asked.into()).await;
                }
                if begin.elapsed() > time {
                    break;
                }
                cell.write(cause(), f(n * CLIENTS as u64 + client as u64)).await?;
                latencies.push(asked.elapsed());
            }
            Ok::<_, base::Error>(latencies)
        });
    }
    let mut latencies = Vec::new();
    for each in tasks.join_all().await {
        latencies.extend(each?);
    }
    latencies.sort_unstable();
    Ok(Measured { rate: latencies.len() as f64 / begin.elapsed().as_secs_f64(), latencies })
}

fn load(dir: &Path) -> Result<()> {
    let begin = Instant::now();
    let cell = open(dir)?;
    let elapsed = begin.elapsed();
    let records = cell.read().count::<Server>() + cell.read().count::<Port>();
    line(
        &format!("start with {records} records, 10 indexes"),
        format!("{:.2} s", elapsed.as_secs_f64()),
        "5 s",
    );
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    line("  memory then, at most", format!("{:.0}, {:.0} MiB", kib("VmRSS"), kib("VmHWM")), "1,500 MB");
    cell.close();
    Ok(())
}

/// The lane alone: an engine that loads the file and then says that all is durable.
struct Nothing(Sqlite);

impl Engine for Nothing {
    fn images(&mut self, each: Each) -> Result<Head> {
        self.0.images(each)
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        self.0.take(owner, seen)
    }

    fn append(&mut self, _: &Batch) -> Append {
        Append::Done
    }

    fn renew(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn sign(&mut self) -> Result<Sign> {
        self.0.sign()
    }

    fn release(&mut self, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn tail(&mut self, _: Revision, _: usize) -> Result<Tail> {
        Ok(Tail::Entries(Vec::new()))
    }
}

fn in_memory(dir: &Path) -> Result<()> {
    let engine = Box::new(Nothing(Sqlite::open(&dir.join("state.db"))?));
    let (cell, mut steps) =
        Cell::stepped(engine, schema(), store::cipher::CellKey::cipher([1; 32]), options())?;
    for batch in [1, 32] {
        let one = each(&cell, &mut steps, batch, report);
        line(&format!("in memory: one record of 400,000, {batch} a batch"), format!("{one:.1} us"), "18 us");
    }
    let make = each(&cell, &mut steps, 32, |n| create(1_000_000 + n));
    line("in memory: server create, 3 records, 32 a batch", format!("{make:.1} us"), "85 us");
    Ok(())
}

/// Microseconds a transaction, from taking it to publishing it.
fn each<T>(cell: &Cell, steps: &mut Steps, batch: u64, f: impl Fn(u64) -> T) -> f64
where
    T: Fn(&mut Tx) -> Result<()> + Send + 'static,
{
    const COUNT: u64 = 32_000;
    let mut spent = Duration::ZERO;
    for from in (0..COUNT).step_by(batch as usize) {
        let mut asked: Vec<_> =
            (from..from + batch).map(|n| Box::pin(cell.write(cause(), f(n * 7)))).collect();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for write in &mut asked {
            assert!(write.as_mut().poll(&mut cx).is_pending());
        }
        let begin = Instant::now();
        while steps.run_one() {}
        steps.append();
        steps.appended();
        spent += begin.elapsed();
    }
    spent.as_secs_f64() * 1e6 / COUNT as f64
}
