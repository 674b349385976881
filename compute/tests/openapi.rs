//! Our answers against the published schemas: every GET of every table that has one, and the creates.
//!
//! `conformance/deviations.txt` lists what may differ, one a line with its reason after ` # `. `UPDATE=1` prints the list.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use support::{Whole, id};

const COMPUTE_VERSIONS: [&str; 5] = ["2.1", "2.26", "2.53", "2.75", "2.96"];
const FILES: [(&str, &str); 4] = [
    ("compute", include_str!("../../conformance/openapi/compute.json")),
    ("identity", include_str!("../../conformance/openapi/identity.json")),
    ("image", include_str!("../../conformance/openapi/image.json")),
    ("network", include_str!("../../conformance/openapi/network.json")),
];
const KNOWN: &str = include_str!("../../conformance/deviations.txt");

type Version = (u32, u32);

fn version(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The schemas of one service.
struct Book {
    paths: BTreeMap<String, Value>,
    schemas: Value,
}

/// A path without the names of its parameters.
fn plain(path: &str) -> String {
    let segments = path.trim_end_matches('/').split('/').map(|s| if s.starts_with('{') { "{}" } else { s });
    segments.collect::<Vec<_>>().join("/")
}

impl Book {
    fn read(text: &str) -> Book {
        let mut all: Value = serde_json::from_str(text).unwrap();
        let paths = all["paths"].as_object().unwrap().iter().map(|(p, v)| (plain(p), v.clone())).collect();
        Book { paths, schemas: all["schemas"].take() }
    }

    /// The answers of a method and path, by status.
    fn answers(&self, method: &str, path: &str) -> Option<&serde_json::Map<String, Value>> {
        self.paths.get(&plain(path))?.get(method)?.as_object()
    }

    fn follow<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        while let Some(to) = schema["$ref"].as_str() {
            schema = &self.schemas[to.rsplit('/').next().unwrap()];
        }
        schema
    }

    fn offered(&self, schema: &Value, at: Version) -> bool {
        let bound = |name: &str| schema["x-openstack"][name].as_str().and_then(version);
        bound("min-ver").is_none_or(|min| min <= at) && bound("max-ver").is_none_or(|max| at <= max)
    }

    /// What differs, as `place: what`.
    fn hold(&self, schema: &Value, value: &Value, at: Version, place: &str, found: &mut BTreeSet<String>) {
        let schema = self.follow(schema);
        for every in schema["allOf"].as_array().into_iter().flatten() {
            self.hold(every, value, at, place, found);
        }
        self.hold_one(schema, value, at, place, found);
        let wanted = |s: &Value| match &s["type"] {
            Value::String(t) => is(value, t),
            Value::Array(ts) => ts.iter().any(|t| is(value, t.as_str().unwrap_or(""))),
            _ => true,
        };
        if !wanted(schema) {
            found.insert(format!("{place}: {} is not {}", kind(value), schema["type"]));
            return;
        }
        let words = schema["enum"].as_array();
        if let Some(words) = words.filter(|w| !value.is_null() && !w.contains(value)) {
            found.insert(format!("{place}: {value} is not among {} words", words.len()));
        }
        if let Some(items) = value.as_array().filter(|_| schema["items"].is_object()) {
            items.iter().for_each(|v| self.hold(&schema["items"], v, at, &format!("{place}[]"), found));
        }
        if value.is_object() {
            self.hold_object(schema, value, at, place, found);
        }
    }

    /// One of several: the first of the microversion that fits, else what the nearest lacks.
    fn hold_one(
        &self,
        schema: &Value,
        value: &Value,
        at: Version,
        place: &str,
        found: &mut BTreeSet<String>,
    ) {
        let many = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
        let tried = many.into_iter().flatten().filter(|s| self.offered(self.follow(s), at)).map(|one| {
            let mut slips = BTreeSet::new();
            self.hold(one, value, at, place, &mut slips);
            slips
        });
        found.extend(tried.min_by_key(BTreeSet::len).unwrap_or_default());
    }

    fn hold_object(
        &self,
        schema: &Value,
        value: &Value,
        at: Version,
        place: &str,
        found: &mut BTreeSet<String>,
    ) {
        let known = schema["properties"].as_object();
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, property) in known.into_iter().flatten() {
            let offered = self.offered(property, at) && self.offered(self.follow(property), at);
            let place = format!("{place}.{name}");
            match value.get(name) {
                Some(_) if !offered => drop(found.insert(format!("{place}: not in this microversion"))),
                Some(inner) => self.hold(property, inner, at, &place, found),
                None if required.contains(&name.as_str()) => drop(found.insert(format!("{place}: required"))),
                None if offered => drop(found.insert(format!("{place}: absent"))),
                None => {}
            }
        }
        let other = &schema["additionalProperties"];
        for (name, inner) in value.as_object().into_iter().flatten() {
            match known.is_some_and(|k| k.contains_key(name)) || schema["patternProperties"].is_object() {
                true => {}
                false if *other == false => drop(found.insert(format!("{place}.{name}: not in the schema"))),
                false if other.is_object() => self.hold(other, inner, at, &format!("{place}.*"), found),
                false => {}
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is(value: &Value, wanted: &str) -> bool {
    kind(value) == wanted || (wanted == "number" && value.is_number())
}

struct Held {
    whole: Whole,
    books: BTreeMap<&'static str, Book>,
    /// What deviates, and in which of Compute's microversions.
    found: BTreeMap<String, Vec<String>>,
    held: usize,
}

impl Held {
    async fn ask(
        &mut self,
        method: &str,
        service: &str,
        row: &str,
        path: &str,
        at: &str,
        body: Value,
    ) -> Value {
        let admin = self.whole.cloud.admin.clone();
        let (status, answer) = self.whole.at(&admin, at, method, &format!("/{service}{path}"), body).await;
        if let Some(answers) = self.books.get(service).and_then(|b| b.answers(method, row)) {
            let book = &self.books[service];
            let mut found = BTreeSet::new();
            match answers.get(&status.to_string()) {
                Some(schema) => book.hold(schema, &answer, version(at).unwrap_or_default(), "", &mut found),
                None => drop(found.insert(format!(": answers {status}"))),
            }
            self.held += 1;
            for what in found {
                let versions = self.found.entry(format!("{service} {method} {row} {what}")).or_default();
                if service == "compute" && !versions.iter().any(|v| v == at) {
                    versions.push(at.into());
                }
            }
        }
        answer
    }
}

/// One of each main resource; compute's in each microversion.
async fn create(held: &mut Held) {
    let admin = held.whole.cloud.admin.clone();
    let ground = held.whole.ground(&admin).await;
    let network = &ground.network;
    let new = [
        ("network", "/v2.0/networks", json!({"network": {"name": "x", "router:external": true}})),
        (
            "network",
            "/v2.0/subnets",
            json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.7.0.0/24"}}),
        ),
        ("network", "/v2.0/subnetpools", json!({"subnetpool": {"name": "p", "prefixes": ["10.9.0.0/16"]}})),
        ("network", "/v2.0/ports", json!({"port": {"network_id": network}})),
        ("network", "/v2.0/routers", json!({"router": {"name": "r"}})),
        ("network", "/v2.0/security-groups", json!({"security_group": {"name": "g"}})),
        ("image", "/v2/images", json!({"name": "j", "disk_format": "raw", "container_format": "bare"})),
        ("identity", "/v3/users", json!({"user": {"name": "u", "password": "hush"}})),
        ("identity", "/v3/projects", json!({"project": {"name": "p"}})),
        ("identity", "/v3/groups", json!({"group": {"name": "g"}})),
        ("identity", "/v3/roles", json!({"role": {"name": "r"}})),
        ("identity", "/v3/domains", json!({"domain": {"name": "d"}})),
        (
            "identity",
            "/v3/credentials",
            json!({"credential": {"type": "t", "blob": "b", "user_id": admin.user}}),
        ),
    ];
    for (service, path, body) in new {
        let made = held.ask("POST", service, path, path, "2.1", body).await;
        if path == "/v2.0/security-groups" {
            let rule = json!({"security_group_id": id(&made["security_group"]), "direction": "ingress"});
            let path = "/v2.0/security-group-rules";
            held.ask("POST", service, path, path, "2.1", json!({"security_group_rule": rule})).await;
        }
    }
    for at in COMPUTE_VERSIONS {
        let flavor = json!({"flavor": {"name": at, "ram": 256, "vcpus": 1, "disk": 1}});
        held.ask("POST", "compute", "/v2.1/flavors", "/v2.1/flavors", at, flavor).await;
        let keypair = json!({"keypair": {"name": at.replace('.', "-"),
            "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGVTyq8gZXUd5+0KZdqVJh8GYVm9Z1Yt8eT1NQ0lZ5rK a"}});
        held.ask("POST", "compute", "/v2.1/os-keypairs", "/v2.1/os-keypairs", at, keypair).await;
        held.ask("POST", "compute", "/v2.1/servers", "/v2.1/servers", at, ground.server(at)).await;
    }
}

/// The path with everything that is there, so that what deviates does not depend on which comes first.
async fn fill(held: &Held, service: &str, path: &str) -> Vec<String> {
    let admin = held.whole.cloud.admin.clone();
    let mut filled = vec![String::new()];
    for segment in path.split('/').filter(|s| !s.is_empty()) {
        let mut next = Vec::new();
        for before in filled {
            let ids = match before.rsplit('/').next() {
                _ if !segment.starts_with('{') => vec![segment.to_string()],
                Some("os-quota-sets" | "quotas") => vec![admin.project.to_string()],
                Some("os-quota-class-sets") => vec!["default".into()],
                _ => {
                    let list = format!("/{service}{before}");
                    listed(&held.whole.at(&admin, "2.53", "GET", &list, Value::Null).await.1)
                }
            };
            next.extend(ids.iter().map(|id| format!("{before}/{id}")));
        }
        filled = next;
    }
    filled
}

/// The ids in a list.
fn listed(answer: &Value) -> Vec<String> {
    let all = answer.as_object().and_then(|a| a.values().find_map(Value::as_array));
    let id = |v: &Value| {
        let names = [&v["id"], &v["keypair"]["name"], &v["port_id"], &v["alias"], v];
        names.into_iter().find_map(|v| v.as_str()).map(str::to_string)
    };
    all.into_iter().flatten().filter_map(id).collect()
}

#[tokio::test]
async fn answers_have_the_published_shapes() {
    let books = FILES.iter().map(|(name, text)| (*name, Book::read(text))).collect();
    let mut held = Held { whole: Whole::new().await, books, found: BTreeMap::new(), held: 0 };
    create(&mut held).await;
    let services = held.whole.cloud.api.services();
    let rows: BTreeSet<(&str, &str)> = services
        .iter()
        .flat_map(|s| {
            s.rows.iter().filter(|r| r.method == "GET").map(|r| (s.prefix.trim_start_matches('/'), r.path))
        })
        .collect();
    for (service, row) in rows {
        let paths = fill(&held, service, row).await;
        let versions = if service == "compute" { &COMPUTE_VERSIONS[..] } else { &COMPUTE_VERSIONS[..1] };
        for at in versions {
            let in_table = held.whole.cloud.api.services().iter().flat_map(|s| &s.rows).any(|r| {
                r.path == row && r.method == "GET" && {
                    let (major, minor) = version(at).unwrap();
                    let at = api::v(major as u16, minor as u16);
                    r.since <= at && at <= r.until
                }
            });
            if in_table {
                for path in &paths {
                    held.ask("GET", service, row, path, at, Value::Null).await;
                }
            }
        }
    }
    let found: BTreeSet<String> = held
        .found
        .iter()
        .map(|(what, at)| if at.is_empty() { what.clone() } else { format!("{what} in {}", at.join(" ")) })
        .collect();
    let known: BTreeSet<&str> = KNOWN
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .map(|l| l.split_once(" # ").map_or(l, |(what, _)| what))
        .collect();
    let new: Vec<&String> = found.iter().filter(|f| !known.contains(f.as_str())).collect();
    let gone: Vec<&&str> = known.iter().filter(|k| !found.contains(**k)).collect();
    println!("{} answers held, {} known deviations", held.held, known.len());
    if std::env::var_os("UPDATE").is_some() {
        found.iter().for_each(|f| println!("D {f}"));
    }
    assert!(held.held > 100, "only {} answers met a schema", held.held);
    assert!(new.is_empty() && gone.is_empty(), "new deviations: {new:#?}\nno longer: {gone:#?}");
}
