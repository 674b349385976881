//! The nodes of this process, and the way of those on other machines to the active plane.

use crate::cli::Machine;
use crate::machine;
use crate::planes::Planes;
use crate::state::Ids;
use base::node::Hello;
use base::{Error, Result};
use node::remote::Remote;
use node::{Link, MachineKind, Node, Settings, Simulated};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Connections of nodes on other machines.
const FAR_MAX: usize = 8_000;
/// Between two tries where accepting fails.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What an operator says of the nodes of this process.
#[derive(Default)]
pub struct Wishes {
    pub nodes: u32,
    pub uplink: Option<String>,
    /// Underlay address of the node.
    pub address: Option<IpAddr>,
}

pub struct Nodes {
    nodes: Vec<Node>,
    planes: Planes,
    /// How many have said what they are.
    greeted: watch::Sender<usize>,
}

impl Nodes {
    /// `state` is the state directory, from the root.
    pub fn new(ids: &Ids, state: &Path, wishes: &Wishes, planes: Planes) -> Nodes {
        let nodes = settings(ids, state, wishes).into_iter().map(Node::new).collect();
        Nodes { nodes, planes, greeted: watch::Sender::new(0) }
    }

    /// The nodes work until `stop`; then their guests are left as they are.
    ///
    /// Errors: what a node's machine lacks; the others stop with it.
    pub async fn work(&self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut working = JoinSet::new();
        for node in &self.nodes {
            let (planes, node, mut stop) = (self.planes.clone(), node.clone(), stop.clone());
            let plane = Remote::near(node.name(), move || planes.node_sockets().map(|(near, _)| near));
            let link = self.counted(plane.link());
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

    /// The same link, whose greetings are counted.
    fn counted(&self, link: Link) -> Link {
        let link = Arc::new(link);
        let (greeting, telling, reporting, fetching) = (link.clone(), link.clone(), link.clone(), link);
        let greeted = self.greeted.clone();
        Link::new(
            move |hello: Hello| {
                let (asked, greeted) = (greeting.hello(hello), greeted.clone());
                async move {
                    asked.await?;
                    greeted.send_modify(|n| *n += 1);
                    Ok(())
                }
            },
            move |after, wait| telling.document(after, wait),
            move |report| reporting.report(report),
            move |id| fetching.image(id),
        )
    }

    /// Waits until every node has said what it is.
    pub async fn greeted(&self) {
        let all = self.nodes.len();
        // The sender is ours, so it does not end before us.
        let _ = self.greeted.subscribe().wait_for(|n| *n >= all).await;
    }
}

/// Carries nodes of other machines to the active plane, byte by byte: their TLS ends there. Until it is dropped.
pub async fn carry_far(listener: TcpListener, planes: Planes) {
    let places = Arc::new(Semaphore::new(FAR_MAX));
    let mut carried = JoinSet::new();
    loop {
        while carried.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let mut socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!("cannot accept a node's connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true);
        // Without an active plane the node finds its connection closed and comes again.
        let Some((_, far)) = planes.node_sockets() else { continue };
        carried.spawn(async move {
            if let Ok(mut plane) = UnixStream::connect(far).await {
                let _ = tokio::io::copy_bidirectional(&mut socket, &mut plane).await;
            }
            drop(place);
        });
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
