//! The node's loop: follows the document, hands it to the machine, tells what is seen.
//!
//! ```text
//! plane --patch--> ledger --document--> machine --states--> observed --report--> plane
//! ```
//!
//! The two directions are apart: a plane that is away stops neither the guests nor their restarts. What fails is
//! tried again after `RETRY_MIN`, doubling up to `RETRY_MAX`.

use crate::ledger::Ledger;
use crate::link::Link;
use crate::observed::Observed;
use crate::{Machine, Met};
use base::node::{DOCUMENT_WAIT_MAX, Document, Generation, Hello, Known, Patch, Patched};
use base::program::Runs;
use base::{Error, Kind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Tries that come sooner after each other are not said.
const SAID_FROM: Duration = Duration::from_millis(800);
/// A plane that never answers a question is away: the long poll's time and this much more.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// A plane that answers at once with nothing new is asked again after this long.
const IDLE_MIN: Duration = Duration::from_millis(20);

struct Retry(Duration);

impl Retry {
    async fn wait(&mut self, what: &str, error: &Error) {
        // A switch of planes, or a take-over, is over by then.
        match self.0 < SAID_FROM {
            true => tracing::debug!("{what}: {}", error.chain()),
            false => tracing::warn!("{what}: {}", error.chain()),
        }
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY_MAX);
    }
}

async fn limited<T>(limit: Duration, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |e| Error::unavailable("the plane does not answer").because(e);
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|e| Err(late(e)))
}

/// Tells the plane what this node is, until it has heard it.
/// What it runs changes: then it is told again, for ever.
pub async fn greet(
    link: &Link,
    hello: Hello,
    mut runs: watch::Receiver<Option<Runs>>,
    met: &watch::Sender<Met>,
) {
    let mut retry = Retry(RETRY_MIN);
    loop {
        let hello = Hello { runs: runs.borrow_and_update().clone(), ..hello.clone() };
        if let Err(error) = limited(ANSWER_MAX, link.hello(hello)).await {
            retry.wait("the plane has not taken the hello", &error).await;
            continue;
        }
        met.send_modify(|met| met.greeted = true);
        retry = Retry(RETRY_MIN);
        if runs.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells what is seen, for ever.
pub async fn tell(link: &Link, observed: &Observed, met: &watch::Sender<Met>) {
    let mut retry = Retry(RETRY_MIN);
    loop {
        let report = observed.next().await;
        match limited(ANSWER_MAX, link.report(report.clone())).await {
            Ok(()) => {
                observed.taken();
                met.send_modify(|met| met.reported = true);
                retry = Retry(RETRY_MIN);
            }
            Err(error) => {
                observed.failed(&report);
                if error.kind() == Kind::Conflict {
                    observed.tell_all();
                }
                retry.wait("the plane has not taken a report", &error).await;
            }
        }
    }
}

/// Does what the document says, for ever; first what the ledger had of it.
///
/// A node that never had a document does nothing before the plane speaks: guests that it finds may be wanted.
pub async fn follow(link: &Link, mut ledger: Ledger, machine: &mut Machine) -> Result<()> {
    if ledger.document().generation > Generation::default() {
        machine.act(&Document::default(), ledger.document()).await?;
    }
    let mut retry = Retry(RETRY_MIN);
    let mut with = With::Sum;
    loop {
        let asked = tokio::time::Instant::now();
        match ask(link, ledger.document(), with, machine).await {
            Ok(mut patch) => {
                if let Some(order) = patch.order.take() {
                    machine.inner().order.send_replace(Some(order));
                }
                retry = Retry(RETRY_MIN);
                let before = ledger.document().clone();
                let patched = ledger.patch(patch).await?;
                with = With::Generation;
                match patched {
                    Patched::Taken if Arc::ptr_eq(&before, ledger.document()) => {}
                    Patched::Taken => {
                        machine.act(&before, ledger.document()).await?;
                        continue;
                    }
                    Patched::Older => {}
                    Patched::Astray => {
                        tracing::warn!(
                            "the document is another than the plane's: it is asked for as a whole"
                        );
                        with = With::Nothing;
                    }
                }
                if asked.elapsed() < IDLE_MIN {
                    tokio::time::sleep(IDLE_MIN).await;
                }
            }
            Err(error) => {
                // The next one to answer may be another process.
                with = With::Sum;
                retry.wait("the plane has not given a document", &error).await;
            }
        }
    }
}

/// What a node says of its document when it asks for the next.
#[derive(Clone, Copy)]
enum With {
    Generation,
    Sum,
    /// It wants all of it.
    Nothing,
}

/// One long poll; the machine settles meanwhile.
async fn ask(link: &Link, document: &Arc<Document>, with: With, machine: &mut Machine) -> Result<Patch> {
    let known = match with {
        With::Generation => document.generation.into(),
        With::Sum => Known { sum: Some(document.sum()), ..document.generation.into() },
        With::Nothing => Known::default(),
    };
    let known = Known { order: Some(machine.inner().last_order()), ..known };
    let poll = link.document(known, DOCUMENT_WAIT_MAX);
    let poll = limited(DOCUMENT_WAIT_MAX + ANSWER_MAX, poll);
    tokio::pin!(poll);
    loop {
        tokio::select! {
            answer = &mut poll => return answer,
            () = machine.settle(document) => {}
        }
    }
}
