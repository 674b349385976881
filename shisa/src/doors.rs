//! The keeper of the front door: starts it as a process, hands it the listening sockets, replaces it by another binary.
//!
//! ```text
//! starts --ready, and a plane answers it--> serves beside the old one --for SETTLE--> serves alone
//! starts --ends, is silent, no plane answers it--> given up; the old one goes on as if nothing was
//! the old one --drains: finishes what was asked, closes what is quiet--> ended
//! ```
//!
//! This process holds the sockets and accepts nothing on them: a client that comes while no door is there waits in the
//! kernel. What the doors count is summed up here, and the routes that they follow are those of the planes' keeper. A
//! door that ends by itself is started again, later and later while none serves for long.
//!
//! Limits: `READY_MAX`, `DRAIN`, `STOP`, `DRAINING_MAX` doors that drain, `AGAIN_MAX` between two starts.

use crate::plane;
use crate::planes::{Planes, listen_to};
use crate::state::Directory;
use base::{Error, Result};
use fleet::door::{Drain, Orders, Ready};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex as Plain, MutexGuard};
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::{Mutex, Notify, watch};

/// From the start of a process to its word.
const READY_MAX: Duration = Duration::from_secs(15);
/// A new door serves beside the old one for so long before that one drains: if it ends meanwhile, the old one stays.
const SETTLE: Duration = Duration::from_secs(1);
/// How a door ends that another one follows: an image of many GB may be on its way.
const DRAIN: Drain = Drain { idle: Duration::from_secs(5), limit: Duration::from_secs(3600) };
/// Doors that finish what they were asked: a door is not replaced while so many do. Each may keep uploads on the disk.
const DRAINING_MAX: usize = 4;
/// How all end that are there when the cloud stops, also those that drain.
const STOP: Drain = Drain { idle: Duration::ZERO, limit: Duration::from_secs(10) };
/// Beyond its limit, and then it is killed.
const END_MAX: Duration = Duration::from_secs(2);
/// A door that ended by itself is started again after this, twice that at the next time, and so on up to `AGAIN_MAX`.
const AGAIN: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// A door that served for so long is started again as if for the first time.
const WELL: Duration = Duration::from_secs(5);

/// A door process, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub pid: u32,
    pub binary: PathBuf,
    pub version: String,
    /// Another one serves; it finishes what it has.
    pub draining: bool,
}

struct Process {
    pid: u32,
    binary: PathBuf,
    orders: watch::Sender<Orders>,
    ready: watch::Receiver<Option<Ready>>,
    ended: watch::Receiver<bool>,
    /// To whoever waits for the process: its number is nobody else's only until then.
    kill: Arc<Notify>,
    /// The last line that it wrote to stderr.
    said: Arc<Plain<String>>,
    served: Option<Instant>,
}

impl Process {
    fn serves(&self) -> bool {
        let orders = *self.orders.borrow();
        orders.serve && orders.drain.is_none()
    }

    fn drains(&self) -> bool {
        let orders = *self.orders.borrow();
        orders.serve && orders.drain.is_some()
    }
}

/// Clones are handles to the same.
#[derive(Clone)]
pub struct Doors {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    /// What every door is told: `--tls-cert FILE` and the like.
    words: Vec<OsString>,
    clients: TcpListener,
    near: UnixListener,
    planes: Planes,
    /// Those that are there, oldest first.
    there: Plain<Vec<Process>>,
    /// One thing at a time; true once they are stopped for good.
    turn: Mutex<bool>,
    /// Before the last start of a door that had ended by itself.
    pause: Plain<Duration>,
}

impl Doors {
    /// Starts the first one.
    ///
    /// Errors: what keeps it from serving.
    pub async fn open(
        directory: &Directory,
        clients: TcpListener,
        words: Vec<OsString>,
        planes: Planes,
        binary: &Path,
    ) -> Result<Doors> {
        std::fs::create_dir_all(directory.door())?;
        let near = plane::bind(&directory.door().join("api"))?.into_std()?;
        let inner = Inner {
            directory: directory.path().into(),
            words,
            clients,
            near,
            planes,
            there: Plain::default(),
            turn: Mutex::default(),
            pause: Plain::default(),
        };
        let doors = Doors { inner: Arc::new(inner) };
        let turn = doors.inner.turn.lock().await;
        doors.begin(binary).await?;
        drop(turn);
        Ok(doors)
    }

