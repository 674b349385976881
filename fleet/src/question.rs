//! What the plane asks its nodes, and what they answer: memory of the owner.
//!
//! A node fetches its questions by a long poll. One that is not answered in `ANSWER_MAX` is forgotten.
//!
//! Limits: `QUESTIONS_MAX` waiting for a node.

use base::join::{Answer, Ask, Outcome, Question};
use base::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

pub const ANSWER_MAX: Duration = Duration::from_secs(10);
const QUESTIONS_MAX: usize = 64;

#[derive(Default)]
pub struct Questions {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    nodes: HashMap<String, Waiting>,
}

#[derive(Default)]
struct Waiting {
    asked: BTreeMap<u64, Asked>,
    wake: Arc<Notify>,
}

struct Asked {
    ask: Ask,
    told: bool,
    answer: oneshot::Sender<Outcome>,
}

impl Questions {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Asks a node.
    ///
    /// Errors: what the node says; `Unavailable` when it does not answer.
    pub async fn ask(&self, node: &str, ask: Ask) -> Result<String> {
        let silent = || Error::unavailable(format!("The node {node} does not answer."));
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut inner = self.inner();
            inner.last += 1;
            let id = inner.last;
            let waiting = inner.nodes.entry(node.into()).or_default();
            if waiting.asked.len() >= QUESTIONS_MAX {
                return Err(silent());
            }
            waiting.asked.insert(id, Asked { ask, told: false, answer });
            waiting.wake.notify_one();
            id
        };
        let outcome = tokio::time::timeout(ANSWER_MAX, answered).await;
        if let Some(waiting) = self.inner().nodes.get_mut(node) {
            waiting.asked.remove(&id);
        }
        match outcome.map_err(|e| silent().because(e))?.map_err(|e| silent().because(e))? {
            Outcome::Text(text) => Ok(text),
            Outcome::Absent(why) => Err(Error::not_found(why)),
            Outcome::Failed(why) => Err(Error::unavailable(why)),
        }
    }

    /// The questions that a node was not told yet, when there are some, or none after `wait`.
    pub async fn of(&self, node: &str, wait: Duration) -> Vec<Question> {
        let wake = self.inner().nodes.entry(node.into()).or_default().wake.clone();
        let some = async {
            loop {
                let questions = self.untold(node);
                if !questions.is_empty() {
                    return questions;
                }
                wake.notified().await;
            }
        };
        tokio::time::timeout(wait, some).await.unwrap_or_default()
    }

    fn untold(&self, node: &str) -> Vec<Question> {
        let mut inner = self.inner();
        let asked = inner.nodes.get_mut(node).into_iter().flat_map(|waiting| &mut waiting.asked);
        let new = asked.filter_map(|(id, asked)| {
            let told = std::mem::replace(&mut asked.told, true);
            (!told).then(|| Question { id: *id, ask: asked.ask.clone() })
        });
        new.collect()
    }

    /// A node's answer; to a question that was not put to it, or no longer waits, it is nothing.
    pub fn answer(&self, node: &str, answer: Answer) {
        let asked = self.inner().nodes.get_mut(node).and_then(|waiting| waiting.asked.remove(&answer.id));
        if let Some(asked) = asked {
            let _ = asked.answer.send(answer.outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn only_the_node_that_was_asked_answers() {
        let questions = Arc::new(Questions::default());
        let ask = Ask::Console { vm: Uuid::nil(), lines: None };
        let asking = tokio::spawn({
            let (questions, ask) = (questions.clone(), ask.clone());
            async move { questions.ask("a", ask).await }
        });
        let told = questions.of("a", Duration::from_secs(5)).await;
        assert_eq!(told.iter().map(|q| &q.ask).collect::<Vec<_>>(), [&ask]);
        assert!(questions.of("a", Duration::ZERO).await.is_empty());
        assert!(questions.of("b", Duration::ZERO).await.is_empty());
        let answer = |text: &str| Answer { id: told[0].id, outcome: Outcome::Text(text.into()) };
        questions.answer("b", answer("wrong"));
        questions.answer("a", answer("right"));
        assert_eq!(asking.await.unwrap().unwrap(), "right");
    }
}
