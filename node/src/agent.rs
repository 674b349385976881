//! The node's loop: follows the document, hands it to the machine, tells what is seen.
//!
//! ```text
//! plane --patches--> ledger --document--> machine --states--> observed --report--> plane
//! ```
//!
//! The two directions are apart: a plane that is away stops neither the guests nor their restarts. What fails is
//! tried again after `RETRY_MIN`, doubling up to `RETRY_MAX`.

use crate::ledger::Ledger;
use crate::link::{Link, Patches};
use crate::observed::Observed;
use crate::{Machine, Met};
use base::node::{DOCUMENT_WAIT_MAX, Document, Generation, Hello, Known, Patch, Patched};
use base::program::Runs;
use base::{Error, Kind, Result};
use futures_util::{FutureExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Tries that come sooner after each other are not said.
const SAID_FROM: Duration = Duration::from_millis(800);
/// A plane that does not answer a question for so long is away.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// As long as this nothing comes of a document's answer, and the plane is away.
const SILENCE_MAX: Duration = DOCUMENT_WAIT_MAX.saturating_add(ANSWER_MAX);
/// Patches that are kept and acted on together.
const PATCHES_MAX: usize = 256;
/// A plane whose answer ends at once with nothing new is asked again after this long.
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
        let generation = ledger.document().generation;
        match listen(link, &mut ledger, with, machine, &mut retry, SILENCE_MAX).await? {
            Ok(next) => with = next,
            Err(error) => {
                // The next one to answer may be another process.
                with = With::Sum;
                retry.wait("the plane has not given a document", &error).await;
            }
        }
        if generation == ledger.document().generation && asked.elapsed() < IDLE_MIN {
            tokio::time::sleep(IDLE_MIN).await;
        }
    }
}

/// What a node says of its document when it asks for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Generation,
    Sum,
    /// It wants all of it.
    Nothing,
}

/// One question, and all patches of its answer. The outer error is the node's own.
async fn listen(
    link: &Link,
    ledger: &mut Ledger,
    with: With,
    machine: &mut Machine,
    retry: &mut Retry,
    silence_max: Duration,
) -> Result<Result<With>> {
    let document = ledger.document();
    let known = match with {
        With::Generation => document.generation.into(),
        With::Sum => Known { sum: Some(document.sum()), ..document.generation.into() },
        With::Nothing => Known::default(),
    };
    let known = Known { order: Some(machine.inner().last_order()), ..known };
    let answer = limited(silence_max, link.document(known, DOCUMENT_WAIT_MAX));
    let mut patches = match settled(machine, document, answer).await {
        Ok(patches) => patches,
        Err(error) => return Ok(Err(error)),
    };
    let mut told = false;
    loop {
        let next = limited(silence_max, patches.try_next());
        let first = match settled(machine, ledger.document(), next).await {
            Ok(Some(patch)) => patch,
            Ok(None) if told => return Ok(Ok(With::Generation)),
            Ok(None) => return Ok(Err(Error::unavailable("the plane's answer is empty"))),
            Err(error) => return Ok(Err(error)),
        };
        told = true;
        *retry = Retry(RETRY_MIN);
        let (mut ready, end) = with_more(first, &mut patches);
        for order in ready.iter_mut().filter_map(|patch| patch.order.take()) {
            machine.inner().order.send_replace(Some(order));
        }
        let before = ledger.document().clone();
        let patched = ledger.patch(ready).await?;
        if !Arc::ptr_eq(&before, ledger.document()) {
            machine.act(&before, ledger.document()).await?;
        }
        match patched {
            Patched::Taken => {}
            // What comes behind it continues from what is not here.
            Patched::Older => return Ok(Ok(With::Generation)),
            Patched::Astray => {
                tracing::warn!("the document is another than the plane's: it is asked for as a whole");
                return Ok(Ok(With::Nothing));
            }
        }
        if let Some(end) = end {
            return Ok(end.map(|()| With::Generation));
        }
    }
}

