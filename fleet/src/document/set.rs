//! Sets among the sections (`members`, `group`): how one version follows from another, by elements.
//!
//! All who hold a set have the same version of it, so it and its changes are remembered once, whatever the number of
//! its holders, and what they come to for nodes that have the same one is put together once.
//!
//! Limits: `DELTAS_MAX` changes of a set are remembered; a change of more than half of a set is a new set; `JOINED_MAX`.

use base::node::{Elements, Section, SectionKey};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use store::Revision;

/// Changes of one set that are remembered; a node that is behind them gets the whole set.
const DELTAS_MAX: usize = 1_024;
/// Ways to the newest version that are remembered, each from another version.
const JOINED_MAX: usize = 64;
/// Up to this many elements a change is told as one; above, up to half of the set.
const DELTA_SIZE_MIN: usize = 16;

/// A set as its holders have it, and its last changes.
pub struct Set {
    section: Arc<Section>,
    /// When it last became another.
    changed: Revision,
    /// Whoever has the set as of this revision gets from there by `steps`.
    from: Revision,
    steps: VecDeque<(Revision, Arc<Elements>)>,
    /// What steps come to from one on, by its revision, where a node asked for it.
    joined: RefCell<HashMap<Revision, Elements>>,
    /// Of `section`, where it was asked for.
    sum: Cell<Option<u64>>,
}

impl Set {
    pub fn new(section: Arc<Section>, at: Revision) -> Set {
        let (steps, joined, sum) = (VecDeque::new(), RefCell::default(), Cell::default());
        Set { section, changed: at, from: at, steps, joined, sum }
    }

    pub fn section(&self) -> &Arc<Section> {
        &self.section
    }

    pub fn changed(&self) -> Revision {
        self.changed
    }

    /// What a log entry made of it. All of that is remembered: a node from another plane may have what came and went
    /// between two of our revisions.
    pub fn by(&mut self, at: Revision, elements: Elements) -> Step {
        let mut new = elements.clone();
        new.retain_new(&self.section);
        let mut after = Section::clone(&self.section);
        new.apply(&mut after);
        let step = Step::by(new, &after);
        match step {
            Step::Whole => *self = Set::new(Arc::new(after), at),
            Step::By(_) => {
                (self.section, self.changed) = (Arc::new(after), at);
                self.add(at, Arc::new(elements));
            }
            Step::Same => self.add(at, Arc::new(elements)),
        }
        step
    }

    /// It was rendered again.
    pub fn to(&mut self, at: Revision, after: Arc<Section>) -> Step {
        let step = Step::between(&self.section, &after);
        match &step {
            Step::Whole => *self = Set::new(after, at),
            Step::By(elements) => {
                (self.section, self.changed) = (after, at);
                self.add(at, elements.clone());
            }
            Step::Same => {}
        }
        step
    }

    fn add(&mut self, at: Revision, elements: Arc<Elements>) {
        self.joined.get_mut().clear();
        self.sum.take();
        self.steps.push_back((at, elements));
        if self.steps.len() > DELTAS_MAX
            && let Some((forgotten, _)) = self.steps.pop_front()
        {
            self.from = forgotten;
        }
    }

    /// From the set as of `after` to what it is now, none where it is the same; nothing when that is not remembered.
    pub fn since(&self, after: Revision) -> Option<Option<Elements>> {
        if after < self.from {
            return None;
        }
        let first = self.steps.partition_point(|(at, _)| *at <= after);
        let mut steps = self.steps.range(first..);
        let Some((at, step)) = steps.next() else { return Some(None) };
        let mut joined = self.joined.borrow_mut();
        if joined.len() >= JOINED_MAX {
            joined.clear();
        }
        let all = joined.entry(*at).or_insert_with(|| {
            let mut all = Elements::clone(step);
            steps.for_each(|(_, step)| together(&mut all, step));
            all
        });
        Some(Some(all.clone()))
    }

    /// The first step after a revision; nothing when that is not remembered, or there is none.
    pub fn first_after(&self, after: Revision) -> Option<Revision> {
        let first = self.steps.partition_point(|(at, _)| *at <= after);
        self.steps.get(first).filter(|_| after >= self.from).map(|(at, _)| *at)
    }

    /// `Section::sum` of it.
    pub fn sum(&self, key: &SectionKey) -> u64 {
        let sum = self.sum.get().unwrap_or_else(|| self.section.sum(key));
        self.sum.set(Some(sum));
        sum
    }
}

/// What becomes of a section that a node has.
#[derive(Clone)]
pub enum Step {
    /// It was rendered to the same.
    Same,
    By(Arc<Elements>),
    Whole,
}

impl Step {
    pub fn between(before: &Section, after: &Section) -> Step {
        if before == after {
            return Step::Same;
        }
        Elements::between(before, after).map_or(Step::Whole, |elements| Step::by(elements, after))
    }

    /// By elements that make a difference, if they are few enough.
    pub fn by(elements: Elements, after: &Section) -> Step {
        match elements.len() {
            0 => Step::Same,
            n if n <= DELTA_SIZE_MIN.max(set_size(after) / 2) => Step::By(Arc::new(elements)),
            _ => Step::Whole,
        }
    }
}

