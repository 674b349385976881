//! `cargo bench -p bench --bench network`: the Networking API beside a real neutron-server, in one run.
//!
//! Both hold the same and are asked the same, in rounds that take turns; each figure is the median of its rounds. CPU per
//! operation is the one to compare: of all processes that serve Networking (beside neutron-server its database, broker
//! and cache, and keystone, which checks tokens), without this client's. Goal: 100 times less. Nothing is asserted.
//!
//! Limits: the peer has no agents, as a driver of its own binds every port at once, and Shisa's one node is simulated; a
//! row takes as many operations as a side makes in `ROW`, at most its count, so Shisa
//! holds more records in later rounds, and in the lists' networks the same.

use bench::peer::Peer;
use bench::{Cloud, Request, Result, Run, Target, id};
use serde_json::{Value, json};
use std::fs::read_to_string;
use std::time::{Duration, Instant};

/// What serves Networking, by the names of their pid files.
const SERVICES: [&str; 6] = ["neutron", "mariadb", "rabbitmq", "memcached", "epmd", "keystone"];
const ROUNDS: usize = 3;
const ROW: Duration = Duration::from_secs(3);
const PORTS: usize = 1_000;
const RULES: usize = 100;
/// Groups to be filled in a round.
const GROUPS: usize = 10;
const READERS: usize = 8;
const WRITERS: usize = 16;

fn main() -> Result<()> {
    let binary = bench::cloud::binary()?;
    println!("{}; load average {}", binary.display(), read_to_string("/proc/loadavg")?.trim());
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::up(&binary, dir.path(), "1")?;
    let quota = json!({"quota": {
        "network": -1, "port": -1, "subnet": -1, "security_group": -1, "security_group_rule": -1,
    }});
    cloud.api.call("PUT", &format!("/network/v2.0/quotas/{}", cloud.project), Some(&quota))?;
    let mut sides = vec![Side::new("Shisa", &cloud.api, "/network/v2.0")?];
    let peer = Peer::up(&SERVICES)?;
    match &peer {
        Ok(peer) => sides.push(Side::new("neutron-server", &peer.network, "/v2.0")?),
        Err(missing) => println!("{missing}"),
    }
    for side in &sides {
        side.idle()?;
    }
    for round in 1..=ROUNDS {
        for side in &mut sides {
            side.round()?;
        }
        println!("round {round} of {ROUNDS}; load average {}", read_to_string("/proc/loadavg")?.trim());
    }
    print(&sides);
    Ok(())
}

/// One of the clouds, and what was measured of it.
struct Side {
    name: &'static str,
    api: Target,
    prefix: &'static str,
    /// A network of exactly so many ports as are listed.
    full: String,
    /// One of them.
    port: String,
    rows: Vec<Row>,
}

struct Row {
    what: &'static str,
    connections: usize,
    rounds: Vec<Figures>,
}

#[derive(Clone, Copy)]
struct Figures {
    count: f64,
    p50_ms: f64,
    p99_ms: f64,
    rate: f64,
    /// None: it is not this operation's alone.
    cpu_ms: Option<f64>,
}

impl Figures {
    fn of(run: &Run, cpu_ms: Option<f64>) -> Figures {
        Figures {
            count: run.times.len() as f64,
            p50_ms: run.at(50),
            p99_ms: run.at(99),
            rate: run.rate(),
            cpu_ms,
        }
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }

    fn cpu(&self) -> Option<f64> {
        self.rounds.iter().all(|f| f.cpu_ms.is_some()).then(|| self.median(|f| f.cpu_ms.unwrap_or(0.0)))
    }

    fn print(&self) {
        let (count, rate) = (self.median(|f| f.count), self.median(|f| f.rate));
        let (p50, p99) = (self.median(|f| f.p50_ms), self.median(|f| f.p99_ms));
        let cpu = self.cpu().map_or("-".to_string(), |ms| format!("{ms:.3}"));
        print!(" |{count:>7}{p50:>9.2}{p99:>9.2}{rate:>8.1}{cpu:>9}");
    }
}

