//! Entries of the log tried again: another version runs the request on the state that it came upon, with the stamps it
//! had, and what it would change is compared with what was changed. Nothing is committed, whoever owns the cell.
//!
//! A request reads, within its trial, the state that its next write came upon, and after its writes what they left.
//! A write that changes nothing made no entry, so one is let pass wherever it comes.
//!
//! Limit: the states that are remembered (`watch::STATES_MAX`).

use crate::lane::Shared;
use crate::log::{Change, Entry, Revision};
use crate::record::Derived;
use crate::state::State;
use crate::tx::Tx;
use base::secret::with_cipher;
use base::{Error, Result};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

/// Fields that are named where changes differ.
const NAMED_MAX: usize = 5;

/// A field of a kind whose content is drawn outside of the transaction: it is not compared.
pub type Drawn = (&'static str, &'static str);

/// What came of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    Equal,
    /// How, in words that hold nothing of the records.
    Different(String),
}

/// Tries entries one after the other: oldest first is fastest.
pub struct Trials {
    shared: Arc<Shared>,
    drawn: &'static [Drawn],
    /// State that is no table, as of a revision.
    derived: Arc<Mutex<Option<Following>>>,
}

struct Following {
    at: Revision,
    derived: Vec<Box<dyn Derived>>,
}

struct Trial {
    shared: Arc<Shared>,
    drawn: &'static [Drawn],
    ahead: VecDeque<(Arc<Entry>, State)>,
    /// What reads see.
    state: State,
    derived: Arc<Mutex<Option<Following>>>,
    difference: Option<String>,
    refusal: Option<Error>,
}

tokio::task_local! {
    static TRIAL: Arc<Mutex<Trial>>;
}

/// The state that a request reads which is tried again.
pub(crate) fn state() -> Option<Arc<State>> {
    // While its write runs, the transaction is what is read.
    let read = |trial: &Arc<Mutex<Trial>>| trial.try_lock().ok().map(|trial| Arc::new(trial.state.clone()));
    TRIAL.try_with(read).ok().flatten()
}

/// A write of a request that is tried again; none outside of a trial.
pub(crate) fn write<T>(f: &dyn Fn(&mut Tx) -> Result<T>) -> Option<Result<T>> {
    TRIAL.try_with(|trial| trial.lock().expect("no holder panics").write(f)).ok()
}

/// Whether what is done now is a trial: nothing beside the records may be touched.
pub(crate) fn is_on() -> bool {
    TRIAL.try_with(|_| ()).is_ok()
}

impl Trials {
    pub(crate) fn new(shared: Arc<Shared>, drawn: &'static [Drawn]) -> Trials {
        Trials { shared, drawn, derived: Arc::default() }
    }

    /// The entries after `after` whose states are remembered, oldest first, at most `max`.
    pub fn entries(&self, after: Revision, max: usize) -> Vec<Arc<Entry>> {
        self.shared.published.remembered(after, max)
    }

    /// Whether the request of an entry wrote another one before it: then it is tried with that one.
    pub fn is_later(&self, entry: &Entry) -> bool {
        self.of(entry).first().is_some_and(|(first, _)| first.revision < entry.revision)
    }

    /// Every entry of one request. A step is on its own.
    fn of(&self, entry: &Entry) -> Vec<(Arc<Entry>, State)> {
        let published = &self.shared.published;
        match entry.cause.is_step() {
            true => published.remembered_of(|other| other.revision == entry.revision),
            false => published.remembered_of(|other| other.cause.id == entry.cause.id),
        }
    }

    /// Runs the request that made an entry, and compares.
    ///
    /// Errors: `NotFound` when the state that it came upon is no longer remembered.
    pub async fn again<F: Future>(&self, entry: &Entry, request: F) -> Result<(F::Output, Tried)> {
        let ahead: VecDeque<_> = self.of(entry).into();
        let Some((_, before)) = ahead.front() else {
            return Err(Error::not_found(format!("Revision {} is not remembered.", entry.revision)));
        };
        let trial = Trial {
            shared: self.shared.clone(),
            drawn: self.drawn,
            state: before.clone(),
            ahead,
            derived: self.derived.clone(),
            difference: None,
            refusal: None,
        };
        let trial = Arc::new(Mutex::new(trial));
        let output = TRIAL.scope(trial.clone(), request).await;
        let tried = trial.lock().expect("no holder panics").ended();
        Ok((output, tried))
    }
}

impl Trial {
    fn ended(&self) -> Tried {
        let refused = || self.refusal.as_ref().map(|e| format!(": {:?}", e.kind())).unwrap_or_default();
        match (&self.difference, self.ahead.front()) {
            (Some(difference), _) => Tried::Different(difference.clone()),
            (None, Some(_)) => Tried::Different(format!("does not make it{}", refused())),
            (None, None) => Tried::Equal,
        }
    }

