//! Documents: each node's sections, kept up with the log. A change costs what it touches, not what exists.
//!
//! Property: patched equals built from scratch (`tests`). A shared section is rendered once a pass. Of a set
//! (`members`, `group`) a node that has an older version is told what came and went. A node that is new, of another
//! epoch, or behind what is remembered gets the whole document.
//!
//! What is a node's own goes to it at once; changes of sets alone are gathered for `GATHER`.
//!
//! Limits: `REMOVED_MAX` removed keys are remembered, and of sets what `set` says.

use crate::set::{Deltas, Step, is_set};
use base::node::{Document, Generation, Patch, Section, SectionKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use store::{Cell, Entry, News, State, Watch};
use tokio::sync::Notify;
use tokio::time::Instant;

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
    /// How sets came to be what they are.
    deltas: BTreeMap<SectionKey, Deltas>,
    /// Before this nothing is remembered.
    since: Generation,
    newest: Generation,
    /// The newest that the node is to be told of without more waiting: all but what is being gathered.
    due: Generation,
    wake: Arc<Notify>,
}

pub(crate) struct Documents {
    cell: Cell,
    sources: Vec<Source>,
    inner: Mutex<Inner>,
}

struct Inner {
    state: Arc<State>,
    /// How far the log was followed. `state` may be ahead of it, and what it is ahead by comes again: so nothing that
    /// comes later has a generation that a node has already.
    at: Generation,
    watch: Option<Watch>,
    nodes: HashMap<String, Kept>,
    holders: HashMap<SectionKey, BTreeSet<String>>,
    /// Nodes with changes that wait for others.
    gathered: BTreeSet<String>,
}

fn generation(state: &State, revision: u64) -> Generation {
    Generation { epoch: state.epoch(), revision }
}

/// Removed keys are forgotten when there are this many; nodes that are behind that get the whole document.
const REMOVED_MAX: usize = 10_000;
/// Changes of sets wait this long for others.
const GATHER: Duration = Duration::from_millis(20);