impl Side {
    fn new(name: &'static str, api: &Target, prefix: &'static str) -> Result<Side> {
        let (full, port) = (String::new(), String::new());
        let mut side = Side { name, api: api.clone(), prefix, full, port, rows: Vec::new() };
        side.full = side.network()?;
        for from in (0..PORTS).step_by(100) {
            let port = |n| json!({"name": format!("port-{n}"), "network_id": side.full});
            let ports: Vec<Value> = (from..from + 100).map(port).collect();
            let made = side.post("ports", &json!({"ports": ports}))?;
            side.port = made["ports"][0]["id"].as_str().ok_or("a port without an id")?.to_string();
        }
        Ok(side)
    }

    fn round(&mut self) -> Result<()> {
        let create = |n: usize| self.ask("networks", &json!({"network": {"name": format!("net-{n}")}}));
        let run = self.api.spread(8, 1_000, ROW, create)?;
        let networks = run.ids("network")?;
        self.add("network create", &run);
        let create = |n: usize| self.ask("subnets", &subnet(&networks[n]));
        let run = self.api.spread(8, networks.len(), ROW, create)?;
        self.add("subnet create", &run);
        let network = self.network()?;
        let create = |n: usize| self.ask("ports", &port(n, &network));
        let run = self.api.spread(8, 2_000, ROW, create)?;
        self.add("port create", &run);

        let groups: Vec<String> = (0..2 * GROUPS).map(|n| self.group(n)).collect::<Result<_>>()?;
        let create = |n: usize| {
            self.ask(
                "security-group-rules",
                &json!({"security_group_rule": rule(&groups[n / RULES], n % RULES)}),
            )
        };
        let run = self.api.spread(8, GROUPS * RULES, ROW, create)?;
        self.add("security-group rule create", &run);
        let create = |n: usize| {
            let rules: Vec<Value> = (0..RULES).map(|rank| rule(&groups[GROUPS + n], rank)).collect();
            self.ask("security-group-rules", &json!({"security_group_rules": rules}))
        };
        let run = self.api.spread(1, GROUPS, ROW, create)?;
        self.add("100 rules of a group in one request", &run);
        let path = format!("{}/security-groups/{}", self.prefix, groups[GROUPS]);
        let held = self.api.call("GET", &path, None)?;
        let rules = held["security_group"]["security_group_rules"].as_array().map_or(0, Vec::len);
        // Two more let everything out.
        if rules != RULES + 2 {
            return Err(format!("{}: a group of {rules} rules", self.name).into());
        }
        let run = self.api.spread(1, 2_000, ROW, |_| Request::new("GET", &path, None))?;
        self.add("group with 100 rules get", &run);

        let path = format!("{}/ports/{}", self.prefix, self.port);
        let get = |_: usize| Request::new("GET", &path, None);
        let run = self.api.spread(READERS, 50_000, ROW, get)?;
        self.add("port get", &run);
        let list = format!("{}/ports?network_id={}", self.prefix, self.full);
        let listed = self.api.call("GET", &list, None)?["ports"].as_array().map_or(0, Vec::len);
        if listed != PORTS {
            return Err(format!("{}: {listed} ports in the list of {PORTS}", self.name).into());
        }
        let run = self.api.spread(1, 200, ROW, |_| Request::new("GET", &list, None))?;
        self.add("list of 1,000 ports", &run);
        self.reads_while_writes_saturate(&network, get)
    }

    /// Without CPU: it cannot be told which of both used it, and their mix is not the same on each side.
    fn reads_while_writes_saturate(
        &mut self,
        network: &str,
        get: impl Fn(usize) -> Request + Sync,
    ) -> Result<()> {
        let create = |n: usize| self.ask("ports", &port(n, network));
        let (reads, writes) = std::thread::scope(|scope| {
            let writes = scope.spawn(|| self.api.spread(WRITERS, usize::MAX, ROW, create));
            let reads = self.api.spread(READERS, usize::MAX, ROW, get);
            (reads, writes.join())
        });
        let (reads, writes) = (reads?, writes.map_err(|_| "a client panicked")??);
        self.put("port get while writes saturate", READERS, Figures::of(&reads, None));
        self.put("port create, saturating, meanwhile", WRITERS, Figures::of(&writes, None));
        Ok(())
    }

