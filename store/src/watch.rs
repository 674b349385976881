//! Watchers resume by revision; one too far behind gets a snapshot instead.

use crate::again::Known;
use crate::lane::Shared;
use crate::log::{Entry, Revision};
use crate::state::State;
use crate::trail::{Trail, Way};
use arc_swap::ArcSwap;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// States that can be asked for beside the newest.
const STATES_MAX: usize = 1_024;
/// States that are remembered of the owners before by one that took over, and the entries that it writes until it
/// forgets them: what those wrote and did not answer is asked again among all that waited meanwhile.
const TAKEN_MAX: usize = 4_096;
const TAKEN_FOR: Revision = 16_384;
/// Entries of which it is remembered for which mutation they were; the door asks for thirty seconds.
pub(crate) const DONE_MAX: usize = 65_536;

/// What a watcher is told.
pub enum News {
    /// The entries after the last news, in order and without a gap.
    Entries(Vec<Arc<Entry>>),
    /// It was too far behind: start over from this state.
    Snapshot(Arc<State>),
}

/// What the lane or the follower publishes, and where readers and watchers find it.
pub(crate) struct Published {
    state: ArcSwap<State>,
    past: Mutex<Past>,
    ring_max: usize,
    revision: watch::Receiver<Revision>,
    sender: Mutex<Option<watch::Sender<Revision>>>,
}

/// What is remembered of the log.
#[derive(Default)]
struct Past {
    ring: VecDeque<Arc<Entry>>,
    /// The states that the last entries of the ring came upon.
    recent: Trail,
    /// Those that entries of the owners before came upon, and the revision until which they are remembered.
    taken: VecDeque<Trail>,
    taken_until: Revision,
    /// Revisions by the mutation that made them, and the mutations in that order.
    done: HashMap<Arc<str>, VecDeque<Revision>>,
    done_order: VecDeque<Arc<str>>,
    /// Up to here `done` has all.
    done_until: Revision,
}

impl Past {
    fn push(&mut self, before: &State, entries: Vec<Arc<Entry>>, ring_max: usize) {
        for entry in &entries {
            self.note_done(&entry.cause.mutation, entry.revision);
            if entry.revision > self.taken_until {
                self.taken.clear();
            }
        }
        self.recent.push(before, &entries);
        self.ring.extend(entries);
        while self.ring.len() > ring_max {
            self.ring.pop_front();
        }
        self.recent.keep(STATES_MAX.min(self.ring.len()));
    }

    fn note_done(&mut self, mutation: &str, revision: Revision) {
        self.done_until = self.done_until.max(revision);
        if mutation.is_empty() {
            return;
        }
        let mutation: Arc<str> = mutation.into();
        self.done.entry(mutation.clone()).or_default().push_back(revision);
        self.done_order.push_back(mutation);
        while self.done_order.len() > DONE_MAX {
            let Some(mutation) = self.done_order.pop_front() else { break };
            // The oldest of all is the oldest of its mutation.
            if let Some(revisions) = self.done.get_mut(&mutation) {
                revisions.pop_front();
                if revisions.is_empty() {
                    self.done.remove(&mutation);
                }
            }
        }
    }

    /// The entry, and the way to the state it came upon while that is remembered.
    fn at(&self, revision: Revision) -> Option<(Arc<Entry>, Option<Way>)> {
        let first = self.ring.front()?.revision;
        let entry = self.ring.get(revision.checked_sub(first)? as usize)?.clone();
        let taken = || self.taken.iter().find_map(|trail| trail.before(revision));
        Some((entry, self.recent.before(revision).or_else(taken)))
    }

    /// The last entries, whose states are remembered.
    fn remembered(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.ring.iter().skip(self.ring.len() - self.recent.len())
    }

    fn take_over(&mut self) {
        match self.taken.back_mut() {
            Some(last) if last.meets(&self.recent) => last.extend(self.recent.clone()),
            Some(_) | None => self.taken.push_back(self.recent.clone()),
        }
        let mut more = self.taken.iter().map(Trail::len).sum::<usize>().saturating_sub(TAKEN_MAX);
        while let Some(oldest) = self.taken.front_mut().filter(|_| more > 0) {
            let kept = oldest.len().saturating_sub(more);
            more -= oldest.len() - kept;
            oldest.keep(kept);
            if kept == 0 {
                self.taken.pop_front();
            }
        }
        self.taken_until = self.ring.back().map_or(0, |entry| entry.revision + TAKEN_FOR);
    }
}

