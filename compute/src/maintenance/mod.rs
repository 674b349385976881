//! Maintenance of a node: its servers' owners are told, and at a deadline what still runs there is stopped.
//!
//! ```text
//! drain -> Scheduled --deadline--> Started --undrain--> Completed -> closed -> forgotten
//!              `--undrain--> Cancelled -> closed -> forgotten
//! ```
//!
//! A drain closes the node to new servers as `openstack compute service set --disable` does, and the end of it gives back
//! what the service was before. Each server of the node has an `Event` that goes the same way one step behind, kept up by
//! `drain`: what a step does to the server (it is stopped, it is started again) and that it was done are one transaction,
//! so that whichever plane owns the cell does it once. A server is started again only when the drain itself stopped it.
//! Those that their owners stop, delete or move are left alone; none of the node is started while it is `Started`.
//!
//! The records are of kinds that came with format `FORMAT`: before a rollout to it is finalised there is no drain.
//!
//! Each step of an event is told to whoever asked for it (`notice`), and the guest reads it from its node (`sections`).
//!
//! Limits: `DEADLINE_SECS_MAX`, `REASON_MAX`; `drain` has those of a step, and how long what ended is remembered.
//!
//! Deliberately absent: moving servers away (there is no migration), an acknowledgement other than stopping or deleting.

pub mod drain;
pub mod notice;
pub mod rest;

use crate::server::Server;
use base::node::Power;
use base::{Context, Error, Id, IdKind, ProjectId, Result, Timestamp, UserId};
use fleet::Node;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// The format of records that brought these kinds (`store::format`).
pub const FORMAT: u32 = 2;
/// A deadline is at most this far away.
pub const DEADLINE_SECS_MAX: i64 = 30 * 24 * 3600;
/// Characters of a reason.
pub const REASON_MAX: usize = 200;
/// What is said when no reason was given.
const REASON: &str = "maintenance of the host";

/// One maintenance of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Maintenance {
    pub id: Id<Maintenance>,
    /// The node's name.
    pub node: String,
    pub reason: String,
    /// Who asked for it.
    pub user: UserId,
    pub begun: Timestamp,
    /// When servers that still run are stopped.
    pub deadline: Timestamp,
    /// When it is expected to be over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    pub stage: Stage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// What the node's service was before: the end gives it back.
    pub enabled_before: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason_before: Option<String>,
    /// It has ended, and so have its events.
    #[serde(default)]
    pub closed: bool,
    /// Notices that nobody took.
    #[serde(default)]
    pub untold: u64,
}

/// Where a maintenance is, and where the event of one server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Scheduled,
    /// The deadline is over.
    Started,
    /// It ended after the deadline.
    Completed,
    /// It ended before.
    Cancelled,
}

impl Stage {
    pub const fn word(self) -> &'static str {
        match self {
            Stage::Scheduled => "scheduled",
            Stage::Started => "started",
            Stage::Completed => "completed",
            Stage::Cancelled => "cancelled",
        }
    }

    pub const fn is_active(self) -> bool {
        match self {
            Stage::Scheduled | Stage::Started => true,
            Stage::Completed | Stage::Cancelled => false,
        }
    }

    /// What a server's event is to become next on its way to where its maintenance is; none: it is there, or nobody was
    /// told of anything.
    pub const fn next(event: Option<Stage>, maintenance: Stage) -> Option<Stage> {
        match (event, maintenance) {
            (None, Stage::Scheduled | Stage::Started) => Some(Stage::Scheduled),
            (None, Stage::Completed | Stage::Cancelled) => None,
            (Some(Stage::Scheduled), Stage::Scheduled) => None,
            (Some(Stage::Scheduled), to) => Some(to),
            (Some(Stage::Started), Stage::Completed) => Some(Stage::Completed),
            // A maintenance does not go back.
            (Some(Stage::Started), Stage::Scheduled | Stage::Started | Stage::Cancelled) => None,
            (Some(Stage::Completed | Stage::Cancelled), _) => None,
        }
    }
}

