//! What is remembered of one node's document, and what it is told from it.
//!
//! Revisions here are those that the log was followed to in one go. A node that was told by this process has one of
//! them, and is told what changed between two of them. A node that was told by another plane has a revision of its own:
//! it is told all that was touched since, whether it changed between ours or not, and the sum that comes of it.

use super::set::{Deltas, Step, is_set};
use base::node::{Generation, Known, Patch, Section, SectionKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use store::Revision;
use tokio::sync::Notify;

/// Removed keys are forgotten when there are this many; nodes that are behind that get the whole document.
const REMOVED_MAX: usize = 10_000;

#[derive(Default)]
pub struct Kept {
    pub sections: BTreeMap<SectionKey, Arc<Section>>,
    /// When each key last changed, removed ones included.
    changed: BTreeMap<SectionKey, Revision>,
    /// When each key was last touched, whatever came of it.
    touched: BTreeMap<SectionKey, Revision>,
    /// Sets, and since when the node has each.
    held: BTreeMap<SectionKey, Revision>,
    /// When the set of keys changed last, or might have.
    recounted: Revision,
    /// Before this nothing is remembered.
    since: Revision,
    newest: Revision,
    /// The newest that the node is to be told of without more waiting: all but what is being gathered.
    due: Revision,
    pub wake: Arc<Notify>,
}

/// The changes of all sets.
pub type Sets = HashMap<SectionKey, Deltas>;

impl Kept {
    pub fn new(at: Revision, wake: Arc<Notify>) -> Kept {
        Kept { recounted: at, since: at, newest: at, due: at, wake, ..Kept::default() }
    }

    /// Takes the newest of a section. Returns whether it is to be told at once; nothing when it makes no difference.
    pub fn put(
        &mut self,
        key: &SectionKey,
        section: Option<&Arc<Section>>,
        step: &Step,
        at: Revision,
    ) -> Option<bool> {
        self.touched.insert(key.clone(), at);
        if matches!(step, Step::Same) {
            return None;
        }
        match section {
            Some(section) => {
                if is_set(key) && matches!(step, Step::Whole) {
                    self.held.insert(key.clone(), at);
                }
                self.sections.insert(key.clone(), section.clone());
            }
            None => {
                self.held.remove(key);
                self.sections.remove(key);
            }
        }
        self.changed.insert(key.clone(), at);
        self.newest = at;
        self.trim();
        Some(!(is_set(key) && matches!(step, Step::By(_))))
    }

    /// The node may need other keys than before.
    pub fn recounted(&mut self, at: Revision) {
        self.recounted = at;
    }

    /// What is there may go out.
    pub fn tell(&mut self) {
        self.due = self.newest;
        self.wake.notify_waiters();
    }

    /// Whether there is nothing for a node that this process told last, but what is being gathered.
    pub fn is_waited_for(&self, after: Revision) -> bool {
        after >= self.due
    }

    /// What changed since a revision that this process told, under `epoch`.
    pub fn since(&self, sets: &Sets, after: Revision, epoch: u64) -> Option<Patch> {
        if after < self.since {
            return Some(self.whole(epoch));
        }
        if after >= self.newest {
            return None;
        }
        let mut patch = Patch { generation: Generation { epoch, revision: self.newest }, ..Patch::default() };
        for (key, _) in self.changed.iter().filter(|(_, at)| **at > after) {
            match self.sections.get(key) {
                Some(section) => self.tell_section(sets, after, key, section, &mut patch),
                None => _ = patch.removed.insert(key.clone()),
            }
        }
        Some(patch)
    }

    /// What was touched since a revision that another plane told; `at`: how far this one has followed. `line`: the
    /// revision is of the log that was followed.
    pub fn across(&self, sets: &Sets, known: Known, line: bool, at: Generation) -> Patch {
        let after = known.generation.revision;
        if !line || after < self.since {
            // Another plane's, from before what is known here: it may be what there is.
            let same = known.sum.is_some_and(|sum| sum == self.sum(sets));
            let nothing = Patch { generation: at, ..Patch::default() };
            return if same { nothing } else { Patch { generation: at, ..self.whole(at.epoch) } };
        }
        let mut patch = Patch { generation: at, sum: Some(self.sum(sets)), ..Patch::default() };
        for (key, _) in self.touched.iter().filter(|(_, at)| **at > after) {
            if let Some(section) = self.sections.get(key) {
                self.tell_section(sets, after, key, section, &mut patch);
            }
        }
        if self.recounted > after {
            patch.keys = Some(self.sections.keys().cloned().collect());
        }
        patch
    }

    fn tell_section(
        &self,
        sets: &Sets,
        after: Revision,
        key: &SectionKey,
        section: &Arc<Section>,
        patch: &mut Patch,
    ) {
        let held = self.held.get(key).is_some_and(|since| *since <= after);
        match sets.get(key).filter(|_| held).and_then(|deltas| deltas.since(after)) {
            Some(Some(elements)) => _ = patch.elements.insert(key.clone(), elements),
            Some(None) => {}
            None => _ = patch.changed.insert(key.clone(), Section::clone(section)),
        }
    }

    fn whole(&self, epoch: u64) -> Patch {
        let sections = self.sections.iter().map(|(key, section)| (key.clone(), Section::clone(section)));
        let generation = Generation { epoch, revision: self.newest };
        Patch { generation, whole: true, changed: sections.collect(), ..Patch::default() }
    }

    /// As `Document::sum` of it.
    fn sum(&self, sets: &Sets) -> u64 {
        let of = |(key, section): (&SectionKey, &Arc<Section>)| match sets.get(key) {
            Some(deltas) => deltas.sum(key, section),
            None => section.sum(key),
        };
        self.sections.iter().map(of).fold(0, u64::wrapping_add)
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
