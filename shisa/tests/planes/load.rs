//! An open-loop load: requests begin when they are due, whatever became of those before.

use crate::planes::Planes;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const NETWORKS: usize = 4;
/// Of what the load made is there at most; beyond it the oldest is deleted.
const KEPT_MAX: usize = 4_000;
/// Between two turns of the clients that do one thing after the other.
const TURN: Duration = Duration::from_millis(40);
const READ_BACK_MAX: Duration = Duration::from_secs(20);

/// What a client asked for and was told.
#[derive(Clone, Debug)]
pub enum What {
    Read,
    /// `ports`, `networks` or `servers`, and the name.
    Create(&'static str, String),
    /// The same of what was made before.
    Delete(&'static str, String),
    /// The register was written.
    Write,
    /// The register was read: what was answered before the read began at least, and what it was.
    Register {
        floor: u64,
        seen: u64,
    },
    /// A revoked token was used; the status.
    Revoked,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub what: What,
    pub status: u16,
    pub took: Duration,
}

/// What came of a time of load.
pub struct Run {
    pub operations: Vec<Operation>,
    wall: Duration,
}

impl Run {
    pub fn failed(&self) -> usize {
        self.operations.iter().filter(|o| is_failure(o)).count()
    }

    pub fn failures(&self) -> String {
        let mut by: BTreeMap<String, usize> = BTreeMap::new();
        for o in self.operations.iter().filter(|o| is_failure(o)) {
            *by.entry(format!("{} of {}", o.status, kind(&o.what))).or_default() += 1;
        }
        format!("{} of {} failed {by:?}", self.failed(), self.operations.len())
    }

    pub fn summary(&self) -> String {
        let of = |write: bool| {
            let mut ms: Vec<f64> = self
                .operations
                .iter()
                .filter(|o| matches!(o.what, What::Create(..) | What::Delete(..) | What::Write) == write)
                .map(|o| o.took.as_secs_f64() * 1000.0)
                .collect();
            ms.sort_by(f64::total_cmp);
            let pick = |q: f64| ms.get(((ms.len() as f64 * q) as usize).min(ms.len().max(1) - 1)).copied();
            let text = |q| pick(q).map_or("-".into(), |ms| format!("{ms:.1}"));
            format!("{} with p50 {} ms, p99 {} ms, max {} ms", ms.len(), text(0.5), text(0.99), text(1.0))
        };
        let rate = self.operations.len() as f64 / self.wall.as_secs_f64();
        format!("{rate:.0} requests/s: reads {}; writes {}", of(false), of(true))
    }
}

fn kind(what: &What) -> String {
    match what {
        What::Read => "a read".into(),
        What::Create(kind, _) => kind.to_string(),
        What::Delete(kind, _) => format!("a delete of {kind}"),
        What::Write | What::Register { .. } => "the register".into(),
        What::Revoked => "a revoked token".into(),
    }
}

fn is_failure(operation: &Operation) -> bool {
    match operation.what {
        // Judged by the history.
        What::Revoked => operation.status >= 500 || operation.status == 0,
        _ => operation.status == 0 || operation.status >= 400,
    }
}

#[derive(Clone)]
pub struct Load {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
    token: String,
    password: String,
    networks: Vec<String>,
    flavor: String,
    image: String,
    register: String,
    number: AtomicU64,
    /// What the register was last written with, for good.
    written: AtomicU64,
    /// What was answered as made, oldest first.
    made: Mutex<VecDeque<Made>>,
}

struct Made {
    kind: &'static str,
    name: String,
    path: String,
}

pub struct Running {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
    operations: Arc<Mutex<Vec<Operation>>>,
    begin: Instant,
}

impl Running {
    pub async fn stop(mut self) -> Run {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        let operations = std::mem::take(&mut *self.operations.lock().unwrap());
        Run { operations, wall: self.begin.elapsed() }
    }
}

impl Load {
    pub async fn prepare(planes: &Planes) -> Load {
        let mut load = Load::to(planes, Vec::new(), String::new(), String::new()).await;
        let inner = Arc::get_mut(&mut load.inner).unwrap();
        let project = inner.project().await;
        let limits = json!({"quota_set": {"instances": -1, "cores": -1, "ram": -1}});
        inner.must(Method::PUT, &format!("/compute/v2.1/os-quota-sets/{project}"), limits).await;
        let limits = json!({"quota": {"network": -1, "subnet": -1, "port": -1}});
        inner.must(Method::PUT, &format!("/network/v2.0/quotas/{project}"), limits).await;
        for n in 0..NETWORKS {
            let network = json!({"network": {"name": format!("ground-{n}")}});
            let network = inner.must(Method::POST, "/network/v2.0/networks", network).await;
            let id = network["network"]["id"].as_str().unwrap().to_string();
            let subnet =
                json!({"subnet": {"network_id": id, "ip_version": 4, "cidr": format!("10.{n}.0.0/16")}});
            inner.must(Method::POST, "/network/v2.0/subnets", subnet).await;
            inner.networks.push(id);
        }
        inner.register = inner.networks[0].clone();
        let image = json!({"name": "nothing", "disk_format": "raw", "container_format": "bare"});
        let image =
            inner.must(Method::POST, "/image/v2/images", image).await["id"].as_str().unwrap().to_string();
        let (status, _) = inner.upload(&image).await;
        assert_eq!(status, 204);
        inner.image = image;
        let flavors = inner.must(Method::GET, "/compute/v2.1/flavors", Value::Null).await;
        let nano = flavors["flavors"].as_array().unwrap().iter().find(|f| f["name"] == "m1.nano").unwrap();
        inner.flavor = nano["id"].as_str().unwrap().into();
        load
    }

    async fn to(planes: &Planes, networks: Vec<String>, flavor: String, image: String) -> Load {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let yaml = std::fs::read_to_string(planes.state.join("clouds.yaml")).unwrap();
        let password = yaml.lines().find_map(|l| l.trim().strip_prefix("password: ")).unwrap().to_string();
        let register = networks.first().cloned().unwrap_or_default();
        let mut inner = Inner {
            client,
            address: planes.cloud.address.clone(),
            token: String::new(),
            password: password.trim_matches(['"', '\'']).into(),
            networks,
            flavor,
            image,
            register,
            number: AtomicU64::new(0),
            written: AtomicU64::new(0),
            made: Mutex::default(),
        };
        inner.token = inner.new_token().await.unwrap();
        Load { inner: Arc::new(inner) }
    }

    /// The same, for a cloud that was started again.
    pub async fn at(&self, planes: &Planes) -> Load {
        let inner = &self.inner;
        let load = Load::to(planes, inner.networks.clone(), inner.flavor.clone(), inner.image.clone()).await;
        load.inner.written.store(inner.written.load(Ordering::SeqCst), Ordering::SeqCst);
        load
    }

    pub async fn get(&self, path: &str) -> Value {
        self.inner.must(Method::GET, path, Value::Null).await
    }

    pub async fn register(&self) -> (u64, u64) {
        let floor = self.inner.written.load(Ordering::SeqCst);
        (floor, self.inner.register().await.1)
    }

    /// Whether a plane, asked past the door, answers with an older register than was answered before.
    pub async fn is_old_at(&self, socket: &Path) -> bool {
        let floor = self.inner.written.load(Ordering::SeqCst);
        let line = format!("GET /network/v2.0/networks/{}?fields=description", self.inner.register);
        // One that was ended meanwhile answers nothing.
        let Ok((200, answer)) = self.past_the_door(socket, line, "", Value::Null).await else { return false };
        let seen = answer["network"]["description"].as_str().and_then(|text| text.parse::<u64>().ok());
        seen.is_some_and(|seen| seen < floor)
    }

    /// Asks a plane twice for a network under one id, as the door does when an answer is lost: the answers' ids, and how
    /// many there are of its name.
    pub async fn twice_at(&self, socket: &Path) -> (Value, Value, usize) {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let mut ids = Vec::new();
        for _ in 0..2 {
            let head = format!("x-shisa-mutation: {name}\r\n");
            let body = json!({"network": {"name": name}});
            let line = "POST /network/v2.0/networks".to_string();
            let (_, answer) = self.past_the_door(socket, line, &head, body).await.unwrap();
            ids.push(answer["network"]["id"].clone());
        }
        let there = self.get(&format!("/network/v2.0/networks?name={name}")).await;
        (ids[0].clone(), ids[1].clone(), there["networks"].as_array().unwrap().len())
    }

    /// Status and body of one request to a plane's own socket.
    async fn past_the_door(
        &self,
        socket: &Path,
        line: String,
        head: &str,
        body: Value,
    ) -> std::io::Result<(u16, Value)> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (token, length) = (&self.inner.token, body.len());
        let text = format!(
            "{line} HTTP/1.1\r\nhost: plane\r\nx-auth-token: {token}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{head}connection: close\r\n\r\n{body}"
        );
        let socket = socket.to_path_buf();
        let asked = move || {
            let mut plane = UnixStream::connect(socket)?;
            plane.set_read_timeout(Some(READ_BACK_MAX))?;
            plane.write_all(text.as_bytes())?;
            let mut answer = String::new();
            plane.read_to_string(&mut answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            Ok((status, serde_json::from_str(body).unwrap_or_default()))
        };
        tokio::task::spawn_blocking(asked).await.unwrap()
    }

    /// Until one read and one write are answered.
    pub async fn read_and_write(&self) {
        let begin = Instant::now();
        let path = format!("/network/v2.0/networks/{}", self.inner.networks[1]);
        for (method, body) in
            [(Method::GET, Value::Null), (Method::PUT, json!({"network": {"description": "again"}}))]
        {
            while self.inner.call(method.clone(), &path, &self.inner.token, body.clone()).await.0 != 200 {
                assert!(begin.elapsed() < READ_BACK_MAX, "{method} is not answered");
            }
        }
    }

    /// `rate` requests a second, deletes of what is too many, and beside them clients that do one thing after the other.
    pub fn start(&self, rate: u32) -> Running {
        let (stop, operations) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut clients = JoinSet::new();
        let (inner, ended, told) = (self.inner.clone(), stop.clone(), operations.clone());
        clients.spawn(async move { open_loop(inner, rate, ended, told).await });
        let (inner, ended, told) = (self.inner.clone(), stop.clone(), operations.clone());
        clients.spawn(async move { writer(inner, ended, told).await });
        for _ in 0..2 {
            let (inner, ended, told) = (self.inner.clone(), stop.clone(), operations.clone());
            clients.spawn(async move { reader(inner, ended, told).await });
        }
        let (inner, ended, told) = (self.inner.clone(), stop.clone(), operations.clone());
        clients.spawn(async move { revoker(inner, ended, told).await });
        Running { stop, clients, operations, begin: Instant::now() }
    }
}

type Told = Arc<Mutex<Vec<Operation>>>;

async fn open_loop(inner: Arc<Inner>, rate: u32, stop: Arc<AtomicBool>, told: Told) {
    let mut asked = JoinSet::new();
    let begin = Instant::now();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = begin + Duration::from_secs_f64(f64::from(n) / f64::from(rate));
        tokio::time::sleep_until(due.into()).await;
        let (inner, told) = (inner.clone(), told.clone());
        asked.spawn(async move {
            let (what, status) = inner.one(n).await;
            told.lock().unwrap().push(Operation { what, status, took: due.elapsed() });
            let Some(Made { kind, name, path }) = inner.one_too_many() else { return };
            let begin = Instant::now();
            let status = inner.call(Method::DELETE, &path, &inner.token, Value::Null).await.0;
            let what = What::Delete(kind, name);
            told.lock().unwrap().push(Operation { what, status, took: begin.elapsed() });
        });
        while asked.try_join_next().is_some() {}
        n += 1;
    }
    while asked.join_next().await.is_some() {}
}

/// The only one that writes the register, with larger and larger numbers.
async fn writer(inner: Arc<Inner>, stop: Arc<AtomicBool>, told: Told) {
    let path = format!("/network/v2.0/networks/{}", inner.register);
    while !stop.load(Ordering::Relaxed) {
        let (begin, next) = (Instant::now(), inner.number.fetch_add(1, Ordering::SeqCst) + 1);
        let body = json!({"network": {"description": next.to_string()}});
        let (status, _) = inner.call(Method::PUT, &path, &inner.token, body).await;
        if status == 200 {
            inner.written.store(next, Ordering::SeqCst);
        }
        told.lock().unwrap().push(Operation { what: What::Write, status, took: begin.elapsed() });
        tokio::time::sleep(TURN).await;
    }
}

async fn reader(inner: Arc<Inner>, stop: Arc<AtomicBool>, told: Told) {
    while !stop.load(Ordering::Relaxed) {
        let (begin, floor) = (Instant::now(), inner.written.load(Ordering::SeqCst));
        let (status, seen) = inner.register().await;
        let what = What::Register { floor, seen };
        told.lock().unwrap().push(Operation { what, status, took: begin.elapsed() });
        tokio::time::sleep(TURN / 4).await;
    }
}

/// Makes tokens, revokes them, and tries them again.
async fn revoker(inner: Arc<Inner>, stop: Arc<AtomicBool>, told: Told) {
    let path = "/network/v2.0/networks?name=none";
    while !stop.load(Ordering::Relaxed) {
        let Some(token) = inner.new_token().await else { continue };
        let (status, _) = inner.revoke(&token).await;
        for pause in [0, 1, 30] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let begin = Instant::now();
            let answered = inner.call(Method::GET, path, &token, Value::Null).await.0;
            if status == 204 {
                let took = begin.elapsed();
                told.lock().unwrap().push(Operation { what: What::Revoked, status: answered, took });
            }
        }
        tokio::time::sleep(TURN).await;
    }
}

