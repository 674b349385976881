//! What is remembered of one node's document, and what it is told from it.
//!
//! Revisions here are those that the log was followed to in one go. A node that was told by this process has one of
//! them, and is told what changed between two of them. A node that was told by another plane has a revision of its own:
//! it is told all that was touched since, whether it changed between ours or not, and the sum that comes of it.

use super::set::Set;
use base::node::{Generation, Known, Patch, Section, SectionKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::task::Waker;
use store::Revision;

/// Removed keys are forgotten when there are this many; nodes that are behind that get the whole document.
const REMOVED_MAX: usize = 10_000;
/// Who waits to tell one node. It has one answer at a time, and for moments two.
const LISTENING_MAX: usize = 4;

#[derive(Default)]
pub struct Kept {
    /// All but the sets.
    sections: BTreeMap<SectionKey, Arc<Section>>,
    /// Sets, and since when the node has each.
    held: BTreeMap<SectionKey, Revision>,
    /// When each key last changed, removed ones included; of sets the removed ones alone.
    changed: BTreeMap<SectionKey, Revision>,
    /// When each key that is no set was last touched, whatever came of it.
    touched: BTreeMap<SectionKey, Revision>,
    /// When the set of keys changed last, or might have.
    recounted: Revision,
    /// Before this nothing is remembered.
    since: Revision,
    /// Of what is remembered here; sets have their own.
    newest: Revision,
    /// The newest that the node is to be told of without more waiting: all but what is being gathered.
    due: Revision,
    /// Whoever waits to tell it.
    listening: Vec<Waker>,
}

/// The sets that nodes hold.
pub type Sets = HashMap<SectionKey, Set>;

impl Kept {
    pub fn new(at: Revision, listening: Vec<Waker>) -> Kept {
        Kept { recounted: at, since: at, newest: at, due: at, listening, ..Kept::default() }
    }

    pub fn keys(&self) -> impl Iterator<Item = &SectionKey> {
        self.sections.keys().chain(self.held.keys())
    }

    pub fn section(&self, key: &SectionKey) -> Option<&Arc<Section>> {
        self.sections.get(key)
    }

    /// Takes the newest of a section that is no set.
    pub fn put(&mut self, key: &SectionKey, section: Arc<Section>, at: Revision) {
        self.sections.insert(key.clone(), section);
        self.change(key, at);
    }

    /// From here on the node has a set.
    pub fn hold(&mut self, key: &SectionKey, at: Revision) {
        self.held.insert(key.clone(), at);
        self.changed.remove(key);
        self.newest = at;
    }

    /// A section or set is gone. Returns whether it was there.
    pub fn remove(&mut self, key: &SectionKey, at: Revision) -> bool {
        let was = self.sections.remove(key).is_some() | self.held.remove(key).is_some();
        if was {
            self.change(key, at);
        }
        was
    }

    fn change(&mut self, key: &SectionKey, at: Revision) {
        self.changed.insert(key.clone(), at);
        self.newest = at;
        self.trim();
    }

    /// A section that is no set may be another than before.
    pub fn touch(&mut self, key: &SectionKey, at: Revision) {
        self.touched.insert(key.clone(), at);
    }

    /// The node may need other keys than before.
    pub fn recounted(&mut self, at: Revision) {
        self.recounted = at;
    }

    /// What is there may go out, by those that are returned.
    pub fn tell(&mut self, sets: &Sets) -> Vec<Waker> {
        self.due = self.newest(sets);
        self.wake()
    }

    /// `waker` is to be woken when there is something to tell. Those whose answers have ended meanwhile are still there:
    /// the oldest goes, and would, if it were not one of these, hear of news when its time is over.
    pub fn listen(&mut self, waker: &Waker) {
        if self.listening.iter().any(|there| there.will_wake(waker)) {
            return;
        }
        if self.listening.len() >= LISTENING_MAX {
            self.listening.remove(0);
        }
        self.listening.push(waker.clone());
    }

    pub fn wake(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.listening)
    }

    /// When anything of it last changed.
    pub fn newest(&self, sets: &Sets) -> Revision {
        let of = |key| sets.get(key).map_or(0, Set::changed);
        self.held.keys().map(of).fold(self.newest, Revision::max)
    }

    /// Whether there is nothing for a node that this process told last, but what is being gathered.
    pub fn is_waited_for(&self, after: Revision) -> bool {
        after >= self.due
    }

    /// What changed since a revision that this process told, under `epoch`.
    pub fn since(&self, sets: &Sets, after: Revision, epoch: u64) -> Option<Patch> {
        let newest = self.newest(sets);
        let generation = Generation { epoch, revision: newest };
        if after < self.since {
            return Some(self.whole(sets, generation));
        }
        if after >= newest {
            return None;
        }
        let mut patch = Patch { generation, ..Patch::default() };
        for (key, _) in self.changed.iter().filter(|(_, at)| **at > after) {
            match self.sections.get(key) {
                Some(section) => _ = patch.changed.insert(key.clone(), Section::clone(section)),
                None => _ = patch.removed.insert(key.clone()),
            }
        }
        self.tell_sets(sets, after, |set| set.changed() > after, &mut patch);
        Some(patch)
    }

    /// The sets that changed since a revision that this process told, each with its first step since then, where nothing
    /// else did: two nodes of which this is the same are told the same.
    pub fn shared(&self, sets: &Sets, after: Revision) -> Option<Vec<(SectionKey, Revision)>> {
        if after < self.since || after < self.newest {
            return None;
        }
        let held = self.held.keys().filter_map(|key| Some((key, sets.get(key)?)));
        let changed = held.filter(|(_, set)| set.changed() > after);
        changed.map(|(key, set)| Some((key.clone(), set.first_after(after)?))).collect()
    }

    /// What was touched since a revision that another plane told; `at`: how far this one has followed. `line`: the
    /// revision is of the log that was followed.
    pub fn across(&self, sets: &Sets, known: Known, line: bool, at: Generation) -> Patch {
        let after = known.generation.revision;
        if !line || after < self.since {
            // Another plane's, from before what is known here: it may be what there is.
            let same = known.sum.is_some_and(|sum| sum == self.sum(sets));
            return if same { Patch { generation: at, ..Patch::default() } } else { self.whole(sets, at) };
        }
        let mut patch = Patch { generation: at, sum: Some(self.sum(sets)), ..Patch::default() };
        for (key, _) in self.touched.iter().filter(|(_, at)| **at > after) {
            if let Some(section) = self.sections.get(key) {
                patch.changed.insert(key.clone(), Section::clone(section));
            }
        }
        self.tell_sets(sets, after, |_| true, &mut patch);
        if self.recounted > after {
            patch.keys = Some(self.keys().cloned().collect());
        }
        patch
    }

    /// Sets that the node did not have at `after`, and what came and went of those others that are `wanted`.
    fn tell_sets(&self, sets: &Sets, after: Revision, wanted: impl Fn(&Set) -> bool, patch: &mut Patch) {
        for (key, since) in &self.held {
            let Some(set) = sets.get(key) else { continue };
            let told = match *since <= after {
                true if !wanted(set) => continue,
                true => set.since(after),
                false => None,
            };
            match told {
                Some(Some(elements)) => _ = patch.elements.insert(key.clone(), elements),
                Some(None) => {}
                None => _ = patch.changed.insert(key.clone(), Section::clone(set.section())),
            }
        }
    }

    fn whole(&self, sets: &Sets, generation: Generation) -> Patch {
        let sections = self.sections.iter();
        let held = self.held.keys().filter_map(|key| Some((key, sets.get(key)?.section())));
        let changed = sections.chain(held).map(|(key, section)| (key.clone(), Section::clone(section)));
        Patch { generation, whole: true, changed: changed.collect(), ..Patch::default() }
    }

    /// As `Document::sum` of it.
    fn sum(&self, sets: &Sets) -> u64 {
        let sections = self.sections.iter().map(|(key, section)| section.sum(key));
        let held = self.held.keys().filter_map(|key| Some(sets.get(key)?.sum(key)));
        sections.chain(held).fold(0, u64::wrapping_add)
    }

    fn trim(&mut self) {
        let most = self.sections.len() + REMOVED_MAX;
        if self.changed.len() < most && self.touched.len() < most {
            return;
        }
        let sections = &self.sections;
        self.changed.retain(|key, _| sections.contains_key(key));
        self.touched.retain(|key, _| sections.contains_key(key));
        self.since = self.newest;
    }
}

