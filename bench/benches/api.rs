//! `cargo bench -p bench --bench api`: the APIs under load, on one machine with the load's maker.
//!
//! Beside each figure stand the budget of DESIGN.md and what OpenStack takes for the same. CPU is that of the
//! whole process: it counts what runs in the background too.

use bench::load::WAIT_MAX;
use bench::{Cloud, Request, Result, Run, password, sign_in};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;
use std::time::{Duration, Instant};

const SERVERS: usize = 1_000;
const NODES: &str = "100";

/// OpenStack Zed on this kind of machine: the peer baseline, "Quiet machine (second run)".
struct Peer {
    connections: usize,
    p50_ms: f64,
    cpu_ms: f64,
}

const fn peer(connections: usize, p50_ms: f64, cpu_ms: f64) -> Option<Peer> {
    Some(Peer { connections, p50_ms, cpu_ms })
}

const SERVER_GET: Option<Peer> = peer(16, 452.5, 55.2);
/// Of 50 servers, not of 1,000.
const SERVER_LIST: Option<Peer> = peer(1, 123.9, 134.0);
const PORT_GET: Option<Peer> = peer(8, 62.5, 9.8);
const TOKEN_BY_TOKEN: Option<Peer> = peer(16, 57.2, 5.6);
const TOKEN_BY_PASSWORD: Option<Peer> = peer(1, 185.1, 188.7);
const NETWORK_CREATE: Option<Peer> = peer(8, 673.3, 165.2);
const PORT_CREATE: Option<Peer> = peer(8, 1019.8, 144.0);
const RULE_CREATE: Option<Peer> = peer(8, 230.5, 52.3);
/// Until it is active, with one network.
const SERVER_CREATE: Option<Peer> = peer(10, 6849.7, 1377.8);
/// Until it is gone, with one network.
const SERVER_DELETE: Option<Peer> = peer(10, 1884.9, 422.2);
const FIRST_TOKEN: &str = "17,000 ms";
const IDLE: &str = "2,557 MiB";

fn main() -> Result<()> {
    let binary = bench::cloud::binary()?;
    println!("{}; load average {}", binary.display(), read_to_string("/proc/loadavg")?.trim());
    idle(&binary)?;
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::up(&binary, dir.path(), NODES)?;
    load(&cloud)
}

/// One node and no load.
fn idle(binary: &Path) -> Result<()> {
    let row = |what: &str, measured: String, budget: &str, peer: &str| {
        println!("{what:<44}{measured:>16}{budget:>16}{peer:>16}");
    };
    row("", "measured".into(), "budget", "OpenStack");
    let dir = tempfile::tempdir()?;
    for start in ["first", "second"] {
        let cloud = Cloud::up(binary, dir.path(), "1")?;
        let ms = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
        row(&format!("{start} start to first answer"), ms(cloud.answered), "300 ms", "");
        row(&format!("{start} start to first token"), ms(cloud.admitted), "", FIRST_TOKEN);
        let (begin, before) = (Instant::now(), cloud.api.processes.cpu()?);
        std::thread::sleep(Duration::from_secs(3));
        let used = (cloud.api.processes.cpu()? - before) / begin.elapsed().as_secs_f64();
        row("idle memory (PSS)", format!("{:.0} MiB", cloud.api.processes.memory()?), "150 MB", IDLE);
        row("idle CPU, of one core", format!("{:.1} %", used * 100.0), "", "2.2 %");
    }
    println!();
    Ok(())
}

fn load(cloud: &Cloud) -> Result<()> {
    let network = cloud.network("bench")?;
    let image = cloud.image("bench")?;
    heading();

    let by_token = json!({"methods": ["token"], "token": {"id": cloud.api.token}});
    let by_token = sign_in(by_token);
    let issue = |_| Request::new("POST", "/identity/v3/auth/tokens", Some(&by_token));
    print(&cloud.api.run(16, 5_000, issue)?, "token issue, by token", "", TOKEN_BY_TOKEN);
    let by_password = sign_in(password(&cloud.password));
    let issue = |_| Request::new("POST", "/identity/v3/auth/tokens", Some(&by_password));
    print(&cloud.api.run(1, 10, issue)?, "token issue, by password", "", TOKEN_BY_PASSWORD);

    let create = |n| {
        let body = json!({"network": {"name": format!("net-{n}")}});
        Request::new("POST", "/network/v2.0/networks", Some(&body))
    };
    print(&cloud.api.run(8, 500, create)?, "network create", "", NETWORK_CREATE);
    let create = |n| {
        let body = json!({"port": {"name": format!("port-{n}"), "network_id": network}});
        Request::new("POST", "/network/v2.0/ports", Some(&body))
    };
    let ports = cloud.api.run(8, 1_000, create)?;
    print(&ports, "port create", "", PORT_CREATE);
    let path = format!("/network/v2.0/ports/{}", ports.ids("port")?[0]);
    print(&cloud.api.run(8, 50_000, |_| Request::new("GET", &path, None))?, "port get", "", PORT_GET);

    let body = json!({"security_group": {"name": "bench"}});
    let group = cloud.api.call("POST", "/network/v2.0/security-groups", Some(&body))?;
    let create = |n| {
        let body = json!({"security_group_rule": {
            "security_group_id": group["security_group"]["id"], "direction": "ingress", "ethertype": "IPv4",
            "protocol": "tcp", "port_range_min": n + 1, "port_range_max": n + 1,
        }});
        Request::new("POST", "/network/v2.0/security-group-rules", Some(&body))
    };
    print(&cloud.api.run(8, 500, create)?, "security-group rule create", "", RULE_CREATE);

    servers(cloud, &network, &image)
}