    fn there(&self) -> MutexGuard<'_, Vec<Process>> {
        self.inner.there.lock().expect("no holder panics")
    }

    pub fn list(&self) -> Vec<Seen> {
        let seen = |p: &Process| Seen {
            pid: p.pid,
            binary: p.binary.clone(),
            version: p.ready.borrow().as_ref().map(|ready| ready.version.clone()).unwrap_or_default(),
            draining: p.orders.borrow().drain.is_some(),
        };
        self.there().iter().filter(|p| p.orders.borrow().serve).map(seen).collect()
    }

    /// Replaces the door by another binary, or by the same in its newest form. What the old one was asked it finishes,
    /// for as long as `DRAIN` lets it; this does not wait for that.
    ///
    /// Errors: why the new one does not serve; then the old one does. `Conflict` when `DRAINING_MAX` doors drain.
    pub async fn upgrade(&self, binary: &Path) -> Result<Seen> {
        let turn = self.inner.turn.lock().await;
        if *turn {
            return Err(Error::unavailable("the cloud is stopping"));
        }
        let stays =
            |e: Error| Error::new(e.kind(), format!("the door stays as it is: {}", e.message())).because(e);
        if self.there().iter().filter(|door| door.drains()).count() >= DRAINING_MAX {
            return Err(stays(Error::conflict(format!(
                "{DRAINING_MAX} doors before it still finish what they were asked; `shisa plane list` shows them"
            ))));
        }
        let (pid, mut ended) = self.begin(binary).await.map_err(stays)?;
        if tokio::time::timeout(SETTLE, ended.wait_for(|ended| *ended)).await.is_ok() {
            return Err(stays(Error::unavailable(format!("{} ended while it served", binary.display()))));
        }
        let old = |door: &&Process| door.pid != pid && door.serves();
        self.there().iter().filter(old).for_each(|old| old.orders.send_modify(|to| to.drain = Some(DRAIN)));
        let seen = self.list().into_iter().find(|door| door.pid == pid);
        let seen = seen.ok_or_else(|| Error::unavailable("the new door ended; it is started again"))?;
        tracing::info!("the door is process {pid} of {}, version {}", seen.binary.display(), seen.version);
        Ok(seen)
    }

    /// Ends all doors: nothing is accepted any more, and what was asked is finished.
    pub async fn stop(&self) {
        *self.inner.turn.lock().await = true;
        let all: Vec<_> = {
            let there = self.there();
            there.iter().for_each(|door| door.orders.send_modify(|orders| orders.drain = Some(STOP)));
            there.iter().map(|door| (door.pid, door.kill.clone(), door.ended.clone())).collect()
        };
        let limit = Instant::now() + STOP.limit + END_MAX;
        for (pid, kill, mut ended) in all {
            if tokio::time::timeout_at(limit.into(), ended.wait_for(|ended| *ended)).await.is_err() {
                tracing::warn!("the door, process {pid}, does not end: it is killed");
                kill.notify_one();
            }
        }
        let _ = std::fs::remove_file(self.inner.directory.join("door/api"));
    }

    /// Starts a door and lets it serve once it could.
    async fn begin(&self, binary: &Path) -> Result<(u32, watch::Receiver<bool>)> {
        let pid = self.spawn(binary)?;
        let (mut ready, mut ended, kill, said) = {
            let there = self.there();
            let gone = || Error::unavailable(format!("{} ended at once", binary.display()));
            let door = there.iter().find(|door| door.pid == pid).ok_or_else(gone)?;
            (door.ready.clone(), door.ended.clone(), door.kill.clone(), door.said.clone())
        };
        let word = tokio::select! {
            word = tokio::time::timeout(READY_MAX, ready.wait_for(Option::is_some)) => match word {
                Ok(Ok(word)) => word.clone(),
                Ok(Err(_)) | Err(_) => None,
            },
            _ = ended.wait_for(|ended| *ended) => None,
        };
        let why = match word {
            Some(Ready { answered: Some(false), .. }) => "no plane answers it".to_string(),
            Some(_) => {
                if let Some(door) = self.there().iter_mut().find(|door| door.pid == pid) {
                    door.served = Some(Instant::now());
                    door.orders.send_modify(|orders| orders.serve = true);
                    return Ok((pid, ended));
                }
                "it ended".into()
            }
            None => {
                let ended = tokio::time::timeout(END_MAX, ended.wait_for(|ended| *ended)).await.is_ok();
                let said = said.lock().expect("no holder panics").clone();
                match said.strip_prefix("shisa: ").unwrap_or(&said) {
                    "" if ended => "it ended".into(),
                    "" => "it says nothing".into(),
                    said => said.into(),
                }
            }
        };
        kill.notify_one();
        Err(Error::unavailable(format!("{} does not serve: {why}", binary.display())))
    }

    /// Starts a process, and hands it the sockets; it accepts nothing yet.
    fn spawn(&self, binary: &Path) -> Result<u32> {
        let (ours, theirs) = UnixStream::pair()?;
        send(&ours, [self.inner.clients.as_fd(), self.inner.near.as_fd()])?;
        ours.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(ours)?;
        let mut child = Command::new(binary)
            .arg("--state")
            .arg(&self.inner.directory)
            .args(["door", "run"])
            .args(&self.inner.words)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the keeper, which lets a door finish.
            .process_group(0)
            .spawn()
            .map_err(|e| Error::unavailable(format!("{} cannot be started", binary.display())).because(e))?;
        let said = Arc::new(Plain::default());
        let listening = child.stderr.take().map(|stderr| tokio::spawn(listen_to(stderr, said.clone())));
        let pid = child.id().ok_or_else(|| Error::unavailable("the door ended at once"))?;
        let (orders, ordered) = watch::channel(Orders::default());
        let (word, ready) = watch::channel(None);
        let (end, ended) = watch::channel(false);
        let door = self.inner.planes.door().clone();
        let led = tokio::spawn(async move { door.lead(stream, ordered, word).await });
        let (kill, served) = (Arc::new(Notify::new()), None);
        let killed = kill.clone();
        self.there().push(Process { pid, binary: binary.into(), orders, ready, ended, kill, said, served });
        let (doors, of) = (self.clone(), binary.to_path_buf());
        tokio::spawn(async move {
            let status = tokio::select! {
                status = child.wait() => status,
                () = killed.notified() => {
                    let _ = child.start_kill();
                    child.wait().await
                }
            };
            let _ = led.await;
            if let Some(listening) = listening {
                let _ = tokio::time::timeout(AGAIN, listening).await;
            }
            let status = status.map_or("unknown".into(), |status| status.to_string());
            let served = doors.ended(pid, &status);
            end.send_replace(true);
            if let Some(served) = served {
                doors.again(&of, served).await;
            }
        });
        Ok(pid)
    }

    /// How long it served, if it did and so ended by itself.
    fn ended(&self, pid: u32, status: &str) -> Option<Duration> {
        let mut there = self.there();
        let at = there.iter().position(|door| door.pid == pid)?;
        let door = there.remove(at);
        door.serves().then(|| tracing::error!("the door, process {pid}, ended: {status}"))?;
        Some(door.served?.elapsed())
    }

    /// Starts a door where none serves and one did, for so long.
    async fn again(&self, binary: &Path, mut served: Duration) {
        loop {
            tokio::time::sleep(self.pause(served)).await;
            let turn = self.inner.turn.lock().await;
            if *turn || self.there().iter().any(Process::serves) {
                return;
            }
            match self.begin(binary).await {
                Ok(_) => return,
                Err(error) => tracing::error!("{}", error.chain()),
            }
            drop(turn);
            served = Duration::ZERO;
        }
    }

    fn pause(&self, served: Duration) -> Duration {
        let mut last = self.inner.pause.lock().expect("no holder panics");
        *last = pause(*last, served);
        *last
    }
}

/// How long to wait before a door is started again: what was waited the last time, and how long it served then.
fn pause(last: Duration, served: Duration) -> Duration {
    match served < WELL {
        true => (last * 2).clamp(AGAIN, AGAIN_MAX),
        false => AGAIN,
    }
}

/// Hands over sockets, ahead of everything else that is said.
fn send(to: &UnixStream, sockets: [std::os::fd::BorrowedFd; 2]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&sockets));
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())
        .map_err(|e| Error::internal("the sockets cannot be handed over").because(e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_that_does_not_serve_for_long_is_started_later_and_later() {
        let (mut last, mut waited) = (Duration::ZERO, Vec::new());
        let mut ends = |served: Duration| {
            last = pause(last, served);
            waited.push(last.as_millis());
        };
        (0..10).for_each(|_| ends(Duration::from_millis(100)));
        ends(WELL);
        ends(Duration::ZERO);
        assert_eq!(waited, [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 20, 40]);
    }
}
