//! A body that is larger than is kept in memory, on its way to a plane and so that it can be sent again.
//!
//! It goes to the plane as it comes, and beside that into a file without a name, which ends with the request. When another plane
//! takes over, what came so far is read from there, and the rest comes from the client.
//!
//! ```text
//! spooled --larger than SPOOL_MAX, or the disk would have less than FREE_MIN, or cannot be written--> sent once
//! ```
//!
//! An upload is granted room on the disk before it writes there, of what no other upload was granted. Each door counts
//! for itself: one that drains beside this one is seen by what it wrote.
//!
//! Limits: `SPOOL_MAX` for one body, `FREE_MIN` that is left to the disk, `GRANT` ahead of what is written, `CHUNK` read at
//! a time.

use super::upstream::Sent;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex as Plain};
use tokio::sync::Mutex;
use uuid::Uuid;

/// Bytes of one body that can be sent again.
pub const SPOOL_MAX: u64 = 16 << 30;
/// Bytes that stay free where the cloud's records may be, too.
pub const FREE_MIN: u64 = 2 << 30;
/// An upload is granted so many bytes at a time.
const GRANT: u64 = 16 << 20;
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
    file: Option<Arc<Granted>>,
    /// From the client, and not in the file yet: whoever waited for that may have gone.
    came: Option<Bytes>,
    /// How much came before that, all of it in the file while there is one.
    length: u64,
    whole: bool,
}

/// What all uploads through a door were granted of the disk, and have not written yet.
#[derive(Default)]
pub(super) struct Room {
    granted: Plain<u64>,
}

/// The part of one upload; given back with it.
struct Grant {
    of: Arc<Room>,
    left: u64,
}

impl Grant {
    /// Makes sure of room for so many bytes more.
    fn need(&mut self, bytes: u64, free: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        if bytes <= self.left {
            return Ok(());
        }
        let more = bytes.max(GRANT);
        let mut granted = self.of.granted.lock().expect("no holder panics");
        if free()? < FREE_MIN + *granted + more {
            return Err(io::Error::other(format!("the disk would have less than {FREE_MIN} bytes")));
        }
        *granted += more;
        self.left += more;
        Ok(())
    }

    /// So many bytes are on the disk now.
    fn spend(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        *self.of.granted.lock().expect("no holder panics") -= bytes;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.spend(self.left);
    }
}

/// The file of one upload, and the room that it may still take.
struct Granted {
    file: File,
    grant: Plain<Grant>,
}

impl Spool {
    /// `first` is what was read of the body already. Without a folder it is sent once.
    pub fn new(first: Bytes, client: Incoming, folder: Option<&Path>, room: &Arc<Room>) -> Spool {
        let file = folder.and_then(|folder| {
            let file = Granted::new(folder, room);
            file.map_err(|e| tracing::warn!("an upload cannot be kept in {}: {e}", folder.display())).ok()
        });
        let (file, came) = (file.map(Arc::new), Some(first));
        let state = if file.is_some() { State::Kept } else { State::Once };
        let state = Arc::new(AtomicU8::new(state as u8));
        let inner = Inner { client, state: state.clone(), file, came, length: 0, whole: false };
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
                return Ok(Some(tokio::task::spawn_blocking(move || file.read(at, length)).await??));
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
        let (bytes, at) = (bytes.clone(), self.length);
        let kept = tokio::task::spawn_blocking(move || file.write(at, &bytes)).await;
        if let Err(error) = kept.unwrap_or_else(|e| Err(io::Error::other(e))) {
            tracing::warn!("an upload is sent once, after {} bytes: {error}", self.length);
            self.file = None;
            self.state.store(State::Once as u8, Ordering::SeqCst);
        }
    }
}

impl Granted {
    fn new(folder: &Path, room: &Arc<Room>) -> io::Result<Granted> {
        let grant = Grant { of: room.clone(), left: 0 };
        Ok(Granted { file: nameless(folder)?, grant: Plain::new(grant) })
    }

    /// May be done twice: whoever waited for the first time has gone.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if at + length > SPOOL_MAX {
            return Err(io::Error::other(format!("it is larger than {SPOOL_MAX} bytes")));
        }
        let mut grant = self.grant.lock().expect("no holder panics");
        grant.need(length, || {
            let disk = rustix::fs::fstatvfs(&self.file)?;
            Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
        })?;
        self.file.write_all_at(bytes, at)?;
        grant.spend(length);
        Ok(())
    }

    fn read(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes.into())
    }
}

fn nameless(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".upload-{}", Uuid::new_v4().simple()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_upload_was_granted_another_is_not() {
        let room = Arc::new(Room::default());
        let upload = || Grant { of: room.clone(), left: 0 };
        let [mut a, mut b, mut c] = [upload(), upload(), upload()];
        // Room for two grants.
        let mut free = FREE_MIN + 2 * GRANT + GRANT / 2;
        a.need(1, || Ok(free)).unwrap();
        b.need(GRANT, || Ok(free)).unwrap();
        assert!(c.need(1, || Ok(free)).unwrap_err().to_string().contains("the disk would have less than"));
        a.need(GRANT, || panic!("it was granted before")).unwrap();
        // What is written is not free any more, and not to be written any more.
        a.spend(GRANT);
        free -= GRANT;
        assert!(a.need(1, || Ok(free)).is_err() && c.need(1, || Ok(free)).is_err());
        // An upload that ends gives back what it did not use.
        b.spend(1);
        free -= 1;
        drop(b);
        c.need(GRANT + 1, || Ok(free)).unwrap();
        assert!(a.need(1, || Ok(free)).is_err());
        drop((a, c));
        assert_eq!(*room.granted.lock().unwrap(), 0);
    }
}
