//! Documents: each node's sections, kept up with the log. A change costs what it touches, not what exists.
//!
//! Property: patched equals built from scratch (`tests`). A shared section is rendered once for all who hold it. Of a
//! set (`members`, `group`) neither is more looked at than what came and went, nor more told. A node that is new, or
//! behind what is remembered, gets the whole document, unless the sum of what it has says that it has it.
//!
//! The documents of all nodes are kept by every plane, also by one that only follows: a node that comes to another
//! plane after a switch is told what was touched since (`kept`).
//!
//! What is a node's own goes to it at once; changes of sets alone are gathered for `GATHER`, growing to `GATHER_MAX` while
//! they keep coming, and then go to some nodes after others (`gathered`), so that what is own does not wait behind them.
//!
//! Limits: what `gathered`, `kept` and `set` say.

mod gathered;
mod kept;
mod set;
#[cfg(test)]
mod tests;

use base::node::{Document, Elements, Generation, Known, Patch, Section, SectionKey};
use gathered::Gathered;
use kept::{Kept, Line, Sets};
use set::{Deltas, Step, is_set, together};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use store::{Cell, Entry, News, Revision, State, Watch};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What a log entry touches: keys whose content may differ now, and nodes whose set of keys may.
#[derive(Debug, Default, PartialEq)]
pub struct Touched {
    pub keys: BTreeSet<SectionKey>,
    /// Sets of which nothing differs but these elements.
    elements: BTreeMap<SectionKey, Elements>,
    /// Names of nodes that may need other keys.
    pub hosts: BTreeSet<String>,
    /// Every node that holds one of these may need other keys.
    pub holders_of: BTreeSet<SectionKey>,
}

impl Touched {
    pub fn key(&mut self, key: SectionKey) {
        self.keys.insert(key);
    }

    /// What came to a set and went from it, after what was said of it before.
    pub fn elements(&mut self, key: SectionKey, elements: Elements) {
        match self.elements.get_mut(&key) {
            Some(before) => together(before, &elements),
            None => _ = self.elements.insert(key, elements),
        }
    }

    /// The content of `key` and the needs of whoever holds it may differ now.
    pub fn holders(&mut self, key: SectionKey) {
        self.keys.insert(key.clone());
        self.holders_of.insert(key);
    }

    fn join(&mut self, other: Touched) {
        self.keys.extend(other.keys);
        other.elements.into_iter().for_each(|(key, elements)| self.elements(key, elements));
        self.hosts.extend(other.hosts);
        self.holders_of.extend(other.holders_of);
    }
}

/// A service as far as documents go. All three are pure.
#[derive(Clone, Copy)]
pub struct Source {
    /// The keys that a node needs.
    pub keys: fn(&State, node: &str) -> BTreeSet<SectionKey>,
    /// What a key holds for a node; `None` when it is not this service's or is not there.
    pub section: fn(&State, node: &str, &SectionKey) -> Option<Section>,
    pub touched: fn(&State, &Entry) -> Touched,
}

pub(crate) struct Documents {
    cell: Cell,
    sources: Vec<Source>,
    inner: Mutex<Inner>,
    /// How far the log was followed.
    followed: watch::Sender<Revision>,
    /// More nodes may be told of what was gathered.
    room: Notify,
}

struct Inner {
    state: Arc<State>,
    /// How far the log was followed. `state` may be ahead of it, and what it is ahead by comes again: so nothing that
    /// comes later has a generation that a node has already.
    at: Revision,
    line: Line,
    watch: Option<Watch>,
    nodes: HashMap<String, Kept>,
    sets: Sets,
    holders: HashMap<SectionKey, BTreeSet<String>>,
    /// Nodes with changes that wait for others.
    gathered: Gathered,
}

/// Changes of sets wait this long for others, twice as long after each time that others came, and so on.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_MAX: Duration = Duration::from_millis(500);

