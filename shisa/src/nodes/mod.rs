//! The nodes of this machine: a process of their own beside planes and door.
//!
//! `Keeper` starts the process and replaces it, `process` is what it does, `far` leads nodes of other machines to the
//! active plane. `Nodes` are the nodes themselves, in whatever process: a rollout's copy of the cloud has its own.
//!
//! ```text
//! local/log
//! local/lock   held by the process, with who it is: nobody else touches guests and network of this machine
//! ```

mod far;
mod keeper;
pub mod process;

pub use far::carry_far;
pub use keeper::Keeper;

use crate::cli::Machine;
use crate::machine;
use crate::state::Ids;
use base::program::Runs;
use base::{Error, Result};
use node::remote::Remote;
use node::{MachineKind, Met, Node, Settings, Simulated};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

/// What an operator says of the nodes of this machine.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub nodes: u32,
    pub uplink: Option<String>,
    /// Underlay address of the node.
    pub address: Option<IpAddr>,
}

/// A line to the process: where the active plane listens for nodes of this machine, while there is one.
#[derive(Serialize, Deserialize)]
struct Told {
    plane: Option<PathBuf>,
}

/// A line of the process: what it is, and how far all of its nodes have come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Said {
    version: String,
    /// All have said what they are.
    greeted: bool,
    /// The plane has taken of all what they saw when they had acted on what they are to be.
    reported: bool,
}

/// Where the active plane listens for nodes of this machine.
type Plane = Arc<dyn Fn() -> Option<PathBuf> + Send + Sync>;

pub struct Nodes {
    nodes: Vec<Node>,
    plane: Plane,
}

impl Nodes {
    /// `state` is the state directory, from the root; `plane` is asked again after each switch.
    pub fn new(
        ids: &Ids,
        state: &Path,
        wishes: &Wishes,
        plane: impl Fn() -> Option<PathBuf> + Send + Sync + 'static,
    ) -> Nodes {
        let nodes = settings(ids, state, wishes).into_iter().map(Node::new).collect();
        Nodes { nodes, plane: Arc::new(plane) }
    }

    /// The nodes work until `stop`; then their guests are left as they are.
    ///
    /// Errors: what a node's machine lacks; the others stop with it.
    pub async fn work(&self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut working = JoinSet::new();
        for node in &self.nodes {
            let (plane, node, mut stop) = (self.plane.clone(), node.clone(), stop.clone());
            let plane = Remote::near(node.name(), move || plane());
            let link = plane.link();
            working.spawn(async move {
                // A stop whose sender is gone is a stop.
                let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
                tokio::select! {
                    outcome = node.run(link, stopped) => outcome,
                    () = plane.answer(&node) => Ok(()),
                }
            });
        }
        while let Some(ended) = working.join_next().await {
            ended.map_err(|e| Error::internal("a node was cut off").because(e))??;
        }
        // There may be none.
        let _ = stop.wait_for(|stop| *stop).await;
        Ok(())
    }

    /// What all of them run, told with what they are.
    pub fn say(&self, runs: &Runs) {
        self.nodes.iter().for_each(|node| node.says(runs.clone()));
    }

    /// Waits until every node has come so far.
    pub async fn met(&self, enough: fn(Met) -> bool) {
        for node in &self.nodes {
            // The sender is the node's, so it does not end before us.
            let _ = node.met().wait_for(|met| enough(*met)).await;
        }
    }
}

/// What each node is told.
fn settings(ids: &Ids, state: &Path, wishes: &Wishes) -> Vec<Settings> {
    let one = |n: u32| {
        let (name, machine) = match ids.machine {
            Machine::Qemu => (ids.node_name.clone(), MachineKind::Qemu),
            Machine::Simulated => {
                (format!("{}-{}", ids.node_name, n + 1), MachineKind::Simulated(Simulated::default()))
            }
        };
        Settings {
            id: Uuid::from_u128(ids.node_id.as_u128().wrapping_add(n.into())),
            state: state.join("nodes").join(&name),
            fabric: ids.machine == Machine::Qemu,
            cloud: ids.cloud,
            uplink: wishes.uplink.clone(),
            physical: BTreeMap::new(),
            address: wishes.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            guest_uids: machine::guest_uids(ids.cloud, state),
            responder: std::env::current_exe().ok(),
            name,
            machine,
        }
    };
    (0..wishes.nodes).map(one).collect()
}
