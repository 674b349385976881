//! What is still to be told of an event, and to whom. The telling itself is done elsewhere: here is what is due, what it
//! says, and what becomes of it.
//!
//! ```text
//! waiting --answered--> gone
//!    |  ^--not answered, after a while
//!    `--not answered `TRIES_MAX` times, or of no use--> gone, and counted as untold
//! ```
//!
//! A receiver is told of one event in its order: of the next stage when it has answered, or missed, the one before.

use super::{Event, Maintenance, Stage};
use crate::server::Server;
use base::{Id, ProjectId, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{State, Tx};

/// The key of a server's metadata by which its owner names a receiver.
pub const KEY: &str = "maintenance_webhook";
/// About an hour.
pub const TRIES_MAX: u32 = 20;
/// The pause after the first try; it doubles.
const PAUSE_SECS_MIN: i64 = 1;
const PAUSE_SECS_MAX: i64 = 300;

/// A stage that somebody is to be told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub stage: Stage,
    pub to: Receiver,
    pub made: Timestamp,
    /// Tries so far.
    #[serde(default)]
    pub tries: u32,
    /// Not before this.
    pub due: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Receiver {
    /// Where the operator's webhook is, is the process's configuration.
    Operator,
    /// A URL, as the owner wrote it.
    Owner(String),
}

/// Whether there is an operator's webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Told,
    Untold,
}

/// Those who are to be told of a server's stage.
pub fn of(server: &Server, stage: Stage, operator: Operator, now: Timestamp) -> Vec<Notice> {
    let owner = server.metadata.get(KEY).map(|url| Receiver::Owner(url.clone()));
    let operator = (operator == Operator::Told).then_some(Receiver::Operator);
    let notice = |to| Notice { stage, to, made: now, tries: 0, due: now };
    operator.into_iter().chain(owner).map(notice).collect()
}

/// A notice that may be sent now.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    pub event: Id<Event>,
    pub project: ProjectId,
    pub notice: Notice,
    /// What it says.
    pub body: Value,
}

/// What may be sent now, the longest due first.
pub fn due(state: &State, now: Timestamp) -> Vec<Due> {
    let mut all: Vec<Due> = state.all::<Event>().flat_map(|event| due_of(state, event, now)).collect();
    all.sort_by_key(|due| (due.notice.due, due.event));
    all
}

fn due_of(state: &State, event: &Event, now: Timestamp) -> Vec<Due> {
    let Some(m) = state.get::<Maintenance>(&event.maintenance) else { return Vec::new() };
    let first =
        |n: &usize| !event.notices[..*n].iter().any(|before| is_same(&before.to, &event.notices[*n].to));
    let due = (0..event.notices.len()).filter(first).map(|n| &event.notices[n]).filter(|n| n.due <= now);
    let one = |notice: &Notice| Due {
        event: event.id,
        project: event.project,
        notice: notice.clone(),
        body: body(m, event, notice),
    };
    due.map(one).collect()
}

/// An owner is one receiver, also when the URL is another than before.
fn is_same(a: &Receiver, b: &Receiver) -> bool {
    matches!((a, b), (Receiver::Operator, Receiver::Operator) | (Receiver::Owner(_), Receiver::Owner(_)))
}

/// Nothing in it says which node it is: who shares one is not told.
fn body(m: &Maintenance, event: &Event, notice: &Notice) -> Value {
    json!({
        "id": event.id, "type": "maintenance", "state": notice.stage.word(), "code": "instance-stop",
        "server": {"id": event.server, "name": event.name}, "project_id": event.project, "user_id": event.user,
        "not_before": m.deadline.zulu(), "not_after": m.until.map(Timestamp::zulu), "reason": m.reason,
        "time": notice.made.zulu(),
    })
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    Unanswered,
    /// No other try would do better.
    Useless,
}

/// Notes what became of a try; whether it was the last one, in vain.
pub fn tried(tx: &mut Tx, of: &Due, outcome: Outcome) -> Result<bool> {
    let now = tx.now();
    let Some(event) = tx.get::<Event>(&of.event).cloned() else { return Ok(false) };
    let same = |n: &Notice| n.stage == of.notice.stage && n.to == of.notice.to;
    let Some(at) = event.notices.iter().position(same) else { return Ok(false) };
    let mut event = Event::clone(&event);
    let notice = &mut event.notices[at];
    notice.tries += 1;
    notice.due = now.plus_secs(pause(notice.tries));
    let vain = match outcome {
        Outcome::Answered => false,
        Outcome::Unanswered => notice.tries >= TRIES_MAX,
        Outcome::Useless => true,
    };
    if vain || outcome == Outcome::Answered {
        event.notices.remove(at);
    }
    if vain {
        tx.update::<Maintenance>(&event.maintenance, |m| m.untold += 1)?;
    }
    tx.put(event)?;
    Ok(vain)
}

/// Seconds after so many tries.
fn pause(tries: u32) -> i64 {
    let doubled = PAUSE_SECS_MIN.checked_shl(tries.saturating_sub(1)).filter(|secs| *secs > 0);
    doubled.unwrap_or(PAUSE_SECS_MAX).min(PAUSE_SECS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_all_tries_take_about_an_hour() {
        let pauses: Vec<i64> = (1..TRIES_MAX).map(pause).collect();
        assert_eq!(pauses[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(pauses.iter().sum::<i64>(), 511 + 10 * 300);
        assert_eq!(pause(u32::MAX), PAUSE_SECS_MAX);
    }
}
