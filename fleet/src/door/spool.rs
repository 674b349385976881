//! A body that is larger than is kept in memory, on its way to a plane and so that it can be sent again.
//!
//! It goes to the plane as it comes, and beside that into a file without a name, which ends with the request. When another plane
//! takes over, what came so far is read from there, and the rest comes from the client.
//!
//! ```text
//! spooled --larger than SPOOL_MAX, or the disk has less than FREE_MIN, or cannot be written--> sent once
//! ```
//!
//! Limits: `SPOOL_MAX` for one body, `FREE_MIN` that is left to the disk, `CHUNK` read at a time.

use super::upstream::Sent;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Mutex;
use uuid::Uuid;

/// Bytes of one body that can be sent again.
pub const SPOOL_MAX: u64 = 16 << 30;
/// Bytes that stay free where the cloud's records may be, too.
pub const FREE_MIN: u64 = 2 << 30;
/// The disk is asked for its room once in so many bytes.
const ASK_EVERY: u64 = 64 << 20;
/// Bytes that are read from the file at a time.
const CHUNK: usize = 256 << 10;

/// Clones are handles to the same.
#[derive(Clone)]
pub(super) struct Spool {
    inner: Arc<Mutex<Inner>>,
    state: Arc<AtomicU8>,
}

/// What can be done with a body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// The whole can be sent again, also when some was.
    Kept = 0,
    Once = 1,
    /// The client does not send the rest.
    Ended = 2,
}

struct Inner {
    client: Incoming,
    state: Arc<AtomicU8>,
    /// None: it is sent once.
    file: Option<Arc<File>>,
    /// From the client, and not in the file yet: whoever waited for that may have gone.
    came: Option<Bytes>,
    /// How much came before that, all of it in the file while there is one.
    length: u64,
    whole: bool,
    room: u64,
}

impl Spool {
    /// `first` is what was read of the body already. Without a folder it is sent once.
    pub fn new(first: Bytes, client: Incoming, folder: Option<&Path>) -> Spool {
        let file = folder.and_then(|folder| {
            let file = nameless(folder);
            file.map_err(|e| tracing::warn!("an upload cannot be kept in {}: {e}", folder.display())).ok()
        });
        let (file, came) = (file.map(Arc::new), Some(first));
        let state = if file.is_some() { State::Kept } else { State::Once };
        let state = Arc::new(AtomicU8::new(state as u8));
        let inner = Inner { client, state: state.clone(), file, came, length: 0, whole: false, room: 0 };
        Spool { inner: Arc::new(Mutex::new(inner)), state }
    }

    pub fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Kept,
            1 => State::Once,
            _ => State::Ended,
        }
    }

    /// The body from its beginning.
    pub fn body(&self) -> Sent {
        let chunks = stream::try_unfold((self.inner.clone(), 0), |(inner, at)| async move {
            let next = inner.lock().await.next(at).await?;
            Ok(next.map(|bytes: Bytes| {
                let at = at + bytes.len() as u64;
                (Frame::data(bytes), (inner, at))
            }))
        });
        StreamBody::new(chunks).boxed_unsync()
    }
}

impl Inner {
    /// What is at a place of the body; none at its end. May be dropped at any time: nothing is lost.
    async fn next(&mut self, at: u64) -> Result<Option<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        loop {
            if at < self.length {
                let file = self.file.clone().ok_or("what came before is not kept")?;
                let length = CHUNK.min((self.length - at) as usize);
                return Ok(Some(tokio::task::spawn_blocking(move || read(&file, at, length)).await??));
            }
            if let Some(bytes) = self.came.clone() {
                self.keep(&bytes).await;
                self.length += bytes.len() as u64;
                self.came = None;
                return Ok(Some(bytes));
            }
            if self.whole {
                return Ok(None);
            }
            match self.client.frame().await {
                Some(Ok(frame)) => self.came = frame.into_data().ok().filter(|bytes| !bytes.is_empty()),
                Some(Err(error)) => {
                    self.state.store(State::Ended as u8, Ordering::SeqCst);
                    return Err(error.into());
                }
                None => self.whole = true,
            }
        }
    }

    /// Writes to the file, or gives it up.
    async fn keep(&mut self, bytes: &Bytes) {
        let Some(file) = self.file.clone() else { return };
        let (bytes, at, asks) = (bytes.clone(), self.length, self.length >= self.room);
        let kept = tokio::task::spawn_blocking(move || write(&file, at, &bytes, asks)).await;
        match kept.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(()) if asks => self.room = self.length + ASK_EVERY,
            Ok(()) => {}
            Err(error) => {
                tracing::warn!("an upload is sent once, after {} bytes: {error}", self.length);
                self.file = None;
                self.state.store(State::Once as u8, Ordering::SeqCst);
            }
        }
    }
}

fn nameless(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".upload-{}", Uuid::new_v4().simple()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn write(file: &File, at: u64, bytes: &[u8], asks: bool) -> io::Result<()> {
    if at + bytes.len() as u64 > SPOOL_MAX {
        return Err(io::Error::other(format!("it is larger than {SPOOL_MAX} bytes")));
    }
    if asks {
        let disk = rustix::fs::fstatvfs(file)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < FREE_MIN + ASK_EVERY {
            return Err(io::Error::other(format!("the disk has less than {FREE_MIN} bytes")));
        }
    }
    file.write_all_at(bytes, at)
}

fn read(file: &File, at: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.into())
}