/// The line of generations: which revisions were told under which epochs, as far as the log was followed.
///
/// An owner tells revisions of its own epoch and of those before; a generation is of this log when no later epoch began
/// before it. What an engine lost, or a restore took back, has a revision that a later epoch has begun before.
pub struct Line {
    since: Generation,
    /// The first revision of each epoch since then.
    first: BTreeMap<u64, Revision>,
}

/// Epochs that are remembered.
const EPOCHS_MAX: usize = 10_000;

impl Line {
    pub fn since(since: Generation) -> Line {
        Line { since, first: BTreeMap::new() }
    }

    pub fn follow(&mut self, epoch: u64, revision: Revision) {
        if epoch > self.since.epoch {
            self.first.entry(epoch).or_insert(revision);
        }
        while self.first.len() > EPOCHS_MAX {
            let Some((epoch, revision)) = self.first.pop_first() else { break };
            self.since = Generation { epoch, revision };
        }
    }

    pub fn has(&self, generation: Generation) -> bool {
        let later = self.first.range(generation.epoch + 1..).next();
        generation.epoch >= self.since.epoch
            && generation.revision >= self.since.revision
            && later.is_none_or(|(_, first)| *first > generation.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Task;

    impl std::task::Wake for Task {
        fn wake(self: Arc<Task>) {}
    }

    #[test]
    fn answers_that_have_ended_do_not_pile_up() {
        let mut kept = Kept::new(1, Vec::new());
        let tasks: Vec<Waker> = (0..1_000).map(|_| Waker::from(Arc::new(Task))).collect();
        tasks.iter().for_each(|task| kept.listen(task));
        kept.listen(&tasks[999]);
        let awake = kept.wake();
        assert_eq!(awake.len(), LISTENING_MAX);
        assert!(awake.iter().any(|waker| waker.will_wake(&tasks[999])));
    }

    #[test]
    fn a_generation_is_of_this_log_when_no_later_epoch_began_before_it() {
        let mut line = Line::since(Generation { epoch: 3, revision: 100 });
        for (epoch, revision) in [(3, 101), (3, 110), (5, 111), (5, 112), (6, 120)] {
            line.follow(epoch, revision);
        }
        let check = |epoch, revision, expect| {
            assert_eq!(line.has(Generation { epoch, revision }), expect, "{epoch}.{revision}");
        };
        check(3, 100, true);
        check(3, 110, true);
        check(3, 111, false);
        check(4, 110, true);
        check(4, 111, false);
        check(5, 119, true);
        check(5, 120, false);
        check(6, 500, true);
        check(3, 99, false);
        check(2, 100, false);
    }
}
