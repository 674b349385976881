//! Requests and steps of the log that this plane tries again on the records they came upon; nothing counts.
//!
//! ```text
//! entry of the log -> left, with a reason | tried -> equal | different, and how
//! ```
//!
//! Limits: what is remembered of the log (`store::Trials`), and `AT_ONCE_MAX` entries for one question.

use super::broken;
use super::services::Services;
use base::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use store::{Cause, Drawn, Entry, Tried};

/// Entries that one question looks at.
pub const AT_ONCE_MAX: usize = 25;

/// Fields whose content is drawn outside of the transaction: hashes with a salt of their own.
const DRAWN: &[Drawn] = &[("user", "passwords"), ("application_credential", "secret")];
/// Requests that are not tried: the beginning and end of what `Cause::route` says of them, and why.
const LEFT: [(&str, &str, &str); 3] = [
    ("POST", "/import", "what an image's import does goes on behind its answer"),
    ("POST", "/credentials/OS-EC2", "the credential is drawn outside of the transaction"),
    ("POST", "/join_tokens", "the token is drawn outside of the transaction"),
];
const UNKEPT: &str = "a version wrote it that did not keep what a request asked";
const PAIR: &str = "a key pair that the cloud makes is drawn outside of the transaction";

/// What is asked for: what came after a revision, or these.
#[derive(Default, Serialize, Deserialize)]
pub struct Question {
    pub after: u64,
    pub only: Vec<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    pub revision: u64,
    /// A client's request, or the name of a step.
    pub what: String,
    pub step: bool,
    /// A version wrote it that did not keep what a request asked: no candidate could try it.
    #[serde(default)]
    pub unkept: bool,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Equal,
    Different(String),
    /// Not tried, and why.
    Left(String),
    /// Tried with an earlier change of the same request.
    Counted,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Answer {
    /// What the next question comes after.
    pub reached: u64,
    /// The newest that this plane has.
    pub newest: u64,
    pub trials: Vec<Trial>,
}

pub async fn answer(services: &Services, question: &Question) -> Result<Answer> {
    let trials = services.cell.trials(DRAWN);
    let only: BTreeSet<u64> = question.only.iter().copied().collect();
    let after = only.first().map_or(question.after, |first| first.saturating_sub(1));
    let most = if only.is_empty() { AT_ONCE_MAX } else { usize::MAX };
    // Before the entries: one that arrives meanwhile is for the next question.
    let newest = services.cell.read().revision();
    let mut entries = trials.entries(after, most);
    entries.retain(|entry| only.is_empty() || only.contains(&entry.revision));
    entries.truncate(AT_ONCE_MAX);
    let reached = entries.last().map_or(question.after.max(newest), |entry| entry.revision);
    let mut answer = Answer { reached, newest, trials: Vec::new() };
    for entry in &entries {
        let outcome = match trials.is_later(entry) {
            true => Outcome::Counted,
            false => outcome(services, &trials, entry).await,
        };
        let (what, step) = (entry.cause.route.clone(), entry.cause.is_step());
        let unkept = !step && entry.cause.asked.is_none();
        answer.trials.push(Trial { revision: entry.revision, what, step, unkept, outcome });
    }
    Ok(answer)
}

async fn outcome(services: &Services, trials: &store::Trials, entry: &Entry) -> Outcome {
    let cause = &entry.cause;
    if let Some(why) = left(cause) {
        return Outcome::Left(why);
    }
    let tried = match cause.is_step() {
        true => trials.again(entry, services.step_again(cause)).await,
        false => trials.again(entry, broken::again(services, cause)).await,
    };
    match tried {
        // It says why it cannot even begin.
        Ok((Err(error), _)) => Outcome::Left(error.message().into()),
        Ok((Ok(()), Tried::Equal)) => Outcome::Equal,
        Ok((Ok(()), Tried::Different(how))) => Outcome::Different(how),
        Err(error) => Outcome::Left(error.message().into()),
    }
}

/// Why an entry is not tried, where that can be known before.
fn left(cause: &Cause) -> Option<String> {
    if cause.is_step() {
        let kept = cause.body.is_some();
        return (!kept).then(|| format!("the log does not keep what the step {} came upon", cause.route));
    }
    let is = |(method, end, _): &&(&str, &str, &str)| {
        cause.route.starts_with(method) && cause.route.ends_with(end)
    };
    if cause.asked.is_none() {
        return Some(UNKEPT.into());
    }
    if let Some((.., why)) = LEFT.iter().find(is) {
        return Some((*why).into());
    }
    let made = (cause.route.starts_with("POST") && cause.route.ends_with("/os-keypairs"))
        && cause.body.as_ref().is_none_or(|body| !body.expose().contains("\"public_key\""));
    made.then(|| PAIR.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Secret;
    use std::sync::Arc;

    #[test]
    fn what_cannot_be_tried_is_left_with_its_reason() {
        let check = |route: &str, body: Option<&str>, left_out: bool| {
            let (id, body) = ("req-1".into(), body.map(Secret::new));
            let cause =
                Cause { id, route: route.into(), body, asked: Some(Arc::default()), ..Cause::default() };
            assert_eq!(left(&cause).is_some(), left_out, "{route}");
            assert_eq!(left(&Cause { asked: None, ..cause }).as_deref(), Some(UNKEPT));
        };
        check("POST /v2.0/networks", Some("{}"), false);
        check("POST /v2/images/1/import", Some("{}"), true);
        check("POST /v2.1/os-keypairs", Some(r#"{"keypair": {"name": "a"}}"#), true);
        check("POST /v2.1/os-keypairs", Some(r#"{"keypair": {"name": "a", "public_key": "b"}}"#), false);
        check("DELETE /v2.1/os-keypairs/a", None, false);
        let step = |body: Option<Secret>| Cause { body, ..Cause::step("report") };
        assert!(left(&step(None)).is_some() && left(&step(Some(Secret::new("{}")))).is_none());
    }
}