/// A patch and those that have come behind it; how the answer ends, where it does there.
fn with_more(first: Patch, patches: &mut Patches) -> (Vec<Patch>, Option<Result<()>>) {
    let mut ready = vec![first];
    while ready.len() < PATCHES_MAX {
        match patches.try_next().now_or_never() {
            Some(Ok(Some(patch))) => ready.push(patch),
            Some(Ok(None)) => return (ready, Some(Ok(()))),
            Some(Err(error)) => return (ready, Some(Err(error))),
            None => break,
        }
    }
    (ready, None)
}

/// What the plane says next; the machine settles meanwhile.
async fn settled<T>(
    machine: &mut Machine,
    document: &Arc<Document>,
    answer: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = machine.settle(document) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Node, Settings, Simulated};
    use futures_util::StreamExt;
    use futures_util::stream::{iter, pending};
    use std::net::Ipv4Addr;
    use std::sync::Mutex;
    use uuid::Uuid;

    fn patch(epoch: u64, revision: u64) -> Patch {
        Patch { generation: Generation { epoch, revision }, ..Patch::default() }
    }

    /// One question, answered by `lines` and then by `end`; what comes of it, and what the node has then.
    async fn check(lines: Vec<Result<Patch>>, silent: bool) -> (Result<With>, Generation) {
        let kind = Simulated::default();
        let address = Ipv4Addr::LOCALHOST.into();
        let node = Node::new(Settings::simulated("a", Uuid::nil(), address, kind.clone()));
        let lines = Mutex::new(Some(lines));
        let link = Link::new(
            async |_| Ok(()),
            move |_, _| {
                let lines = iter(lines.lock().unwrap().take().unwrap());
                async move {
                    let patches: Patches = match silent {
                        true => Box::pin(lines.chain(pending())),
                        false => Box::pin(lines),
                    };
                    Ok(patches)
                }
            },
            async |_| Ok(()),
            async |_| Err(Error::not_found("no image")),
        );
        let (mut machine, mut ledger, _) = node.simulated(&kind).await.unwrap();
        let (mut retry, silence_max) = (Retry(RETRY_MIN), Duration::from_millis(50));
        let next =
            listen(&link, &mut ledger, With::Sum, &mut machine, &mut retry, silence_max).await.unwrap();
        assert_eq!(node.document().borrow().generation, ledger.document().generation, "it acted on all");
        (next, ledger.document().generation)
    }

    #[tokio::test]
    async fn each_patch_of_an_answer_is_taken_and_its_end_tells_how_to_ask() {
        let at = |revision| Generation { epoch: 2, revision };
        let (next, has) = check(vec![Ok(patch(2, 5)), Ok(patch(2, 5)), Ok(patch(2, 9))], false).await;
        assert_eq!((next.unwrap(), has), (With::Generation, at(9)));
        // What is older than what it has is another plane's, and so is what comes behind it.
        let (next, has) = check(vec![Ok(patch(2, 5)), Ok(patch(1, 8)), Ok(patch(2, 9))], false).await;
        assert_eq!((next.unwrap(), has), (With::Generation, at(5)));
        let astray = Patch { sum: Some(7), ..patch(2, 6) };
        let (next, has) = check(vec![Ok(patch(2, 5)), Ok(astray), Ok(patch(2, 9))], false).await;
        assert_eq!((next.unwrap(), has), (With::Nothing, at(5)));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_empty_or_falls_silent_is_an_error() {
        let at = |revision| Generation { epoch: 2, revision };
        let (next, has) = check(vec![Ok(patch(2, 5)), Err(Error::unavailable("cut"))], false).await;
        assert_eq!((next.unwrap_err().message(), has), ("cut", at(5)));
        let (next, _) = check(vec![], false).await;
        assert!(next.unwrap_err().message().contains("empty"));
        for lines in [vec![], vec![Ok(patch(2, 5))]] {
            let (next, _) = check(lines, true).await;
            assert!(next.unwrap_err().message().contains("does not answer"));
        }
    }
}
