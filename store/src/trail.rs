//! States of the past. A few are remembered, and any between them is made by running the entries after one of them again.
//!
//! A state that is remembered holds every node of its maps that was changed since, so that each later change copies where
//! it could write in place, and what is forgotten at last is cold. Hence one for some hundred changes and not for each.

use crate::log::{Entry, Revision};
use crate::state::State;
use std::collections::VecDeque;
use std::sync::Arc;

/// Records that change between two states that are remembered, and what the batch then has.
const MARK_EVERY: usize = 256;

/// The states that a run of entries came upon.
#[derive(Clone, Default)]
pub(crate) struct Trail {
    /// In order; of two at one revision the later was published last.
    marks: VecDeque<State>,
    /// All after the first mark.
    entries: VecDeque<Arc<Entry>>,
    /// The first entry whose state is remembered.
    from: Revision,
    changed: usize,
}

/// The way to a state.
pub(crate) struct Way {
    from: State,
    entries: Vec<Arc<Entry>>,
}

impl Way {
    /// The state itself: nothing that holds a lock should wait for it.
    pub fn state(self) -> State {
        let Way { from: mut state, entries } = self;
        entries.iter().for_each(|entry| state.follow(entry));
        state
    }
}

impl Trail {
    /// `entries` came upon `base`, one after the other.
    pub fn push(&mut self, base: &State, entries: &[Arc<Entry>]) {
        // An owner that has just come is in the state, and in no entry.
        let is_other = self.entries.back().is_none_or(|last| last.epoch != base.epoch);
        if is_other || self.changed >= MARK_EVERY {
            self.marks.push_back(base.clone());
            self.changed = 0;
        }
        if self.entries.is_empty() {
            self.from = base.revision + 1;
        }
        self.changed += entries.iter().map(|entry| entry.changes.len()).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// How many entries there are whose states are remembered.
    pub fn len(&self) -> usize {
        self.entries.back().map_or(0, |last| (last.revision + 1 - self.from) as usize)
    }

    /// Forgets the oldest, so that `max` are left.
    pub fn keep(&mut self, max: usize) {
        self.from += self.len().saturating_sub(max) as Revision;
        while self.marks.get(1).is_some_and(|second| second.revision < self.from) {
            self.marks.pop_front();
        }
        let first = self.marks.front().map_or(Revision::MAX, |mark| mark.revision);
        while self.entries.front().is_some_and(|entry| entry.revision <= first) {
            self.entries.pop_front();
        }
    }

    /// The way to the state that the entry of a revision came upon, while that is remembered.
    pub fn before(&self, revision: Revision) -> Option<Way> {
        let last = self.entries.back()?.revision;
        if revision < self.from || revision > last {
            return None;
        }
        let nearest = self.marks.partition_point(|mark| mark.revision < revision).checked_sub(1)?;
        let (from, first) = (self.marks[nearest].clone(), self.marks.front()?.revision);
        let skipped = (from.revision - first) as usize;
        let between = (revision - 1 - from.revision) as usize;
        let entries = self.entries.iter().skip(skipped).take(between).cloned().collect();
        Some(Way { from, entries })
    }

    /// Whether `later`, of the same log, begins where this ends, or before.
    pub fn meets(&self, later: &Trail) -> bool {
        self.entries.back().is_some_and(|last| later.from <= last.revision + 1)
    }

    /// Goes on as `later` does, which it meets.
    pub fn extend(&mut self, later: Trail) {
        let Some(begin) = later.marks.front().map(|mark| mark.revision) else { return };
        self.marks.retain(|mark| mark.revision < begin);
        self.entries.retain(|entry| entry.revision <= begin);
        self.from = self.from.min(later.from);
        self.marks.extend(later.marks);
        self.entries.extend(later.entries);
    }
}
