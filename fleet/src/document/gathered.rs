//! Nodes with changes of sets alone: so many are told at a time, and the next when those were handed it and wait for more.
//!
//! A set may be held by all nodes. If they were all woken at once, what is one node's own would wait behind them.
//!
//! Limits: `TOLD_MAX` at a time; one that does not ask for more holds nobody up for longer than `TOLD_WAIT`.

use super::Name;
use std::collections::{BTreeSet, HashSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

/// Some milliseconds of work.
const TOLD_MAX: usize = 128;
/// None of those who were told has asked for more for so long: they are not waited for.
pub const TOLD_WAIT: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Gathered {
    waiting: BTreeSet<Name>,
    /// It was the last: the next are those after it.
    last: Option<Name>,
    /// They have not asked for more.
    told: HashSet<Name>,
}

impl Gathered {
    pub fn insert_all(&mut self, nodes: &BTreeSet<Name>) {
        self.waiting.append(&mut nodes.clone());
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Who is to be told now.
    pub fn next(&mut self) -> Option<Name> {
        if self.told.len() >= TOLD_MAX {
            return None;
        }
        let after = (self.last.as_deref().map_or(Unbounded, Excluded), Unbounded);
        let node = self.waiting.range::<str, _>(after).next().or_else(|| self.waiting.first())?.clone();
        self.waiting.remove(&node);
        self.told.insert(node.clone());
        self.last = Some(node.clone());
        Some(node)
    }

    /// A node asks. Returns whether others that wait may be told, some at a time.
    pub fn asks(&mut self, node: &str) -> bool {
        self.told.remove(node) && !self.waiting.is_empty() && self.told.len() <= TOLD_MAX / 2
    }

    /// Those who were told are not waited for any longer.
    pub fn give_up(&mut self) {
        self.told.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(gathered: &mut Gathered) -> Vec<Name> {
        std::iter::from_fn(|| gathered.next()).collect()
    }

    #[test]
    fn some_are_told_after_others_and_each_in_its_turn() {
        let mut gathered = Gathered::default();
        let name = |n: usize| Name::from(format!("n{n:04}"));
        gathered.insert_all(&(0..TOLD_MAX + 100).map(name).collect());
        let first = all(&mut gathered);
        assert_eq!(first, (0..TOLD_MAX).map(name).collect::<Vec<_>>());
        assert!(!gathered.asks("another"));
        let freed = (0..TOLD_MAX / 2).map(|n| gathered.asks(&name(n))).collect::<Vec<_>>();
        assert_eq!(freed.iter().filter(|freed| **freed).count(), 1, "the last of a half makes room");
        // One that has been told and has more to hear comes after those who have heard nothing.
        gathered.insert_all(&[name(0)].into());
        assert_eq!(all(&mut gathered).len(), TOLD_MAX / 2);
        gathered.give_up();
        let rest = all(&mut gathered);
        assert_eq!((rest.len(), rest.last()), (100 - TOLD_MAX / 2 + 1, Some(&name(0))));
        assert!(gathered.is_empty());
        assert!(!gathered.asks(&name(0)), "nobody waits");
    }
}
