//! Documents: each node's sections, kept up with the log. A change costs what it touches, not what exists.
//!
//! Property: patched equals built from scratch (`tests`). A shared section is rendered once a pass. A node that is new,
//! of another epoch, or behind what is remembered gets the whole document.

use base::node::{Document, Generation, Patch, Section, SectionKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use store::{Cell, Entry, News, State, Watch};
use tokio::sync::Notify;

/// What a log entry touches: keys whose content may differ now, and nodes whose set of keys may.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub keys: BTreeSet<SectionKey>,
    /// Names of nodes that may need other keys.
    pub hosts: BTreeSet<String>,
    /// Every node that holds one of these may need other keys.
    pub holders_of: BTreeSet<SectionKey>,
}

impl Touched {
    pub fn key(&mut self, key: SectionKey) {
        self.keys.insert(key);
    }

    /// The content of `key` and the needs of whoever holds it may differ now.
    pub fn holders(&mut self, key: SectionKey) {
        self.keys.insert(key.clone());
        self.holders_of.insert(key);
    }

    fn join(&mut self, other: Touched) {
        self.keys.extend(other.keys);
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

/// What is remembered of one node's document.
#[derive(Default)]
struct Kept {
    sections: BTreeMap<SectionKey, Arc<Section>>,
    /// When each key last changed, removed ones included.
    changed: BTreeMap<SectionKey, Generation>,
    /// Before this nothing is remembered.
    since: Generation,
    newest: Generation,
    wake: Arc<Notify>,
}

pub(crate) struct Documents {
    cell: Cell,
    sources: Vec<Source>,
    inner: Mutex<Inner>,
}

struct Inner {
    state: Arc<State>,
    watch: Option<Watch>,
    nodes: HashMap<String, Kept>,
    holders: HashMap<SectionKey, BTreeSet<String>>,
}

fn generation(state: &State) -> Generation {
    Generation { epoch: state.epoch(), revision: state.revision() }
}

/// Removed keys are forgotten when there are this many; nodes that are behind that get the whole document.
const REMOVED_MAX: usize = 10_000;

impl Documents {
    pub fn new(cell: Cell, sources: Vec<Source>) -> Documents {
        let (state, watch) = cell.watch_from_now();
        let inner = Inner { state, watch: Some(watch), nodes: HashMap::new(), holders: HashMap::new() };
        Documents { cell, sources, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Follows the log, for ever.
    pub async fn follow(&self) {
        let Some(mut watch) = self.inner().watch.take() else { return };
        while let Some(news) = watch.next().await {
            let state = self.cell.read();
            match news {
                News::Entries(entries) => self.apply(state, watch.at(), &entries),
                News::Snapshot(state) => self.restart(state),
            }
        }
    }

    /// Brings every touched document up to date. `state` may be ahead of `entries`: what it is ahead by comes next.
    fn apply(&self, state: Arc<State>, _at: u64, entries: &[Arc<Entry>]) {
        let mut touched = Touched::default();
        for entry in entries {
            self.sources.iter().for_each(|source| touched.join((source.touched)(&state, entry)));
        }
        let mut inner = self.inner();
        inner.state = state.clone();
        let mut hosts = touched.hosts;
        for key in &touched.holders_of {
            hosts.extend(inner.holders.get(key).into_iter().flatten().cloned());
        }
        for host in hosts {
            self.recount(&mut inner, &state, &host);
        }
        for key in &touched.keys {
            let holders: Vec<String> = inner.holders.get(key).into_iter().flatten().cloned().collect();
            let mut shared = None;
            for host in holders {
                let section = shared.get_or_insert_with(|| self.render(&state, &host, key)).clone();
                inner.put(&host, key, section, generation(&state));
            }
        }
    }

    /// The set of keys of a node, again.
    fn recount(&self, inner: &mut Inner, state: &State, host: &str) {
        let Some(kept) = inner.nodes.get(host) else { return };
        let wanted = self.keys(state, host);
        let held: BTreeSet<SectionKey> = kept.sections.keys().cloned().collect();
        for key in held.difference(&wanted) {
            inner.put(host, key, None, generation(state));
        }
        for key in wanted.difference(&held) {
            let section = self.render(state, host, key);
            inner.put(host, key, section, generation(state));
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
        let names: Vec<String> = inner.nodes.keys().cloned().collect();
        inner.state = state.clone();
        for name in names {
            let wake = inner.forget(&name);
            self.build(&mut inner, &state, &name, wake.clone());
            wake.notify_waiters();
        }
    }

    fn build(&self, inner: &mut Inner, state: &State, name: &str, wake: Arc<Notify>) {
        let at = generation(state);
        let kept = Kept { since: at, newest: at, wake, ..Kept::default() };
        inner.nodes.insert(name.into(), kept);
        for key in self.keys(state, name) {
            let section = self.render(state, name, &key);
            inner.put(name, &key, section, at);
        }
    }

    /// What changed since `after`, when something has, or after `wait`.
    pub async fn after(&self, name: &str, after: Generation, wait: Duration) -> Patch {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let wake = {
                let mut inner = self.inner();
                if !inner.nodes.contains_key(name) {
                    let state = inner.state.clone();
                    self.build(&mut inner, &state, name, Arc::default());
                }
                let kept = &inner.nodes[name];
                if let Some(patch) = kept.since(after) {
                    return patch;
                }
                kept.wake.clone()
            };
            let woken = wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            // What changed between the look and the ear is seen by looking once more.
            if let Some(patch) = self.inner().nodes.get(name).and_then(|kept| kept.since(after)) {
                return patch;
            }
            if tokio::time::timeout_at(deadline, woken).await.is_err() {
                let newest = self.inner().nodes.get(name).map_or(after, |kept| kept.newest);
                return Patch { generation: newest.max(after), ..Patch::default() };
            }
        }
    }

    /// The whole document of a node, as it is now.
    #[cfg(test)]
    fn document(&self, name: &str) -> Document {
        whole(&self.inner().nodes[name])
    }
}

impl Inner {
    fn put(&mut self, host: &str, key: &SectionKey, section: Option<Arc<Section>>, at: Generation) {
        let Some(kept) = self.nodes.get_mut(host) else { return };
        if kept.sections.get(key) == section.as_ref() && section.is_some() {
            return;
        }
        let holders = self.holders.entry(key.clone()).or_default();
        match section {
            Some(section) => {
                kept.sections.insert(key.clone(), section);
                holders.insert(host.into());
            }
            None => {
                kept.sections.remove(key);
                holders.remove(host);
            }
        }
        if self.holders.get(key).is_some_and(BTreeSet::is_empty) {
            self.holders.remove(key);
        }
        kept.changed.insert(key.clone(), at);
        kept.newest = at;
        kept.trim();
        kept.wake.notify_waiters();
    }

    fn forget(&mut self, host: &str) -> Arc<Notify> {
        let Some(kept) = self.nodes.remove(host) else { return Arc::default() };
        for key in kept.sections.keys() {
            if let Some(holders) = self.holders.get_mut(key) {
                holders.remove(host);
            }
        }
        kept.wake
    }
}

impl Kept {
    fn since(&self, after: Generation) -> Option<Patch> {
        if after < self.since || after.epoch != self.newest.epoch || after > self.newest {
            let Document { generation, sections } = whole(self);
            return Some(Patch { generation, whole: true, changed: sections, ..Patch::default() });
        }
        if after == self.newest {
            return None;
        }
        let mut patch = Patch { generation: self.newest, ..Patch::default() };
        for (key, _) in self.changed.iter().filter(|(_, at)| **at > after) {
            match self.sections.get(key) {
                Some(section) => _ = patch.changed.insert(key.clone(), Section::clone(section)),
                None => _ = patch.removed.insert(key.clone()),
            }
        }
        Some(patch)
    }

    fn trim(&mut self) {
        if self.changed.len() < self.sections.len() + REMOVED_MAX {
            return;
        }
        let sections = &self.sections;
        self.changed.retain(|key, _| sections.contains_key(key));
        self.since = self.newest;
    }
}

fn whole(kept: &Kept) -> Document {
    let sections = kept.sections.iter().map(|(key, section)| (key.clone(), Section::clone(section)));
    Document { generation: kept.newest, sections: sections.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::node::Group;
    use base::{Id, IdKind};
    use serde::{Deserialize, Serialize};
    use store::{Cause, Options, Record, Schema};

    /// A record that stands on a node under its own key and is listed in one shared section.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        id: Id<Thing>,
        host: String,
        size: u128,
    }

    impl IdKind for Thing {}

    impl Record for Thing {
        const KIND: &'static str = "thing";
        type Key = Id<Thing>;

        fn key(&self) -> Id<Thing> {
            self.id
        }
    }

    const SHARED: SectionKey = SectionKey::Rules(1);

    fn keys(state: &State, node: &str) -> BTreeSet<SectionKey> {
        let own = state.all::<Thing>().filter(|t| t.host == node).map(|t| SectionKey::Group(t.id.uuid()));
        let mut keys: BTreeSet<_> = own.collect();
        if !keys.is_empty() {
            keys.insert(SHARED);
        }
        keys
    }

    fn section(state: &State, _: &str, key: &SectionKey) -> Option<Section> {
        let id = match key {
            SectionKey::Group(id) => uuid::Uuid::from_u128(state.get::<Thing>(&Id::from_uuid(*id))?.size),
            _ => uuid::Uuid::from_u128(state.count::<Thing>() as u128),
        };
        Some(Section::Group(Group { id, ..Group::default() }))
    }

    fn touched(_: &State, entry: &Entry) -> Touched {
        let mut touched = Touched::default();
        for (before, after) in entry.changes.iter().filter_map(|c| c.of::<Thing>()) {
            for thing in before.into_iter().chain(after) {
                touched.key(SectionKey::Group(thing.id.uuid()));
                touched.hosts.insert(thing.host.clone());
                touched.key(SHARED);
            }
        }
        touched
    }

    #[tokio::test]
    async fn patched_equals_built_from_scratch() {
        let dir = tempfile::tempdir().unwrap();
        let engine = store::engine::sqlite::Sqlite::open(&dir.path().join("state.db")).unwrap();
        let cipher = store::cipher::CellKey::cipher([7; 32]);
        let schema = Schema::default().record::<Thing>();
        let cell = Cell::open(Box::new(engine), schema, cipher, Options::default()).unwrap();
        let source = Source { keys, section, touched };
        let documents = Arc::new(Documents::new(cell.clone(), vec![source]));
        let following = tokio::spawn({
            let documents = documents.clone();
            async move { documents.follow().await }
        });
        let mut node = Document::default();
        assert!(node.patch(documents.after("a", node.generation, Duration::ZERO).await));
        for step in 0..60u128 {
            cell.write(Cause::step("step"), move |tx| {
                let id = Id::from_uuid(uuid::Uuid::from_u128(step % 7));
                let host = if step % 3 == 0 { "a" } else { "b" };
                match step % 5 {
                    4 => drop(tx.delete::<Thing>(&id)),
                    _ => drop(tx.put(Thing { id, host: host.into(), size: step })?),
                }
                Ok(())
            })
            .await
            .unwrap();
            let patch = documents.after("a", node.generation, Duration::from_millis(20)).await;
            node.patch(patch);
        }
        let state = cell.read();
        let scratch: BTreeMap<_, _> =
            keys(&state, "a").into_iter().map(|k| (k.clone(), section(&state, "a", &k).unwrap())).collect();
        while documents.document("a").sections != scratch {
            node.patch(documents.after("a", node.generation, Duration::from_secs(5)).await);
        }
        node.patch(documents.after("a", node.generation, Duration::from_millis(20)).await);
        assert_eq!(node.sections, scratch);
        following.abort();
    }
}
