//! A copy of the cloud for a rollout to try things on: the records in an SQLite file of their own, both binaries as two
//! planes over it, a door, and simulated nodes. Nothing of it is seen by clients or nodes of the real one, and nothing in it leads
//! to that (`inside`).
//!
//! It stands in `rehearsal` of the state directory and is gone with its end; what a cut-off rollout left there goes with
//! the next one. Bytes of images are not copied.
//!
//! Limits: `RECORDS_MAX` records; free space is asked for before.

use super::inside::{self, Inside};
use super::record::Rollout;
use crate::cli::Machine;
use crate::nodes::{Nodes, Wishes};
use crate::plane;
use crate::planes::{COLOURS, Launch, Planes};
use crate::records;
use crate::state::{Directory, Ids};
use base::{Error, Result};
use fleet::door::Door;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use store::cipher::CellKey;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Records that are copied; a larger cloud is rehearsed elsewhere.
const RECORDS_MAX: u64 = 2_000_000;
/// What must be free on the disk for each record, and beside them.
const RECORD_BYTES: u64 = 4 << 10;
const FREE_MIN: u64 = 256 << 20;
const NODES: u32 = 2;
/// Two nodes of this process say hello in this time.
const NODES_MAX: Duration = Duration::from_secs(30);
/// What the nodes' names start with.
pub const NODE: &str = "rehearsal";

pub struct Ground {
    pub planes: Planes,
    /// `http://127.0.0.1:PORT`
    pub address: String,
    /// Its own, with the door's socket.
    pub directory: Directory,
    pub said: String,
    folder: Folder,
    /// Door and nodes; they end with it.
    working: JoinSet<()>,
    stop: watch::Sender<bool>,
}

/// Removed with its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a rollout that was cut off left behind.
pub fn sweep(directory: &Directory) {
    drop(Folder(directory.rehearsal()));
}

impl Ground {
    /// Copies the records and starts both binaries on them, the one before as the active plane.
    ///
    /// Errors: `TooLarge`; what keeps a plane from starting.
    pub async fn new(directory: &Directory, launch: &Launch, rollout: &Rollout) -> Result<Ground> {
        sweep(directory);
        let folder = Folder(directory.rehearsal());
        std::fs::create_dir(&folder.0)?;
        std::fs::set_permissions(&folder.0, Permissions::from_mode(0o700))?;
        let copy = Directory::at(folder.0.clone());
        let ids = Ids {
            machine: Machine::Simulated,
            node_name: NODE.into(),
            node_id: Uuid::new_v4(),
            store: None,
            ..directory.need_ids()?
        };
        copy.note_ids(&ids)?;
        std::fs::copy(directory.key(), copy.key())?;
        let (from, to, free) = (launch.store.clone(), copy.need_store()?, free(&folder.0)?);
        let inside = Inside::new(CellKey::open(&copy.key())?);
        let copied = tokio::task::spawn_blocking(move || bounded(&from, &to, free, inside)).await;
        let records = copied.map_err(|e| Error::internal("the copy was cut off").because(e))??;
        let words = inside::words(&launch.words);
        let launch =
            Launch { directory: folder.0.clone(), store: copy.need_store()?, words, whose: "on the copy: " };
        let planes = Planes::new(launch, Door::default());
        let mut ground = Ground {
            planes,
            address: String::new(),
            directory: copy,
            said: String::new(),
            folder,
            working: JoinSet::new(),
            stop: watch::Sender::new(false),
        };
        match ground.begin(rollout, &ids).await {
            Ok(()) => {
                ground.said =
                    format!("{records} records in a copy, with both binaries over it and {NODES} nodes");
                Ok(ground)
            }
            Err(error) => {
                ground.end().await;
                Err(error)
            }
        }
    }

    async fn begin(&mut self, rollout: &Rollout, ids: &Ids) -> Result<()> {
        let (old, new) = (&rollout.from, &rollout.to);
        self.planes.add(&old.name, &old.binary).await?;
        self.planes.take_any().await?;
        self.planes.add(&new.name, &new.binary).await?;
        self.planes.stand_by(&new.name).await?;
        debug_assert!(COLOURS.contains(&old.name.as_str()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        self.address = format!("http://{}", listener.local_addr()?);
        let door = self.planes.door().clone();
        let answer = move |request, peer: Option<std::net::IpAddr>| {
            let door = door.clone();
            async move { door.answer(request, peer, false).await }
        };
        std::fs::create_dir_all(self.directory.door())?;
        let near = plane::bind(&self.directory.door().join("api"))?;
        let nearby = answer.clone();
        self.working.spawn(async move { api::listen(listener, answer, std::future::pending()).await });
        self.working.spawn(async move { api::listen(near, nearby, std::future::pending()).await });
        let state = std::fs::canonicalize(&self.folder.0)?;
        let wishes = Wishes { nodes: NODES, ..Wishes::default() };
        let planes = self.planes.clone();
        let near = move || planes.node_sockets().map(|(near, _)| near);
        let nodes = std::sync::Arc::new(Nodes::new(ids, &state, &wishes, near));
        let (theirs, stopped) = (nodes.clone(), self.stop.subscribe());
        self.working.spawn(async move {
            if let Err(error) = theirs.work(stopped).await {
                tracing::warn!("the nodes of a rehearsal ended: {}", error.chain());
            }
        });
        let late = |e| Error::unavailable("the nodes of the copy do not come").because(e);
        tokio::time::timeout(NODES_MAX, nodes.met(|met| met.greeted)).await.map_err(late)
    }

    /// Ends all of its processes and removes its files.
    pub async fn end(mut self) {
        // Nodes first: they would miss their plane.
        self.stop.send_replace(true);
        self.working.shutdown().await;
        self.planes.stop().await;
    }
}

fn bounded(from: &str, to: &str, free: u64, mut inside: Inside) -> Result<u64> {
    let records = records::count(from, &mut |kind, body| inside.see(kind, body))?;
    let need = FREE_MIN + records * RECORD_BYTES;
    if records > RECORDS_MAX {
        return Err(Error::too_large(format!(
            "{records} records are more than the {RECORDS_MAX} that are copied for a rehearsal: --without-copy goes on without"
        )));
    }
    if free < need {
        return Err(Error::too_large(format!(
            "{} MiB are free for a copy of {records} records, {} are needed: --without-copy goes on without",
            free >> 20,
            need >> 20
        )));
    }
    records::copied(from, to, move |kind, body| inside.alter(kind, body), &mut |_, _| {})
}

fn free(path: &std::path::Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(std::io::Error::from)?;
    Ok(stat.f_bavail * stat.f_frsize)
}