fn servers(cloud: &Cloud, network: &str, image: &str) -> Result<()> {
    let create = |n| {
        let body = json!({"server": {
            "name": format!("server-{n}"), "flavorRef": "1", "imageRef": image, "networks": [{"uuid": network}],
        }});
        Request::new("POST", "/compute/v2.1/servers", Some(&body))
    };
    let mut made = cloud.api.whole(256, SERVERS, create)?;
    print(&made, "server create, accepted", "4,000/s", None);
    until(cloud, &mut made, "/compute/v2.1/servers?status=BUILD&limit=1")?;
    print(&made, "server create, until all are active", "", SERVER_CREATE);
    let ids = made.ids("server")?;
    let list = "/compute/v2.1/servers/detail?limit=1000";
    let servers = cloud.api.call("GET", list, None)?;
    let mut statuses = BTreeMap::<&str, usize>::new();
    for server in servers["servers"].as_array().into_iter().flatten() {
        *statuses.entry(server["status"].as_str().unwrap_or_default()).or_default() += 1;
    }
    if statuses != BTreeMap::from([("ACTIVE", SERVERS)]) {
        return Err(format!("of {SERVERS} servers: {statuses:?}").into());
    }

    let path = format!("/compute/v2.1/servers/{}", ids[0]);
    let get = |_| Request::new("GET", &path, None);
    print(&cloud.api.run(32, 200_000, get)?, "server get", "50,000/s, 2 ms", SERVER_GET);
    print(&cloud.api.run(1, 5_000, get)?, "server get", "", peer(1, 52.6, 60.3));
    let list = |_| Request::new("GET", list, None);
    print(&cloud.api.run(1, 200, list)?, "server list, 1,000 with details (50)", "5 ms", SERVER_LIST);

    let delete = |n: usize| Request::new("DELETE", &format!("/compute/v2.1/servers/{}", ids[n]), None);
    let mut gone = cloud.api.whole(256, SERVERS, delete)?;
    print(&gone, "server delete, accepted", "", None);
    until(cloud, &mut gone, "/compute/v2.1/servers?limit=1")?;
    print(&gone, "server delete, until all are gone", "", SERVER_DELETE);
    println!("memory after this: {:.0} MiB", cloud.api.processes.memory()?);
    Ok(())
}

fn heading() {
    println!(
        "simulated nodes: {NODES}; CPU per operation: of the cloud, then of this client; on the right OpenStack"
    );
    println!(
        "and how many times less this takes. An 'until' row gives each operation the time of the last one."
    );
    println!(
        "{:<38}{:>6}{:>8}{:>10}{:>10}{:>9}{:>9}{:>9}{:>17} |{:>6}{:>9}{:>8}{:>9}{:>9}",
        "",
        "conn",
        "count",
        "p50 ms",
        "p99 ms",
        "ops/s",
        "CPU ms",
        "client",
        "budget",
        "conn",
        "p50 ms",
        "CPU ms",
        "p50 by",
        "CPU by"
    );
}

/// Makes the run last until this lists nothing, and each of its operations as long as all: the worst they were.
fn until(cloud: &Cloud, run: &mut Run, path: &str) -> Result<()> {
    while run.begin.elapsed() < WAIT_MAX {
        if cloud.api.call("GET", path, None)?["servers"].as_array().is_some_and(Vec::is_empty) {
            run.wall = run.begin.elapsed();
            run.server = cloud.api.processes.cpu()? - run.before;
            run.times = vec![run.wall; run.times.len()];
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("{path} is not empty after {} s", WAIT_MAX.as_secs()).into())
}

fn print(run: &Run, what: &str, budget: &str, peer: Option<Peer>) {
    let count = run.times.len();
    let each = |seconds: f64| seconds * 1e3 / count as f64;
    let (p50, used) = (run.at(50), each(run.server));
    print!(
        "{what:<38}{:>6}{count:>8}{p50:>10.2}{:>10.2}{:>9.0}{used:>9.3}{:>9.3}{budget:>17} |",
        run.connections,
        run.at(99),
        run.rate(),
        each(run.client),
    );
    if let Some(Peer { connections, p50_ms, cpu_ms }) = peer {
        print!("{connections:>6}{p50_ms:>9.1}{cpu_ms:>8.1}{:>9.1}{:>9.1}", p50_ms / p50, cpu_ms / used);
    }
    println!();
}
