//! `make bench-store`, or `cargo bench -p bench --bench store -- sqlite postgres etcd`: what the store has a budget for
//! in DESIGN.md, on engines with real servers that are started for it. SQLite alone where none is named.
//!
//! Records have the size and indexes of servers and ports. Loading is measured in a process of its own, so that its
//! memory is that of a plane that has just started.

#[allow(clippy::unwrap_used, dead_code, reason = "it is the tests'")]
#[path = "../../../store/tests/engines/servers.rs"]
mod servers;

mod memory;
mod records;

use base::{Id, Result, Timestamp};
use records::{Observed, PORTS, Port, Power, SERVERS, Server, hash, port, server};
use std::io::Write;
use std::time::{Duration, Instant};
use store::{Cause, Cell, News, Options, Schema, Tx, engine};
use uuid::Uuid;

const CLIENTS: usize = 256;
const RATE_BUDGET: f64 = 15_000.0;
/// How long each load runs.
const RUN: Duration = Duration::from_secs(6);
const LOAD_ENV: &str = "BENCH_LOAD";

fn main() -> Result<()> {
    if let Ok(url) = std::env::var(LOAD_ENV) {
        return load(&url);
    }
    let named: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let named = if named.is_empty() { vec!["sqlite".to_string()] } else { named };
    for name in &named {
        measure(name)?;
    }
    Ok(())
}

fn measure(name: &str) -> Result<()> {
    use servers::Which;
    let (which, extra): (_, &[&str]) = match name {
        "sqlite" => (Which::Sqlite, &[]),
        "postgres" => (
            Which::Postgres,
            &["-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB", "-c", "min_wal_size=2GB"],
        ),
        "etcd" => (Which::Etcd, &["--quota-backend-bytes=8589934592"]),
        _ => return Err(base::Error::invalid("The engines are sqlite, postgres and etcd.")),
    };
    let server = servers::Server::with(which, 1, None, extra);
    let url = server.url();
    println!("{name:<66}{:>16}{:>22}", "measured", "budget");
    machine()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    runtime.block_on(async {
        let cell = Cell::open(engine::open(&url)?, schema(), key(), options())?;
        let pids = server.pids();
        fill(&cell).await;
        // Large transactions leave large states behind, which the next two thousand would have to take down.
        cell.close();
        drop(cell);
        let cell = Cell::open(engine::open(&url)?, schema(), key(), options())?;
        durable(&cell, &pids).await;
        lag(&cell, &url).await?;
        cell.close();
        Ok::<_, base::Error>(())
    })?;
    drop(runtime);
    let this = std::env::current_exe()?;
    std::process::Command::new(this).env(LOAD_ENV, &url).status()?;
    if which == Which::Sqlite { memory::measure(&url) } else { Ok(()) }
}

/// What the rest of the machine leaves: of a busy one the figures below say little.
fn machine() -> Result<()> {
    const SYNCS: u32 = 100;
    let mut file = tempfile::tempfile()?;
    let begin = Instant::now();
    for _ in 0..SYNCS {
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
    }
    let each = begin.elapsed() / SYNCS;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    line(
        "the machine: a synced write of 4 KiB; its load",
        format!("{:.1} ms, {load}", each.as_secs_f64() * 1e3),
        "",
    );
    Ok(())
}

/// Seconds of processor time: of this process, clients included, and of the server's.
fn cpu(server: &[u32]) -> (f64, f64) {
    let of = |pid: &u32| bench::process::cpu(*pid).unwrap_or_default();
    let children = |pid: &u32| {
        let all = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.split_whitespace().filter_map(|pid| pid.parse().ok()).map(|pid: u32| of(&pid)).sum::<f64>()
    };
    (of(&std::process::id()), server.iter().map(|pid| of(pid) + children(pid)).sum())
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

fn key() -> std::sync::Arc<dyn base::secret::Cipher> {
    store::cipher::CellKey::cipher([1; 32])
}

async fn fill(cell: &Cell) {
    const CHUNK: u64 = 500;
    let begin = Instant::now();
    for from in (0..SERVERS).step_by(CHUNK as usize) {
        let put = move |tx: &mut Tx| {
            for n in from..from + CHUNK {
                tx.put(server(n))?;
            }
            Ok(())
        };
        until_done(cell, put).await;
    }
    for from in (0..PORTS).step_by(CHUNK as usize) {
        let put = move |tx: &mut Tx| {
            for n in from..from + CHUNK {
                tx.put(port(n))?;
            }
            Ok(())
        };
        until_done(cell, put).await;
    }
    let rate = (SERVERS + PORTS) as f64 / begin.elapsed().as_secs_f64();
    line("records written, 500 a transaction, one client", format!("{rate:.0}/s"), "");
}

/// A machine that is too busy lets the lease lapse now and then.
async fn until_done(cell: &Cell, put: impl Fn(&mut Tx) -> Result<()> + Copy + Send + 'static) {
    while cell.write(Cause::step("fill"), put).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
        address: "198.51.100.7".into(),
        route: "POST /v2.1/servers".into(),
        version: "2.96".into(),
        mutation: Uuid::new_v4().to_string(),
        body: None,
        ..Cause::default()
    }
}

