//! Keeps the node's network as the document has it, by the fabric, and serves metadata on its listeners.
//!
//! The fabric says what is wrong with itself; a guest that needs a tap waits for the document that has its port, at
//! most `TAP_MAX`.

use crate::metadata::serve::{Door, serve};
use crate::observed::Observed;
use crate::responder::Answers;
use base::node::{Document, Generation};
use base::pass::{self, Next, Pass};
use base::{Error, Kind, Result};
use fabric::{Fabric, Listeners, Post};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::{AbortHandle, JoinHandle};
use uuid::Uuid;

const TAP_MAX: Duration = Duration::from_secs(30);

/// The fabric, for the guests that plug into it.
pub struct Network {
    fabric: Mutex<Fabric>,
    answers: Mutex<Answers>,
    /// The newest document that the fabric has followed.
    synced: watch::Sender<Generation>,
    /// Told by the fabric when its report has changed by itself.
    news: Arc<Notify>,
}

impl Network {
    pub fn new(fabric: Fabric, answers: Answers) -> Network {
        let news = fabric.news();
        let (fabric, answers) = (Mutex::new(fabric), Mutex::new(answers));
        Network { fabric, answers, synced: watch::channel(Generation::default()).0, news }
    }

    /// The tap of a port, once the fabric has made it.
    ///
    /// Errors: `Unavailable` when it has not come in time, or while another process has it.
    pub async fn open_tap(&self, port: Uuid) -> Result<OwnedFd> {
        let mut synced = self.synced.subscribe();
        let opened = async {
            loop {
                match self.fabric.lock().await.open_tap(port) {
                    Err(error) if error.kind() == Kind::NotFound => {}
                    result => return result,
                }
                if synced.changed().await.is_err() {
                    return Err(Error::unavailable("the network ends"));
                }
            }
        };
        let late = |e| Error::unavailable(format!("port {port} has no tap yet")).because(e);
        tokio::time::timeout(TAP_MAX, opened).await.unwrap_or_else(|e| Err(late(e)))
    }
}

/// The task that keeps it. Dropping it leaves the network as it is.
pub struct Kept {
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kept {
    /// `state`: the node's directory.
    pub fn start(
        network: Arc<Network>,
        observed: Arc<Observed>,
        document: watch::Receiver<Arc<Document>>,
        state: PathBuf,
    ) -> Kept {
        let wake = network.news.clone();
        let keep = Keep { network, observed, document, state, doors: BTreeMap::new() };
        let own = wake.clone();
        Kept { wake, task: tokio::spawn(async move { pass::run(keep, &own).await }) }
    }

    /// There is another document.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

/// The loop that keeps it.
struct Keep {
    network: Arc<Network>,
    observed: Arc<Observed>,
    document: watch::Receiver<Arc<Document>>,
    state: PathBuf,
    doors: BTreeMap<Post, Vec<AbortHandle>>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.doors.values().flatten().for_each(AbortHandle::abort);
    }
}

impl Pass for Keep {
    const NAME: &'static str = "network_as_wanted";
    const EVERY: Duration = Duration::from_secs(30);

    async fn pass(&mut self) -> Result<Next> {
        let document = self.document.borrow_and_update().clone();
        if document.generation == Generation::default() {
            // There has been no document: what is there may be wanted.
            return Ok(Next::Usual);
        }
        let mut fabric = self.network.fabric.lock().await;
        let seen = fabric.sync(&document).await?;
        let listeners = fabric.metadata_listeners();
        drop(fabric);
        self.open_and_close(listeners)?;
        self.network.answers.lock().await.keep(&document).await?;
        for id in self.observed.ports_now().iter().filter(|id| !seen.contains_key(id)) {
            self.observed.port(*id, None);
        }
        for (id, port) in seen {
            self.observed.port(id, Some(port));
        }
        self.network.synced.send_replace(document.generation);
        Ok(Next::Usual)
    }
}

impl Keep {
    fn open_and_close(&mut self, listeners: Listeners) -> Result<()> {
        for post in listeners.closed {
            self.doors.remove(&post).into_iter().flatten().for_each(|door| door.abort());
        }
        for listener in listeners.opened {
            let door = Door {
                network: listener.network,
                document: self.document.clone(),
                state: self.state.clone(),
                observed: self.observed.clone(),
            };
            let sockets = listener.sockets.into_iter().map(TcpListener::from_std);
            let tasks = sockets.map(|socket| Ok(tokio::spawn(serve(socket?, door.clone())).abort_handle()));
            self.doors.insert(listener.post, tasks.collect::<Result<_>>()?);
        }
        Ok(())
    }
}