    fn write<T>(&mut self, f: &dyn Fn(&mut Tx) -> Result<T>) -> Result<T> {
        let (mut state, time, seed) = match self.ahead.front() {
            Some((entry, before)) => (before.clone(), entry.time, entry.seed),
            None => (self.state.clone(), self.state.time, 0),
        };
        let mut following = derived_at(&self.shared, &self.derived, &state);
        let mut tx = Tx::begin(&mut state, &mut following.derived, time, seed);
        let ended = catch_unwind(AssertUnwindSafe(|| f(&mut tx)));
        let value = match ended {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                tx.abort();
                *self.derived.lock().expect("no holder panics") = Some(following);
                self.refusal = Some(Error::new(error.kind(), ""));
                return Err(error);
            }
            // Derived state may be half done: it is made anew.
            // Its text may hold anything.
            Err(_) => {
                self.difference = Some("panics".into());
                return Err(Error::internal("the transaction panicked"));
            }
        };
        let (changes, _) = tx.finish();
        changes.iter().rev().for_each(|change| change.back(&mut following.derived));
        *self.derived.lock().expect("no holder panics") = Some(following);
        if changes.is_empty() {
            return Ok(value);
        }
        (state.revision, state.time) = (state.revision + 1, time);
        self.compare(&changes)?;
        self.state = state;
        Ok(value)
    }

    /// Notes the first difference.
    fn compare(&mut self, changes: &[Change]) -> Result<()> {
        let Some((entry, _)) = self.ahead.pop_front() else {
            self.difference.get_or_insert_with(|| format!("changes {} besides", kinds(changes)));
            return Ok(());
        };
        let images = |changes: &[Change]| with_cipher(&self.shared.cipher, || self.images(changes));
        let (was, is) = (images(&entry.changes)?, images(changes)?);
        if was != is && self.difference.is_none() {
            self.difference = Some(difference(&was, &is));
        }
        Ok(())
    }

    fn images(&self, changes: &[Change]) -> Result<Images> {
        let mut images = Images::new();
        for change in changes {
            let value = change.after.as_ref().map(|after| {
                let mut body = Vec::new();
                self.shared.schema.kinds[change.slot].render(&**after, None, &mut body)?;
                serde_json::from_slice::<Value>(&body)
                    .map_err(|e| Error::internal("a record is no JSON").because(e))
            });
            let mut value = value.transpose()?;
            for (_, field) in self.drawn.iter().filter(|(kind, _)| *kind == change.kind) {
                if let Some(Value::Object(fields)) = &mut value {
                    fields.remove(*field);
                }
            }
            images.insert((change.kind, change.key.clone()), value);
        }
        Ok(images)
    }
}

/// After-images by kind and key; none where the record was deleted.
type Images = BTreeMap<(&'static str, Box<str>), Option<Value>>;

fn kinds(changes: &[Change]) -> String {
    let kinds: std::collections::BTreeSet<_> = changes.iter().map(|change| change.kind).collect();
    kinds.into_iter().collect::<Vec<_>>().join(", ")
}

fn difference(was: &Images, is: &Images) -> String {
    let mut said = Vec::new();
    for ((kind, _), _) in was.iter().filter(|(at, _)| !is.contains_key(*at)) {
        said.push(format!("leaves a {kind} as it was"));
    }
    for ((kind, _), _) in is.iter().filter(|(at, _)| !was.contains_key(*at)) {
        said.push(format!("changes a {kind} besides"));
    }
    for (at @ (kind, _), was) in was {
        match (was, is.get(at)) {
            (Some(was), Some(Some(is))) => {
                said.extend(differing(was, is).iter().map(|field| format!("writes another {kind}{field}")));
            }
            (Some(_), Some(None)) => said.push(format!("deletes a {kind}")),
            (None, Some(Some(_))) => said.push(format!("does not delete a {kind}")),
            (None, Some(None)) | (_, None) => {}
        }
    }
    said.dedup();
    said.truncate(NAMED_MAX);
    said.join(", ")
}

/// The fields in which two records differ. Those of a record are declared; what is further inside may be named by users.
fn differing(was: &Value, is: &Value) -> Vec<String> {
    let (Value::Object(a), Value::Object(b)) = (was, is) else { return vec![String::new()] };
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let of = |record: &Map<String, Value>, name: &str| record.get(name).cloned().unwrap_or_default();
    let differs = |name: &&String| of(a, name) != of(b, name);
    names.into_iter().filter(differs).map(|name| format!(".{name}")).collect()
}

/// Derived state as a transaction on `before` finds it: followed from where it stands if that is not far behind.
fn derived_at(shared: &Shared, kept: &Mutex<Option<Following>>, before: &State) -> Following {
    let at = before.revision;
    let kept = kept.lock().expect("no holder panics").take().filter(|kept| kept.at <= at);
    let followed = kept.and_then(|mut kept| {
        let between = shared.published.entries_between(kept.at, at)?;
        between.iter().flat_map(|e| &e.changes).for_each(|change| change.forth(&mut kept.derived));
        kept.at = at;
        Some(kept)
    });
    followed.unwrap_or_else(|| Following { at, derived: before.derive() })
}
