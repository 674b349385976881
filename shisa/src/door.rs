//! `shisa door`: the front door of a cloud, as the process that `shisa up` starts, and its replacement by another binary.
//!
//! The process gets its sockets and its keeper's word over its stdin, follows what that says of the planes
//! (`fleet::door`), and ends with it.
//!
//! ```text
//! door/api   this machine's own commands
//! door/log
//! ```

use crate::cli::{Door as Words, DoorRun, Upgrade};
use crate::doors::Seen;
use crate::files;
use crate::logging;
use crate::progress::say;
use crate::state::Directory;
use base::{Error, Result};
use fleet::door::{Certificates, Door, ask};
use hyper::Method;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

/// The keeper waits for the new door's word.
const UPGRADE_MAX: Duration = Duration::from_secs(30);

pub async fn run(directory: &Directory, words: &Words) -> Result<()> {
    match words {
        Words::Upgrade(words) => upgrade(directory, words).await,
        Words::Run(words) => serve(directory, words).await,
    }
}

async fn upgrade(directory: &Directory, words: &Upgrade) -> Result<()> {
    directory.need_running()?;
    let shown = words.binary.display();
    let absent = |e| Error::invalid(format!("there is no program {shown}")).because(e);
    let body = json!({"binary": std::fs::canonicalize(&words.binary).map_err(absent)?});
    let answer = ask(&directory.control(), Method::POST, "/door", &body, UPGRADE_MAX).await?;
    let seen: Seen =
        serde_json::from_value(answer).map_err(|e| Error::internal("the answer is none").because(e))?;
    say(format_args!(
        "the door is process {}, version {}; the one before finishes what it was asked",
        seen.pid, seen.version
    ));
    Ok(())
}

async fn serve(directory: &Directory, words: &DoorRun) -> Result<()> {
    let none = |e| Error::invalid("a door is started by `shisa up`").because(e);
    let keeper = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (clients, near) = receive(&keeper).map_err(none)?;
    logging::start(&directory.door().join("log"))?;
    files::raise();
    let tls = words.tls.certificates()?.map(Arc::new);
    keeper.set_nonblocking(true)?;
    let keeper = tokio::net::UnixStream::from_std(keeper)?;
    let (drain, stop) = watch::channel(None);
    let door = Door::with(Some(directory.door()));
    tracing::info!("up to {} connections of clients at once", door.connections_max());
    let https = tls.is_some();
    let serving = async {
        let renewed = follow(tls.clone());
        let served = async {
            tokio::join!(door.serve(clients, tls.clone(), stop.clone()), door.serve_near(near, https, stop));
        };
        tokio::select! { () = served => {}, () = renewed => {} }
    };
    door.follow(keeper, drain, serving).await
}

async fn follow(tls: Option<Arc<Certificates>>) {
    match tls {
        Some(tls) => tls.follow().await,
        None => std::future::pending().await,
    }
}

/// The clients' socket, and that of this machine's own commands.
fn receive(keeper: &UnixStream) -> Result<(TcpListener, UnixListener)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(keeper, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(|e| Error::invalid("stdin is no keeper").because(e))?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    let (Some(near), Some(clients), true) = (sockets.pop(), sockets.pop(), sockets.is_empty()) else {
        return Err(Error::invalid("the keeper hands over other sockets than this version knows"));
    };
    let (clients, near) =
        (std::net::TcpListener::from(clients), std::os::unix::net::UnixListener::from(near));
    clients.set_nonblocking(true)?;
    near.set_nonblocking(true)?;
    Ok((TcpListener::from_std(clients)?, UnixListener::from_std(near)?))
}
