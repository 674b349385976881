//! Password hashes: bcrypt on threads of its own, with a bound on how many may wait.
//!
//! Limits: `WAITING_MAX` hashes waiting; one more is `Unavailable`. Passwords longer than bcrypt reads are digested first.

use base::{Error, Result, Secret};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::oneshot;

/// Hashes that may wait for a thread.
pub const WAITING_MAX: usize = 64;
/// What bcrypt reads of a password, its closing zero not counted.
const BCRYPT_MAX: usize = 71;

type Work = Box<dyn FnOnce() + Send>;

/// The pool. Its threads end with the last handle.
#[derive(Clone)]
pub struct Hasher {
    queue: SyncSender<Work>,
    cost: u32,
    /// What an unknown user's password is compared with, so that the answer takes as long.
    decoy: Arc<OnceLock<String>>,
}

impl Hasher {
    pub fn new(cost: u32, threads: usize) -> Hasher {
        let (queue, work) = sync_channel::<Work>(WAITING_MAX);
        let work = Arc::new(Mutex::new(work));
        for _ in 0..threads.max(1) {
            let work = work.clone();
            let started = std::thread::Builder::new().name("hash".into()).spawn(move || serve(&work));
            started.expect("a thread can be started at the start of the process");
        }
        Hasher { queue, cost: cost.clamp(4, 31), decoy: Arc::default() }
    }

    async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        // Nobody may wait for the answer any more.
        let work: Work = Box::new(move || drop(answer.send(f())));
        self.queue.try_send(work).map_err(|e| match e {
            TrySendError::Full(_) => Error::unavailable("Too many logins at once; try again in a moment."),
            TrySendError::Disconnected(_) => Error::unavailable("The control plane is stopping."),
        })?;
        answered.await.map_err(|_| Error::internal("a password hash was lost"))
    }

    /// Errors: `Unavailable` when too many wait.
    pub async fn hash(&self, password: &str) -> Result<Secret> {
        let (password, cost) = (digested(password), self.cost);
        let hash = self.run(move || bcrypt::hash(password, cost)).await?;
        hash.map(Secret::new).map_err(|e| Error::internal("a password cannot be hashed").because(e))
    }

    /// Whether `password` is the one behind `hash`; without one it takes as long and is a no.
    pub async fn verify(&self, password: &str, hash: Option<&Secret>) -> Result<bool> {
        let (password, cost, decoy) = (digested(password), self.cost, self.decoy.clone());
        let hash = hash.map(|h| h.expose().to_string());
        self.run(move || {
            let known = hash.is_some();
            let hash = hash.unwrap_or_else(|| {
                decoy.get_or_init(|| bcrypt::hash("decoy", cost).unwrap_or_default()).clone()
            });
            bcrypt::verify(password, &hash).unwrap_or(false) && known
        })
        .await
    }
}

/// Hashes at once, in the caller's thread: for the first start and the command line.
pub fn hash_now(password: &str, cost: u32) -> Result<Secret> {
    let hash = bcrypt::hash(digested(password), cost.clamp(4, 31));
    hash.map(Secret::new).map_err(|e| Error::internal("a password cannot be hashed").because(e))
}

fn serve(work: &Mutex<Receiver<Work>>) {
    loop {
        let next = work.lock().expect("no holder panics").recv();
        let Ok(work) = next else { return };
        work();
    }
}

fn digested(password: &str) -> String {
    match password.len() > BCRYPT_MAX {
        true => STANDARD_NO_PAD.encode(Sha256::digest(password)),
        false => password.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_passwords_differ_beyond_what_bcrypt_reads_and_nobody_is_never_right() {
        let hasher = Hasher::new(4, 1);
        let (a, b) = ("x".repeat(80), "x".repeat(80) + "y");
        let hash = hasher.hash(&a).await.unwrap();
        assert!(hasher.verify(&a, Some(&hash)).await.unwrap());
        assert!(!hasher.verify(&b, Some(&hash)).await.unwrap());
        assert!(!hasher.verify("decoy", None).await.unwrap());
    }

    #[tokio::test]
    async fn waiting_is_bounded() {
        let hasher = Hasher::new(4, 1);
        let (block, blocked) = std::sync::mpsc::channel::<()>();
        let held = hasher.clone();
        let first = tokio::spawn(async move { held.run(move || blocked.recv().is_ok()).await });
        let mut waiting = Vec::new();
        let full = loop {
            let hasher = hasher.clone();
            let mut one = Box::pin(async move { hasher.run(|| true).await });
            match std::future::poll_fn(|cx| std::task::Poll::Ready(one.as_mut().poll(cx))).await {
                std::task::Poll::Ready(result) => break result,
                std::task::Poll::Pending => waiting.push(one),
            }
            assert!(waiting.len() <= WAITING_MAX + 1);
            tokio::task::yield_now().await;
        };
        assert_eq!(full.unwrap_err().kind(), base::Kind::Unavailable);
        block.send(()).unwrap();
        assert!(first.await.unwrap().unwrap());
    }
}
