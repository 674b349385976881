//! The record of a node: what it said of itself, and what an operator said of it.

use base::node::{Hello, KernelCosts};
use base::program::Order;
use base::{Error, Id, IdKind, Result, Timestamp};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

pub type NodeId = Id<Node>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// A small number of its own: the scheduler's columns are indexed by it.
    pub number: u32,
    pub hello: Hello,
    pub zone: String,
    /// New servers may come here.
    pub enabled: bool,
    #[serde(default)]
    pub disabled_reason: Option<String>,
    #[serde(default)]
    pub forced_down: bool,
    /// It was not heard for `HEARD_MAX`: no new servers come here until it is (`silent_nodes_closed`).
    #[serde(default)]
    pub silent: bool,
    /// What its kernel's calls cost.
    #[serde(default)]
    pub costs: Option<KernelCosts>,
    /// The last program that it was ordered to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

impl IdKind for Node {}

pub const BY_NAME: Index<Node> = Index::unique("name", |n, keys| keys.push(n.hello.name.key()));
const BY_NUMBER: Index<Node> = Index::unique("number", |n, keys| keys.push(n.number.key()));
/// Underlay addresses, but for those of nodes that have none for others.
const BY_ADDRESS: Index<Node> = Index::many("address", |n, keys| {
    if !n.hello.address.is_loopback() {
        keys.push(n.hello.address.key());
    }
});

impl Record for Node {
    const KIND: &'static str = "node";
    type Key = NodeId;
    const INDEXES: &'static [Index<Node>] = &[BY_NAME, BY_NUMBER, BY_ADDRESS];

    fn key(&self) -> NodeId {
        self.id
    }
}

/// The zone of nodes that were not given another.
pub const ZONE: &str = "nova";

impl Node {
    /// New servers may come here.
    pub fn is_open(&self) -> bool {
        self.enabled && !self.forced_down && !self.silent
    }
}

/// Makes or updates the record of a node that says hello.
///
/// Errors: `Conflict` when another node has its underlay address: packets for one would come to the other.
pub(crate) fn join(tx: &mut Tx, hello: &Hello) -> Result<()> {
    if let Some(other) = tx.by(&BY_ADDRESS, hello.address).find(|n| n.hello.name != hello.name) {
        let (address, other) = (hello.address, &other.hello.name);
        return Err(Error::conflict(format!(
            "The node {other} has the address {address} already; see --address."
        )));
    }
    if let Some(old) = tx.one(&BY_NAME, hello.name.as_str()).cloned() {
        let now = tx.now();
        let hello = hello.clone();
        tx.update::<Node>(&old.id, |node| {
            if node.hello != hello {
                node.hello = hello;
                node.updated = now;
            }
        })?;
        return Ok(());
    }
    tx.put(Node {
        id: Id::from_uuid(hello.id),
        number: free_number(tx),
        hello: hello.clone(),
        zone: ZONE.into(),
        enabled: true,
        disabled_reason: None,
        forced_down: false,
        silent: false,
        costs: None,
        order: None,
        created: tx.now(),
        updated: tx.now(),
    })?;
    Ok(())
}

/// Numbers are dense unless nodes were removed: only then is a gap looked for.
fn free_number(state: &State) -> u32 {
    let is_free = |n: &u32| state.one(&BY_NUMBER, *n).is_none();
    let next = state.count::<Node>() as u32;
    if is_free(&next) { next } else { (0..next).find(is_free).expect("so many nodes leave one free") }
}

/// Takes what a node measured; false: it is what is known already.
pub(crate) fn measured(tx: &mut Tx, id: &NodeId, costs: KernelCosts) -> Result<bool> {
    let known = tx.get::<Node>(id).and_then(|node| node.costs);
    if known.is_some_and(|known| !costs.differs(&known)) {
        return Ok(false);
    }
    tx.update::<Node>(id, |node| node.costs = Some(costs))?;
    Ok(true)
}

/// Forgets a node, and with it the key that lets it speak here. What was on it is the caller's.
///
/// Errors: `NotFound`.
pub fn remove(tx: &mut Tx, id: &NodeId) -> Result<()> {
    let missing = || Error::not_found(format!("Node {id} could not be found."));
    let node = tx.delete::<Node>(id).ok_or_else(missing)?;
    tx.delete::<crate::join::Member>(&node.hello.name);
    Ok(())
}

/// The node of a name.
pub fn named<'a>(state: &'a State, name: &str) -> Option<&'a Arc<Node>> {
    state.one(&BY_NAME, name)
}

/// The underlay address of a node.
pub fn address(state: &State, name: &str) -> Option<IpAddr> {
    named(state, name).map(|n| n.hello.address)
}

pub(crate) fn of_id(state: &State, id: uuid::Uuid) -> Option<&Arc<Node>> {
    state.get::<Node>(&Id::from_uuid(id))
}