impl Inner {
    /// The n-th request of the open loop: half reads, half creates.
    async fn one(&self, n: u32) -> (What, u16) {
        let network = &self.networks[n as usize % self.networks.len()];
        let name = format!("{n}-{}", uuid::Uuid::new_v4().simple());
        let named = name.clone();
        let create = |kind: &'static str, path: &'static str, body: Value| async move {
            let (status, answer) = self.call(Method::POST, path, &self.token, body).await;
            if let Some(id) = answer[kind.trim_end_matches('s')]["id"].as_str() {
                let made = Made { kind, name: named.clone(), path: format!("{path}/{id}") };
                self.made.lock().unwrap().push_back(made);
            }
            (What::Create(kind, named), status)
        };
        match n % 10 {
            0..=3 => {
                let path = format!("/network/v2.0/networks/{network}");
                (What::Read, self.call(Method::GET, &path, &self.token, Value::Null).await.0)
            }
            4 => {
                let path = "/compute/v2.1/servers?limit=10";
                (What::Read, self.call(Method::GET, path, &self.token, Value::Null).await.0)
            }
            5..=7 => {
                let body = json!({"port": {"name": name, "network_id": network}});
                create("ports", "/network/v2.0/ports", body).await
            }
            8 => create("networks", "/network/v2.0/networks", json!({"network": {"name": name}})).await,
            _ => {
                let server = json!({"name": name, "flavorRef": self.flavor, "imageRef": self.image,
                    "networks": [{"uuid": network}]});
                create("servers", "/compute/v2.1/servers", json!({"server": server})).await
            }
        }
    }

