//! What is kept of all nodes' documents, as of one revision, and who waits for news of it.
//!
//! Limit: `LINES_MAX`.

use super::gathered::Gathered;
use super::kept::{Kept, Line, Sets};
use super::set::{Set, Step, is_set};
use base::node::{Elements, Generation, Patch, Section, SectionKey};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::task::Waker;
use store::{Revision, State, Watch};

/// Lines that are remembered for others.
const LINES_MAX: usize = 1_024;

/// Of a node.
pub type Name = Arc<str>;

/// By a generation, of which sets, and since when.
type Changes = (Generation, Vec<(SectionKey, Revision)>);

pub struct Inner {
    pub state: Arc<State>,
    /// How far the log was followed. `state` may be ahead of it, and what it is ahead by comes again: so nothing that
    /// comes later has a generation that a node has already.
    pub at: Revision,
    pub line: Line,
    pub watch: Option<Watch>,
    pub nodes: HashMap<Name, Kept>,
    pub sets: Sets,
    pub holders: HashMap<SectionKey, BTreeSet<Name>>,
    /// Nodes with changes that wait for others.
    pub gathered: Gathered,
    /// Those are to be woken when this is no longer held.
    pub awake: Vec<Waker>,
    /// What nodes with the same changes of sets are told, and nothing else, up to now.
    pub lines: HashMap<Changes, Bytes>,
}

/// A section as it was rendered for all who hold it, and whether it is what there was, for each version of that.
pub struct Rendered {
    section: Option<Arc<Section>>,
    compared: Vec<(Arc<Section>, bool)>,
}

impl Rendered {
    pub fn new(section: Option<Arc<Section>>) -> Rendered {
        Rendered { section, compared: Vec::new() }
    }

    /// Compared once for all holders of one version, who mostly are all.
    fn is(&mut self, before: &Arc<Section>) -> bool {
        if let Some((_, same)) = self.compared.iter().find(|(version, _)| Arc::ptr_eq(version, before)) {
            return *same;
        }
        let same = self.section.as_ref() == Some(before);
        self.compared.push((before.clone(), same));
        same
    }
}

/// JSON with the end of a line.
pub fn line(patch: &Patch) -> Bytes {
    let mut line = serde_json::to_vec(patch).expect("patches are plain data");
    line.push(b'\n');
    line.into()
}

impl Inner {
    pub fn new(state: Arc<State>, watch: Watch) -> Inner {
        let at = state.revision();
        Inner {
            at,
            line: Line::since(Generation { epoch: state.epoch(), revision: at }),
            state,
            watch: Some(watch),
            nodes: HashMap::new(),
            sets: HashMap::new(),
            holders: HashMap::new(),
            gathered: Gathered::default(),
            awake: Vec::new(),
            lines: HashMap::new(),
        }
    }

    pub fn shared_line(&mut self, name: &str, after: Generation, epoch: u64) -> Option<(Generation, Bytes)> {
        let kept = self.nodes.get(name).filter(|_| after.epoch == epoch)?;
        if kept.is_waited_for(after.revision) {
            return None;
        }
        let changed = kept.shared(&self.sets, after.revision).filter(|changed| !changed.is_empty())?;
        let revision = kept.newest(&self.sets);
        let key = (Generation { epoch, revision }, changed);
        if let Some(line) = self.lines.get(&key) {
            return Some((key.0, line.clone()));
        }
        let line = line(&kept.since(&self.sets, after.revision, epoch)?);
        if self.lines.len() >= LINES_MAX {
            self.lines.clear();
        }
        self.lines.insert(key.clone(), line.clone());
        Some((key.0, line))
    }

    /// A set as those have it who hold it already.
    pub fn set(&self, key: &SectionKey) -> Option<Arc<Section>> {
        self.sets.get(key).map(|set| set.section().clone())
    }

    /// What a log entry made of a set.
    pub fn put_elements(&mut self, key: &SectionKey, elements: Elements) {
        let Some(set) = self.sets.get_mut(key).filter(|_| !elements.is_empty()) else { return };
        let step = set.by(self.at, elements);
        self.tell_holders(key, &step);
    }

    /// A section that was rendered again.
    pub fn put_all(&mut self, key: &SectionKey, mut rendered: Rendered) {
        match (self.sets.get_mut(key), &rendered.section) {
            (Some(set), Some(section)) => {
                let step = set.to(self.at, section.clone());
                self.tell_holders(key, &step);
            }
            _ => {
                let holders = self.holders.get(key).cloned().unwrap_or_default();
                holders.iter().for_each(|host| self.put(host, key, &mut rendered));
            }
        }
    }

    /// Changes of sets wait for others; a set that is another is told at once.
    fn tell_holders(&mut self, key: &SectionKey, step: &Step) {
        let Some(holders) = self.holders.get(key) else { return };
        match step {
            Step::Same => {}
            Step::By(_) => self.gathered.insert(key.clone()),
            Step::Whole => holders.clone().iter().for_each(|host| self.tell(host)),
        }
    }

    /// The newest of a section for a node. A set that it has already is none of these.
    pub fn put(&mut self, host: &Name, key: &SectionKey, rendered: &mut Rendered) {
        let at = self.at;
        let Some(kept) = self.nodes.get_mut(host) else { return };
        if !is_set(key) {
            kept.touch(key, at);
        }
        match rendered.section.clone() {
            Some(section) if is_set(key) => {
                self.sets.entry(key.clone()).or_insert_with(|| Set::new(section, at));
                kept.hold(key, at);
            }
            Some(section) => match kept.section(key).is_some_and(|before| rendered.is(before)) {
                true => return,
                false => kept.put(key, section, at),
            },
            None => {
                if kept.remove(key, at) {
                    self.let_go(host, key);
                    self.tell(host);
                }
                return;
            }
        }
        self.holders.entry(key.clone()).or_default().insert(host.clone());
        self.tell(host);
    }

    pub fn tell(&mut self, host: &str) {
        if let Some(kept) = self.nodes.get_mut(host) {
            self.awake.extend(kept.tell(&self.sets));
        }
    }

    fn let_go(&mut self, host: &str, key: &SectionKey) {
        let Some(holders) = self.holders.get_mut(key) else { return };
        holders.remove(host);
        if holders.is_empty() {
            self.holders.remove(key);
            self.sets.remove(key);
        }
    }

    pub fn forget(&mut self, host: &str) {
        let Some(mut kept) = self.nodes.remove(host) else { return };
        kept.keys().for_each(|key| self.let_go(host, key));
        self.awake.extend(kept.wake());
    }

    pub fn begin_round(&mut self) {
        self.gathered.begin(&self.holders);
    }

    /// Tells the next of the round. Returns whether more are left.
    pub fn tell_some(&mut self) -> bool {
        self.gathered.next().iter().for_each(|host| self.tell(host));
        !self.gathered.is_over()
    }
}
