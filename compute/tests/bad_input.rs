//! Every row of every service's table with bad input: never a fault of ours, never a panic, always a sentence.
//!
//! Things to aim at are found through the API itself: a parameter's good value is the id of what the collection before
//! it lists, the fields of a body are those of what the API shows.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use api::Faults;
use identity::testing::Person;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use support::{Whole, id};

/// A row of a table, without the handler.
#[derive(Clone, Debug)]
struct Aim {
    prefix: &'static str,
    faults: Faults,
    word: Option<&'static str>,
    method: String,
    path: &'static str,
    open: bool,
    action: Option<&'static str>,
    /// The microversions to ask in: the first and the last that have the row.
    versions: Vec<String>,
    body_max: usize,
    streamed: bool,
}

fn aims(whole: &Whole) -> Vec<Aim> {
    let mut aims = Vec::new();
    for service in whole.cloud.api.services() {
        for row in &service.rows {
            let versions = service.microversions.map_or(Vec::new(), |m| {
                let (first, last) = (row.since.max(m.min), row.until.min(m.max));
                BTreeSet::from([first, last]).iter().map(ToString::to_string).collect()
            });
            aims.push(Aim {
                prefix: service.prefix,
                faults: service.faults,
                word: service.microversions.map(|m| m.word),
                method: row.method.to_string(),
                path: row.path,
                open: row.rule.is_empty(),
                action: row.action,
                versions,
                body_max: row.body_max,
                streamed: row.streamed,
            });
        }
    }
    aims
}

const GARBAGE: [&str; 7] = [
    "garbage",
    "0c5f9e0e-1b1e-4e55-9f5c-0d3a4f6d7a11",
    "00000000000000000000000000000000",
    "%00",
    "%E2%98%83%F0%9F%92%A9",
    "%FF%FE",
    "..%252f'%22%3Cb%3E",
];

const QUERIES: [&str; 16] = [
    "limit=-1",
    "limit=abc",
    "limit=0&limit=99999999999999999999",
    "marker=nonsense",
    "marker=0c5f9e0e-1b1e-4e55-9f5c-0d3a4f6d7a11",
    "sort_key=;&sort_dir=sideways",
    "sort=name:up,:,;",
    "all_tenants=x",
    "changes-since=x&changes-before=y",
    "enabled=maybe&deleted=maybe&flag=%00",
    "page_reverse=perhaps&fields=&fields=,",
    "fixed_ips=x&tags=,&not-tags-any=&tags-any=%E2%98%83",
    "ip=(&ip6=[&name=(((*&name=%5B",
    "size_min=-1&size_max=x&created_at=gte:x&updated_at=:&name=in:%22",
    "is_public=x&minDisk=x&minRam=-1&status=nope",
    "%00=%00&=&&&%E2%98%83=%FF",
];

const VERSIONS: [&str; 7] = ["x", "2", "2.", "2.999", "0.0", "99999999.1", "-1.-1"];

/// What is wrong nearly everywhere.
fn wrong() -> Vec<Value> {
    vec![
        Value::Null,
        json!(-1),
        json!(1e300),
        json!(true),
        json!("garbage"),
        json!(""),
        json!("\u{0}"),
        json!("☃".repeat(300)),
        json!("x".repeat(70_000)),
        json!([]),
        json!({}),
        json!([null]),
        json!([[]]),
        json!([{}]),
        json!(["garbage", "garbage"]),
        json!([1]),
        json!({"garbage": {"garbage": []}}),
        json!({"": null}),
    ]
}

