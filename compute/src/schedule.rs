//! The scheduler: hosts are columns in memory that follow the records of nodes and servers.
//!
//! `choose` looks at every column once and keeps the best: most free memory, ties by the transaction's seed. The claim
//! is the server's own record, so two transactions cannot take the same room. Ratios: `CPU_RATIO` and no overcommit
//! of memory and disk.
//!
//! Deliberately absent so far: cached feasibility by request shape, traits, aggregates.

use crate::server::Server;
use base::fnv::fnv;
use base::{Error, Result};
use fleet::Node;
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use store::{Derived, Tx};

/// Virtual processors for each real one.
pub const CPU_RATIO: i64 = 16;

/// What a server takes of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub vcpus: i64,
    pub memory_mib: i64,
    pub disk_gib: i64,
}

/// What is asked of a node.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub need: Need,
    pub zone: Option<String>,
    /// Only this node.
    pub host: Option<String>,
}

/// One entry a node, by order of first sight. What is chosen does not depend on that order: another process has another.
#[derive(Default)]
pub struct Hosts {
    index: HashMap<Arc<str>, usize>,
    names: Vec<Arc<str>>,
    /// Of each name, for ties.
    hashes: Vec<u64>,
    zones: Vec<Arc<str>>,
    /// The node is known and may take servers.
    open: Vec<bool>,
    vcpus: Vec<i64>,
    memory_mib: Vec<i64>,
    disk_gib: Vec<i64>,
    used: Vec<Need>,
    servers: Vec<u32>,
}

impl Hosts {
    fn slot(&mut self, name: &str) -> usize {
        if let Some(at) = self.index.get(name) {
            return *at;
        }
        let (name, at): (Arc<str>, _) = (name.into(), self.names.len());
        self.index.insert(name.clone(), at);
        self.hashes.push(fnv(name.as_bytes()));
        self.names.push(name);
        self.zones.push("".into());
        self.open.push(false);
        self.vcpus.push(0);
        self.memory_mib.push(0);
        self.disk_gib.push(0);
        self.used.push(Need::default());
        self.servers.push(0);
        at
    }

    fn node(&mut self, name: &str, node: Option<&Node>) {
        let at = self.slot(name);
        self.open[at] = node.is_some_and(Node::is_open);
        if let Some(node) = node {
            self.zones[at] = node.zone.as_str().into();
            self.vcpus[at] = i64::from(node.hello.vcpus) * CPU_RATIO;
            self.memory_mib[at] = node.hello.memory_mib as i64;
            self.disk_gib[at] = node.hello.disk_gib as i64;
        }
    }

    fn server(&mut self, server: &Server, sign: i64) {
        let Some(host) = &server.host else { return };
        let (at, need) = (self.slot(host), server.need());
        let used = &mut self.used[at];
        used.vcpus += sign * need.vcpus;
        used.memory_mib += sign * need.memory_mib;
        used.disk_gib += sign * need.disk_gib;
        self.servers[at] = (i64::from(self.servers[at]) + sign) as u32;
    }

    /// What is used of a node, and by how many servers.
    pub fn used(&self, name: &str) -> (Need, u32) {
        self.index.get(name).map_or((Need::default(), 0), |at| (self.used[*at], self.servers[*at]))
    }

    fn fits(&self, at: usize, request: &Request) -> bool {
        let (used, need) = (&self.used[at], &request.need);
        self.open[at]
            && self.memory_mib[at] - used.memory_mib >= need.memory_mib
            && self.vcpus[at] - used.vcpus >= need.vcpus
            && self.disk_gib[at] - used.disk_gib >= need.disk_gib
            && request.zone.as_deref().is_none_or(|z| *self.zones[at] == *z)
    }

    /// The best node for a request. `tie` spreads equal ones.
    pub fn best(&self, request: &Request, tie: u64) -> Option<Arc<str>> {
        if let Some(host) = &request.host {
            let at = *self.index.get(host.as_str())?;
            return self.fits(at, request).then(|| self.names[at].clone());
        }
        let score = |at: usize| {
            let free = self.memory_mib[at] - self.used[at].memory_mib;
            (free, (self.hashes[at] ^ tie).wrapping_mul(0x9e37_79b9_7f4a_7c15), &self.names[at])
        };
        let best = (0..self.names.len()).filter(|at| self.fits(*at, request)).max_by_key(|at| score(*at))?;
        Some(self.names[best].clone())
    }
}