fn set_size(section: &Section) -> usize {
    match section {
        Section::Members(members) => members.ports.len(),
        Section::Group(group) => group.members.len(),
        _ => 0,
    }
}

/// Two changes as one, the older first.
pub fn together(older: &mut Elements, newer: &Elements) {
    match (older, newer) {
        (Elements::Members { come, gone }, Elements::Members { come: c, gone: g }) => {
            come.retain(|id, _| !g.contains(id));
            come.extend(c.iter().map(|(id, member)| (*id, member.clone())));
            gone.extend(g);
        }
        (Elements::Group { come, gone }, Elements::Group { come: c, gone: g }) => {
            come.retain(|address| !g.contains(address));
            come.extend(c);
            gone.extend(g);
        }
        (Elements::Members { .. } | Elements::Group { .. }, _) => {
            debug_assert!(false, "a key holds sets of one kind");
        }
    }
}

/// Sets are gathered.
pub fn is_set(key: &SectionKey) -> bool {
    matches!(key, SectionKey::Members(_) | SectionKey::Group(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::node::{Document, Group, OrdSet, Patch, Patched};
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};
    use uuid::Uuid;

    const KEY: SectionKey = SectionKey::Group(Uuid::nil());

    fn address(n: &u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, *n))
    }

    fn section(list: &[u8]) -> Section {
        Section::Group(Group { id: Uuid::nil(), members: list.iter().map(address).collect::<OrdSet<_>>() })
    }

    fn elements((come, gone): &(&[u8], &[u8])) -> Elements {
        let of = |list: &[u8]| list.iter().map(address).collect::<BTreeSet<_>>();
        Elements::Group { come: of(come), gone: of(gone) }
    }

    fn check(steps: &[(&[u8], &[u8])], start: &[u8], expect: &[u8]) {
        let mut all = elements(&steps[0]);
        steps[1..].iter().for_each(|step| together(&mut all, &elements(step)));
        let mut document = Document { sections: [(KEY, section(start))].into(), ..Document::default() };
        let patch = Patch { elements: [(KEY, all)].into(), ..Patch::default() };
        assert_eq!(document.patch(patch), Patched::Taken);
        assert_eq!(document.sections[&KEY], section(expect));
    }

    #[test]
    fn changes_of_a_set_are_put_together() {
        check(&[(&[1], &[]), (&[], &[1])], &[5], &[5]);
        check(&[(&[], &[1]), (&[1], &[])], &[1, 5], &[1, 5]);
        check(&[(&[1, 2], &[5]), (&[3], &[2]), (&[5], &[])], &[5], &[1, 3, 5]);
    }

    #[test]
    fn what_makes_no_difference_is_left_out() {
        let check = |told: (&[u8], &[u8]), set: &[u8], expect: (&[u8], &[u8])| {
            let mut told = elements(&told);
            told.retain_new(&section(set));
            assert_eq!(told, elements(&expect));
        };
        check((&[1, 2], &[3]), &[1], (&[2], &[]));
        check((&[1], &[1, 4]), &[1, 4], (&[], &[4]));
        check((&[7], &[7]), &[], (&[7], &[]));
    }

    #[test]
    fn what_is_remembered_of_a_set_says_how_far_back() {
        let mut set = Set::new(Arc::new(section(&[])), 10);
        let by = |set: &mut Set, at, told: (&[u8], &[u8])| set.by(at, elements(&told));
        by(&mut set, 12, (&[1], &[]));
        by(&mut set, 15, (&[2], &[1]));
        assert_eq!(set.since(9), None);
        assert_eq!(set.since(10), Some(Some(elements(&(&[2], &[1])))));
        assert_eq!(set.since(13), Some(Some(elements(&(&[2], &[1])))));
        assert_eq!(set.since(14), Some(Some(elements(&(&[2], &[1])))), "as before");
        assert_eq!((set.sum(&KEY), &**set.section()), (section(&[2]).sum(&KEY), &section(&[2])));
        assert_eq!(set.since(15), Some(None));
        by(&mut set, 16, (&[1], &[2]));
        assert_eq!(set.since(14), Some(Some(elements(&(&[1], &[1, 2])))), "one more came");
        assert_eq!(set.sum(&KEY), section(&[1]).sum(&KEY));
        assert!(matches!(by(&mut set, 17, (&[1], &[])), Step::Same));
        assert_eq!((set.changed(), set.since(16)), (16, Some(Some(elements(&(&[1], &[]))))));
        for n in 0..DELTAS_MAX as u64 {
            by(&mut set, 20 + n, (&[3 + (n % 2) as u8], &[]));
        }
        assert_eq!(set.since(16), None);
        assert!(set.since(17).is_some());
        let many: Vec<u8> = (0..100).collect();
        assert!(matches!(set.to(2_000, Arc::new(section(&many))), Step::Whole));
        assert_eq!((set.since(1_999), set.since(2_000)), (None, Some(None)));
        assert!(matches!(set.to(2_001, Arc::new(section(&many))), Step::Same));
        assert!(matches!(set.to(2_002, Arc::new(section(&many[1..]))), Step::By(_)));
        assert_eq!((set.changed(), set.since(2_000)), (2_002, Some(Some(elements(&(&[], &[0]))))));
    }
}
