//! The wiring: one cell, the services on it, and what the owner of the cell does beside answering.

use crate::routers::LostRoutersMoved;
use crate::state::Directory;
use crate::webhook::{OwnersTold, Webhook};
use api::Api;
use base::pass::{self, Pass};
use base::{Error, Id, Result};
use compute::maintenance::drain::DrainsCarriedOut;
use fleet::plane::{self, Plane};
use fleet::{Fleet, SilentNodesClosed};
use identity::token::EndedRevocationsForgotten;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use storage::image::files::{LostUploadsReset, UnownedFilesRemoved};
use store::cipher::CellKey;
use store::{Cause, Cell, Options, Schema, engine};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

/// Bytes of an image that are read at a time.
const CHUNK: usize = 256 << 10;

/// The record format that this version writes once a rollout to it is finalised (`store::format`): raised with the first
/// new kind or value of an enum after a release.
/// Format 2 came with `compute::maintenance`.
const FORMAT: u32 = if cfg!(feature = "next-format") { 3 } else { compute::maintenance::FORMAT };
/// The oldest that it can write as: the one of the release before.
const EMULATES: u32 = 1;

/// The kinds of records of all services, lower rows first.
fn schema() -> Schema {
    let schema = Schema::default().formats(EMULATES, FORMAT);
    let schema = fleet::records(identity::records(schema));
    compute::records(storage::records(network::records(schema)))
}

/// The records of a store, followed until this process owns the cell.
pub fn open(directory: &Directory, store: &str, name: &str) -> Result<Cell> {
    let engine = engine::open(store)?;
    let key = CellKey::open(&directory.key())?;
    let options = Options { owner: name.into(), ..Options::default() };
    Cell::follow(engine, schema(), key, options)
}

/// What a plane offers.
pub struct Services {
    pub cell: Cell,
    pub api: Arc<Api>,
    fleet: Fleet,
    identity: identity::App,
    storage: storage::App,
    nodes: Arc<Plane>,
    webhook: Webhook,
    /// It is a rollout's copy of a cloud: nobody outside is told of anything.
    is_copy: bool,
}

impl Services {
    /// `reach`: `HOST:PORT` by which nodes on other machines reach the door, if they are listened for.
    ///
    /// Errors: `Invalid` when a policy rule cannot be read.
    pub fn new(
        cell: Cell,
        directory: &Directory,
        policy: &BTreeMap<String, String>,
        public_url: Option<String>,
        reach: Option<String>,
        webhook: Webhook,
    ) -> Result<Services> {
        let state = std::fs::canonicalize(directory.path())?;
        let sources = vec![network::sections::SOURCE, compute::sections::SOURCE];
        let sinks: Vec<fleet::Sink> = vec![network::sections::observed, compute::sections::observed];
        let fleet = Fleet::new(cell.clone(), sources, sinks);
        let identity = identity::App::new(cell.clone(), identity::Settings::default());
        let storage = storage::App::new(cell.clone(), storage::Settings::new(state.join("storage")));
        let nodes =
            Plane::new(fleet.clone(), settings(directory.need_ids()?.cloud, &storage, directory.programs()));
        let compute =
            compute::App { cell: cell.clone(), fleet: fleet.clone(), console: console(fleet.clone()) };
        let services = vec![
            identity::service(identity.clone()),
            network::service(network::App { cell: cell.clone(), fleet: fleet.clone() }),
            storage::service(storage.clone()),
            compute::service(compute.clone()),
            compute::placement_service(compute.clone()),
            compute::maintenance::rest::service(compute),
            fleet::service(fleet::App {
                fleet: fleet.clone(),
                plane: reach.map(|reach| (nodes.clone(), reach)),
            }),
        ];
        let api = Api::new(services, identity.tokens.clone(), policy, public_url)?;
        let is_copy = directory.is_copy();
        Ok(Services { cell, api, fleet, identity, storage, nodes, webhook, is_copy })
    }

    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Keeps the documents up with the log, for ever.
    pub async fn follow(&self) {
        self.fleet.follow().await;
    }

    /// Takes a step of the log as it was taken then: within a trial, where nothing counts.
    ///
    /// Errors: `Invalid` with the reason when it cannot be taken.
    pub async fn step_again(&self, cause: &Cause) -> Result<()> {
        self.fleet.again(cause).await
    }

    /// What the owner of the cell does, for as long as the set lives: the loops that keep things true, and nodes, those
    /// of this machine (`near`) and of others (`far`).
    pub fn owner(&self, near: UnixListener, far: UnixListener) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        self.fleet.took_over();
        loops.spawn(self.nodes.clone().serve_near(near));
        loops.spawn(self.nodes.clone().serve(far));
        keep(&mut loops, SilentNodesClosed { fleet: self.fleet.clone() });
        let operator = self.webhook.operator();
        keep(&mut loops, DrainsCarriedOut { cell: self.cell.clone(), operator });
        if !self.is_copy {
            keep(&mut loops, OwnersTold { cell: self.cell.clone(), webhook: self.webhook.clone() });
        }
        keep(&mut loops, LostRoutersMoved { cell: self.cell.clone(), fleet: self.fleet.clone() });
        let grace_s = self.identity.settings.allow_expired_s;
        keep(&mut loops, EndedRevocationsForgotten { cell: self.cell.clone(), grace_s });
        keep(&mut loops, LostUploadsReset { app: self.storage.clone() });
        keep(&mut loops, UnownedFilesRemoved { app: self.storage.clone() });
        loops
    }
}

fn keep(loops: &mut JoinSet<()>, pass: impl Pass + 'static) {
    loops.spawn(async move { pass::run(pass, &Notify::new()).await });
}

/// The bytes of a file, from its first to its last.
async fn stream(file: PathBuf, what: &str) -> Result<plane::Bytes> {
    let file = tokio::fs::File::open(&file).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::not_found(format!("{what} has no bytes")).because(e),
        _ => Error::unavailable(format!("{what} cannot be read")).because(e),
    })?;
    let size = file.metadata().await?.len();
    Ok((Box::pin(ReaderStream::with_capacity(file, CHUNK)), size))
}

/// What nodes are served.
fn settings(cloud: u32, storage: &storage::App, programs: PathBuf) -> plane::Settings {
    let images = storage.settings.clone();
    let image = move |id: Uuid| {
        let file = storage::image::files::path(&images, Id::from_uuid(id));
        Box::pin(async move { stream(file, "the image").await }) as Pin<Box<dyn Future<Output = _> + Send>>
    };
    let program = move |sha256: &str| {
        let file = programs.join(sha256);
        Box::pin(async move { stream(file, "the program").await }) as Pin<Box<dyn Future<Output = _> + Send>>
    };
    let (image, program) = (Box::new(image), Box::new(program));
    plane::Settings { cloud, image, program, certificate_life: plane::CERTIFICATE_LIFE }
}

/// Consoles are read from the node itself.
fn console(fleet: Fleet) -> compute::Console {
    Arc::new(move |name, server, lines| {
        let (fleet, name) = (fleet.clone(), name.to_string());
        Box::pin(async move { fleet.console(&name, server, lines).await })
    })
}