impl Documents {
    pub fn new(cell: Cell, sources: Vec<Source>) -> Documents {
        let (state, watch) = cell.watch_from_now();
        let inner = Inner {
            at: generation(&state, state.revision()),
            state,
            watch: Some(watch),
            nodes: HashMap::new(),
            holders: HashMap::new(),
            gathered: BTreeSet::new(),
        };
        Documents { cell, sources, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Follows the log, for ever.
    pub async fn follow(&self) {
        let Some(mut watch) = self.inner().watch.take() else { return };
        let mut gathering: Option<Instant> = None;
        loop {
            let gathered = async {
                match gathering {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let news = tokio::select! {
                news = watch.next() => news,
                () = gathered => {
                    gathering = None;
                    self.inner().tell_gathered();
                    continue;
                }
            };
            let state = self.cell.read();
            match news {
                None => return,
                Some(News::Entries(entries)) => self.apply(state, watch.at(), &entries),
                Some(News::Snapshot(state)) => self.restart(state),
            }
            if gathering.is_none() && !self.inner().gathered.is_empty() {
                gathering = Some(Instant::now() + GATHER);
            }
        }
    }

    /// Brings every touched document up to date. `state` may be ahead of `entries`: what it is ahead by comes next.
    fn apply(&self, state: Arc<State>, revision: u64, entries: &[Arc<Entry>]) {
        let mut touched = Touched::default();
        for entry in entries {
            self.sources.iter().for_each(|source| touched.join((source.touched)(&state, entry)));
        }
        let mut inner = self.inner();
        inner.state = state.clone();
        inner.at = generation(&state, revision);
        let at = inner.at;
        let mut hosts = touched.hosts;
        for key in &touched.holders_of {
            hosts.extend(inner.holders.get(key).into_iter().flatten().cloned());
        }
        for host in hosts {
            self.recount(&mut inner, &state, &host);
        }
        for key in &touched.keys {
            let holders: Vec<String> = inner.holders.get(key).into_iter().flatten().cloned().collect();
            let Some(first) = holders.first() else { continue };
            let mut shared = Shared::new(self.render(&state, first, key));
            for host in &holders {
                inner.put(host, key, &mut shared, at);
            }
        }
    }

    /// The set of keys of a node, again.
    fn recount(&self, inner: &mut Inner, state: &State, host: &str) {
        let Some(kept) = inner.nodes.get(host) else { return };
        let wanted = self.keys(state, host);
        let at = inner.at;
        let held: BTreeSet<SectionKey> = kept.sections.keys().cloned().collect();
        for key in held.difference(&wanted) {
            inner.put(host, key, &mut Shared::new(None), at);
        }
        for key in wanted.difference(&held) {
            let mut section = Shared::new(self.render(state, host, key));
            inner.put(host, key, &mut section, at);
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
        inner.at = generation(&state, state.revision());
        for name in names {
            let wake = inner.forget(&name);
            self.build(&mut inner, &state, &name, wake.clone());
            wake.notify_waiters();
        }
    }

    fn build(&self, inner: &mut Inner, state: &State, name: &str, wake: Arc<Notify>) {
        let at = inner.at;
        let kept = Kept { since: at, newest: at, due: at, wake, ..Kept::default() };
        inner.nodes.insert(name.into(), kept);
        for key in self.keys(state, name) {
            let mut section = Shared::new(self.render(state, name, &key));
            inner.put(name, &key, &mut section, at);
        }
    }

    /// What a node is told at a state, from scratch; nothing is remembered of it.
    pub fn at(&self, state: &State, name: &str) -> Document {
        let keys = self.keys(state, name).into_iter();
        let sections =
            keys.filter_map(|key| Some((key.clone(), Section::clone(&*self.render(state, name, &key)?))));
        Document { generation: generation(state, state.revision()), sections: sections.collect() }
    }

    /// What changed since `after`, when something has, or after `wait`.
    pub async fn after(&self, name: &str, after: Generation, wait: Duration) -> Patch {
        let deadline = Instant::now() + wait;
        loop {
            let wake = {
                let mut inner = self.inner();
                if !inner.nodes.contains_key(name) {
                    let state = inner.state.clone();
                    self.build(&mut inner, &state, name, Arc::default());
                }
                let kept = &inner.nodes[name];
                if let Some(patch) = kept.due_since(after) {
                    return patch;
                }
                kept.wake.clone()
            };
            let woken = wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            // What changed between the look and the ear is seen by looking once more.
            if let Some(patch) = self.inner().nodes.get(name).and_then(|kept| kept.due_since(after)) {
                return patch;
            }
            if tokio::time::timeout_at(deadline, woken).await.is_err() {
                let patch = self.inner().nodes.get(name).and_then(|kept| kept.since(after));
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

    /// Compared once for all holders of one version, who mostly are all.
    fn step(&mut self, before: &Arc<Section>, after: &Arc<Section>) -> Step {
        if let Some((_, step)) = self.steps.iter().find(|(version, _)| Arc::ptr_eq(version, before)) {
            return step.clone();
        }
        let step = Step::between(before, after);
        self.steps.push((before.clone(), step.clone()));
        step
    }
}

impl Inner {
    fn put(&mut self, host: &str, key: &SectionKey, shared: &mut Shared, at: Generation) {
        let Some(kept) = self.nodes.get_mut(host) else { return };
        let step = match (kept.sections.get(key), shared.section.clone()) {
            (Some(before), Some(after)) => shared.step(before, &after),
            (None, None) => Step::Same,
            (None, Some(_)) | (Some(_), None) => Step::Whole,
        };
        let gathered = is_set(key) && matches!(step, Step::By(_));
        match step {
            Step::Same => return,
            Step::By(elements) => {
                kept.deltas.entry(key.clone()).or_insert(Deltas::from(at)).add(at, elements)
            }
            Step::Whole if is_set(key) => _ = kept.deltas.insert(key.clone(), Deltas::from(at)),
            Step::Whole => {}
        }
        let holders = self.holders.entry(key.clone()).or_default();
        match &shared.section {
            Some(section) => {
                kept.sections.insert(key.clone(), section.clone());
                holders.insert(host.into());
            }
            None => {
                kept.sections.remove(key);
                kept.deltas.remove(key);
                holders.remove(host);
            }
        }
        if holders.is_empty() {
            self.holders.remove(key);
        }
        kept.changed.insert(key.clone(), at);
        kept.newest = at;
        kept.trim();
        match gathered {
            true => _ = self.gathered.insert(host.into()),
            false => kept.tell(),
        }
    }

    fn tell_gathered(&mut self) {
        for host in std::mem::take(&mut self.gathered) {
            if let Some(kept) = self.nodes.get_mut(&host) {
                kept.tell();
            }
        }
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
    /// What is there may go out.
    fn tell(&mut self) {
        self.due = self.newest;
        self.wake.notify_waiters();
    }

    /// As `since`, when there is more than what is being gathered.
    fn due_since(&self, after: Generation) -> Option<Patch> {
        let known = after >= self.due && after <= self.newest && after.epoch == self.newest.epoch;
        if known { None } else { self.since(after) }
    }

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
                Some(_) if let Some(elements) = self.deltas.get(key).and_then(|d| d.since(after)) => {
                    patch.elements.insert(key.clone(), elements);
                }
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
    use base::node::{Elements, Group};
    use base::{Id, IdKind};
    use serde::{Deserialize, Serialize};
    use std::net::{IpAddr, Ipv4Addr};
    use store::{Cause, Options, Record, Schema};
    use uuid::Uuid;

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

    const SHARED: SectionKey = SectionKey::Group(uuid::Uuid::nil());
    /// What is in the set beside what changes.
    const CROWD: u32 = 100;

    fn keys(state: &State, node: &str) -> BTreeSet<SectionKey> {
        let own = state.all::<Thing>().filter(|t| t.host == node).map(|t| SectionKey::Rules(number(t)));
        let mut keys: BTreeSet<_> = own.collect();
        if !keys.is_empty() {
            keys.insert(SHARED);
        }
        keys
    }

    fn number(thing: &Thing) -> u64 {
        thing.id.uuid().as_u128() as u64
    }

    fn section(state: &State, _: &str, key: &SectionKey) -> Option<Section> {
        match key {
            SectionKey::Rules(n) => {
                let thing = state.get::<Thing>(&Id::from_uuid(Uuid::from_u128((*n).into())))?;
                Some(Section::Group(Group { id: Uuid::from_u128(thing.size), ..Group::default() }))
            }
            _ => {
                let of = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
                let things =
                    state.all::<Thing>().map(|t| of(1000 + t.size as u32 % 13 * 10 + number(t) as u32));
                let members = (0..CROWD).map(of).chain(things).collect();
                Some(Section::Group(Group { id: Uuid::nil(), members }))
            }
        }
    }

    fn touched(_: &State, entry: &Entry) -> Touched {
        let mut touched = Touched::default();
        for (before, after) in entry.changes.iter().filter_map(|c| c.of::<Thing>()) {
            for thing in before.into_iter().chain(after) {
                touched.key(SectionKey::Rules(number(thing)));
                touched.hosts.insert(thing.host.clone());
                touched.key(SHARED);
            }
        }
        touched
    }

    struct World {
        _dir: tempfile::TempDir,
        cell: Cell,
        documents: Arc<Documents>,
        following: tokio::task::JoinHandle<()>,
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.following.abort();
        }
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let engine = store::engine::sqlite::Sqlite::open(&dir.path().join("state.db")).unwrap();
            let cipher = store::cipher::CellKey::cipher([7; 32]);
            let schema = Schema::default().record::<Thing>();
            let cell = Cell::open(Box::new(engine), schema, cipher, Options::default()).unwrap();
            let documents = Arc::new(Documents::new(cell.clone(), vec![Source { keys, section, touched }]));
            let follow = documents.clone();
            let following = tokio::spawn(async move { follow.follow().await });
            World { _dir: dir, cell, documents, following }
        }

        async fn put(&self, id: u128, host: &str, size: u128) {
            let thing = Thing { id: Id::from_uuid(Uuid::from_u128(id)), host: host.into(), size };
            let step = move |tx: &mut store::Tx| tx.put(thing.clone()).map(drop).map_err(base::Error::from);
            self.cell.write(Cause::step("put"), step).await.unwrap();
        }

        async fn delete(&self, id: u128) {
            let id = Id::from_uuid(Uuid::from_u128(id));
            let step = move |tx: &mut store::Tx| Ok(tx.delete::<Thing>(&id).is_some());
            self.cell.write(Cause::step("delete"), step).await.unwrap();
        }

        /// Asks until the node has what there is.
        async fn caught_up(&self, name: &str, node: &mut Document) {
            let state = self.cell.read();
            let one = |key: SectionKey| (key.clone(), section(&state, name, &key).unwrap());
            let scratch: BTreeMap<_, _> = keys(&state, name).into_iter().map(one).collect();
            let begin = Instant::now();
            while node.sections != scratch {
                assert!(begin.elapsed() < Duration::from_secs(20), "{name} stays at {:?}", node.generation);
                node.patch(self.documents.after(name, node.generation, Duration::from_millis(50)).await);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn patched_equals_built_from_scratch() {
        let world = World::new();
        // One that asks all the time, one now and then, one that mostly sleeps, and one that has nothing of its own.
        let mut nodes =
            [("a", 1), ("b", 7), ("c", 90), ("d", 5)].map(|(n, every)| (n, every, Document::default()));
        let mut by_elements = 0;
        for step in 0..400u128 {
            match step * step % 11 {
                4 => world.delete(step % 7).await,
                _ => world.put(step % 7, ["a", "b", "c"][(step * 5 % 17 % 3) as usize], step).await,
            }
            for (name, every, node) in &mut nodes {
                if step % *every == 0 {
                    let patch = world.documents.after(name, node.generation, Duration::from_millis(2)).await;
                    assert!(patch.elements.keys().all(|key| !patch.changed.contains_key(key)));
                    by_elements += patch.elements.len();
                    node.patch(patch);
                }
            }
            if step % 40 == 0 {
                for (name, _, node) in &mut nodes {
                    world.caught_up(name, node).await;
                }
            }
        }
        for (name, _, node) in &mut nodes {
            world.caught_up(name, node).await;
        }
        assert!(by_elements > 40, "{by_elements}");
    }

    #[tokio::test]
    async fn a_set_is_told_by_its_elements_and_gathered() {
        let world = World::new();
        world.put(1, "a", 0).await;
        let mut node = Document::default();
        world.caught_up("a", &mut node).await;
        // Five changes of the set, none of a's own.
        for id in 2..7 {
            world.put(id, "b", 0).await;
        }
        let patch = world.documents.after("a", node.generation, Duration::from_secs(20)).await;
        assert!(patch.changed.is_empty() && patch.removed.is_empty());
        let Some(Elements::Group { come, gone }) = patch.elements.get(&SHARED) else { panic!("{patch:?}") };
        assert!(!come.is_empty() && gone.is_empty());
        node.patch(patch);
        world.caught_up("a", &mut node).await;
        // What is a's own does not wait, and takes with it what does.
        world.put(7, "b", 0).await;
        world.put(1, "a", 9).await;
        while node.sections.get(&SectionKey::Rules(1))
            != section(&world.cell.read(), "a", &SectionKey::Rules(1)).as_ref()
        {
            node.patch(world.documents.after("a", node.generation, Duration::from_secs(20)).await);
        }
        world.caught_up("a", &mut node).await;
    }
}