impl Derived for Hosts {
    fn changed(&mut self, kind: &'static str, before: Option<&dyn Any>, after: Option<&dyn Any>) {
        use store::Record;
        if kind == Server::KIND {
            before.and_then(|r| r.downcast_ref()).into_iter().for_each(|s| self.server(s, -1));
            after.and_then(|r| r.downcast_ref()).into_iter().for_each(|s| self.server(s, 1));
        } else if kind == Node::KIND {
            let (before, after) =
                (before.and_then(|r| r.downcast_ref::<Node>()), after.and_then(|r| r.downcast_ref::<Node>()));
            if let Some(name) = after.or(before).map(|n| n.hello.name.clone()) {
                self.node(&name, after);
            }
        }
    }
}

/// The node for a request.
///
/// Errors: `NotFound` with the sentence that the server's fault shows.
pub fn choose(tx: &mut Tx, request: &Request) -> Result<Arc<str>> {
    let tie = tx.random() as u64;
    let hosts = tx.derived::<Hosts>();
    hosts.best(request, tie).ok_or_else(|| {
        let known = hosts.open.iter().filter(|open| **open).count();
        let need = &request.need;
        Error::not_found(format!(
            "No valid host was found. None of {known} hosts has {} vCPUs, {} MiB of memory and {} GiB of disk free{}.",
            need.vcpus,
            need.memory_mib,
            need.disk_gib,
            request.zone.as_ref().map_or_else(String::new, |z| format!(" in zone {z}"))
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(memory: &[i64]) -> Hosts {
        let mut hosts = Hosts::default();
        for (n, memory) in memory.iter().enumerate() {
            let at = hosts.slot(&format!("n{n}"));
            hosts.open[at] = true;
            hosts.zones[at] = if n % 2 == 0 { "even".into() } else { "odd".into() };
            (hosts.vcpus[at], hosts.memory_mib[at], hosts.disk_gib[at]) = (32, *memory, 100);
        }
        hosts
    }

    #[test]
    fn equal_nodes_are_chosen_by_seed_and_name_not_by_the_order_they_came_in() {
        let request = Request::default();
        let (one, two) = (in_order(&[0, 1, 2, 3, 4, 5]), in_order(&[5, 2, 0, 1, 4, 3]));
        let chosen = |hosts: &Hosts, tie: u64| hosts.best(&request, tie.wrapping_mul(0x1234_5678_9abc_def1));
        let first: Vec<_> = (0..60).map(|tie| chosen(&one, tie)).collect();
        assert_eq!(first, (0..60).map(|tie| chosen(&two, tie)).collect::<Vec<_>>());
        let distinct: std::collections::BTreeSet<_> = first.into_iter().collect();
        assert_eq!(distinct.len(), 6, "each has its turn");
    }

    fn in_order(order: &[usize]) -> Hosts {
        let mut hosts = Hosts::default();
        for n in order {
            let at = hosts.slot(&format!("n{n}"));
            (hosts.open[at], hosts.memory_mib[at]) = (true, 1024);
        }
        hosts
    }

    fn check(memory: &[i64], zone: Option<&str>, host: Option<&str>, expect: Option<&str>) {
        let need = Need { vcpus: 1, memory_mib: 512, disk_gib: 1 };
        let request = Request { need, zone: zone.map(Into::into), host: host.map(Into::into) };
        assert_eq!(hosts(memory).best(&request, 0).as_deref(), expect);
    }

    #[test]
    fn the_freest_that_fits_is_chosen() {
        check(&[600, 4096, 1024], None, None, Some("n1"));
        check(&[600, 4096, 1024], Some("even"), None, Some("n2"));
        check(&[600, 4096, 1024], None, Some("n0"), Some("n0"));
        check(&[100, 4096, 1024], None, Some("n0"), None);
        check(&[100, 200], None, None, None);
        check(&[600], Some("odd"), None, None);
        check(&[600], None, Some("n7"), None);
    }
}
