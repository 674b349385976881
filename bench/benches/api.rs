//! `cargo bench -p bench --bench api`: the APIs under load, on one machine with the load's maker.
//!
//! Beside each figure stand the budget of DESIGN.md and what OpenStack takes for the same. CPU is what `/proc` says of
//! the whole process, in steps of 10 ms: it counts what runs in the background too, and few operations make it coarse.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const BINARY_ENV: &str = "SHISA_BIN";
const SERVERS: usize = 1_000;
const NODES: &str = "100";
/// No operation is repeated for longer.
const RUN_MAX: Duration = Duration::from_secs(8);
/// Nor is anything waited for.
const WAIT_MAX: Duration = Duration::from_secs(180);

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

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let binary = binary()?;
    println!("{}; load average {}", binary.display(), read_to_string("/proc/loadavg")?.trim());
    idle(&binary)?;
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::up(&binary, dir.path(), NODES)?;
    load(&cloud)
}

fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os(BINARY_ENV) {
        Some(path) => path.into(),
        // This is target/PROFILE/deps/api-HASH.
        None => std::env::current_exe()?.ancestors().nth(2).unwrap_or(Path::new(".")).join("shisa"),
    };
    if !path.is_file() {
        return Err(format!(
            "there is no {}: build it with `cargo build --release -p shisa`, or name another in {BINARY_ENV}",
            path.display()
        )
        .into());
    }
    Ok(path)
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
        let (begin, before) = (Instant::now(), cpu(cloud.pid())?);
        std::thread::sleep(Duration::from_secs(3));
        let used = (cpu(cloud.pid())? - before) / begin.elapsed().as_secs_f64();
        row("idle memory (PSS)", format!("{:.0} MiB", memory(cloud.pid())?), "150 MB", IDLE);
        row("idle CPU, of one core", format!("{:.1} %", used * 100.0), "", "2.2 %");
    }
    println!();
    Ok(())
}

fn load(cloud: &Cloud) -> Result<()> {
    let network = prepare(cloud)?;
    let image = upload(cloud)?;
    heading();

    let by_token = json!({"methods": ["token"], "token": {"id": cloud.token}});
    let by_token = sign_in(by_token);
    let issue = |_| Request::new("POST", "/identity/v3/auth/tokens", Some(&by_token));
    cloud.run(16, 5_000, issue)?.print("token issue, by token", "", TOKEN_BY_TOKEN);
    let by_password = sign_in(password(&cloud.password));
    let issue = |_| Request::new("POST", "/identity/v3/auth/tokens", Some(&by_password));
    cloud.run(1, 10, issue)?.print("token issue, by password", "", TOKEN_BY_PASSWORD);

    let create = |n| {
        let body = json!({"network": {"name": format!("net-{n}")}});
        Request::new("POST", "/network/v2.0/networks", Some(&body))
    };
    cloud.run(8, 500, create)?.print("network create", "", NETWORK_CREATE);
    let create = |n| {
        let body = json!({"port": {"name": format!("port-{n}"), "network_id": network}});
        Request::new("POST", "/network/v2.0/ports", Some(&body))
    };
    let ports = cloud.run(8, 1_000, create)?;
    ports.print("port create", "", PORT_CREATE);
    let path = format!("/network/v2.0/ports/{}", ports.ids("port")?[0]);
    cloud.run(8, 50_000, |_| Request::new("GET", &path, None))?.print("port get", "", PORT_GET);

    let body = json!({"security_group": {"name": "bench"}});
    let group = cloud.call("POST", "/network/v2.0/security-groups", Some(&body))?;
    let create = |n| {
        let body = json!({"security_group_rule": {
            "security_group_id": group["security_group"]["id"], "direction": "ingress", "ethertype": "IPv4",
            "protocol": "tcp", "port_range_min": n + 1, "port_range_max": n + 1,
        }});
        Request::new("POST", "/network/v2.0/security-group-rules", Some(&body))
    };
    cloud.run(8, 500, create)?.print("security-group rule create", "", RULE_CREATE);

    servers(cloud, &network, &image)
}

