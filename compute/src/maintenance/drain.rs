//! The loop that carries maintenance out, one bounded step at a time: what there is to do is decided on the records alone.
//!
//! Limits: `SERVERS_MAX` servers a step, because a server's record may be large, `EVENTS_MAX` events; what ended is
//! remembered for `KEPT_SECS`.

use super::notice::{self, Operator};
use super::{BY_MAINTENANCE, Event, Maintenance, Stage, event_id};
use crate::server::{BY_HOST, Phase, Server, put};
use base::node::Power;
use base::pass::{Next, Pass};
use base::{Id, Result, Timestamp};
use std::time::Duration;
use store::{Cause, Cell, State, Tx};

/// Servers that one transaction stops or starts.
const SERVERS_MAX: usize = 5;
/// Events that one transaction forgets.
const EVENTS_MAX: usize = 500;
/// An ended maintenance is remembered for this long.
const KEPT_SECS: i64 = 30 * 24 * 3600;

/// Keeps what a drain asks for true.
pub struct DrainsCarriedOut {
    pub cell: Cell,
    pub operator: Operator,
}

impl Pass for DrainsCarriedOut {
    const NAME: &'static str = "drains_carried_out";
    const EVERY: Duration = Duration::from_millis(500);

    async fn pass(&mut self) -> Result<Next> {
        // A look without the lane: mostly there is nothing to do.
        if work(&self.cell.read(), Timestamp::wall()).is_none() {
            return Ok(Next::Usual);
        }
        let operator = self.operator;
        let more = self.cell.write(Cause::step(Self::NAME), move |tx| step(tx, operator)).await?;
        Ok(if more { Next::Again } else { Next::Usual })
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Work {
    /// The deadline is over.
    Start(Id<Maintenance>),
    /// The events of these servers go on, each to where it says.
    Events(Id<Maintenance>, Vec<(Id<Server>, Stage)>),
    /// Nobody is to be told of these any more.
    Forget(Vec<Id<Event>>),
    Close(Id<Maintenance>),
    Drop(Id<Maintenance>),
}

/// Earlier ones first: what one stopped it starts before the next one stops it.
fn work(state: &State, now: Timestamp) -> Option<Work> {
    let mut all: Vec<_> = state.all::<Maintenance>().collect();
    all.sort_by_key(|m| (m.begun, m.id));
    all.into_iter().find_map(|m| of(state, now, m))
}

fn of(state: &State, now: Timestamp, m: &Maintenance) -> Option<Work> {
    if m.closed {
        let over = m.ended.is_some_and(|ended| ended.plus_secs(KEPT_SECS) <= now);
        return over.then_some(Work::Drop(m.id));
    }
    if m.stage == Stage::Scheduled && m.deadline <= now {
        return Some(Work::Start(m.id));
    }
    let here = state.by(&BY_HOST, m.node.as_str()).filter(|s| s.phase == Phase::Settled);
    let due = here.filter_map(|server| {
        let event = state.get::<Event>(&event_id(m.id, server.id));
        Stage::next(event.map(|event| event.stage), m.stage).map(|next| (server.id, next))
    });
    let due: Vec<_> = due.take(SERVERS_MAX).collect();
    if !due.is_empty() {
        return Some(Work::Events(m.id, due));
    }
    if m.stage.is_active() {
        return None;
    }
    let events = || state.by(&BY_MAINTENANCE, m.id);
    let told = events().filter(|event| event.notices.is_empty()).map(|event| event.id);
    let told: Vec<_> = told.take(EVENTS_MAX).collect();
    match (told.is_empty(), events().next().is_none()) {
        (false, _) => Some(Work::Forget(told)),
        (true, true) => Some(Work::Close(m.id)),
        // Somebody is still to be told.
        (true, false) => None,
    }
}

/// Takes one step; whether there was one to take.
pub fn step(tx: &mut Tx, operator: Operator) -> Result<bool> {
    let Some(work) = work(tx, tx.now()) else { return Ok(false) };
    match work {
        Work::Start(id) => drop(tx.update::<Maintenance>(&id, |m| m.stage = Stage::Started)?),
        Work::Events(id, due) => {
            due.into_iter().try_for_each(|(server, stage)| advance(tx, id, server, stage, operator))?;
        }
        Work::Forget(events) => events.iter().for_each(|id| drop(tx.delete::<Event>(id))),
        Work::Close(id) => drop(tx.update::<Maintenance>(&id, |m| m.closed = true)?),
        Work::Drop(id) => drop(tx.delete::<Maintenance>(&id)),
    }
    Ok(true)
}

/// Does to a server what a stage means, and notes that it was done.
fn advance(
    tx: &mut Tx,
    maintenance: Id<Maintenance>,
    server: Id<Server>,
    stage: Stage,
    operator: Operator,
) -> Result<()> {
    let Some(server) = tx.get::<Server>(&server).cloned() else { return Ok(()) };
    let id = event_id(maintenance, server.id);
    let mut event = tx.get::<Event>(&id).map_or_else(
        || Event {
            id,
            maintenance,
            server: server.id,
            name: server.name.clone(),
            project: server.project,
            user: server.user,
            stage,
            stopped: false,
            notices: Vec::new(),
        },
        |event| Event::clone(event),
    );
    event.stage = stage;
    event.name.clone_from(&server.name);
    event.notices.extend(notice::of(&server, stage, operator, tx.now()));
    match stage {
        Stage::Started if server.desired == Power::On => {
            let mut server = Server::clone(&server);
            server.stop();
            put(tx, server)?;
            event.stopped = true;
        }
        Stage::Completed if event.stopped && server.desired == Power::Off => {
            let mut server = Server::clone(&server);
            server.start();
            put(tx, server)?;
            event.stopped = false;
        }
        Stage::Scheduled | Stage::Started | Stage::Completed | Stage::Cancelled => {}
    }
    tx.put(event)?;
    Ok(())
}
