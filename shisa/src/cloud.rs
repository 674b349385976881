//! The wiring: one cell, the services on it behind one listener, and the nodes of this process.

use crate::cli::Machine;
use crate::machine;
use crate::state::{Directory, Ids};
use api::Api;
use base::node::Hello;
use base::pass::{self, Pass};
use base::{Error, Id, Result};
use fleet::Fleet;
use identity::token::EndedRevocationsForgotten;
use node::{ImageBytes, Link, MachineKind, Node, Settings, Simulated};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use storage::image::files::{LostUploadsReset, UnownedFilesRemoved};
use store::cipher::CellKey;
use store::engine::sqlite::Sqlite;
use store::{Cell, Options, Schema};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

/// The kinds of records of all services, lower rows first.
fn schema() -> Schema {
    let schema = fleet::records(identity::records(Schema::default()));
    compute::records(storage::records(network::records(schema)))
}

/// Opens the records of a state directory.
pub fn open(directory: &Directory) -> Result<Cell> {
    // SQLite would make it readable by all.
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(directory.database())?;
    let engine = Sqlite::open(&directory.database())?;
    let key = CellKey::open(&directory.key())?;
    Cell::open(Box::new(engine), schema(), key, Options::default())
}

/// What an operator says of a cloud that is to run.
#[derive(Default)]
pub struct Wishes {
    pub nodes: u32,
    pub uplink: Option<String>,
    pub policy: BTreeMap<String, String>,
    pub public_url: Option<String>,
}

pub struct Cloud {
    pub cell: Cell,
    api: Arc<Api>,
    fleet: Fleet,
    identity: identity::App,
    storage: storage::App,
    nodes: Vec<Node>,
    /// How many nodes have said what they are.
    greeted: watch::Sender<usize>,
}

impl Cloud {
    /// Errors: `Invalid` when a policy rule cannot be read.
    pub fn new(cell: Cell, directory: &Directory, ids: &Ids, wishes: Wishes) -> Result<Cloud> {
        let state = std::fs::canonicalize(directory.path())?;
        let nodes: Vec<Node> = settings(ids, &state, &wishes).into_iter().map(Node::new).collect();
        let sources = vec![network::sections::SOURCE, compute::sections::SOURCE];
        let sinks: Vec<fleet::Sink> = vec![network::sections::observed, compute::sections::observed];
        let fleet = Fleet::new(cell.clone(), sources, sinks);
        let identity = identity::App::new(cell.clone(), identity::Settings::default());
        let storage = storage::App::new(cell.clone(), storage::Settings::new(state.join("storage")));
        let compute = compute::App { cell: cell.clone(), fleet: fleet.clone(), console: console(&nodes) };
        let services = vec![
            identity::service(identity.clone()),
            network::service(network::App { cell: cell.clone() }),
            storage::service(storage.clone()),
            compute::service(compute.clone()),
            compute::placement_service(compute),
        ];
        let api = Api::new(services, identity.tokens.clone(), &wishes.policy, wishes.public_url)?;
        Ok(Cloud { cell, api, fleet, identity, storage, nodes, greeted: watch::channel(0).0 })
    }

    /// The loops that keep things true, for as long as the set lives.
    pub fn loops(&self) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        let fleet = self.fleet.clone();
        loops.spawn(async move { fleet.follow().await });
        let grace_s = self.identity.settings.allow_expired_s;
        keep(&mut loops, EndedRevocationsForgotten { cell: self.cell.clone(), grace_s });
        keep(&mut loops, LostUploadsReset { app: self.storage.clone() });
        keep(&mut loops, UnownedFilesRemoved { app: self.storage.clone() });
        loops
    }

    /// Serves until `stop`, then lets running requests finish.
    pub async fn serve(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        self.api.clone().serve(listener, stop).await;
    }

    /// The nodes work until `stop`; then their guests are left as they are.
    ///
    /// Errors: what a node's machine lacks; the others stop with it.
    pub async fn work(&self, stop: watch::Receiver<bool>) -> Result<()> {
        let mut working = JoinSet::new();
        for node in &self.nodes {
            let (node, link, mut stop) = (node.clone(), self.link(node.name()), stop.clone());
            working.spawn(async move {
                // A stop whose sender is gone is a stop.
                node.run(link, async move { drop(stop.wait_for(|stop| *stop).await) }).await
            });
        }
        while let Some(ended) = working.join_next().await {
            ended.map_err(|e| Error::internal("a node was cut off").because(e))??;
        }
        Ok(())
    }

    /// How a node in this process asks its plane.
    fn link(&self, name: &str) -> Link {
        let (greeting, telling, reporting) = (self.fleet.clone(), self.fleet.clone(), self.fleet.clone());
        let (name, greeted): (Arc<str>, _) = (name.into(), self.greeted.clone());
        let (reporter, images) = (name.clone(), self.storage.settings.clone());
        Link::new(
            move |hello: Hello| {
                let (fleet, greeted) = (greeting.clone(), greeted.clone());
                async move {
                    fleet.hello(hello).await?;
                    greeted.send_modify(|n| *n += 1);
                    Ok(())
                }
            },
            move |after, wait| {
                let (fleet, name) = (telling.clone(), name.clone());
                async move { fleet.document(&name, after, wait).await }
            },
            move |report| {
                let (fleet, name) = (reporting.clone(), reporter.clone());
                async move { fleet.report(&name, report).await }
            },
            move |id| {
                let file = storage::image::files::path(&images, Id::from_uuid(id));
                async move { image_bytes(file).await }
            },
        )
    }

    /// Waits until every node has said what it is.
    pub async fn nodes_greeted(&self) {
        let all = self.nodes.len();
        // The sender is ours, so it does not end before us.
        let _ = self.greeted.subscribe().wait_for(|n| *n >= all).await;
    }
}

fn keep(loops: &mut JoinSet<()>, pass: impl Pass + 'static) {
    loops.spawn(async move { pass::run(pass, &Notify::new()).await });
}

async fn image_bytes(file: PathBuf) -> Result<ImageBytes> {
    let file = tokio::fs::File::open(&file).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::not_found("the image has no bytes").because(e),
        _ => Error::unavailable("the image cannot be read").because(e),
    })?;
    Ok(Box::pin(file))
}

/// Consoles are read from the node itself, which is in this process.
fn console(nodes: &[Node]) -> compute::Console {
    let nodes: BTreeMap<String, Node> = nodes.iter().map(|n| (n.name().to_string(), n.clone())).collect();
    Arc::new(move |name, server, lines| {
        let absent = || Error::unavailable(format!("the node {name} is not up"));
        nodes.get(name).ok_or_else(absent)?.console(server, lines)
    })
}

/// What each node is told.
fn settings(ids: &Ids, state: &std::path::Path, wishes: &Wishes) -> Vec<Settings> {
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
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            guest_uids: machine::guest_uids(ids.cloud, state),
            responder: std::env::current_exe().ok(),
            name,
            machine,
        }
    };
    (0..wishes.nodes).map(one).collect()
}
