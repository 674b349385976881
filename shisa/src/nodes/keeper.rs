//! The keeper of this machine's nodes: starts their process, starts it again when it ends, replaces it by another
//! binary.
//!
//! ```text
//! starts --greeted, reported--> works --ends--> starts, later and later
//! works --another binary: killed; that one starts--> works
//!                                      --ends, or is silent for SETTLE_MAX--> killed; the one before starts
//! ```
//!
//! Guests and network know nothing of all this: a process that begins adopts them, however the one before ended. Two at
//! once there are never: each holds the lock.

use super::{Said, Told, Wishes};
use crate::plane::Sockets;
use crate::planes::{Planes, listen_to};
use crate::state::Directory;
use base::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex as Plain, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex, Notify, watch};

/// From the start of another binary until all nodes of the machine have reported: they adopt their guests meanwhile.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// A process that is killed is gone after this.
const END_MAX: Duration = Duration::from_secs(10);
/// A process that ended by itself is started again after this, twice that at the next time, and so on up to `AGAIN_MAX`.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// One that worked for so long is started again as if for the first time.
const WELL: Duration = Duration::from_secs(5);

/// The process of the nodes, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub pid: u32,
    pub binary: PathBuf,
    pub version: String,
}

struct Process {
    pid: u32,
    binary: PathBuf,
    said: watch::Receiver<Said>,
    ended: watch::Receiver<bool>,
    /// To whoever waits for the process: its number is nobody else's only until then.
    kill: Arc<Notify>,
    /// The last line that it wrote to stderr.
    last: Arc<Plain<String>>,
    begun: Instant,
    /// Its end is wanted.
    leaving: bool,
}

/// Clones are handles to the same.
#[derive(Clone)]
pub struct Keeper {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    words: Vec<OsString>,
    nodes: u32,
    planes: Planes,
    process: Plain<Option<Process>>,
    /// One thing at a time; true once they are stopped for good.
    turn: Mutex<bool>,
    /// All nodes have greeted the plane once: what ends later is started again.
    greeted: watch::Sender<bool>,
    /// Why they do not work at all.
    failed: watch::Sender<Option<Error>>,
    pause: Plain<Duration>,
}

impl Keeper {
    pub fn new(directory: &Directory, wishes: &Wishes, planes: Planes) -> Keeper {
        let mut words: Vec<OsString> = vec!["--nodes".into(), wishes.nodes.to_string().into()];
        words.extend(wishes.uplink.iter().flat_map(|device| ["--uplink".into(), device.into()]));
        let address = wishes.address.map(|address| address.to_string());
        words.extend(address.into_iter().flat_map(|address| ["--address".into(), address.into()]));
        let inner = Inner {
            directory: directory.path().into(),
            words,
            nodes: wishes.nodes,
            planes,
            process: Plain::default(),
            turn: Mutex::default(),
            greeted: watch::Sender::new(wishes.nodes == 0),
            failed: watch::Sender::default(),
            pause: Plain::default(),
        };
        Keeper { inner: Arc::new(inner) }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.inner.process.lock().expect("no holder panics")
    }

    /// None: this machine has no nodes.
    pub fn seen(&self) -> Option<Seen> {
        let process = self.process();
        let process = process.as_ref()?;
        let version = process.said.borrow().version.clone();
        Some(Seen { pid: process.pid, binary: process.binary.clone(), version })
    }

    /// Starts the nodes, and keeps them until they are stopped.
    ///
    /// Errors: why they do not work at all.
    pub async fn work(&self, binary: &Path) -> Result<()> {
        if self.inner.nodes > 0 {
            let _turn = self.inner.turn.lock().await;
            self.begin(binary)?;
        }
        let mut failed = self.inner.failed.subscribe();
        let _ = failed.wait_for(Option::is_some).await;
        let error = self.inner.failed.send_replace(None);
        Err(error.unwrap_or_else(|| Error::internal("the nodes ended")))
    }

    /// Waits until every node has said what it is.
    pub async fn greeted(&self) {
        // The sender is ours, so it does not end before us.
        let _ = self.inner.greeted.subscribe().wait_for(|greeted| *greeted).await;
    }

    /// Replaces the process by one of another binary, and waits until all of its nodes have reported.
    ///
    /// Errors: why that does not work; then the binary before works again. `NotFound` when there are no nodes.
    pub async fn replace(&self, binary: &Path) -> Result<Seen> {
        let turn = self.inner.turn.lock().await;
        let none = || Error::not_found("this machine has no nodes of its own");
        let before = self.seen().ok_or_else(none)?;
        if *turn {
            return Err(Error::unavailable("the cloud is stopping"));
        }
        let Err(why) = self.changed(binary).await else { return self.seen().ok_or_else(none) };
        tracing::error!("the nodes of this machine go back: {}", why.chain());
        match self.changed(&before.binary).await {
            Ok(()) => Err(why),
            Err(worse) => {
                let both = format!("{}; nor does the one before: {}", why.message(), worse.message());
                Err(Error::unavailable(both))
            }
        }
    }

    async fn changed(&self, binary: &Path) -> Result<()> {
        self.end().await?;
        self.begin(binary)?;
        let gone = || Error::unavailable(format!("{} ended at once", binary.display()));
        let (mut said, mut ended, last) = {
            let process = self.process();
            let process = process.as_ref().ok_or_else(gone)?;
            (process.said.clone(), process.ended.clone(), process.last.clone())
        };
        let settled = tokio::time::timeout(SETTLE_MAX, said.wait_for(|said| said.reported)).await;
        let why = match settled.map(|said| said.is_ok()) {
            Ok(true) => return Ok(()),
            // It says nothing more, so it ends.
            Ok(false) => {
                let _ = tokio::time::timeout(END_MAX, ended.wait_for(|ended| *ended)).await;
                sentence(&last)
            }
            Err(_) => format!("not all nodes have reported after {} s", SETTLE_MAX.as_secs()),
        };
        Err(Error::unavailable(format!(
            "the nodes of this machine do not work with {}: {why}",
            binary.display()
        )))
    }