fn bodies(aim: &Aim, key: &str) -> Vec<Vec<u8>> {
    let deep = format!("{{\"{key}\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let mut bodies: Vec<Vec<u8>> = [
        "",
        "[]",
        "null",
        "\"x\"",
        "{}",
        "{",
        "1",
        "[[]]",
        "{\"garbage\": {}}",
        "{\"\": 1}",
        "{\"a\":1}{\"a\":1}",
        &deep,
    ]
    .iter()
    .map(|b| b.as_bytes().to_vec())
    .collect();
    bodies.push(b"{\"\xff\xfe\": \"\xff\"}".to_vec());
    bodies.push(format!("{{\"{key}\": {{}}, \"garbage\": 1}}").into_bytes());
    bodies.extend(wrong().into_iter().map(|v| json!({key: v}).to_string().into_bytes()));
    if aim.method == "PATCH" {
        for op in [json!([{"op": "add"}]), json!([{"op": "replace", "path": "", "value": 1}]), json!([1])] {
            bodies.push(op.to_string().into_bytes());
        }
        for (op, path) in [("add", "/"), ("add", "/tags/x/y"), ("remove", "/id"), ("replace", "/~2")] {
            bodies.push(json!([{"op": op, "path": path, "value": {"a": []}}]).to_string().into_bytes());
        }
    }
    bodies
}

/// The key that a body of this path stands under.
fn key(aim: &Aim) -> String {
    if let Some(action) = aim.action {
        return action.into();
    }
    let last = aim.path.rsplit('/').find(|s| !s.is_empty() && !s.starts_with('{')).unwrap_or("x");
    let last = last.strip_prefix("os-").unwrap_or(last).replace('-', "_");
    match last.as_str() {
        "interface" => return "interfaceAttachment".into(),
        "quota_sets" | "quota_class_sets" => return last.trim_end_matches('s').into(),
        "extra_specs" | "metadata" | "tags" => return last,
        "tokens" => return "auth".into(),
        _ => {}
    }
    match last.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => last.strip_suffix('s').unwrap_or(&last).into(),
    }
}

struct Walk {
    whole: Arc<Whole>,
    slips: BTreeMap<String, String>,
    asked: usize,
}

impl Walk {
    /// The ids of things that are there, one for each collection's path.
    async fn good(&self, aims: &[Aim]) -> BTreeMap<(String, String), Value> {
        let admin = &self.whole.cloud.admin;
        let mut good = BTreeMap::new();
        for aim in aims.iter().filter(|a| a.method == "GET" && !a.path.contains('{')) {
            for version in aim.versions.iter().map(String::as_str).chain(aim.word.is_none().then_some("")) {
                let word = format!("{} {version}", aim.word.unwrap_or("none"));
                let headers = [("openstack-api-version", word.as_str())];
                let path = format!("{}{}", aim.prefix, aim.path);
                let (_, _, answer) = self.whole.cloud.send("GET", &path, &admin.token, &headers, "").await;
                let first =
                    answer.as_object().and_then(|m| m.values().find_map(|v| v.as_array()?.last().cloned()));
                if let Some(mut first) = first {
                    if let Some(inner) = first.get("keypair") {
                        first = json!({"id": inner["name"], "name": inner["name"]});
                    }
                    good.insert((aim.prefix.to_string(), aim.path.to_string()), first);
                }
            }
        }
        good
    }