fn servers(cloud: &Cloud, network: &str, image: &str) -> Result<()> {
    let create = |n| {
        let body = json!({"server": {
            "name": format!("server-{n}"), "flavorRef": "1", "imageRef": image, "networks": [{"uuid": network}],
        }});
        Request::new("POST", "/compute/v2.1/servers", Some(&body))
    };
    let mut made = cloud.whole(256, SERVERS, create)?;
    made.print("server create, accepted", "4,000/s", None);
    cloud.until(&mut made, "/compute/v2.1/servers?status=BUILD&limit=1")?;
    made.print("server create, until all are active", "", SERVER_CREATE);
    let ids = made.ids("server")?;
    let list = "/compute/v2.1/servers/detail?limit=1000";
    let servers = cloud.call("GET", list, None)?;
    let mut statuses = BTreeMap::<&str, usize>::new();
    for server in servers["servers"].as_array().into_iter().flatten() {
        *statuses.entry(server["status"].as_str().unwrap_or_default()).or_default() += 1;
    }
    if statuses != BTreeMap::from([("ACTIVE", SERVERS)]) {
        return Err(format!("of {SERVERS} servers: {statuses:?}").into());
    }

    let path = format!("/compute/v2.1/servers/{}", ids[0]);
    let get = |_| Request::new("GET", &path, None);
    cloud.run(32, 200_000, get)?.print("server get", "50,000/s, 2 ms", SERVER_GET);
    cloud.run(1, 5_000, get)?.print("server get", "", peer(1, 52.6, 60.3));
    let list = |_| Request::new("GET", list, None);
    cloud.run(1, 200, list)?.print("server list, 1,000 with details (50)", "5 ms", SERVER_LIST);

    let delete = |n: usize| Request::new("DELETE", &format!("/compute/v2.1/servers/{}", ids[n]), None);
    let mut gone = cloud.whole(256, SERVERS, delete)?;
    gone.print("server delete, accepted", "", None);
    cloud.until(&mut gone, "/compute/v2.1/servers?limit=1")?;
    gone.print("server delete, until all are gone", "", SERVER_DELETE);
    println!("memory after this: {:.0} MiB", memory(cloud.pid())?);
    Ok(())
}

/// No quotas, and a network with a subnet.
fn prepare(cloud: &Cloud) -> Result<String> {
    let project = &cloud.project;
    let body = json!({"quota_set": {"instances": -1, "cores": -1, "ram": -1}});
    cloud.call("PUT", &format!("/compute/v2.1/os-quota-sets/{project}"), Some(&body))?;
    let body = json!({"quota": {"network": -1, "port": -1, "subnet": -1, "security_group_rule": -1}});
    cloud.call("PUT", &format!("/network/v2.0/quotas/{project}"), Some(&body))?;
    let body = json!({"network": {"name": "bench"}});
    let network = id(&cloud.call("POST", "/network/v2.0/networks", Some(&body))?, "network")?;
    let body = json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.0.0.0/16"}});
    cloud.call("POST", "/network/v2.0/subnets", Some(&body))?;
    Ok(network)
}

fn upload(cloud: &Cloud) -> Result<String> {
    let body = json!({"name": "bench", "disk_format": "raw", "container_format": "bare"});
    let image = cloud.call("POST", "/image/v2/images", Some(&body))?;
    let image = image["id"].as_str().ok_or("an image without an id")?.to_string();
    let mut request = Request::new("PUT", &format!("/image/v2/images/{image}/file"), None);
    request.kind = "application/octet-stream";
    request.body = vec![0; 64 << 10];
    Connection::open(&cloud.authority)?.call(&cloud.token, &request)?;
    Ok(image)
}

fn password(password: &str) -> Value {
    let user = json!({"name": "admin", "domain": {"id": "default"}, "password": password});
    json!({"methods": ["password"], "password": {"user": user}})
}

fn sign_in(identity: Value) -> Value {
    let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
    json!({"auth": {"identity": identity, "scope": scope}})
}

fn id(answer: &Value, kind: &str) -> Result<String> {
    Ok(answer[kind]["id"].as_str().ok_or_else(|| format!("no {kind} in {answer}"))?.to_string())
}

/// A process of its own, which ends with this.
struct Cloud {
    child: Child,
    /// What it says has to go somewhere.
    _out: BufReader<ChildStdout>,
    authority: String,
    password: String,
    token: String,
    project: String,
    answered: Duration,
    admitted: Duration,
}

