//! The gate `changes`: what clients and nodes changed lately, tried again by the candidate on the records of then.
//!
//! A change that the candidate makes otherwise is tried by the active plane, too. Where that one does not repeat it
//! either, it depends on something that the log does not keep, and is counted as that; else the candidate is wrong.

use super::gates::Sides;
use crate::plane::again::{Answer, Outcome, Question, Trial};
use base::{Error, Result};
use hyper::Method;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Changes of clients after which there were enough.
const ENOUGH: usize = 50;
/// So long more of them are waited for,
const WAIT_MAX: Duration = Duration::from_secs(3);
/// and so long the trials themselves may take.
const TRY_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// With so many changes of clients that a version wrote which keeps what is tried, none that could be tried is no pass.
const FLOOR: usize = 10;
const LEFT_NAMED_MAX: usize = 8;

/// What was found.
#[derive(Default)]
struct Count {
    /// Of clients and of steps.
    equal: [usize; 2],
    seen: [usize; 2],
    /// Of those of clients: from versions that did not keep what is tried.
    unkept: usize,
    left: BTreeMap<String, usize>,
}

impl Sides<'_> {
    /// The same changes from the same requests.
    ///
    /// Errors: which request changes something else, and how; that none of many could be tried.
    pub async fn changes(&self) -> Result<String> {
        let (begin, mut count, mut at) = (Instant::now(), Count::default(), 0);
        loop {
            let question = Question { after: at, only: Vec::new() };
            let answer = self.again(self.new, &question).await?;
            let differ = count.take(&answer.trials);
            self.confirm(differ, &mut count).await?;
            let (there, over) = (answer.reached >= answer.newest, begin.elapsed());
            at = answer.reached;
            if over > TRY_MAX || (there && (count.equal[0] >= ENOUGH || over > WAIT_MAX)) {
                break;
            }
            if there {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        count.told()
    }

    async fn again(&self, name: &str, question: &Question) -> Result<Answer> {
        let answer = self.planes.ask(name, Method::POST, "/again", &json!(question), ANSWER_MAX).await?;
        serde_json::from_value(answer)
            .map_err(|e| Error::internal(format!("{name} does not say what it tried")).because(e))
    }

    /// Errors: the first of these that the active plane repeats as it was.
    async fn confirm(&self, differ: Vec<Trial>, count: &mut Count) -> Result<()> {
        if differ.is_empty() {
            return Ok(());
        }
        let question = Question { after: 0, only: differ.iter().map(|trial| trial.revision).collect() };
        let control = self.again(self.old, &question).await.map(|answer| answer.trials).unwrap_or_default();
        for trial in &differ {
            let repeated = control.iter().find(|of| of.revision == trial.revision).map(|of| &of.outcome);
            match (repeated, &trial.outcome) {
                (Some(Outcome::Different(_) | Outcome::Left(_)), _) => {
                    count.leave("the active plane does not repeat it either");
                }
                (Some(Outcome::Equal | Outcome::Counted) | None, Outcome::Different(how)) => {
                    return Err(Error::conflict(format!(
                        "the candidate changes something else at {} (revision {}): it {how}",
                        trial.what, trial.revision
                    )));
                }
                (Some(Outcome::Equal | Outcome::Counted) | None, _) => {}
            }
        }
        Ok(())
    }
}

impl Count {
    /// Those that are different.
    fn take(&mut self, trials: &[Trial]) -> Vec<Trial> {
        let mut differ = Vec::new();
        for trial in trials {
            let whose = usize::from(trial.step);
            self.seen[whose] += usize::from(trial.outcome != Outcome::Counted);
            self.unkept += usize::from(trial.unkept && matches!(trial.outcome, Outcome::Left(_)));
            match &trial.outcome {
                Outcome::Equal => self.equal[whose] += 1,
                Outcome::Different(_) => differ.push(trial.clone()),
                Outcome::Left(why) => self.leave(why),
                Outcome::Counted => {}
            }
        }
        differ
    }

    fn leave(&mut self, why: &str) {
        *self.left.entry(why.into()).or_default() += 1;
    }

    fn told(&self) -> Result<String> {
        let left: usize = self.left.values().sum();
        let reasons = self.left.iter().take(LEFT_NAMED_MAX).map(|(why, n)| format!("{n}: {why}"));
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        let could = self.seen[0] - self.unkept;
        if could >= FLOOR && self.equal[0] == 0 {
            return Err(Error::conflict(format!(
                "none of {could} changes of clients could be tried again ({reasons})"
            )));
        }
        let mut told = match self.seen[0] {
            0 => "no client changed anything since the candidate follows".to_string(),
            seen => format!("{} of {seen} changes of clients are equal when tried again", self.equal[0]),
        };
        told += &format!(", {} of {} of nodes and loops", self.equal[1], self.seen[1]);
        if left > 0 {
            told += &format!("; {left} left out ({reasons})");
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(outcome: Outcome, step: bool) -> Trial {
        Trial { revision: 7, what: "POST /v2.0/networks".into(), step, unkept: false, outcome }
    }

    #[test]
    fn what_is_left_out_is_counted_and_nothing_tried_of_many_is_no_pass() {
        let mut count = Count::default();
        let left = || trial(Outcome::Left("its body was a stream".into()), false);
        count.take(&[left()]);
        assert!(count.told().unwrap().contains("1 left out (1: its body was a stream)"));
        (1..FLOOR).for_each(|_| drop(count.take(&[left()])));
        assert!(count.told().unwrap_err().message().starts_with("none of 10 changes"));
        count.take(&[trial(Outcome::Equal, true)]);
        assert!(count.told().is_err());
        count.take(&[trial(Outcome::Equal, false), trial(Outcome::Counted, false)]);
        assert!(count.told().unwrap().starts_with("1 of 11 changes of clients are equal"));
        let differ = count.take(&[trial(Outcome::Different("deletes a network".into()), false)]);
        assert_eq!(differ.len(), 1);
    }

    #[test]
    fn what_a_version_before_did_not_keep_is_left_out_and_stops_nothing() {
        let mut count = Count::default();
        let before = || Trial { unkept: true, ..trial(Outcome::Left("it was not kept".into()), false) };
        (0..5 * FLOOR).for_each(|_| drop(count.take(&[before()])));
        let told = count.told().unwrap();
        assert!(told.starts_with("0 of 50 changes of clients") && told.contains("(50: it was not kept)"));
        (0..FLOOR).for_each(|_| drop(count.take(&[trial(Outcome::Left("why".into()), false)])));
        assert!(count.told().unwrap_err().message().starts_with("none of 10 changes"));
    }
}
