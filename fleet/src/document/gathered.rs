//! Nodes with changes of sets alone are told in rounds: so many at a time, and the next a little later.
//!
//! A set may be held by all nodes. If they were all told at once, what is one node's own would wait behind them, in the
//! plane and, where they share a machine, in the nodes.
//!
//! Limits: `TOLD_MAX` every `TOLD_EVERY`.

use super::Name;
use base::node::SectionKey;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

const TOLD_MAX: usize = 64;
/// Ten thousand nodes in some 600 ms.
pub const TOLD_EVERY: Duration = Duration::from_millis(4);

#[derive(Default)]
pub struct Gathered {
    /// Sets that changed since the round began.
    changed: BTreeSet<SectionKey>,
    /// Who is still to be told.
    round: BTreeSet<Name>,
    /// It was the last: the next are those after it.
    last: Option<Name>,
}

impl Gathered {
    pub fn insert(&mut self, set: SectionKey) {
        self.changed.insert(set);
    }

    /// Whether there is something for another round.
    pub fn waits(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether nobody is left of the round.
    pub fn is_over(&self) -> bool {
        self.round.is_empty()
    }

    /// From here on the holders of what changed are of the round, beside those who are left of the one before.
    pub fn begin(&mut self, holders: &HashMap<SectionKey, BTreeSet<Name>>) {
        for key in std::mem::take(&mut self.changed) {
            self.round.extend(holders.get(&key).into_iter().flatten().cloned());
        }
    }

    /// Who is to be told now.
    pub fn next(&mut self) -> Vec<Name> {
        let after = (self.last.as_deref().map_or(Unbounded, Excluded), Unbounded);
        let later = self.round.range::<str, _>(after);
        let next: Vec<Name> =
            later.chain(&self.round).take(TOLD_MAX.min(self.round.len())).cloned().collect();
        next.iter().for_each(|node| _ = self.round.remove(node));
        self.last = next.last().cloned().or(self.last.take());
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn some_are_told_after_others_and_each_in_its_turn() {
        let name = |n: usize| Name::from(format!("n{n:04}"));
        let key = |n: u128| SectionKey::Group(Uuid::from_u128(n));
        let all: BTreeSet<Name> = (0..TOLD_MAX + 10).map(name).collect();
        let holders = HashMap::from([(key(1), all), (key(2), [name(0), name(3)].into())]);
        let mut gathered = Gathered::default();
        gathered.insert(key(1));
        assert!(gathered.waits() && gathered.is_over());
        gathered.begin(&holders);
        assert!(!gathered.waits() && !gathered.is_over());
        assert_eq!(gathered.next(), (0..TOLD_MAX).map(name).collect::<Vec<_>>());
        // Those who have been told and have more to hear come after those who have heard nothing.
        gathered.insert(key(2));
        gathered.begin(&holders);
        let rest: Vec<Name> = (TOLD_MAX..TOLD_MAX + 10).chain([0, 3]).map(name).collect();
        assert_eq!(gathered.next(), rest);
        assert!(gathered.is_over() && gathered.next().is_empty());
    }
}
