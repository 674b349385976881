//! Documents: each node's sections, kept up with the log. A change costs what it touches, not what exists.
//!
//! Property: patched equals built from scratch (`tests`). A shared section is rendered once for all who hold it. Of a
//! set (`members`, `group`) neither is more looked at than what came and went, nor more told; it is remembered once for
//! all who hold it, and those with the same changes of sets alone are told the same line. A node that is new, or behind
//! what is remembered, gets the whole document, unless the sum of what it has says that it has it.
//!
//! The documents of all nodes are kept by every plane, also by one that only follows: a node that comes to another
//! plane after a switch is told what was touched since (`kept`).
//!
//! What is a node's own goes to it at once; changes of sets alone are gathered for `GATHER`, growing to `GATHER_MAX` while
//! they keep coming, and then go to some nodes after others (`gathered`), so that what is own does not wait behind them.
//!
//! Limits: those two, and what `gathered`, `inner`, `kept` and `set` say.

mod gathered;
mod inner;
mod kept;
mod set;
#[cfg(test)]
mod tests;

use base::node::{Document, Elements, Generation, Known, Patch, Section, SectionKey};
use bytes::Bytes;
pub use inner::line;
use inner::{Inner, Name, Rendered};
use kept::{Kept, Line};
use set::together;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use store::{Cell, Entry, News, Revision, State};
use tokio::sync::watch;
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
}

/// Changes of sets wait this long for others, twice as long after each time that others came, and so on.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_MAX: Duration = Duration::from_millis(250);

