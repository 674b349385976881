//! States of the past against a model that remembers each, and transactions that leave no trace.

use crate::log::{Cause, Entry, Revision, Written};
use crate::record::{Derived, Schema};
use crate::state::State;
use crate::tx::Tx;
use crate::watch::Published;
use crate::{Index, IndexPart, Record};
use base::Timestamp;
use base::id::ProjectId;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Thing {
    id: u32,
    name: u32,
    tags: Vec<u32>,
    size: i64,
}

const BY_NAME: Index<Thing> = Index::unique("name", |t, keys| keys.push(t.name.key()));
const BY_TAG: Index<Thing> = Index::many("tag", |t, keys| keys.extend(t.tags.iter().map(|tag| tag.key())));

fn owner(id: u32) -> ProjectId {
    ProjectId::from_random(u128::from(id % 3))
}

impl Record for Thing {
    const KIND: &'static str = "thing";
    type Key = u32;
    const INDEXES: &'static [Index<Thing>] = &[BY_NAME, BY_TAG];

    fn key(&self) -> u32 {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(owner(self.id), "size", self.size);
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Other {
    id: u32,
}

impl Record for Other {
    const KIND: &'static str = "other";
    type Key = u32;

    fn key(&self) -> u32 {
        self.id
    }
}

#[derive(Default)]
struct Total(i64);

impl Derived for Total {
    fn changed(&mut self, _: &'static str, before: Option<&dyn Any>, after: Option<&dyn Any>) {
        let size = |r: Option<&dyn Any>| r.and_then(|r| r.downcast_ref::<Thing>()).map_or(0, |t| t.size);
        self.0 += size(after) - size(before);
    }
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::default().record::<Thing>().record::<Other>().derived::<Total>())
}

/// One step of a transaction; what it names may not be there, or be taken.
#[derive(Clone, Debug)]
enum Step {
    Put(Thing),
    Grow(u32),
    Delete(u32),
    Touch(u32),
}

fn take(tx: &mut Tx, step: &Step) {
    // A refused put is to leave no trace either, and the transaction goes on.
    match step {
        Step::Put(thing) => drop(tx.put(thing.clone())),
        Step::Grow(id) => drop(tx.update::<Thing>(id, |thing| thing.size += 1)),
        Step::Delete(id) => drop(tx.delete::<Thing>(id)),
        Step::Touch(id) => drop(tx.put(Other { id: *id })),
    }
}

/// Everything that can be told of a state.
fn all(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    let things = state.table::<Thing>();
    let rows: Vec<_> =
        things.rows.iter().map(|(key, row)| (*key, (*row.record).clone(), row.unknown.clone())).collect();
    let index = |n: usize| things.index(n).iter().map(|(k, id)| (k.to_vec(), *id)).collect::<Vec<_>>();
    let sums: Vec<_> = (0..3).map(|n| state.sum(owner(n), "size")).collect();
    (
        (state.revision, state.epoch, state.time),
        (rows, index(0), index(1), sums),
        (state.all::<Other>().cloned().collect::<Vec<_>>(), state.count::<Other>()),
        (state.changed_at::<Thing>(), state.changed_at::<Other>()),
    )
}

/// A state with records that a newer version wrote.
fn begin(schema: &Arc<Schema>) -> State {
    let mut state = State::empty(schema.clone());
    (state.revision, state.epoch) = (7, 1);
    for id in 0..6 {
        let body = format!(r#"{{"id":{id},"name":{id},"tags":[{id},1],"size":{id},"new":{id}}}"#);
        let read = state.read(0, body.as_bytes()).unwrap();
        state.load(0, read);
    }
    state.index_all(0).unwrap();
    state
}

/// What the lane does with a transaction.
fn commit(state: &mut State, derived: &mut Vec<Box<dyn Derived>>, steps: &[Step]) -> Option<Arc<Entry>> {
    let time = Timestamp(state.time.0 + 1);
    let mut tx = Tx::begin(state, derived, time, 0);
    steps.iter().for_each(|step| take(&mut tx, step));
    let (changes, _) = tx.finish();
    if changes.is_empty() {
        return None;
    }
    (state.revision, state.time) = (state.revision + 1, time);
    let (revision, epoch) = (state.revision, state.epoch);
    Some(Arc::new(Entry { revision, epoch, time, seed: 0, cause: Cause::step("test"), changes }))
}

fn step() -> impl Strategy<Value = Step> {
    let thing = (0..8u32, 0..8u32, prop::collection::vec(0..4u32, 0..3), 0..5i64);
    prop_oneof![
        4 => thing.prop_map(|(id, name, tags, size)| Step::Put(Thing { id, name, tags, size })),
        2 => (0..8u32).prop_map(Step::Grow),
        2 => (0..8u32).prop_map(Step::Delete),
        1 => (0..4u32).prop_map(Step::Touch),
    ]
}

proptest! {
    #[test]
    fn what_fails_leaves_no_trace(before in prop::collection::vec(step(), 0..6), steps in prop::collection::vec(step(), 1..9)) {
        let schema = schema();
        let mut state = begin(&schema);
        let mut derived = state.derive();
        commit(&mut state, &mut derived, &before);
        let total = |derived: &[Box<dyn Derived>]| (&*derived[0] as &dyn Any).downcast_ref::<Total>().unwrap().0;
        let (was, published, sum) = (all(&state), state.clone(), total(&derived));
        for panics in [false, true] {
            let mut tx = Tx::begin(&mut state, &mut derived, Timestamp(9), 0);
            let ended = catch_unwind(AssertUnwindSafe(|| {
                steps.iter().for_each(|step| take(&mut tx, step));
                if panics {
                    std::panic::resume_unwind(Box::new("in the middle"));
                }
            }));
            prop_assert_eq!(ended.is_err(), panics);
            tx.abort();
            prop_assert_eq!(&all(&state), &was);
            prop_assert_eq!(total(&derived), sum);
        }
        // And none in what was published before, when it does not fail.
        commit(&mut state, &mut derived, &steps);
        prop_assert_eq!(&all(&published), &was);
    }

    #[test]
    fn one_who_follows_entries_or_the_log_has_what_the_owner_has(transactions in prop::collection::vec(prop::collection::vec(step(), 1..5), 1..12)) {
        let schema = schema();
        let mut state = begin(&schema);
        let (mut following, mut reading) = (state.clone(), state.clone());
        let mut derived = state.derive();
        for steps in &transactions {
            let Some(entry) = commit(&mut state, &mut derived, steps) else { continue };
            following.follow(&entry);
            prop_assert_eq!(all(&following), all(&state));
            let written = Written::read(&entry.encode(&schema).unwrap().body).unwrap();
            (reading.revision, reading.epoch, reading.time) = (entry.revision, entry.epoch, entry.time);
            reading.apply(&written.changes).unwrap();
            prop_assert_eq!(all(&reading), all(&state));
        }
    }
}

/// What is remembered when each state is: the limits of `watch`.
#[derive(Default)]
struct Model {
    ring: VecDeque<Revision>,
    before: VecDeque<(Revision, State)>,
    taken: BTreeMap<Revision, State>,
    taken_until: Revision,
}

impl Model {
    fn push(&mut self, revision: Revision, before: State, ring_max: usize) {
        if revision > self.taken_until {
            self.taken.clear();
        }
        self.ring.push_back(revision);
        self.before.push_back((revision, before));
        while self.ring.len() > ring_max {
            self.ring.pop_front();
        }
        while self.before.len() > 1_024.min(self.ring.len()) {
            self.before.pop_front();
        }
    }

    fn take_over(&mut self) {
        self.taken.extend(self.before.iter().cloned());
        while self.taken.len() > 4_096 {
            self.taken.pop_first();
        }
        self.taken_until = self.ring.back().map_or(0, |last| last + 16_384);
    }

    fn at(&self, revision: Revision) -> Option<&State> {
        self.ring.contains(&revision).then_some(())?;
        let recent = self.before.iter().find(|(r, _)| *r == revision).map(|(_, state)| state);
        recent.or_else(|| self.taken.get(&revision))
    }
}

fn check(seed: u64, ring_max: usize, batches: usize) {
    let (schema, mut drawn) = (schema(), seed);
    let mut draw = move |n: u64| {
        drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (drawn >> 33) % n
    };
    let mut state = begin(&schema);
    let mut derived = state.derive();
    let published = Published::new(State::empty(schema.clone()), ring_max);
    published.restart(state.clone());
    let mut model = Model::default();
    for _ in 0..batches {
        let size = [1, 3, 40, 600][draw(4) as usize];
        let mut entries = Vec::new();
        for _ in 0..size {
            let (id, name) = (draw(50) as u32, 100 + draw(1_000) as u32);
            let put = Step::Put(Thing { id, name, tags: vec![id % 5], size: 1 });
            let step = [put, Step::Grow(id), Step::Delete(id), Step::Touch(name)][draw(4) as usize].clone();
            let before = state.clone();
            if let Some(entry) = commit(&mut state, &mut derived, &[step]) {
                model.push(entry.revision, before, ring_max);
                entries.push(entry);
            }
        }
        published.publish(state.clone(), entries);
        if draw(4) == 0 {
            state.epoch += 1;
            published.publish(state.clone(), Vec::new());
            published.take_over();
            model.take_over();
        }
        for _ in 0..12 {
            let last = state.revision;
            let far = 1 << (1 + draw(14));
            let revision = last.saturating_sub(draw(far));
            let is = published.state_at(revision);
            match revision == last {
                true => assert_eq!(is.as_ref().map(all), Some(all(&state))),
                false => {
                    assert_eq!(is.as_ref().map(all), model.at(revision + 1).map(all), "{revision} of {last}")
                }
            }
        }
        let remembered = published.remembered_of(|entry| entry.revision % 97 == 0);
        let expected = model.before.iter().filter(|(revision, _)| revision % 97 == 0);
        assert!(remembered.iter().map(|(entry, _)| entry.revision).eq(expected.clone().map(|(r, _)| *r)));
        for ((_, is), (_, expect)) in remembered.iter().zip(expected) {
            assert_eq!(all(is), all(expect));
        }
    }
}

#[test]
fn states_of_the_past_are_as_if_each_was_remembered() {
    for (seed, ring_max) in [(1, 20_000), (2, 20_000), (3, 700), (4, 2)] {
        check(seed, ring_max, 30);
    }
    // Until what was taken over is forgotten.
    check(5, 20_000, 140);
}