impl Documents {
    pub fn new(cell: Cell, sources: Vec<Source>) -> Documents {
        let (state, watch) = cell.watch_from_now();
        let at = state.revision();
        let inner = Inner {
            at,
            line: Line::since(Generation { epoch: state.epoch(), revision: at }),
            state,
            watch: Some(watch),
            nodes: HashMap::new(),
            sets: HashMap::new(),
            holders: HashMap::new(),
            gathered: Gathered::default(),
        };
        Documents {
            cell,
            sources,
            inner: Mutex::new(inner),
            followed: watch::Sender::new(at),
            room: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Follows the log, for ever.
    pub async fn follow(&self) {
        let Some(mut watch) = self.inner().watch.take() else { return };
        let mut gathering: Option<Instant> = None;
        // How long the last ones waited, and when they were told.
        let (mut gather, mut told) = (GATHER, Instant::now());
        // They are being told, and waited for until then.
        let mut telling: Option<Instant> = None;
        loop {
            let gathered = async {
                match gathering {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let room = async {
                match telling {
                    Some(until) => tokio::time::timeout_at(until, self.room.notified()).await,
                    None => std::future::pending().await,
                }
            };
            let news = tokio::select! {
                news = watch.next() => news,
                () = gathered => {
                    (gathering, told) = (None, Instant::now());
                    telling = self.inner().tell_gathered();
                    continue;
                }
                room = room => {
                    let mut inner = self.inner();
                    if room.is_err() {
                        inner.gathered.give_up();
                    }
                    telling = inner.tell_gathered();
                    continue;
                }
            };
            let state = self.cell.read();
            match news {
                None => return,
                Some(News::Entries(entries)) => self.apply(state, watch.at(), &entries),
                Some(News::Snapshot(state)) => self.restart(state),
            }
            self.followed.send_replace(watch.at());
            if gathering.is_none() && telling.is_none() && !self.inner().gathered.is_empty() {
                gather = if told.elapsed() < gather { (gather * 2).min(GATHER_MAX) } else { GATHER };
                gathering = Some(Instant::now() + gather);
            }
            // There may be more at once, and others need this thread, too.
            tokio::task::yield_now().await;
        }
    }

    /// Brings every touched document up to date. `state` may be ahead of `entries`: what it is ahead by comes next.
    fn apply(&self, state: Arc<State>, revision: Revision, entries: &[Arc<Entry>]) {
        let mut touched = Touched::default();
        for entry in entries {
            self.sources.iter().for_each(|source| touched.join((source.touched)(&state, entry)));
        }
        let mut inner = self.inner();
        inner.state = state.clone();
        inner.at = revision;
        entries.iter().for_each(|entry| inner.line.follow(entry.epoch, entry.revision));
        let mut hosts = touched.hosts;
        for key in &touched.holders_of {
            hosts.extend(inner.holders.get(key).into_iter().flatten().cloned());
        }
        for host in hosts {
            self.recount(&mut inner, &state, &host);
        }
        for key in &touched.keys {
            let Some(first) = inner.holders.get(key).and_then(BTreeSet::first) else { continue };
            let section = self.render(&state, first, key);
            inner.put_all(key, &mut Shared::new(section));
        }
        for (key, elements) in touched.elements.into_iter().filter(|(key, _)| !touched.keys.contains(key)) {
            inner.put_elements(&key, elements);
        }
    }

    /// The set of keys of a node, again.
    fn recount(&self, inner: &mut Inner, state: &State, host: &str) {
        let at = inner.at;
        let Some(kept) = inner.nodes.get_mut(host) else { return };
        kept.recounted(at);
        let wanted = self.keys(state, host);
        let held: BTreeSet<SectionKey> = kept.sections.keys().cloned().collect();
        for key in held.difference(&wanted) {
            inner.put(host, key, &mut Shared::new(None));
        }
        for key in wanted.difference(&held) {
            let section = inner.set(key).or_else(|| self.render(state, host, key));
            inner.put(host, key, &mut Shared::new(section));
        }
    }

    fn keys(&self, state: &State, host: &str) -> BTreeSet<SectionKey> {
        self.sources.iter().flat_map(|source| (source.keys)(state, host)).collect()
    }

    pub fn needs(&self, state: &State, host: &str, key: &SectionKey) -> bool {
        self.keys(state, host).contains(key)
    }

    fn render(&self, state: &State, host: &str, key: &SectionKey) -> Option<Arc<Section>> {
        self.sources.iter().find_map(|source| (source.section)(state, host, key)).map(Arc::new)
    }

    /// Everything from scratch, as after a gap in the log.
    fn restart(&self, state: Arc<State>) {
        let mut inner = self.inner();
        let waiting: Vec<(String, Arc<Notify>)> =
            inner.nodes.drain().map(|(name, kept)| (name, kept.wake)).collect();
        inner.holders.clear();
        inner.sets.clear();
        inner.state = state.clone();
        inner.at = state.revision();
        inner.line = Line::since(Generation { epoch: state.epoch(), revision: inner.at });
        for (name, wake) in waiting {
            self.build(&mut inner, &state, &name, wake.clone());
            wake.notify_waiters();
        }
    }

    fn build(&self, inner: &mut Inner, state: &State, name: &str, wake: Arc<Notify>) {
        inner.nodes.insert(name.into(), Kept::new(inner.at, wake));
        for key in self.keys(state, name) {
            let section = inner.set(&key).or_else(|| self.render(state, name, &key));
            inner.put(name, &key, &mut Shared::new(section));
        }
        if let Some(kept) = inner.nodes.get_mut(name) {
            kept.tell();
        }
    }

    /// Builds the document of a node that nobody asked for yet, so that it is there when a node comes from another
    /// plane. Returns whether it was missing.
    pub fn keep(&self, name: &str) -> bool {
        self.keep_in(&mut self.inner(), name)
    }

    fn keep_in(&self, inner: &mut Inner, name: &str) -> bool {
        let missing = !inner.nodes.contains_key(name);
        if missing {
            let state = inner.state.clone();
            self.build(inner, &state, name, Arc::default());
        }
        missing
    }

    /// Drops the documents of nodes that are gone. One that asks all the same has another built.
    pub fn forget(&self, gone: impl Fn(&str) -> bool) {
        let mut inner = self.inner();
        let names: Vec<String> = inner.nodes.keys().filter(|name| gone(name)).cloned().collect();
        names.iter().for_each(|name| inner.forget(name));
    }

    /// What a node is told at a state, from scratch; nothing is remembered of it.
    pub fn at(&self, state: &State, name: &str) -> Document {
        let keys = self.keys(state, name).into_iter();
        let sections =
            keys.filter_map(|key| Some((key.clone(), Section::clone(&*self.render(state, name, &key)?))));
        let generation = Generation { epoch: state.epoch(), revision: state.revision() };
        Document { generation, sections: sections.collect() }
    }

    /// What a node is to be told now, if anything, and what wakes it.
    fn due(&self, name: &str, known: Known, epoch: u64) -> (Option<Patch>, Arc<Notify>) {
        let mut inner = self.inner();
        self.keep_in(&mut inner, name);
        let (kept, after) = (&inner.nodes[name], known.generation);
        let patch = if after.epoch != epoch {
            let at = Generation { epoch, revision: inner.at };
            Some(kept.across(&inner.sets, known, inner.line.has(after), at))
        } else if kept.is_waited_for(after.revision) {
            None
        } else {
            kept.since(&inner.sets, after.revision, epoch)
        };
        (patch, kept.wake.clone())
    }

    /// What changed since what is `known`, when something has, or after `wait`. `epoch`: that the cell is owned under.
    pub async fn after(&self, name: &str, known: Known, epoch: u64, wait: Duration) -> Patch {
        let deadline = Instant::now() + wait;
        if self.inner().gathered.asks(name) {
            self.room.notify_one();
        }
        let after = known.generation;
        let ours = after.epoch == epoch;
        if !ours {
            // What another plane told may be ahead of what was followed here.
            let now = self.cell.read().revision();
            let _ =
                tokio::time::timeout_at(deadline, self.followed.subscribe().wait_for(|at| *at >= now)).await;
        }
        loop {
            let (patch, wake) = self.due(name, known, epoch);
            if let Some(patch) = patch {
                return patch;
            }
            let woken = wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            // What changed between the look and the ear is seen by looking once more.
            if let (Some(patch), _) = self.due(name, known, epoch) {
                return patch;
            }
            if tokio::time::timeout_at(deadline, woken).await.is_err() {
                let inner = self.inner();
                let kept = inner.nodes.get(name);
                let patch = kept.and_then(|kept| kept.since(&inner.sets, after.revision, epoch));
                return patch.unwrap_or(Patch { generation: after, ..Patch::default() });
            }
        }
    }
}

/// A section as it was rendered for all who hold it, and what that means for each version that there was.
struct Shared {
    section: Option<Arc<Section>>,
    steps: Vec<(Arc<Section>, Step)>,
}

impl Shared {
    fn new(section: Option<Arc<Section>>) -> Shared {
        Shared { section, steps: Vec::new() }
    }

    /// A set that differs by elements, if they make a difference.
    fn by(before: Arc<Section>, mut elements: Elements) -> Shared {
        elements.retain_new(&before);
        let mut after = Section::clone(&before);
        elements.apply(&mut after);
        match Step::by(elements, &after) {
            Step::Same => Shared { section: Some(before.clone()), steps: vec![(before, Step::Same)] },
            step => Shared { section: Some(Arc::new(after)), steps: vec![(before, step)] },
        }
    }

    /// Compared once for all holders of one version, who mostly are all.
    fn step(&mut self, before: Option<&Arc<Section>>) -> Step {
        let (before, after) = match (before, &self.section) {
            (None, None) => return Step::Same,
            (None, Some(_)) | (Some(_), None) => return Step::Whole,
            (Some(before), Some(after)) => (before, after),
        };
        if let Some((_, step)) = self.steps.iter().find(|(version, _)| Arc::ptr_eq(version, before)) {
            return step.clone();
        }
        let step = Step::between(before, after);
        self.steps.push((before.clone(), step.clone()));
        step
    }
}

impl Inner {
    /// A shared section as those have it who hold it already.
    fn set(&self, key: &SectionKey) -> Option<Arc<Section>> {
        let holder = self.holders.get(key).filter(|_| is_set(key))?.first()?;
        self.nodes.get(holder)?.sections.get(key).cloned()
    }

    /// What a log entry made of a set. All of it is remembered: a node from another plane may have what came and went
    /// between two of our revisions.
    fn put_elements(&mut self, key: &SectionKey, elements: Elements) {
        let Some(before) = self.set(key).filter(|_| !elements.is_empty()) else { return };
        let mut shared = Shared::by(before.clone(), elements.clone());
        let at = self.at;
        match shared.step(Some(&before)) {
            Step::Whole => _ = self.sets.insert(key.clone(), Deltas::from(at)),
            Step::Same | Step::By(_) => {
                self.sets.entry(key.clone()).or_insert(Deltas::from(at)).add(at, Arc::new(elements));
            }
        }
        self.put_to_holders(key, &mut shared);
    }

    /// A section that was rendered again.
    fn put_all(&mut self, key: &SectionKey, shared: &mut Shared) {
        let first = self.holders.get(key).and_then(BTreeSet::first);
        let before = first.and_then(|host| self.nodes.get(host)?.sections.get(key));
        match shared.step(before) {
            Step::By(elements) if is_set(key) => {
                self.sets.entry(key.clone()).or_insert(Deltas::from(self.at)).add(self.at, elements)
            }
            Step::Whole if is_set(key) => _ = self.sets.insert(key.clone(), Deltas::from(self.at)),
            Step::Same | Step::By(_) | Step::Whole => {}
        }
        self.put_to_holders(key, shared);
    }

    fn put_to_holders(&mut self, key: &SectionKey, shared: &mut Shared) {
        let holders: Vec<String> = self.holders.get(key).into_iter().flatten().cloned().collect();
        holders.iter().for_each(|host| self.put(host, key, shared));
    }

    fn put(&mut self, host: &str, key: &SectionKey, shared: &mut Shared) {
        let at = self.at;
        let Some(kept) = self.nodes.get_mut(host) else { return };
        let step = shared.step(kept.sections.get(key));
        let Some(at_once) = kept.put(key, shared.section.as_ref(), &step, at) else { return };
        if at_once {
            kept.tell();
        } else {
            self.gathered.insert(host.into());
        }
        match shared.section {
            Some(_) => {
                self.holders.entry(key.clone()).or_default().insert(host.into());
                if is_set(key) {
                    self.sets.entry(key.clone()).or_insert(Deltas::from(at));
                }
            }
            None => self.let_go(host, key),
        }
    }

    fn let_go(&mut self, host: &str, key: &SectionKey) {
        let Some(holders) = self.holders.get_mut(key) else { return };
        holders.remove(host);
        if holders.is_empty() {
            self.holders.remove(key);
            self.sets.remove(key);
        }
    }

    fn forget(&mut self, host: &str) {
        let Some(kept) = self.nodes.remove(host) else { return };
        kept.sections.keys().for_each(|key| self.let_go(host, key));
        kept.wake.notify_waiters();
    }

    /// Until when those that were told are waited for, where others wait for them.
    fn tell_gathered(&mut self) -> Option<Instant> {
        while let Some(host) = self.gathered.next() {
            if let Some(kept) = self.nodes.get_mut(&host) {
                kept.tell();
            }
        }
        (!self.gathered.is_empty()).then(|| Instant::now() + gathered::TOLD_WAIT)
    }
}
