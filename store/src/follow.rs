//! A follower: the state of a cell that another process writes, kept up with the engine's log.
//!
//! It asks the engine and nobody else, so it needs no word from the owner and goes on when the owner is gone. A read
//! waits until the follower has what was durable when the read arrived; one question to the engine answers all reads
//! that wait. A follower that stands by takes the cell when it may.

use crate::engine::{Engine, Logged, Tail};
use crate::lane::{Lane, Shared};
use crate::lease::{Candidate, Losses, Sign};
use crate::load::load;
use crate::log::{Entry, Revision, Written};
use crate::record::Derived;
use crate::state::State;
use crate::watch::DONE_MAX;
use base::secret::with_cipher;
use base::{Error, Result, Timestamp};
use std::sync::Arc;

/// Entries that are asked for at once.
const TAIL_MAX: usize = 1_000;
/// Entries before a load in which done mutations are looked for: those of this time, in parts of so many, up to
/// `watch::DONE_MAX`. The door asks for thirty seconds.
const DONE_S: i64 = 40;
const DONE_PART: u64 = 2_048;

pub(crate) struct Follower {
    pub shared: Arc<Shared>,
    pub engine: Box<dyn Engine>,
    state: State,
    derived: Vec<Box<dyn Derived>>,
    candidate: Candidate,
    /// It takes the cell when it may.
    pub standing_by: bool,
    /// Whoever owned the cell under this epoch has ended.
    pub died: Option<u64>,
}

impl Follower {
    /// Loads everything that the engine has.
    ///
    /// Errors: what the engine says; `Internal` when a stored record cannot be read.
    pub fn load(shared: Arc<Shared>, engine: Box<dyn Engine>) -> Result<Follower> {
        let state = State::empty(shared.schema.clone());
        let mut follower = Follower::over(shared, engine, state, Vec::new());
        follower.reload()?;
        Ok(follower)
    }

    /// Goes on from a state, after a time as the owner.
    pub fn after(
        shared: Arc<Shared>,
        engine: Box<dyn Engine>,
        derived: Option<Vec<Box<dyn Derived>>>,
        losses: Losses,
    ) -> Follower {
        let state = State::clone(&shared.published.state());
        let derived = derived.unwrap_or_else(|| state.derive());
        Follower { candidate: Candidate::after(losses), ..Follower::over(shared, engine, state, derived) }
    }

    fn over(
        shared: Arc<Shared>,
        engine: Box<dyn Engine>,
        state: State,
        derived: Vec<Box<dyn Derived>>,
    ) -> Follower {
        let candidate = Candidate::default();
        Follower { shared, engine, state, derived, candidate, standing_by: false, died: None }
    }

    fn reload(&mut self) -> Result<()> {
        let (mut state, head) = load(&self.shared, &mut *self.engine)?;
        (state.revision, state.epoch, state.time) = (head.revision, head.epoch, head.time);
        self.derived = state.derive();
        self.shared.published.restart(state.clone());
        self.state = state;
        self.note_done()
    }

    /// What was done shortly before is not to be done again.
    fn note_done(&mut self) -> Result<()> {
        let (newest, since) = (self.state.revision, self.state.time.plus_secs(-DONE_S));
        let (mut first, mut parts) = (newest, Vec::new());
        while first > 0 && newest - first < DONE_MAX as u64 {
            let to = first;
            first = to.saturating_sub(DONE_PART);
            let part = self.mutations(first, to)?;
            let oldest = part.first().map(|(_, time, _)| *time);
            parts.push(part);
            // A part that is not there was trimmed: all before it, too.
            if oldest.is_none_or(|oldest| oldest < since) {
                break;
            }
        }
        for (revision, _, mutation) in parts.into_iter().rev().flatten() {
            self.shared.published.done_before(&mutation, revision);
        }
        Ok(())
    }