impl Published {
    pub fn new(state: State, ring_max: usize) -> Published {
        let (sender, revision) = watch::channel(state.revision);
        Published {
            state: ArcSwap::from_pointee(state),
            past: Mutex::default(),
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

    /// A state, and the entries that lead to it from the one before.
    pub fn publish(&self, state: State, entries: Vec<Arc<Entry>>) {
        let revision = state.revision;
        let before = self.state.swap(Arc::new(state));
        if !entries.is_empty() {
            self.past().push(&before, entries, self.ring_max);
        }
        self.tell(revision);
    }

    /// A state that the entries before do not lead to: watchers start over from it.
    pub fn restart(&self, state: State) {
        let revision = state.revision;
        self.state.store(Arc::new(state));
        *self.past() = Past { done_until: revision, ..Past::default() };
        self.tell(revision);
    }

    /// This process owns the cell from now on.
    pub fn take_over(&self) {
        self.past().take_over();
    }

    /// Notes who did what before this process came: they are not to be done again.
    pub fn done_before(&self, mutation: &str, revision: Revision) {
        self.past().note_done(mutation, revision);
    }

    /// What was done for a mutation up to the revision beside it, in order. An entry is missing when only its revision
    /// is remembered.
    pub fn done(&self, mutation: &str) -> (Vec<Known>, Revision) {
        let past = self.past();
        let revisions = past.done.get(mutation).into_iter().flatten();
        let known = |r: &Revision| past.at(*r).and_then(|(entry, before)| Some((entry, before?)));
        let (done, until): (Vec<_>, _) = (revisions.map(known).collect(), past.done_until);
        drop(past);
        let known = |(entry, before): (Arc<Entry>, Way)| (entry, before.state());
        (done.into_iter().map(|done| done.map(known)).collect(), until)
    }

    /// Whether something was done for a mutation after a revision.
    pub fn is_done_after(&self, mutation: &str, revision: Revision) -> bool {
        self.past().done.get(mutation).is_some_and(|revisions| revisions.iter().any(|r| *r > revision))
    }

    /// Up to where it is known what was done.
    pub fn done_until(&self) -> Revision {
        self.past().done_until
    }

    /// The state at a revision, while it is remembered.
    pub fn state_at(&self, revision: Revision) -> Option<State> {
        let state = self.state();
        match state.revision == revision {
            true => Some(State::clone(&state)),
            false => {
                let before = self.past().at(revision + 1).and_then(|(_, before)| before);
                before.map(Way::state)
            }
        }
    }

    /// The entries after `after` whose states are remembered, oldest first.
    pub fn remembered(&self, after: Revision, max: usize) -> Vec<Arc<Entry>> {
        let past = self.past();
        let later = past.remembered().filter(|entry| entry.revision > after);
        later.take(max).cloned().collect()
    }

    /// Those of a kind, each with the state that it came upon.
    pub fn remembered_of(&self, is: impl Fn(&Entry) -> bool) -> Vec<(Arc<Entry>, State)> {
        let past = self.past();
        let known = past.remembered().filter(|entry| is(entry));
        let known = known.filter_map(|entry| Some((entry.clone(), past.recent.before(entry.revision)?)));
        let known: Vec<_> = known.collect();
        drop(past);
        known.into_iter().map(|(entry, before)| (entry, before.state())).collect()
    }

    /// The entries after `after` up to `to`; none when they are not all remembered.
    pub fn entries_between(&self, after: Revision, to: Revision) -> Option<Vec<Arc<Entry>>> {
        match after == to {
            true => Some(Vec::new()),
            false => self.since(after).map(|mut all| {
                all.retain(|entry| entry.revision <= to);
                all
            }),
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().expect("no holder panics")
    }

    fn tell(&self, revision: Revision) {
        if let Some(sender) = &*self.sender.lock().expect("no holder panics") {
            sender.send_replace(revision);
        }
    }

    /// The entries after `after`; none when the ring no longer reaches back that far.
    fn since(&self, after: Revision) -> Option<Vec<Arc<Entry>>> {
        let past = self.past();
        let first = past.ring.front()?.revision;
        if after + 1 < first {
            return None;
        }
        Some(past.ring.iter().skip((after + 1 - first) as usize).cloned().collect())
    }
}

/// A position in the log.
pub struct Watch {
    shared: Arc<Shared>,
    revision: watch::Receiver<Revision>,
    at: Revision,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, at: Revision) -> Watch {
        let revision = shared.published.revision.clone();
        Watch { shared, revision, at }
    }

    /// The revision that the watcher has seen.
    pub fn at(&self) -> Revision {
        self.at
    }

    /// Waits until there is something after the last news. `None`: the cell is closed and there is no more.
    pub async fn next(&mut self) -> Option<News> {
        let at = self.at;
        let now = *self.revision.wait_for(|r| *r > at).await.ok()?;
        match self.shared.published.since(self.at) {
            Some(entries) => {
                self.at = entries.last().map_or(now, |e| e.revision);
                Some(News::Entries(entries))
            }
            None => {
                let state = self.shared.published.state();
                self.at = state.revision;
                Some(News::Snapshot(state))
            }
        }
    }
}