    /// Ends the process, and leaves the guests as they are; for good.
    pub async fn stop(&self) {
        let mut turn = self.inner.turn.lock().await;
        *turn = true;
        if let Err(error) = self.end().await {
            tracing::error!("{}", error.chain());
        }
    }

    async fn end(&self) -> Result<()> {
        let Some((pid, kill, mut ended)) = self.process().as_mut().map(|process| {
            process.leaving = true;
            (process.pid, process.kill.clone(), process.ended.clone())
        }) else {
            return Ok(());
        };
        kill.notify_one();
        let gone = tokio::time::timeout(END_MAX, ended.wait_for(|ended| *ended)).await;
        let stays = |e| Error::unavailable(format!("process {pid} of the nodes does not end")).because(e);
        gone.map(drop).map_err(stays)
    }

    fn begin(&self, binary: &Path) -> Result<()> {
        let mut child = Command::new(binary)
            .arg("--state")
            .arg(&self.inner.directory)
            .arg("nodes")
            .args(&self.inner.words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the keeper, which then ends guests and network.
            .process_group(0)
            .spawn()
            .map_err(|e| Error::unavailable(format!("{} cannot be started", binary.display())).because(e))?;
        let gone = || Error::unavailable(format!("{} ended at once", binary.display()));
        let pid = child.id().ok_or_else(gone)?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or_else(gone)?;
        let last = Arc::new(Plain::default());
        let heard = child.stderr.take().map(|stderr| tokio::spawn(listen_to(stderr, last.clone())));
        let ((say, said), (end, ended)) = (watch::channel(Said::default()), watch::channel(false));
        let kill = Arc::new(Notify::new());
        let process = Process {
            pid,
            binary: binary.into(),
            said,
            ended,
            kill: kill.clone(),
            last,
            begun: Instant::now(),
            leaving: false,
        };
        *self.process() = Some(process);
        let keeper = self.clone();
        tokio::spawn(async move {
            let status = keeper.mind(&mut child, &kill, stdin, stdout, say).await;
            if let Some(heard) = heard {
                let _ = tokio::time::timeout(AGAIN, heard).await;
            }
            end.send_replace(true);
            keeper.ended(pid, &status).await;
        });
        Ok(())
    }

    /// Talks with the process until it has ended.
    async fn mind(
        &self,
        child: &mut Child,
        kill: &Notify,
        stdin: ChildStdin,
        stdout: ChildStdout,
        say: watch::Sender<Said>,
    ) -> String {
        let talk = async { tokio::join!(self.tell(stdin), self.hear(stdout, say)) };
        let status = tokio::select! {
            status = child.wait() => status,
            () = kill.notified() => {
                let _ = child.start_kill();
                child.wait().await
            }
            _ = talk => child.wait().await,
        };
        status.map_or("unknown".into(), |status| status.to_string())
    }

    /// Tells the process where the active plane is, whenever that changes.
    async fn tell(&self, mut stdin: ChildStdin) {
        let mut active = self.inner.planes.actives();
        loop {
            let name = active.borrow_and_update().clone();
            let directory = Directory::at(self.inner.directory.clone());
            let plane = name.map(|name| Sockets::of(&directory, &name).nodes());
            let mut line = serde_json::to_vec(&Told { plane }).expect("paths are JSON");
            line.push(b'\n');
            if stdin.write_all(&line).await.is_err() || active.changed().await.is_err() {
                break;
            }
        }
        // It ends when its stdin does, so that is kept.
        std::future::pending::<()>().await;
    }

    async fn hear(&self, stdout: ChildStdout, say: watch::Sender<Said>) {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(said) = serde_json::from_str::<Said>(&line) {
                self.inner.greeted.send_if_modified(|all| {
                    let new = said.greeted && !*all;
                    *all |= said.greeted;
                    new
                });
                say.send_replace(said);
            }
        }
        std::future::pending::<()>().await;
    }

    /// What is to be done when a process has ended.
    async fn ended(&self, pid: u32, status: &str) {
        let (binary, worked, last) = {
            let process = self.process();
            match process.as_ref().filter(|process| process.pid == pid && !process.leaving) {
                Some(process) => (process.binary.clone(), process.begun.elapsed(), process.last.clone()),
                None => return,
            }
        };
        if !*self.inner.greeted.borrow() {
            self.inner.failed.send_replace(Some(Error::unavailable(sentence(&last))));
            return;
        }
        tracing::error!("the nodes of this machine, process {pid}, ended: {status}");
        let pause = {
            let mut last = self.inner.pause.lock().expect("no holder panics");
            *last = if worked < WELL { (*last * 2).clamp(AGAIN, AGAIN_MAX) } else { AGAIN };
            *last
        };
        tokio::time::sleep(pause).await;
        let turn = self.inner.turn.lock().await;
        let same = self.process().as_ref().is_some_and(|process| process.pid == pid && !process.leaving);
        if !*turn
            && same
            && let Err(error) = self.begin(&binary)
        {
            tracing::error!("{}", error.chain());
        }
    }
}

/// The last that a process said of itself.
fn sentence(last: &Plain<String>) -> String {
    let last = last.lock().expect("no holder panics").clone();
    match last.strip_prefix("shisa: ").unwrap_or(&last) {
        "" => "it ended and said nothing; local/log may say more".into(),
        said => said.into(),
    }
}