/// What one maintenance is to one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub id: Id<Event>,
    pub maintenance: Id<Maintenance>,
    pub server: Id<Server>,
    /// The server's name, project and user, for what is told when it is gone.
    pub name: String,
    pub project: ProjectId,
    pub user: UserId,
    pub stage: Stage,
    /// The drain stopped the server, and nobody but its end starts it.
    #[serde(default)]
    pub stopped: bool,
    /// What is still to be told of it, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<notice::Notice>,
}

impl IdKind for Maintenance {}
impl IdKind for Event {}

pub const BY_NODE: Index<Maintenance> = Index::many("node", |m, keys| keys.push(m.node.key()));
pub const BY_MAINTENANCE: Index<Event> = Index::many("maintenance", |e, keys| keys.push(e.maintenance.key()));

impl Record for Maintenance {
    const KIND: &'static str = "maintenance";
    type Key = Id<Maintenance>;
    const INDEXES: &'static [Index<Maintenance>] = &[BY_NODE];

    fn key(&self) -> Id<Maintenance> {
        self.id
    }
}

impl Record for Event {
    const KIND: &'static str = "maintenance_event";
    type Key = Id<Event>;
    const INDEXES: &'static [Index<Event>] = &[BY_MAINTENANCE];

    fn key(&self) -> Id<Event> {
        self.id
    }
}

/// The id of a server's event: known before there is a record of it, and the same on every plane.
pub fn event_id(maintenance: Id<Maintenance>, server: Id<Server>) -> Id<Event> {
    let hash = Sha256::new()
        .chain_update(maintenance.uuid().as_bytes())
        .chain_update(server.uuid().as_bytes())
        .finalize();
    Id::from_random(u128::from_be_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes")))
}

/// The maintenance that a node is in, or that is to come.
pub fn active<'a>(state: &'a State, node: &str) -> Option<&'a Arc<Maintenance>> {
    state.by(&BY_NODE, node).find(|m| m.stage.is_active())
}

/// Errors: `Conflict` when the server's node is being worked on.
pub fn may_start(state: &State, server: &Server) -> Result<()> {
    let started = server.host.as_deref().and_then(|host| active(state, host));
    match started.filter(|m| m.stage == Stage::Started) {
        Some(m) => Err(Error::conflict(format!(
            "Instance {} cannot be started: its host is in maintenance since {}",
            server.id,
            m.deadline.zulu()
        ))),
        None => Ok(()),
    }
}

/// What a drain is asked for with.
#[derive(Clone, Debug)]
pub struct Drain {
    pub deadline: Timestamp,
    pub until: Option<Timestamp>,
    pub reason: Option<String>,
}

fn node_of(state: &State, name: &str) -> Result<Arc<Node>> {
    let missing = || Error::not_found(format!("Node {} could not be found.", name.escape_default()));
    fleet::node::named(state, name).cloned().ok_or_else(missing)
}

/// Closes a node to new servers and schedules its maintenance; what it is drained for already where it is.
///
/// Errors: `NotFound`; `Invalid` for a deadline that is over or too far away; `Conflict` while a version that does not
/// know maintenance may come back.
pub fn drain(tx: &mut Tx, cx: &Context, name: &str, asked: &Drain) -> Result<Arc<Maintenance>> {
    if tx.format() < FORMAT {
        return Err(Error::conflict(format!(
            "A drain needs records of format {FORMAT}, these are of format {}: `shisa plane finalise`, after a rollout \
             to this version, raises it.",
            tx.format()
        )));
    }
    let node = node_of(tx, name)?;
    if let Some(active) = active(tx, name) {
        return Ok(active.clone());
    }
    let (now, deadline) = (tx.now(), asked.deadline);
    if deadline <= now || deadline > now.plus_secs(DEADLINE_SECS_MAX) {
        let days = DEADLINE_SECS_MAX / 86_400;
        return Err(Error::invalid(format!(
            "The deadline {} is not within the next {days} days.",
            deadline.zulu()
        )));
    }
    if asked.until.is_some_and(|until| until <= deadline) {
        return Err(Error::invalid("The end of a maintenance comes after its deadline."));
    }
    let reason = asked.reason.clone().unwrap_or_else(|| REASON.into());
    if reason.is_empty() || reason.chars().count() > REASON_MAX || reason.chars().any(char::is_control) {
        return Err(Error::invalid(format!("A reason is one line of at most {REASON_MAX} characters.")));
    }
    let maintenance = Maintenance {
        id: tx.new_id(),
        node: name.into(),
        reason,
        user: cx.user(),
        begun: now,
        deadline,
        until: asked.until,
        stage: Stage::Scheduled,
        ended: None,
        enabled_before: node.enabled,
        disabled_reason_before: node.disabled_reason.clone(),
        closed: false,
        untold: 0,
    };
    let said = format!("Maintenance from {}: {}", deadline.zulu(), maintenance.reason);
    tx.update::<Node>(&node.id, |node| {
        (node.enabled, node.disabled_reason, node.updated) = (false, Some(said), now);
    })?;
    Ok(tx.put(maintenance)?)
}

