//! Loops: each keeps one thing true, reads what is, takes one bounded step, and says when to look again.

use crate::Result;
use std::future::Future;
use std::time::Duration;
use tokio::sync::Notify;

/// When a pass wants to run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to do now.
    Again,
    /// Nothing before this long, or before a signal.
    After(Duration),
    /// At its usual interval, or on a signal.
    Usual,
}

/// One loop, named for what it keeps true.
pub trait Pass: Send {
    const NAME: &'static str;
    const EVERY: Duration;

    fn pass(&mut self) -> impl Future<Output = Result<Next>> + Send;
}

/// A failed pass waits this long, doubling up to `RETRY_MAX`.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Runs a loop until its task is dropped. `wake` makes it look at once; the timer guarantees that it looks.
pub async fn run<P: Pass>(mut pass: P, wake: &Notify) {
    let mut retry = RETRY_MIN;
    loop {
        let wait = match pass.pass().await {
            Ok(Next::Again) => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Next::After(wait)) => wait,
            Ok(Next::Usual) => P::EVERY,
            Err(error) => {
                tracing::warn!(pass = P::NAME, "{}", error.chain());
                retry = (retry * 2).min(RETRY_MAX);
                tokio::time::sleep(retry).await;
                continue;
            }
        };
        retry = RETRY_MIN;
        tokio::select! {
            _ = wake.notified() => {}
            _ = tokio::time::sleep(wait) => {}
        }
    }
}