    /// The entries after `after` up to `to` with their mutations, as far as the log reaches back.
    fn mutations(&mut self, after: Revision, to: Revision) -> Result<Vec<(Revision, Timestamp, String)>> {
        let (mut at, mut found) = (after, Vec::new());
        while at < to {
            let Tail::Entries(entries) = self.engine.tail(at, TAIL_MAX)? else {
                // It was trimmed: half of it will do.
                at += (to - at).div_ceil(2);
                continue;
            };
            let Some(last) = entries.last() else { break };
            at = last.revision;
            for entry in entries.iter().filter(|e| e.revision <= to) {
                let written = with_cipher(&self.shared.cipher, || Written::read(&entry.body))?;
                found.push((entry.revision, Timestamp(written.time), written.cause.mutation));
            }
        }
        Ok(found)
    }

    /// Follows the log to what is durable now.
    pub fn catch_up(&mut self) -> Result<Sign> {
        // One that was raised meanwhile: this version is out.
        self.shared.schema.check_format(self.state.format())?;
        let sign = self.engine.sign()?;
        if sign.revision < self.state.revision {
            return Err(Error::internal("the store is behind what it has shown"));
        }
        self.reach(sign.revision)?;
        Ok(sign)
    }

    fn reach(&mut self, revision: Revision) -> Result<()> {
        while self.state.revision < revision {
            match self.engine.tail(self.state.revision, TAIL_MAX)? {
                Tail::Entries(entries) if entries.is_empty() => break,
                Tail::Entries(entries) => {
                    let applied = |logged: &Logged| Ok(Arc::new(self.apply(logged)?));
                    match entries.iter().map(applied).collect() {
                        Ok(followed) => self.shared.published.publish(self.state.clone(), followed),
                        Err(error) => {
                            // None of them is skipped: it stays behind, and says why each time.
                            self.state = State::clone(&self.shared.published.state());
                            self.derived = self.state.derive();
                            return Err(error);
                        }
                    }
                }
                Tail::Trimmed => {
                    tracing::info!("the log was trimmed past {}: starting over", self.state.revision);
                    self.reload()?;
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, logged: &Logged) -> Result<Entry> {
        let Logged { revision, epoch, .. } = *logged;
        let written = with_cipher(&self.shared.cipher, || Written::read(&logged.body))?;
        let time = Timestamp(written.time);
        let seed = u128::from_str_radix(&written.seed, 16)
            .map_err(|e| Error::internal("a log entry has no seed").because(e))?;
        (self.state.revision, self.state.epoch, self.state.time) = (revision, epoch, time);
        let changes = with_cipher(&self.shared.cipher, || self.state.apply(&written.changes))?;
        changes.iter().for_each(|change| change.forth(&mut self.derived));
        Ok(Entry { revision, epoch, time, seed, cause: written.cause, changes })
    }

    /// Takes the cell if it may. False: another owns it.
    pub fn take(&mut self, sign: &Sign) -> Result<bool> {
        let now = (self.shared.options.monotonic)();
        let dead = self.died == Some(sign.epoch);
        let may = self.candidate.may_take(sign, now) || dead || self.engine.abandoned();
        if !may {
            return Ok(false);
        }
        let sent = (self.shared.options.monotonic)();
        let Some(head) = self.engine.take(&self.shared.options.owner, sign.epoch)? else { return Ok(false) };
        self.reach(head.revision)?;
        self.shared.schema.check_format(self.state.format())?;
        if self.state.revision != head.revision {
            return Err(Error::internal(format!("the log ends before revision {}", head.revision)));
        }
        self.state.epoch = head.epoch;
        self.shared.published.publish(self.state.clone(), Vec::new());
        self.shared.published.take_over();
        self.shared.lease.confirmed(sent);
        tracing::info!("owns the cell under epoch {} from revision {}", head.epoch, head.revision);
        Ok(true)
    }

    /// The lane of a cell that was taken.
    pub fn into_lane(self) -> (Lane, Box<dyn Engine>) {
        let lane = Lane::new(self.shared, self.engine.limits(), self.state, self.derived);
        (lane, self.engine)
    }
}
