//! Watchers resume by revision; one too far behind gets a snapshot instead.

use crate::log::{Entry, Revision};
use crate::state::State;
use arc_swap::ArcSwap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What a watcher is told.
pub enum News {
    /// The entries after the last news, in order and without a gap.
    Entries(Vec<Arc<Entry>>),
    /// It was too far behind: start over from this state.
    Snapshot(Arc<State>),
}

/// What the lane publishes, and where readers and watchers find it.
pub(crate) struct Published {
    state: ArcSwap<State>,
    ring: Mutex<VecDeque<Arc<Entry>>>,
    ring_max: usize,
    revision: watch::Receiver<Revision>,
    sender: Mutex<Option<watch::Sender<Revision>>>,
}

impl Published {
    pub fn new(state: State, ring_max: usize) -> Published {
        let (sender, revision) = watch::channel(state.revision);
        Published {
            state: ArcSwap::from_pointee(state),
            ring: Mutex::default(),
            ring_max,
            revision,
            sender: Mutex::new(Some(sender)),
        }
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.sender.lock().expect("no holder panics").take();
    }

    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub fn publish(&self, state: State, entries: Vec<Arc<Entry>>) {
        let revision = state.revision;
        self.state.store(Arc::new(state));
        let mut ring = self.ring.lock().expect("no holder panics");
        ring.extend(entries);
        let excess = ring.len().saturating_sub(self.ring_max);
        ring.drain(..excess);
        drop(ring);
        if let Some(sender) = &*self.sender.lock().expect("no holder panics") {
            sender.send_replace(revision);
        }
    }

    /// The entries after `after`; none when the ring no longer reaches back that far.
    fn since(&self, after: Revision) -> Option<Vec<Arc<Entry>>> {
        let ring = self.ring.lock().expect("no holder panics");
        let first = ring.front()?.revision;
        if after + 1 < first {
            return None;
        }
        Some(ring.iter().skip((after + 1 - first) as usize).cloned().collect())
    }
}

/// A position in the log.
pub struct Watch {
    published: Arc<Published>,
    revision: watch::Receiver<Revision>,
    at: Revision,
}

impl Watch {
    pub(crate) fn new(published: Arc<Published>, at: Revision) -> Watch {
        let revision = published.revision.clone();
        Watch { published, revision, at }
    }

    /// The revision that the watcher has seen.
    pub fn at(&self) -> Revision {
        self.at
    }

    /// Waits until there is something after the last news. `None`: the cell is closed and there is no more.
    pub async fn next(&mut self) -> Option<News> {
        let at = self.at;
        let now = *self.revision.wait_for(|r| *r > at).await.ok()?;
        match self.published.since(self.at) {
            Some(entries) => {
                self.at = entries.last().map_or(now, |e| e.revision);
                Some(News::Entries(entries))
            }
            None => {
                let state = self.published.state();
                self.at = state.revision;
                Some(News::Snapshot(state))
            }
        }
    }
}
