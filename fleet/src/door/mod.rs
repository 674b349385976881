//! The front door: owns the clients' sockets and carries each request to a plane that can answer it.
//!
//! A read goes to the active plane, or to any that follows while there is none. A mutation goes to the active plane
//! under an id of its own; where the plane ends, or turns out not to own the cell, it is sent again under that id, and
//! the plane answers from the log what was done before: so nothing is done twice, and no client sees a switch.
//! During a planned switch mutations wait at the door.
//!
//! ```text
//! open --hold--> held --route to the next plane--> open
//! ```
//!
//! A body that is too large for memory (`KEPT_BYTES_MAX`) is carried as it comes and kept in a file beside that, so
//! that it can be sent again, too (`spool`); an answer that large is carried as it comes. The door keeps no state but
//! routes, figures, and a sample of the reads that were asked lately.
//!
//! Limits: `CONNECTIONS_MAX` clients or what the files of the process allow, `HELD_MAX` mutations that wait, `ANSWER_MAX` for a request to find a plane that answers it.

mod figures;
mod listen;
mod proxy;
mod sample;
mod spool;
mod tls;
mod upstream;
mod wire;

pub use figures::{Figures, Told};
pub use listen::{CONNECTIONS_MAX, Drain, HANDSHAKE_MAX, Stop};
pub use proxy::DoorBody;
pub use sample::{Mirrored, SAMPLE_MAX, Sampled};
pub use spool::{FREE_MIN, SPOOL_MAX};
pub use tls::{Certificates, check_authority};
pub use upstream::{Upstream, ask};
pub use wire::{Orders, Ready};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Bytes of a body that are kept, so that it can be sent again; of an answer that is waited for as a whole.
pub const KEPT_BYTES_MAX: usize = 1 << 20;
/// Mutations that wait during a switch; one more is told to try again (503).
pub const HELD_MAX: usize = 10_000;
/// A request that no plane answers is given up after this.
pub const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A header by which the door names a mutation to a plane.
pub const MUTATION: &str = "x-shisa-mutation";
/// A header by which a plane says that another one is to be asked.
pub const ELSEWHERE: &str = "x-shisa-elsewhere";
/// A header by which a read that was asked before is asked of a plane again, to be compared.
pub const MIRROR: &str = "x-shisa-mirror";
/// Its value where the plane is to answer from what it has in memory.
pub const MIRROR_MEMORY: &str = "memory";
/// A header by which a plane says what revision it answered such a read from.
pub const REVISION: &str = "x-shisa-revision";

/// Who answers now.
#[derive(Clone, Default)]
pub struct Routes {
    /// Owns the cell.
    pub active: Option<Upstream>,
    /// Follow it.
    pub readers: Vec<Upstream>,
    /// Mutations wait.
    pub held: bool,
}

/// Clones are handles to the same.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    routes: watch::Sender<Routes>,
    waiting: AtomicUsize,
    figures: Figures,
    sample: sample::Sample,
    /// Where large bodies are kept while they are carried; without one they are sent once.
    folder: Option<PathBuf>,
    room: Arc<spool::Room>,
    places: listen::Places,
}

impl Default for Door {
    fn default() -> Door {
        Door::with(None)
    }
}

impl Door {
    /// `folder`: where large bodies are kept while they are carried.
    pub fn with(folder: Option<PathBuf>) -> Door {
        let routes = watch::Sender::new(Routes::default());
        let (waiting, figures, sample, room, places) = Default::default();
        Door { inner: Arc::new(Inner { routes, waiting, figures, sample, folder, room, places }) }
    }

    /// Connections of clients at once, by all listeners together.
    pub fn connections_max(&self) -> usize {
        self.inner.places.max
    }

    /// Changes who answers.
    pub fn route(&self, change: impl FnOnce(&mut Routes)) {
        self.inner.routes.send_modify(change);
    }

    pub fn routes(&self) -> watch::Receiver<Routes> {
        self.inner.routes.subscribe()
    }

    pub fn figures(&self) -> &Figures {
        &self.inner.figures
    }

    /// Reads that clients asked lately.
    pub fn sample(&self) -> Vec<Sampled> {
        self.inner.sample.reads()
    }

    /// Waits until mutations are let through. False: too many wait, or it took too long.
    async fn let_through(&self, deadline: Instant) -> bool {
        let mut routes = self.routes();
        if !routes.borrow_and_update().held {
            return true;
        }
        let begin = Instant::now();
        let waiting = self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        let through = waiting < HELD_MAX
            && tokio::time::timeout_at(deadline.into(), routes.wait_for(|r| !r.held)).await.is_ok();
        self.inner.waiting.fetch_sub(1, Ordering::Relaxed);
        self.inner.figures.held(begin.elapsed());
        through
    }

    /// Waits until another plane is active.
    async fn moved_from(&self, upstream: &Upstream) {
        let other = |r: &Routes| r.active.as_ref().is_some_and(|active| active.name != upstream.name);
        if self.routes().wait_for(other).await.is_err() {
            std::future::pending().await
        }
    }

    /// A plane for a request, once there is one.
    async fn upstream(&self, mutation: bool, deadline: Instant) -> Option<Upstream> {
        let mut routes = self.routes();
        let found = |r: &Routes| match mutation {
            true => r.active.clone(),
            false => r.active.clone().or_else(|| r.readers.first().cloned()),
        };
        let there = tokio::time::timeout_at(deadline.into(), routes.wait_for(|r| found(r).is_some())).await;
        there.ok()?.ok().and_then(|routes| found(&routes))
    }
}
