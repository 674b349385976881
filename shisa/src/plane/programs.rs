//! What the keeper asks a plane about nodes on other machines, to bring a program to them wave by wave.

use super::services::Services;
use base::program::Program;
use base::{Id, Result, Timestamp};
use compute::Server;
use compute::server::life::status_of;
use fleet::Far;
use fleet::join::Member;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes of one answer.
pub const PAGE: usize = 500;
/// Faults that are told of at once; more are more of the same.
const FAULTS_MAX: usize = 1_000;

/// Servers in ERROR, with their node.
pub type Faults = BTreeMap<Id<Server>, String>;

/// Which nodes are to be looked at closely.
#[derive(Serialize, Deserialize)]
pub struct Names {
    pub names: Vec<String>,
    /// Servers that were made later are not looked at: what is wrong with them may be their owner's doing.
    pub since: Timestamp,
}

/// How nodes do.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Look {
    /// Those that were asked for, as far as they are there.
    pub nodes: Vec<Far>,
    /// All nodes on other machines that are not heard.
    pub silent: BTreeSet<String>,
    /// Of nodes on other machines.
    pub faults: Faults,
}

#[derive(Serialize, Deserialize)]
pub struct Orders {
    /// By node.
    pub orders: BTreeMap<String, Program>,
}

pub async fn order(services: &Services, orders: Orders) -> Result<()> {
    services.fleet().order(orders.orders).await
}

/// Nodes on other machines after a name.
pub fn page(services: &Services, after: &str) -> Vec<Far> {
    services.fleet().far(after, PAGE)
}

pub fn look(services: &Services, names: &Names) -> Look {
    let (fleet, state) = (services.fleet(), services.cell.read());
    let members = state.all::<Member>().map(|member| &member.name);
    let silent = members.filter(|name| !fleet.alive(name)).take(FAULTS_MAX).cloned().collect();
    let fault = |server: &Server| {
        let host = server.host.as_ref().filter(|host| state.get::<Member>(host).is_some())?;
        (server.created < names.since && status_of(server).status == "ERROR")
            .then(|| (server.id, host.clone()))
    };
    let faults = state.all::<Server>().filter_map(|server| fault(server)).take(FAULTS_MAX).collect();
    let nodes = names.names.iter().take(PAGE).filter_map(|name| fleet.far_one(name)).collect();
    Look { nodes, silent, faults }
}