    fn one_too_many(&self) -> Option<Made> {
        let mut made = self.made.lock().unwrap();
        (made.len() > KEPT_MAX).then(|| made.pop_front())?
    }

    async fn register(&self) -> (u16, u64) {
        let path = format!("/network/v2.0/networks/{}?fields=description", self.register);
        let (status, answer) = self.call(Method::GET, &path, &self.token, Value::Null).await;
        (status, answer["network"]["description"].as_str().and_then(|t| t.parse().ok()).unwrap_or(0))
    }

    async fn must(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method.clone(), path, &self.token, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Status 0: the connection broke.
    async fn call(&self, method: Method, path: &str, token: &str, body: Value) -> (u16, Value) {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = self.request(method, path, token, "application/json", bytes, &[]);
        let (status, _, answer) = self.send(request).await;
        (status, answer)
    }

    async fn upload(&self, image: &str) -> (u16, Value) {
        let path = format!("/image/v2/images/{image}/file");
        let bytes = Bytes::from(vec![0; 1 << 20]);
        let request = self.request(Method::PUT, &path, &self.token, "application/octet-stream", bytes, &[]);
        let (status, _, answer) = self.send(request).await;
        (status, answer)
    }

    async fn revoke(&self, token: &str) -> (u16, Value) {
        let head = [("x-subject-token", token)];
        let path = "/identity/v3/auth/tokens";
        let request =
            self.request(Method::DELETE, path, &self.token, "application/json", Bytes::new(), &head);
        let (status, _, answer) = self.send(request).await;
        (status, answer)
    }

    fn sign_in(&self) -> Value {
        let domain = json!({"name": "Default"});
        let user = json!({"name": "admin", "password": self.password, "domain": domain});
        let scope = json!({"project": {"name": "admin", "domain": domain}});
        json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}})
    }

    async fn new_token(&self) -> Option<String> {
        let body = Bytes::from(self.sign_in().to_string());
        let path = "/identity/v3/auth/tokens";
        let request = self.request(Method::POST, path, "", "application/json", body, &[]);
        let (_, token, _) = self.send(request).await;
        token
    }

    async fn project(&self) -> String {
        let head = [("x-subject-token", self.token.as_str())];
        let path = "/identity/v3/auth/tokens";
        let request = self.request(Method::GET, path, &self.token, "application/json", Bytes::new(), &head);
        self.send(request).await.2["token"]["project"]["id"].as_str().unwrap().into()
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        token: &str,
        kind: &str,
        body: Bytes,
        head: &[(&str, &str)],
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address))
            .header("content-type", kind)
            .header("x-auth-token", token);
        for (name, value) in head {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body)).unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (u16, Option<String>, Value) {
        let Ok(answer) = self.client.request(request).await else { return (0, None, Value::Null) };
        let status = answer.status().as_u16();
        let token = answer.headers().get("x-subject-token").and_then(|t| t.to_str().ok()).map(String::from);
        match answer.into_body().collect().await {
            Ok(body) => (status, token, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()),
            Err(_) => (0, None, Value::Null),
        }
    }
}