/// Ends its process.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Cloud {
    fn up(binary: &Path, state: &Path, nodes: &str) -> Result<Cloud> {
        let begin = Instant::now();
        let mut command = Command::new(binary);
        command.args([
            "up",
            "--machine",
            "simulated",
            "--listen",
            "127.0.0.1:0",
            "--nodes",
            nodes,
            "--state",
        ]);
        command.arg(state).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = Guard(Some(command.spawn()?));
        let out = child.0.as_mut().and_then(|child| child.stdout.take()).ok_or("no stdout")?;
        let mut out = BufReader::new(out);
        let api = read_until(&mut out, " api ")?;
        let authority = api.trim().rsplit_once("http://").ok_or("no address")?.1.to_string();
        let mut connection = Connection::open(&authority)?;
        connection.call("", &Request::new("GET", "/identity/v3", None))?;
        let answered = begin.elapsed();
        let yaml = read_to_string(state.join("clouds.yaml"))?;
        let word = yaml.lines().find_map(|line| line.trim().strip_prefix("password: "));
        let word = word.ok_or("no password in clouds.yaml")?.to_string();
        let body = sign_in(password(&word));
        connection.call("", &Request::new("POST", "/identity/v3/auth/tokens", Some(&body)))?;
        let admitted = begin.elapsed();
        let token = connection.header("x-subject-token").ok_or("no token")?.to_string();
        let answer: Value = serde_json::from_slice(connection.body())?;
        let project = id(&answer["token"], "project")?;
        read_until(&mut out, " up ")?;
        let child = child.0.take().ok_or("no process")?;
        Ok(Cloud { child, _out: out, authority, password: word, token, project, answered, admitted })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn call(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut connection = Connection::open(&self.authority)?;
        connection.call(&self.token, &Request::new(method, path, body))?;
        Ok(serde_json::from_slice(connection.body())?)
    }

    /// Repeats an operation up to `count` times, or for as long as is allowed.
    fn run(&self, connections: usize, count: usize, ask: impl Fn(usize) -> Request + Sync) -> Result<Run> {
        self.spread(connections, count, RUN_MAX, ask)
    }

    /// Repeats an operation `count` times.
    fn whole(&self, connections: usize, count: usize, ask: impl Fn(usize) -> Request + Sync) -> Result<Run> {
        self.spread(connections, count, WAIT_MAX, ask)
    }

    fn spread<F>(&self, connections: usize, count: usize, max: Duration, ask: F) -> Result<Run>
    where
        F: Fn(usize) -> Request + Sync,
    {
        let next = AtomicUsize::new(0);
        let barrier = Barrier::new(connections + 1);
        let worker = || -> Result<_> {
            let connection = Connection::open(&self.authority);
            barrier.wait();
            let (mut connection, begin) = (connection?, Instant::now());
            let (mut times, mut bodies) = (Vec::new(), Vec::new());
            while begin.elapsed() < max {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    break;
                }
                let request = ask(n);
                let sent = Instant::now();
                connection.call(&self.token, &request)?;
                times.push(sent.elapsed());
                if request.method == "POST" {
                    bodies.push(connection.body().to_vec());
                }
            }
            Ok((times, bodies))
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..connections).map(|_| scope.spawn(worker)).collect();
            let before = cpu(self.pid());
            let own = cpu(std::process::id());
            barrier.wait();
            let (before, own, begin) = (before?, own?, Instant::now());
            let (mut times, mut bodies) = (Vec::new(), Vec::new());
            for worker in workers {
                let (more_times, more_bodies) = worker.join().map_err(|_| "a client panicked")??;
                times.extend(more_times);
                bodies.extend(more_bodies);
            }
            let wall = begin.elapsed();
            let server = cpu(self.pid())? - before;
            let client = cpu(std::process::id())? - own;
            times.sort_unstable();
            Ok(Run { connections, times, bodies, begin, wall, before, server, client })
        })
    }

    /// Makes the run last until this lists nothing, and each of its operations as long as all: the worst they were.
    fn until(&self, run: &mut Run, path: &str) -> Result<()> {
        while run.begin.elapsed() < WAIT_MAX {
            if self.call("GET", path, None)?["servers"].as_array().is_some_and(Vec::is_empty) {
                run.wall = run.begin.elapsed();
                run.server = cpu(self.pid())? - run.before;
                run.times = vec![run.wall; run.times.len()];
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{path} is not empty after {} s", WAIT_MAX.as_secs()).into())
    }
}

fn read_until(out: &mut impl BufRead, word: &str) -> Result<String> {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        if out.read_line(&mut line)? == 0 {
            return Err(format!("shisa ended without '{word}':\n{said}").into());
        }
        if line.contains(word) {
            return Ok(line);
        }
        said += &line;
    }
}

