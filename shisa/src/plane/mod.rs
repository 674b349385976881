//! `shisa plane`: one plane of a cloud, as the process that `shisa up` starts and keeps.
//!
//! It follows the cell until it is told to take it, answers clients on a socket of its own that only the door opens,
//! and ends with the process that started it. Nodes are served by the owner of the cell alone: they notice a switch by
//! a closed connection and come to the next one.
//!
//! ```text
//! planes/NAME/api      clients, through the door
//! planes/NAME/nodes    nodes of this machine
//! planes/NAME/far      nodes of other machines, through the door
//! planes/NAME/control  the keeper of planes
//! planes/NAME/log
//! ```

pub mod again;
pub mod broken;
mod control;
pub mod programs;
pub mod services;

pub use control::{First, SORTED, STORED, Word};

use crate::cli;
use crate::files;
use crate::logging;
use crate::planes::STORE;
use crate::state::Directory;
use api::{Faults, Reply, listen};
use base::{Error, Result};
use fleet::door::{ELSEWHERE, MIRROR, MIRROR_MEMORY, MUTATION, REVISION};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use services::Services;
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Role;
use tokio::net::UnixListener;

/// Connections that wait to be accepted, where the kernel lets that be: after a switch all nodes come at once.
pub const BACKLOG: i32 = 4_096;

/// The sockets of a plane.
pub struct Sockets {
    pub folder: PathBuf,
}

impl Sockets {
    pub fn of(directory: &Directory, name: &str) -> Sockets {
        Sockets { folder: directory.path().join("planes").join(name) }
    }

    pub fn api(&self) -> PathBuf {
        self.folder.join("api")
    }

    pub fn nodes(&self) -> PathBuf {
        self.folder.join("nodes")
    }

    pub fn far(&self) -> PathBuf {
        self.folder.join("far")
    }

    pub fn control(&self) -> PathBuf {
        self.folder.join("control")
    }
}

pub async fn run(directory: &Directory, args: &cli::Plane) -> Result<()> {
    end_with_parent();
    let sockets = Sockets::of(directory, &args.name);
    logging::start(&sockets.folder.join("log"))?;
    files::raise();
    let policy = args.policy.as_deref().map(crate::up::policy).transpose()?.unwrap_or_default();
    // Loading may take long, and nothing else is to be done meanwhile.
    let none = |e| Error::invalid("a plane is started by `shisa up`").because(e);
    let store = std::env::var(STORE).map_err(none)?;
    let cell = services::open(directory, &store, &args.name)?;
    let (public_url, reach) = (args.public_url.clone(), args.reach.clone());
    let services = Services::new(cell, directory, &policy, public_url, reach, args.webhook.read()?)?;
    let services = Arc::new(services);
    let api = bind(&sockets.api())?;
    let control = bind(&sockets.control())?;
    let answering = services.clone();
    let answers = listen(api, move |request, _| answer(answering.clone(), request), std::future::pending());
    let controlled = control::serve(control, services.clone(), &args.name);
    // It works long at a time when much changed: the keeper's questions do not wait for it.
    let following = services.clone();
    let mut following = tokio::task::JoinSet::from_iter([async move { following.follow().await }]);
    tokio::select! {
        () = answers => {}
        () = controlled => {}
        _ = following.join_next() => {}
        outcome = owner(&services, &sockets) => outcome?,
    }
    Err(Error::unavailable("The store lost what it had confirmed, or was closed; the log says more."))
}

/// Does what the owner does, whenever this process is it. Ends with the cell.
async fn owner(services: &Services, sockets: &Sockets) -> Result<()> {
    let mut role = services.cell.role();
    loop {
        let owned = role.wait_for(|role| *role != Role::Follower).await.map(|role| *role);
        let Ok(Role::Owner(epoch)) = owned else { return Ok(()) };
        tracing::info!("active under epoch {epoch}");
        let loops = services.owner(bind(&sockets.nodes())?, bind(&sockets.far())?);
        let still = role.wait_for(|role| *role != Role::Owner(epoch)).await.is_ok();
        drop(loops);
        for socket in [sockets.nodes(), sockets.far()] {
            let _ = std::fs::remove_file(socket);
        }
        if !still {
            return Ok(());
        }
    }
}

/// Answers one request of a client: from what is durable now, and what was asked before as it was answered then.
async fn answer(services: Arc<Services>, request: Request<Incoming>) -> Response<api::reply::Body> {
    let mirror = request.headers().get(MIRROR);
    if mirror.is_none_or(|way| way != MIRROR_MEMORY)
        && let Err(error) = services.cell.current().await
    {
        let reply = Faults::Identity.reply(&error, "");
        return elsewhere(Reply::into_response(reply));
    }
    if mirror.is_some() {
        return mirrored(&services, request).await;
    }
    let mutation = request.headers().get(MUTATION).and_then(|id| id.to_str().ok()).map(String::from);
    let Some(mutation) = mutation else { return broken::answer(&services, request).await };
    let (answer, passing) = services.cell.once(&mutation, broken::answer(&services, request)).await;
    match passing && answer.status() == StatusCode::SERVICE_UNAVAILABLE {
        true => elsewhere(answer),
        false => answer,
    }
}

/// Answers a read that is asked of two planes, with the revision that it was answered from.
async fn mirrored(services: &Services, request: Request<Incoming>) -> Response<api::reply::Body> {
    let before = services.cell.read().revision();
    let mut answer = broken::answer(services, request).await;
    if before == services.cell.read().revision() {
        answer.headers_mut().insert(REVISION, HeaderValue::from(before));
    }
    answer
}

/// Tells the door that another plane is to be asked.
fn elsewhere(mut answer: Response<api::reply::Body>) -> Response<api::reply::Body> {
    answer.headers_mut().insert(ELSEWHERE, HeaderValue::from_static("1"));
    answer
}

/// A socket in the file system for this user only, whatever was there before.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let cannot =
        |e: std::io::Error| Error::unavailable(format!("cannot listen on {}", path.display())).because(e);
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(cannot)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|e| cannot(e.into()))?;
    // Not left to the umask of whoever starts a cloud.
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(cannot)?;
    Ok(listener)
}

/// The parent holds the other end of stdin: a plane without a door is of no use.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
        std::process::exit(0);
    });
}