impl Documents {
    pub fn new(cell: Cell, sources: Vec<Source>) -> Documents {
        let (state, watch) = cell.watch_from_now();
        let at = state.revision();
        let inner = Mutex::new(Inner::new(state, watch));
        Documents { cell, sources, inner, followed: watch::Sender::new(at) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Works on what is kept, and wakes then whoever is to tell something of it.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner();
        let outcome = change(&mut inner);
        let awake = std::mem::take(&mut inner.awake);
        drop(inner);
        awake.into_iter().for_each(Waker::wake);
        outcome
    }

    /// Follows the log, for ever.
    pub async fn follow(&self) {
        let Some(mut watch) = self.inner().watch.take() else { return };
        let mut gathering: Option<Instant> = None;
        // How long the last ones waited, and when they were told.
        let (mut gather, mut told) = (GATHER, Instant::now());
        // When more of them are told.
        let mut telling: Option<Instant> = None;
        let at = async |time: Option<Instant>| match time {
            Some(time) => tokio::time::sleep_until(time).await,
            None => std::future::pending().await,
        };
        loop {
            let news = tokio::select! {
                news = watch.next() => news,
                () = at(gathering) => {
                    (gathering, told) = (None, Instant::now());
                    self.change(Inner::begin_round);
                    telling = telling.or(Some(told));
                    continue;
                }
                () = at(telling) => {
                    telling = self.change(Inner::tell_some).then(|| Instant::now() + gathered::TOLD_EVERY);
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
            if gathering.is_none() && self.inner().gathered.waits() {
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
        self.change(|inner| {
            inner.state = state.clone();
            inner.at = revision;
            inner.lines.clear();
            entries.iter().for_each(|entry| inner.line.follow(entry.epoch, entry.revision));
            self.take(inner, &state, touched);
        });
    }

    fn take(&self, inner: &mut Inner, state: &State, touched: Touched) {
        let mut hosts: BTreeSet<Name> = touched.hosts.into_iter().map(Name::from).collect();
        for key in &touched.holders_of {
            hosts.extend(inner.holders.get(key).into_iter().flatten().cloned());
        }
        for host in hosts {
            self.recount(inner, state, &host);
        }
        for key in &touched.keys {
            let Some(first) = inner.holders.get(key).and_then(BTreeSet::first) else { continue };
            let section = self.render(state, first, key);
            inner.put_all(key, Rendered::new(section));
        }
        for (key, elements) in touched.elements.into_iter().filter(|(key, _)| !touched.keys.contains(key)) {
            inner.put_elements(&key, elements);
        }
    }

    /// The set of keys of a node, again.
    fn recount(&self, inner: &mut Inner, state: &State, host: &Name) {
        let at = inner.at;
        let Some(kept) = inner.nodes.get_mut(host) else { return };
        kept.recounted(at);
        let wanted = self.keys(state, host);
        let held: BTreeSet<SectionKey> = kept.keys().cloned().collect();
        for key in held.difference(&wanted) {
            inner.put(host, key, &mut Rendered::new(None));
        }
        for key in wanted.difference(&held) {
            let section = inner.set(key).or_else(|| self.render(state, host, key));
            inner.put(host, key, &mut Rendered::new(section));
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
        self.change(|inner| {
            let waiting: Vec<(Name, Vec<Waker>)> =
                inner.nodes.drain().map(|(name, mut kept)| (name, kept.wake())).collect();
            inner.holders.clear();
            inner.sets.clear();
            inner.lines.clear();
            inner.state = state.clone();
            inner.at = state.revision();
            inner.line = Line::since(Generation { epoch: state.epoch(), revision: inner.at });
            for (name, listening) in waiting {
                self.build(inner, &state, name, listening);
            }
        });
    }

    fn build(&self, inner: &mut Inner, state: &State, name: Name, listening: Vec<Waker>) {
        inner.nodes.insert(name.clone(), Kept::new(inner.at, listening));
        for key in self.keys(state, &name) {
            let section = inner.set(&key).or_else(|| self.render(state, &name, &key));
            inner.put(&name, &key, &mut Rendered::new(section));
        }
        inner.tell(&name);
    }

    /// Builds the document of a node that nobody asked for yet, so that it is there when a node comes from another
    /// plane. Returns whether it was missing.
    pub fn keep(&self, name: &str) -> bool {
        self.change(|inner| self.keep_in(inner, name))
    }

    fn keep_in(&self, inner: &mut Inner, name: &str) -> bool {
        let missing = !inner.nodes.contains_key(name);
        if missing {
            let state = inner.state.clone();
            self.build(inner, &state, name.into(), Vec::new());
        }
        missing
    }

    /// Drops the documents of nodes that are gone. One that asks all the same has another built.
    pub fn forget(&self, gone: impl Fn(&str) -> bool) {
        self.change(|inner| {
            let names: Vec<Name> = inner.nodes.keys().filter(|name| gone(name)).cloned().collect();
            names.iter().for_each(|name| inner.forget(name));
        });
    }

    /// What a node is told at a state, from scratch; nothing is remembered of it.
    pub fn at(&self, state: &State, name: &str) -> Document {
        let keys = self.keys(state, name).into_iter();
        let sections =
            keys.filter_map(|key| Some((key.clone(), Section::clone(&*self.render(state, name, &key)?))));
        let generation = Generation { epoch: state.epoch(), revision: state.revision() };
        Document { generation, sections: sections.collect() }
    }

    /// What changed since what is `known`, when something has, or after `wait`. `epoch`: that the cell is owned under.
    pub async fn after(&self, name: &str, known: Known, epoch: u64, wait: Duration) -> Patch {
        let deadline = Instant::now() + wait;
        self.followed_to(known, epoch, deadline).await;
        let due = poll_fn(|cx| self.poll(cx, name, known, epoch));
        if let Ok(patch) = tokio::time::timeout_at(deadline, due).await {
            return patch;
        }
        let inner = self.inner();
        let kept = inner.nodes.get(name);
        let patch = kept.and_then(|kept| kept.since(&inner.sets, known.generation.revision, epoch));
        patch.unwrap_or(Patch { generation: known.generation, ..Patch::default() })
    }

    /// Waits for what another plane told: that may be ahead of what was followed here.
    pub async fn followed_to(&self, known: Known, epoch: u64, deadline: Instant) {
        if known.generation.epoch != epoch {
            let now = self.cell.read().revision();
            let _ =
                tokio::time::timeout_at(deadline, self.followed.subscribe().wait_for(|at| *at >= now)).await;
        }
    }

    /// What a node is to be told now that has what is `known`; it is polled again when that is something else.
    pub fn poll(&self, cx: &Context<'_>, name: &str, known: Known, epoch: u64) -> Poll<Patch> {
        let patch = self.change(|inner| {
            self.keep_in(inner, name);
            let at = Generation { epoch, revision: inner.at };
            let (kept, after) = (inner.nodes.get_mut(name).expect("it is kept"), known.generation);
            let patch = if after.epoch != epoch {
                Some(kept.across(&inner.sets, known, inner.line.has(after), at))
            } else if kept.is_waited_for(after.revision) {
                None
            } else {
                kept.since(&inner.sets, after.revision, epoch)
            };
            if patch.is_none() {
                kept.listen(cx.waker());
            }
            patch
        });
        patch.map_or(Poll::Pending, Poll::Ready)
    }

    /// The same, as a line of JSON and what is known then. Of sets alone it is written once for all nodes.
    pub fn poll_line(
        &self,
        cx: &Context<'_>,
        name: &str,
        known: Known,
        epoch: u64,
    ) -> Poll<(Generation, Bytes)> {
        let shared = self.inner().shared_line(name, known.generation, epoch);
        match shared {
            Some(line) => Poll::Ready(line),
            None => self.poll(cx, name, known, epoch).map(|patch| (patch.generation, line(&patch))),
        }
    }

    /// Whether the node's document is kept.
    pub fn has(&self, name: &str) -> bool {
        self.inner().nodes.contains_key(name)
    }

    /// Polls again when a node is to be told something.
    pub fn listen(&self, cx: &Context<'_>, name: &str) {
        self.change(|inner| {
            self.keep_in(inner, name);
            inner.nodes.get_mut(name).expect("it is kept").listen(cx.waker());
        });
    }

    /// There is something else to tell a node.
    pub fn wake(&self, name: &str) {
        self.change(|inner| {
            let listening = inner.nodes.get_mut(name).map(Kept::wake);
            inner.awake.extend(listening.into_iter().flatten());
        });
    }

    /// The same for all nodes.
    pub fn wake_all(&self) {
        self.change(|inner| inner.awake.extend(inner.nodes.values_mut().flat_map(Kept::wake)));
    }
}
