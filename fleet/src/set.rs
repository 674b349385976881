//! Sets among the sections (`members`, `group`): how one version follows from another, by elements.
//!
//! Limits: `DELTAS_MAX` changes of a set are remembered of a node; a change of more than half of a set is a new set.

use base::node::{Elements, Generation, Section, SectionKey};
use std::collections::VecDeque;
use std::sync::Arc;

/// Changes of one set that are remembered of a node; one that is behind them gets the whole set.
const DELTAS_MAX: usize = 64;
/// Up to this many elements a change is told as one; above, up to half of the set.
const DELTA_SIZE_MIN: usize = 16;
/// The last changes of a set.
pub struct Deltas {
    /// Whoever has the set as of this generation gets from there by `steps`.
    from: Generation,
    steps: VecDeque<(Generation, Arc<Elements>)>,
}

impl Deltas {
    pub fn from(from: Generation) -> Deltas {
        Deltas { from, steps: VecDeque::new() }
    }

    pub fn add(&mut self, at: Generation, elements: Arc<Elements>) {
        self.steps.push_back((at, elements));
        if self.steps.len() > DELTAS_MAX
            && let Some((forgotten, _)) = self.steps.pop_front()
        {
            self.from = forgotten;
        }
    }

    /// From the set as of `after` to what it is now; none when that is not remembered.
    pub fn since(&self, after: Generation) -> Option<Elements> {
        let mut steps = self.steps.iter().filter(|(at, _)| *at > after && after >= self.from);
        let mut all = Elements::clone(&steps.next()?.1);
        steps.for_each(|(_, step)| together(&mut all, step));
        Some(all)
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
        match Elements::between(before, after) {
            Some(elements) if size(&elements) <= DELTA_SIZE_MIN.max(set_size(after) / 2) => {
                Step::By(Arc::new(elements))
            }
            Some(_) | None => Step::Whole,
        }
    }
}

fn size(elements: &Elements) -> usize {
    match elements {
        Elements::Members { come, gone } => come.len() + gone.len(),
        Elements::Group { come, gone } => come.len() + gone.len(),
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
fn together(older: &mut Elements, newer: &Elements) {
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
    use base::node::{Document, Group, Patch};
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};
    use uuid::Uuid;

    const KEY: SectionKey = SectionKey::Group(Uuid::nil());

    fn check(steps: &[(&[u8], &[u8])], start: &[u8], expect: &[u8]) {
        let of = |list: &[u8]| {
            list.iter().map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, *n))).collect::<BTreeSet<_>>()
        };
        let section = |list: &[u8]| Section::Group(Group { id: Uuid::nil(), members: of(list) });
        let one = |(come, gone): &(&[u8], &[u8])| Elements::Group { come: of(come), gone: of(gone) };
        let mut all = one(&steps[0]);
        steps[1..].iter().for_each(|step| together(&mut all, &one(step)));
        let mut document = Document { sections: [(KEY, section(start))].into(), ..Document::default() };
        assert!(document.patch(Patch { elements: [(KEY, all)].into(), ..Patch::default() }));
        assert_eq!(document.sections[&KEY], section(expect));
    }

    #[test]
    fn changes_of_a_set_are_put_together() {
        check(&[(&[1], &[]), (&[], &[1])], &[5], &[5]);
        check(&[(&[], &[1]), (&[1], &[])], &[1, 5], &[1, 5]);
        check(&[(&[1, 2], &[5]), (&[3], &[2]), (&[5], &[])], &[5], &[1, 3, 5]);
    }
}
