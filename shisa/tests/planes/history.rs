//! What clients were told, against what the cloud knows.

use crate::Checks;
use crate::load::{Load, Operation, What};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Entries of a page.
const PAGE: usize = 1_000;
/// A deleted server is listed until its node has ended it.
const GONE_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct History {
    /// Kind and name to whether it was answered as made.
    creates: BTreeMap<(&'static str, String), bool>,
    /// The same of deletes.
    deletes: BTreeMap<(&'static str, String), bool>,
    registers: Vec<(u64, u64)>,
    /// Statuses that revoked tokens were answered with.
    revoked: Vec<u16>,
}

impl History {
    pub fn of(operations: impl Iterator<Item = Operation>) -> History {
        let mut history = History::default();
        for operation in operations {
            match operation.what {
                What::Create(kind, name) => {
                    history.creates.insert((kind, name), (200..300).contains(&operation.status));
                }
                What::Delete(kind, name) => {
                    history.deletes.insert((kind, name), operation.status == 204);
                }
                What::Register { floor, seen } if operation.status == 200 => {
                    history.registers.push((floor, seen));
                }
                What::Revoked => history.revoked.push(operation.status),
                What::Read | What::Write | What::Register { .. } => {}
            }
        }
        history
    }

    pub async fn check(&mut self, checks: &mut Checks, load: &Load, when: &str) {
        let (mut lost, mut doubled, mut answered, mut back) = (0, 0, 0, 0);
        for (kind, path) in [
            ("ports", "/network/v2.0/ports"),
            ("networks", "/network/v2.0/networks"),
            ("servers", "/compute/v2.1/servers/detail"),
        ] {
            let begin = Instant::now();
            let mut there = all(load, kind, path).await;
            while self.deleted(kind, &there) > 0 && begin.elapsed() < GONE_MAX {
                tokio::time::sleep(Duration::from_millis(500)).await;
                there = all(load, kind, path).await;
            }
            back += self.deleted(kind, &there);
            let mut names: BTreeMap<&str, usize> = BTreeMap::new();
            for item in &there {
                *names.entry(item["name"].as_str().unwrap_or_default()).or_default() += 1;
            }
            for (key, made) in self.creates.iter().filter(|((of, _), _)| *of == kind) {
                let count = names.get(key.1.as_str()).copied().unwrap_or(0);
                answered += usize::from(*made);
                lost += usize::from(*made && count == 0 && !self.deletes.contains_key(key));
                doubled += usize::from(count > 1);
            }
            match kind {
                "ports" => addresses(checks, &there, when),
                "servers" => hosts(checks, load, &there, when).await,
                _ => {}
            }
        }
        let detail = format!("{lost} lost, {doubled} doubled of {answered} answered");
        checks.that(&format!("writes answered are there once {when}"), lost == 0 && doubled == 0, detail);
        let deleted = self.deletes.values().filter(|answered| **answered).count();
        let detail = format!("{back} of {deleted} are there");
        checks.that(&format!("what was deleted is gone {when}"), back == 0, detail);
        let (floor, seen) = load.register().await;
        self.registers.push((floor, seen));
        let older = self.registers.iter().filter(|(floor, seen)| seen < floor).count();
        let detail = format!("{older} of {} older than what was answered before", self.registers.len());
        checks.that(&format!("reads are in order {when}"), older == 0, detail);
        let passed = self.revoked.iter().filter(|status| **status != 401).count();
        let detail = format!("{passed} of {} uses passed", self.revoked.len());
        checks.that(
            &format!("no revoked token passes {when}"),
            passed == 0 && !self.revoked.is_empty(),
            detail,
        );
    }

    /// How many of these were answered as deleted.
    fn deleted(&self, kind: &'static str, there: &[Value]) -> usize {
        let gone = |item: &&Value| {
            let name = item["name"].as_str().unwrap_or_default();
            self.deletes.get(&(kind, name.to_string())) == Some(&true)
        };
        there.iter().filter(gone).count()
    }
}

fn addresses(checks: &mut Checks, ports: &[Value], when: &str) {
    let mut seen = BTreeSet::new();
    let mut twice = 0;
    for ip in ports.iter().flat_map(|port| port["fixed_ips"].as_array().into_iter().flatten()) {
        twice += usize::from(!seen.insert((ip["subnet_id"].to_string(), ip["ip_address"].to_string())));
    }
    let detail = format!("{twice} of {} given twice", seen.len());
    checks.that(&format!("addresses are given once {when}"), twice == 0 && !seen.is_empty(), detail);
}

/// What hosts say they have claimed is what the servers on them claim.
async fn hosts(checks: &mut Checks, load: &Load, servers: &[Value], when: &str) {
    let mut claimed: BTreeMap<String, u64> = BTreeMap::new();
    for server in servers {
        if let Some(host) = server["OS-EXT-SRV-ATTR:host"].as_str() {
            *claimed.entry(host.into()).or_default() += 1;
        }
    }
    let answer = load.get("/compute/v2.1/os-hypervisors/detail").await;
    let told: BTreeMap<String, u64> = answer["hypervisors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|h| (h["hypervisor_hostname"].as_str().unwrap().into(), h["vcpus_used"].as_u64().unwrap_or(0)))
        .filter(|(_, used)| *used > 0)
        .collect();
    let detail = format!("{} servers on {} hosts", servers.len(), claimed.len());
    checks.that(&format!("hosts hold each claim once {when}"), claimed == told, detail);
}

async fn all(load: &Load, kind: &str, path: &str) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    loop {
        let marker = found.last().map_or(String::new(), |v| format!("&marker={}", v["id"].as_str().unwrap()));
        let answer = load.get(&format!("{path}?limit={PAGE}{marker}")).await;
        let page = answer[kind].as_array().unwrap().clone();
        let last = page.len() < PAGE;
        found.extend(page);
        if last {
            return found;
        }
    }
}