async fn durable(cell: &Cell, server: &[u32]) {
    let one = clients(cell, 1, None, report).await;
    line("durable one-record transactions, one client: p50, p99", one.latency(), "");
    let before = cpu(server);
    let full = clients(cell, CLIENTS, None, report).await;
    let spent = cpu(server);
    line("durable one-record transactions, 256 clients", format!("{:.0}/s", full.rate), "15,000/s");
    line("  p50, p99 at full load", full.latency(), "");
    let each = |seconds: f64| seconds * 1e6 / full.latencies.len() as f64;
    let used = format!("{:.0}, {:.0} us", each(spent.0 - before.0), each(spent.1 - before.1));
    line("  processor time of each: here, in the server", used, "");
    let half = clients(cell, CLIENTS, Some(RATE_BUDGET / 2.0), report).await;
    line("  p50, p99 at half of the budget", half.latency(), "p99 10 ms");
    line("  reached then", format!("{:.0}/s", half.rate), "7,500/s");
    let creates = clients(cell, CLIENTS, None, create).await;
    line(
        "durable transactions as of a server create, 3 records",
        format!("{:.0}/s", creates.rate),
        "4,000/s",
    );
    line("  p50, p99 at full load", creates.latency(), "");
}

/// How far a follower is behind while the owner writes, and how long its reads wait. The wall clock is one.
async fn lag(cell: &Cell, url: &str) -> Result<()> {
    let follower = Cell::follow(engine::open(url)?, schema(), key(), options())?;
    let mut watch = follower.watch(follower.read().revision());
    let seen = tokio::spawn(async move {
        let mut behind = Vec::new();
        while let Some(news) = watch.next().await {
            let News::Entries(entries) = news else { continue };
            let now = Timestamp::wall().0;
            behind.extend(entries.iter().map(|e| Duration::from_micros((now - e.time.0).max(0) as u64)));
        }
        behind
    });
    let reader = follower.clone();
    let reads = tokio::spawn(async move {
        let (begin, mut waited) = (Instant::now(), Vec::new());
        while begin.elapsed() < RUN {
            let asked = Instant::now();
            reader.current().await?;
            waited.push(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok::<_, base::Error>(waited)
    });
    let half = clients(cell, CLIENTS, Some(RATE_BUDGET / 2.0), report).await;
    let reads = reads.await.expect("it does not panic")?;
    follower.close();
    let seen = seen.await.expect("it does not panic");
    let rate = half.rate;
    line("a follower has it after its transaction ran: p50, p99", Measured::new(seen, rate).latency(), "");
    line("  a read on the follower waits: p50, p99", Measured::new(reads, rate).latency(), "");
    line("  while the owner writes", format!("{rate:.0}/s"), "7,500/s");
    Ok(())
}

struct Measured {
    rate: f64,
    /// Writes that were refused: the engine had not answered for the length of a lease.
    refused: usize,
    latencies: Vec<Duration>,
}

impl Measured {
    fn new(mut latencies: Vec<Duration>, rate: f64) -> Measured {
        latencies.sort_unstable();
        Measured { rate, refused: 0, latencies }
    }

    fn latency(&self) -> String {
        let at = |p: usize| {
            self.latencies.get(self.latencies.len() * p / 100).map_or(f64::NAN, |l| l.as_secs_f64() * 1e3)
        };
        let refused = if self.refused > 0 { format!("{} refused, ", self.refused) } else { String::new() };
        format!("{refused}{:.1}, {:.1} ms", at(50), at(99))
    }
}

/// Each client writes one after the other; at a rate, each at its own moments, and latency counts from the moment.
async fn clients<F, T>(cell: &Cell, clients: usize, rate: Option<f64>, f: F) -> Measured
where
    F: Fn(u64) -> T + Copy + Send + 'static,
    T: Fn(&mut Tx) -> Result<()> + Send + 'static,
{
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let cell = cell.clone();
        tasks.spawn(async move {
            let (mut latencies, mut refused) = (Vec::new(), 0);
            let every = rate.map(|rate| Duration::from_secs_f64(clients as f64 / rate));
            for n in 0.. {
                let mut asked = Instant::now();
                if let Some(every) = every {
                    let offset = every.mul_f64(client as f64 / clients as f64);
                    asked = begin + offset + every * n as u32;
                    tokio::time::sleep_until(asked.into()).await;
                }
                if begin.elapsed() > RUN {
                    break;
                }
                match cell.write(cause(), f(n * clients as u64 + client as u64)).await {
                    Ok(()) => latencies.push(asked.elapsed()),
                    Err(_) => refused += 1,
                }
            }
            (latencies, refused)
        });
    }
    let (mut latencies, mut refused) = (Vec::new(), 0);
    for (more, failed) in tasks.join_all().await {
        latencies.extend(more);
        refused += failed;
    }
    let rate = latencies.len() as f64 / begin.elapsed().as_secs_f64();
    Measured { refused, ..Measured::new(latencies, rate) }
}

fn load(url: &str) -> Result<()> {
    let begin = Instant::now();
    let cell = Cell::follow(engine::open(url)?, schema(), key(), options())?;
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