    async fn ask(
        &mut self,
        aim: &Aim,
        who: &str,
        token: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> u16 {
        self.asked += 1;
        let (whole, method) = (self.whole.clone(), aim.method.clone());
        let headers: Vec<(String, String)> =
            headers.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let (at, sent, token) = (path.to_string(), body.to_vec(), token.to_string());
        let asked = tokio::spawn(async move {
            let mut all = vec![(
                "content-type",
                if method == "PATCH" {
                    "application/openstack-images-v2.1-json-patch"
                } else {
                    "application/json"
                },
            )];
            all.extend(headers.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            whole.cloud.bytes(&method, &at, &token, &all, sent).await
        });
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        let row = format!("{} {}{} {}", aim.method, aim.prefix, aim.path, aim.action.unwrap_or(""));
        let (status, text) = match asked.await {
            Ok((status, _, bytes)) => (status.as_u16(), String::from_utf8_lossy(&bytes).into_owned()),
            Err(_) => (0, "a panic".into()),
        };
        let why = if status == 0 || (status >= 500 && status != 501) {
            Some("a fault of ours")
        } else if status >= 400 && aim.method != "HEAD" && !shaped(aim.faults, status, &text) {
            Some("not the service's fault")
        } else {
            None
        };
        if let Some(why) = why {
            let short: String = text.chars().take(300).collect();
            let kind = format!("{row}: {why} {status}");
            self.slips.entry(kind).or_insert_with(|| format!("{who} {path} {shown}\n    {short}"));
        }
        status
    }

    fn expect(&mut self, good: bool, aim: &Aim, what: &str, status: u16) {
        if !good {
            let row = format!("{} {}{}: {what}", aim.method, aim.prefix, aim.path);
            self.slips.entry(row).or_insert_with(|| format!("answered {status}"));
        }
    }
}

/// Whether an answer is the service's own kind of fault, with a sentence.
fn shaped(faults: Faults, status: u16, text: &str) -> bool {
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    let says = |v: &Value| v.as_str().is_some_and(|s| !s.trim().is_empty());
    if status == 401 {
        return json["error"]["code"] == 401 && says(&json["error"]["message"]);
    }
    match faults {
        Faults::Identity => json["error"]["code"] == status && says(&json["error"]["message"]),
        Faults::Compute => {
            let one = json.as_object().and_then(|m| m.values().next()).unwrap_or(&Value::Null);
            one["code"] == status && says(&one["message"])
        }
        Faults::Network => says(&json["NeutronError"]["type"]) && says(&json["NeutronError"]["message"]),
        Faults::Image => {
            let after = text.split("</h1>").nth(1).and_then(|t| t.split("<br").next());
            after.is_some_and(|t| !t.trim().is_empty())
        }
        Faults::Placement => says(&json["errors"][0]["detail"]),
    }
}

/// One thing of each kind, so that bad bodies meet something. The path, and a body that is right.
async fn seed(whole: &Whole, who: &Person) -> Vec<(&'static str, Value)> {
    let ground = whole.ground(who).await;
    let network = &ground.network;
    let new = vec![
        ("/network/v2.0/routers", json!({"router": {"name": "r"}})),
        ("/network/v2.0/networks", json!({"network": {"name": "m"}})),
        ("/network/v2.0/ports", json!({"port": {"network_id": network}})),
        (
            "/network/v2.0/subnets",
            json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.2.0.0/24"}}),
        ),
        ("/network/v2.0/subnetpools", json!({"subnetpool": {"name": "p", "prefixes": ["10.9.0.0/16"]}})),
        ("/network/v2.0/security-groups", json!({"security_group": {"name": "g"}})),
        ("/compute/v2.1/os-keypairs", json!({"keypair": {"name": "k"}})),
        ("/compute/v2.1/servers", ground.server("s")),
    ];
    for (path, body) in &new {
        whole.make(who, path, body.clone()).await;
    }
    let groups = whole.ask(who, "GET", "/network/v2.0/security-groups", Value::Null).await.1;
    let group = id(&groups["security_groups"][0]);
    let mut new = new;
    new.push((
        "/network/v2.0/security-group-rules",
        json!({"security_group_rule": {"security_group_id": group, "direction": "ingress", "protocol": "tcp"}}),
    ));
    new.push(("/compute/v2.1/flavors", json!({"flavor": {"name": "g", "ram": 512, "vcpus": 1, "disk": 1}})));
    new.push(("/image/v2/images", json!({"name": "j", "disk_format": "raw", "container_format": "bare"})));
    new.push(("/identity/v3/users", json!({"user": {"name": "u"}})));
    new.push(("/identity/v3/projects", json!({"project": {"name": "p"}})));
    new.push(("/identity/v3/groups", json!({"group": {"name": "g"}})));
    new.push(("/identity/v3/roles", json!({"role": {"name": "r"}})));
    new.push(("/identity/v3/domains", json!({"domain": {"name": "d"}})));
    new.push(("/identity/v3/regions", json!({"region": {"id": "elsewhere"}})));
    new.push(("/identity/v3/services", json!({"service": {"name": "s", "type": "t"}})));
    new.push((
        "/identity/v3/credentials",
        json!({"credential": {"type": "t", "blob": "b", "user_id": who.user}}),
    ));
    for (path, body) in &new[8..] {
        whole.make(&whole.cloud.admin, path, body.clone()).await;
    }
    new
}

/// The path with good values where there are any.
fn fill(aim: &Aim, good: &BTreeMap<(String, String), Value>) -> Vec<String> {
    let mut before = String::new();
    let mut values = Vec::new();
    for segment in aim.path.split('/').filter(|s| !s.is_empty()) {
        if segment.starts_with('{') {
            let found = good.get(&(aim.prefix.to_string(), before.clone()));
            let id = found.and_then(|v| {
                v["id"].as_str().map(str::to_string).or(v["id"].as_i64().map(|n| n.to_string()))
            });
            values.push(id.unwrap_or_else(|| "garbage".into()));
        }
        before = format!("{before}/{segment}");
    }
    values
}

fn path(aim: &Aim, values: &[String]) -> String {
    let mut values = values.iter();
    let segments = aim.path.split('/').filter(|s| !s.is_empty());
    let filled: Vec<String> = segments
        .map(|s| if s.starts_with('{') { values.next().unwrap().clone() } else { s.into() })
        .collect();
    format!("{}/{}", aim.prefix, filled.join("/"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bad_input_is_refused_in_a_sentence() {
    let whole = Arc::new(Whole::new().await);
    let member = whole.cloud.member("walker").await;
    let seeds = seed(&whole, &member).await;
    let mut aims = aims(&whole);
    // What takes away comes last.
    aims.sort_by_key(|a| a.method == "DELETE" || a.action == Some("forceDelete"));
    let mut walk = Walk { whole: whole.clone(), slips: BTreeMap::new(), asked: 0 };
    let mut good = walk.good(&aims).await;
    for person in [&whole.cloud.admin, &member] {
        for quota in ["/v2.1/os-quota-sets", "/v2.0/quotas"] {
            let prefix = if quota.starts_with("/v2.1") { "/compute" } else { "/network" };
            good.insert((prefix.into(), quota.into()), json!({"id": person.project}));
        }
        fields(&mut walk, &aims, &good, &seeds, person).await;
        for aim in &aims {
            row(&mut walk, aim, &good, person).await;
        }
    }
    // The administrator is still who it was: nothing of all that went through.
    let (status, _) = whole.ask(&whole.cloud.admin, "GET", "/identity/v3/users", Value::Null).await;
    assert_eq!(status, 200);
    let slips: Vec<String> = walk.slips.iter().map(|(k, v)| format!("{k}\n    {v}")).collect();
    println!("{} requests to {} rows", walk.asked, aims.len());
    assert!(slips.is_empty(), "{} slips:\n{}", slips.len(), slips.join("\n"));
}

async fn row(walk: &mut Walk, aim: &Aim, good: &BTreeMap<(String, String), Value>, who: &Person) {
    let values = fill(aim, good);
    let right = path(aim, &values);
    // Deleting the administrator would end the walk.
    let sparing = aim.method == "DELETE" && aim.prefix == "/identity";
    let name = if who.token == walk.whole.cloud.admin.token { "admin" } else { "member" };
    let first = aim.versions.first().cloned().unwrap_or_default();
    let last = aim.versions.last().cloned().unwrap_or_default();
    let stamp = |v: &str| format!("{} {v}", aim.word.unwrap_or("none"));
    let (first, last) = (stamp(&first), stamp(&last));
    let (first, last) =
        ([("openstack-api-version", first.as_str())], [("openstack-api-version", last.as_str())]);
    for token in ["", "garbage", "gAAAAAB", "\u{7f}x"].iter().filter(|t| !t.contains('\u{7f}')) {
        let status = walk.ask(aim, "nobody", token, &right, &first, b"").await;
        walk.expect(aim.open || status == 401, aim, "no 401 without a token", status);
    }
    let long = "x".repeat(300);
    for at in 0..values.len() {
        for bad in GARBAGE.iter().copied().chain([long.as_str()]) {
            let mut values = values.clone();
            values[at] = bad.into();
            walk.ask(aim, name, &who.token, &path(aim, &values), &last, b"").await;
        }
    }
    if aim.word.is_some() {
        for version in VERSIONS {
            let header = stamp(version);
            let headers = [("openstack-api-version", header.as_str())];
            let status = walk.ask(aim, name, &who.token, &right, &headers, b"").await;
            walk.expect([400, 406].contains(&status), aim, "a bad microversion is taken", status);
        }
    }
    if aim.method == "GET" {
        for query in QUERIES {
            walk.ask(aim, name, &who.token, &format!("{right}?{query}"), &first, b"").await;
            walk.ask(aim, name, &who.token, &format!("{right}?{query}"), &last, b"").await;
        }
    }
    if sparing || (aim.method == "GET" && aim.path.contains('{')) {
        return;
    }
    for body in bodies(aim, &key(aim)) {
        walk.ask(aim, name, &who.token, &right, &first, &body).await;
        if first != last {
            walk.ask(aim, name, &who.token, &right, &last, &body).await;
        }
    }
    if !aim.streamed && aim.method != "GET" {
        let status = walk.ask(aim, name, &who.token, &right, &last, &vec![b' '; aim.body_max + 1]).await;
        walk.expect(status == 413, aim, "no 413 for a body beyond its limit", status);
    }
}

/// Every field of what is shown, with every wrong value, on create and on update.
async fn fields(
    walk: &mut Walk,
    aims: &[Aim],
    good: &BTreeMap<(String, String), Value>,
    seeds: &[(&'static str, Value)],
    who: &Person,
) {
    let admin = walk.whole.cloud.admin.clone();
    let name = if who.token == admin.token { "admin" } else { "member" };
    for aim in aims.iter().filter(|a| ["POST", "PUT"].contains(&a.method.as_str()) && a.action.is_none()) {
        let collection = aim.path.rsplit_once("/{").map_or(aim.path, |(before, _)| before);
        let whole = format!("{}{collection}", aim.prefix);
        let shown = good.get(&(aim.prefix.to_string(), collection.to_string())).and_then(Value::as_object);
        let base = seeds.iter().find(|(path, _)| *path == whole).map(|(_, body)| body);
        let (Some(base), update) = (base, aim.method == "PUT") else { continue };
        let key = key(aim);
        let inner = base.get(&key).unwrap_or(base).as_object().unwrap().clone();
        let mut names: BTreeSet<String> = inner.keys().cloned().collect();
        names.extend(shown.into_iter().flat_map(|s| s.keys().cloned()));
        names.extend(
            MORE.iter().filter(|(p, _)| *p == whole).flat_map(|(_, f)| f.iter().map(|f| f.to_string())),
        );
        let last =
            format!("{} {}", aim.word.unwrap_or("none"), aim.versions.last().map_or("", String::as_str));
        let right = path(aim, &fill(aim, good));
        for field in names {
            for value in wrong() {
                let mut body = if update { Map::new() } else { inner.clone() };
                body.insert(field.clone(), value);
                let body = if base.get(&key).is_some() { json!({&key: body}) } else { Value::Object(body) };
                let headers = [("openstack-api-version", last.as_str())];
                walk.ask(aim, name, &who.token, &right, &headers, body.to_string().as_bytes()).await;
            }
        }
    }
}

/// Fields that are not shown, or not by lists.
const MORE: [(&str, &[&str]); 5] = [
    (
        "/compute/v2.1/servers",
        &[
            "networks",
            "user_data",
            "adminPass",
            "security_groups",
            "min_count",
            "max_count",
            "block_device_mapping_v2",
            "availability_zone",
            "hostname",
            "host",
            "hypervisor_hostname",
            "tags",
            "description",
            "config_drive",
            "metadata",
            "accessIPv4",
            "accessIPv6",
            "OS-DCF:diskConfig",
            "key_name",
            "return_reservation_id",
            "trusted_image_certificates",
            "personality",
        ],
    ),
    ("/compute/v2.1/os-keypairs", &["public_key", "type", "user_id"]),
    ("/network/v2.0/subnets", &["prefixlen", "subnetpool_id", "use_default_subnetpool", "segment_id"]),
    ("/network/v2.0/subnetpools", &["address_scope_id"]),
    ("/identity/v3/users", &["password", "options", "default_project_id", "federated"]),
];
