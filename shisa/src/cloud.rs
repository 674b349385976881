//! The wiring: one cell, the services on it behind one listener, and the nodes of this process.

use crate::cli::Machine;
use crate::machine;
use crate::routers::LostRoutersMoved;
use crate::state::{Directory, Ids};
use api::Api;
use api::reply::ByteStream;
use base::node::Hello;
use base::pass::{self, Pass};
use base::{Error, Id, Result};
use fleet::plane::{self, Plane};
use fleet::{Fleet, SilentNodesClosed};
use identity::token::EndedRevocationsForgotten;
use node::{ImageBytes, Link, MachineKind, Node, Settings, Simulated};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use storage::image::files::{LostUploadsReset, UnownedFilesRemoved};
use store::cipher::CellKey;
use store::engine::sqlite::Sqlite;
use store::{Cell, Options, Schema};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

/// Bytes of an image that are read at a time.
const CHUNK: usize = 256 << 10;

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
    /// Underlay address of the node in this process.
    pub address: Option<IpAddr>,
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
    /// The listener for nodes on other machines, until it is served.
    door: Mutex<Option<TcpListener>>,
    remote: Option<(Arc<Plane>, String)>,
    /// How many nodes have said what they are.
    greeted: watch::Sender<usize>,
}

impl Cloud {
    /// `door`: the listener for nodes on other machines, and what they reach it by.
    ///
    /// Errors: `Invalid` when a policy rule cannot be read.
    pub async fn new(
        cell: Cell,
        directory: &Directory,
        ids: &Ids,
        wishes: Wishes,
        door: Option<(TcpListener, String)>,
    ) -> Result<Cloud> {
        let state = std::fs::canonicalize(directory.path())?;
        let nodes: Vec<Node> = settings(ids, &state, &wishes).into_iter().map(Node::new).collect();
        let sources = vec![network::sections::SOURCE, compute::sections::SOURCE];
        let sinks: Vec<fleet::Sink> = vec![network::sections::observed, compute::sections::observed];
        let fleet = Fleet::new(cell.clone(), sources, sinks);
        let identity = identity::App::new(cell.clone(), identity::Settings::default());
        let storage = storage::App::new(cell.clone(), storage::Settings::new(state.join("storage")));
        let (door, authority) = door.unzip();
        let remote = match authority {
            Some(authority) => Some((Plane::new(fleet.clone(), plane(ids, &storage)).await?, authority)),
            None => None,
        };
        let console = console(&nodes, fleet.clone());
        let compute = compute::App { cell: cell.clone(), fleet: fleet.clone(), console };
        let services = vec![
            identity::service(identity.clone()),
            network::service(network::App { cell: cell.clone(), fleet: fleet.clone() }),
            storage::service(storage.clone()),
            compute::service(compute.clone()),
            compute::placement_service(compute),
            fleet::service(fleet::App { plane: remote.clone() }),
        ];
        let api = Api::new(services, identity.tokens.clone(), &wishes.policy, wishes.public_url)?;
        let (door, greeted) = (Mutex::new(door), watch::channel(0).0);
        Ok(Cloud { cell, api, fleet, identity, storage, nodes, door, remote, greeted })
    }

    /// The loops that keep things true, for as long as the set lives.
    pub fn loops(&self) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        let fleet = self.fleet.clone();
        loops.spawn(async move { fleet.follow().await });
        let door = self.door.lock().expect("no holder panics").take();
        if let Some((door, (plane, _))) = door.zip(self.remote.clone()) {
            loops.spawn(plane.serve(door));
        }
        keep(&mut loops, SilentNodesClosed { fleet: self.fleet.clone() });
        keep(&mut loops, LostRoutersMoved { cell: self.cell.clone(), fleet: self.fleet.clone() });
        let grace_s = self.identity.settings.allow_expired_s;
        keep(&mut loops, EndedRevocationsForgotten { cell: self.cell.clone(), grace_s });
        keep(&mut loops, LostUploadsReset { app: self.storage.clone() });
        keep(&mut loops, UnownedFilesRemoved { app: self.storage.clone() });
        loops
    }

    /// `HOST:PORT` that nodes on other machines reach, if they are listened for.
    pub fn nodes_reach(&self) -> Option<&str> {
        self.remote.as_ref().map(|(_, authority)| authority.as_str())
    }

    /// Serves until `stop`, then lets running requests finish.
    pub async fn serve(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        self.api.clone().serve(listener, stop).await;
    }

    /// The nodes work until `stop`; then their guests are left as they are.
    ///
    /// Errors: what a node's machine lacks; the others stop with it.
    pub async fn work(&self, mut stop: watch::Receiver<bool>) -> Result<()> {
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
        // There may be none.
        let _ = stop.wait_for(|stop| *stop).await;
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
                async move { Ok(Box::pin(image_file(file).await?) as ImageBytes) }
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

async fn image_file(file: PathBuf) -> Result<tokio::fs::File> {
    tokio::fs::File::open(&file).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::not_found("the image has no bytes").because(e),
        _ => Error::unavailable("the image cannot be read").because(e),
    })
}

/// What nodes on other machines are served.
fn plane(ids: &Ids, storage: &storage::App) -> plane::Settings {
    let images = storage.settings.clone();
    let image = move |id: Uuid| {
        let file = storage::image::files::path(&images, Id::from_uuid(id));
        let bytes = async move {
            let file = image_file(file).await?;
            let size = file.metadata().await?.len();
            Ok((Box::pin(ReaderStream::with_capacity(file, CHUNK)) as ByteStream, size))
        };
        Box::pin(bytes) as Pin<Box<dyn Future<Output = _> + Send>>
    };
    plane::Settings { cloud: ids.cloud, image: Box::new(image), certificate_life: plane::CERTIFICATE_LIFE }
}

/// Consoles are read from the node itself: in this process, or asked over the network.
fn console(nodes: &[Node], fleet: Fleet) -> compute::Console {
    let nodes: BTreeMap<String, Node> = nodes.iter().map(|n| (n.name().to_string(), n.clone())).collect();
    Arc::new(move |name, server, lines| {
        let (here, fleet, name) = (nodes.get(name).cloned(), fleet.clone(), name.to_string());
        Box::pin(async move {
            match here {
                Some(node) => node.console(server, lines),
                None => fleet.console(&name, server, lines).await,
            }
        })
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
            address: wishes.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            guest_uids: machine::guest_uids(ids.cloud, state),
            responder: std::env::current_exe().ok(),
            name,
            machine,
        }
    };
    (0..wishes.nodes).map(one).collect()
}