    /// What it uses while it is asked nothing.
    fn idle(&self) -> Result<()> {
        let (begin, before) = (Instant::now(), self.api.processes.cpu()?);
        std::thread::sleep(ROW);
        let used = (self.api.processes.cpu()? - before) / begin.elapsed().as_secs_f64();
        let memory = self.api.processes.memory()?;
        println!("{}: idle {:.1} % of a core, {memory:.0} MiB", self.name, used * 100.0);
        Ok(())
    }

    fn add(&mut self, what: &'static str, run: &Run) {
        let each = run.server * 1e3 / run.times.len() as f64;
        self.put(what, run.connections, Figures::of(run, Some(each)));
    }

    fn put(&mut self, what: &'static str, connections: usize, figures: Figures) {
        match self.rows.iter_mut().find(|row| row.what == what) {
            Some(row) => row.rounds.push(figures),
            None => self.rows.push(Row { what, connections, rounds: vec![figures] }),
        }
    }

    fn ask(&self, kind: &str, body: &Value) -> Request {
        Request::new("POST", &format!("{}/{kind}", self.prefix), Some(body))
    }

    fn post(&self, kind: &str, body: &Value) -> Result<Value> {
        self.api.call("POST", &format!("{}/{kind}", self.prefix), Some(body))
    }

    /// A network with a subnet.
    fn network(&self) -> Result<String> {
        let network = id(&self.post("networks", &json!({"network": {"name": "bench"}}))?, "network")?;
        self.post("subnets", &subnet(&network))?;
        Ok(network)
    }

    fn group(&self, n: usize) -> Result<String> {
        let body = json!({"security_group": {"name": format!("group-{n}")}});
        id(&self.post("security-groups", &body)?, "security_group")
    }
}

fn subnet(network: &str) -> Value {
    json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.42.0.0/16", "enable_dhcp": false}})
}

fn port(n: usize, network: &str) -> Value {
    json!({"port": {"name": format!("port-{n}"), "network_id": network}})
}

fn rule(group: &str, rank: usize) -> Value {
    json!({
        "security_group_id": group, "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp",
        "port_range_min": rank + 1, "port_range_max": rank + 1, "remote_ip_prefix": "10.0.0.0/8",
    })
}

fn print(sides: &[Side]) {
    println!(
        "\nmedians of {ROUNDS} rounds; on the right how many times less (p50, p99, CPU) or more (ops/s) Shisa takes"
    );
    print!("{:<41}", sides.iter().map(|side| side.name).collect::<Vec<_>>().join(" | "));
    for _ in sides {
        print!(" |{:>7}{:>9}{:>9}{:>8}{:>9}", "count", "p50 ms", "p99 ms", "ops/s", "CPU ms");
    }
    println!("{}", if sides.len() > 1 { " |    p50    p99   ops/s   CPU" } else { "" });
    for (n, row) in sides[0].rows.iter().enumerate() {
        print!("{:<37}{:>4}", row.what, row.connections);
        for row in sides.iter().map(|side| &side.rows[n]) {
            row.print();
        }
        if let Some(peer) = sides.get(1).map(|side| &side.rows[n]) {
            let by = |of: fn(&Figures) -> f64| peer.median(of) / row.median(of);
            print!(" |{:>7.1}{:>7.1}", by(|f| f.p50_ms), by(|f| f.p99_ms));
            print!("{:>8.1}", 1.0 / by(|f| f.rate));
            print!(
                "{:>6}",
                row.cpu().zip(peer.cpu()).map_or("-".into(), |(own, peer)| format!("{:.0}", peer / own))
            );
        }
        println!();
    }
    for side in sides {
        let memory = side.api.processes.memory().map_or("?".to_string(), |mib| format!("{mib:.0}"));
        println!("{}: {memory} MiB after this", side.name);
    }
    println!("goal: 100 times less CPU per operation");
}