/// Ends a node's maintenance and opens it again, unless its service was disabled before.
///
/// Errors: `NotFound`; `Conflict` when it has none.
pub fn undrain(tx: &mut Tx, name: &str) -> Result<Arc<Maintenance>> {
    let node = node_of(tx, name)?;
    let ended = end(tx, name)?.ok_or_else(|| Error::conflict(format!("Node {name} is not drained.")))?;
    let now = tx.now();
    tx.update::<Node>(&node.id, |node| {
        (node.enabled, node.updated) = (ended.enabled_before, now);
        node.disabled_reason.clone_from(&ended.disabled_reason_before);
    })?;
    Ok(ended)
}

/// Ends what maintenance a node is in.
pub(crate) fn end(tx: &mut Tx, name: &str) -> Result<Option<Arc<Maintenance>>> {
    let Some(active) = active(tx, name).cloned() else { return Ok(None) };
    let stage = match active.stage {
        Stage::Scheduled | Stage::Cancelled => Stage::Cancelled,
        Stage::Started | Stage::Completed => Stage::Completed,
    };
    let ended = Some(tx.now());
    Ok(tx.update::<Maintenance>(&active.id, |m| (m.stage, m.ended) = (stage, ended))?)
}

/// What the servers of a node are, as whoever drains it counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Left {
    pub servers: usize,
    /// Of them: those that run, or are on their way there.
    pub running: usize,
    /// Of them: those that the drain stopped, and its end starts.
    pub stopped: usize,
    /// Notices that somebody is still to take.
    pub waiting: usize,
}

pub fn left(state: &State, node: &str) -> Left {
    let maintenance = active(state, node);
    let mut left = Left::default();
    for server in state.by(&crate::server::BY_HOST, node) {
        left.servers += 1;
        left.running += usize::from(runs(server));
        let event = maintenance.and_then(|m| state.get::<Event>(&event_id(m.id, server.id)));
        left.stopped += usize::from(event.is_some_and(|event| event.stopped));
        left.waiting += event.map_or(0, |event| event.notices.len());
    }
    left
}

/// It runs, or will: so far as its node has said.
fn runs(server: &Server) -> bool {
    use base::node::VmState;
    match (server.observed.map(|o| o.state), server.desired) {
        (Some(VmState::Running | VmState::Paused | VmState::Building), Power::On | Power::Off) => true,
        (Some(VmState::Stopped | VmState::Failed) | None, Power::On) => true,
        (Some(VmState::Stopped | VmState::Failed) | None, Power::Off) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::*;

    #[test]
    fn an_event_goes_where_its_maintenance_is_and_never_back() {
        let check = |event, to, expect| assert_eq!(Stage::next(event, to), expect, "{event:?} to {to:?}");
        check(None, Scheduled, Some(Scheduled));
        // Whoever is told that it started is told before that it is to come.
        check(None, Started, Some(Scheduled));
        check(None, Completed, None);
        check(None, Cancelled, None);
        check(Some(Scheduled), Scheduled, None);
        check(Some(Scheduled), Started, Some(Started));
        check(Some(Scheduled), Completed, Some(Completed));
        check(Some(Scheduled), Cancelled, Some(Cancelled));
        check(Some(Started), Started, None);
        check(Some(Started), Completed, Some(Completed));
        for to in [Scheduled, Started, Completed, Cancelled] {
            check(Some(Completed), to, None);
            check(Some(Cancelled), to, None);
        }
    }
}