struct Request {
    method: &'static str,
    path: String,
    kind: &'static str,
    body: Vec<u8>,
}

impl Request {
    fn new(method: &'static str, path: &str, body: Option<&Value>) -> Request {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        Request { method, path: path.into(), kind: "application/json", body }
    }
}

/// HTTP/1.1 with as little work as there can be: answers have a length.
struct Connection {
    socket: TcpStream,
    authority: String,
    out: Vec<u8>,
    /// The last answer, whose head ends before `head`.
    answer: Vec<u8>,
    head: usize,
}

impl Connection {
    fn open(authority: &str) -> Result<Connection> {
        let socket = TcpStream::connect(authority)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        Ok(Connection { socket, authority: authority.into(), out: Vec::new(), answer: Vec::new(), head: 0 })
    }

    fn call(&mut self, token: &str, request: &Request) -> Result<()> {
        let Request { method, path, kind, body } = request;
        self.out.clear();
        write!(
            self.out,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nx-auth-token: {token}\r\ncontent-type: {kind}\r\n\
             content-length: {}\r\n\r\n",
            self.authority,
            body.len()
        )?;
        self.out.extend_from_slice(body);
        self.socket.write_all(&self.out)?;
        self.read()?;
        if self.answer.get(9) != Some(&b'2') {
            return Err(format!("{method} {path}: {}", String::from_utf8_lossy(&self.answer)).into());
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        self.answer.clear();
        self.head = 0;
        let mut expected = 0;
        let mut piece = [0; 64 << 10];
        loop {
            let n = self.socket.read(&mut piece)?;
            if n == 0 {
                return Err("the connection was closed".into());
            }
            self.answer.extend_from_slice(&piece[..n]);
            if self.head == 0 {
                let Some(at) = self.answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                self.head = at + 4;
                let empty = self.answer.get(9..12) == Some(b"204");
                let length = match self.header("content-length") {
                    Some(length) => length.parse()?,
                    None if empty => 0,
                    None => return Err("an answer without a length".into()),
                };
                self.answer.reserve(length);
                expected = self.head + length;
            }
            if self.answer.len() >= expected {
                return Ok(());
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(&self.answer[..self.head]).ok()?;
        let (_, value) =
            head.lines().filter_map(|l| l.split_once(": ")).find(|(k, _)| k.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    fn body(&self) -> &[u8] {
        &self.answer[self.head..]
    }
}

struct Run {
    connections: usize,
    times: Vec<Duration>,
    bodies: Vec<Vec<u8>>,
    begin: Instant,
    wall: Duration,
    before: f64,
    server: f64,
    client: f64,
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

impl Run {
    /// The ids of what was made.
    fn ids(&self, kind: &str) -> Result<Vec<String>> {
        self.bodies.iter().map(|body| id(&serde_json::from_slice(body)?, kind)).collect()
    }

    fn print(&self, what: &str, budget: &str, peer: Option<Peer>) {
        let count = self.times.len();
        let each = |seconds: f64| seconds * 1e3 / count as f64;
        let at = |part: usize| {
            self.times
                .get((count * part / 100).min(count.saturating_sub(1)))
                .map_or(0.0, |t| t.as_secs_f64() * 1e3)
        };
        let (p50, used) = (at(50), each(self.server));
        print!(
            "{what:<38}{:>6}{count:>8}{p50:>10.2}{:>10.2}{:>9.0}{used:>9.3}{:>9.3}{budget:>17} |",
            self.connections,
            at(99),
            count as f64 / self.wall.as_secs_f64(),
            each(self.client),
        );
        if let Some(Peer { connections, p50_ms, cpu_ms }) = peer {
            print!("{connections:>6}{p50_ms:>9.1}{cpu_ms:>8.1}{:>9.1}{:>9.1}", p50_ms / p50, cpu_ms / used);
        }
        println!();
    }
}

/// Seconds of CPU a process has used.
fn cpu(pid: u32) -> Result<f64> {
    let stat = read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").ok_or("no name in stat")?;
    let mut ticks = 0.0;
    for field in rest.split(' ').skip(11).take(2) {
        ticks += field.parse::<f64>()?;
    }
    Ok(ticks / 100.0)
}

/// MiB of memory a process has for itself.
fn memory(pid: u32) -> Result<f64> {
    let text = read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    Ok(pss.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
