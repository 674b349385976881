//! The keeper of planes: starts them as processes of its own, knows which is active, and tells the door.
//!
//! ```text
//! boot --follows--> standby --promoted, or the active one ended--> active --another is promoted--> standby
//! any --ends--> boot
//! ```
//!
//! One thing is done at a time. A plane that ends is started again, later and later; while another stands by, that one
//! takes over at once, because whoever started a process knows that it ended. A plane that does not answer is ended.
//!
//! Limits: `BOOT_MAX` for a start, `SWITCH_MAX` for a planned switch, which then goes back.

use crate::plane::{STORED, Sockets, Word};
use crate::pulse::Pulse;
use crate::state::Directory;
use base::{Error, Kind, Result};
use fleet::door::{Door, Upstream, ask};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex as Plain, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::{Mutex, watch};

/// A plane with 400,000 records on a busy machine.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// A planned switch that takes longer goes back.
const SWITCH_MAX: Duration = Duration::from_millis(800);
/// A word from a plane that works.
const WORD_MAX: Duration = Duration::from_secs(1);
/// So many words in a row that do not come, and a plane is ended: soon where it stands still and another stands by,
/// because a stopped owner may keep that one from the store (SQLite's lock on writing); later where nobody is there in
/// its place, or where it works, if only on something else than an answer; last where both is so: a start costs more.
const MUTE_MAX: u32 = 2;
const MUTE_LONGER_MAX: u32 = 10;
const MUTE_LONGEST_MAX: u32 = 60;
/// A plane whose time is up has this long for what it is doing.
const END_MAX: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_millis(100);
/// A plane that ends is started again after this, twice that at the next time, and so on up to `AGAIN_MAX`.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// One that came as far as to answer is wanted beside the other, whatever ended it.
const AGAIN_READY_MAX: Duration = Duration::from_millis(500);
/// A plane that was up for so long is started again as if for the first time.
const WELL: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The environment variable by which a plane is told its store: everybody may read a command line.
pub const STORE: &str = "SHISA_STORE";
/// The two that there can be.
pub const COLOURS: [&str; 2] = ["blue", "green"];

/// What a plane is to its keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It loads.
    Boot,
    /// A candidate that does not take over yet.
    Follow,
    /// It takes over when the active one ends.
    Standby,
    Active,
}

/// How planes are started.
#[derive(Clone)]
pub struct Launch {
    pub directory: PathBuf,
    pub store: String,
    /// What every plane is told beside its name: `--policy FILE` and the like.
    pub words: Vec<String>,
    /// What a line of the log begins with where these are not the cloud's own planes.
    pub whose: &'static str,
}

/// A plane as `shisa plane list` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    pub name: String,
    pub state: State,
    pub pid: Option<u32>,
    pub binary: PathBuf,
    /// What it says of itself, when it does.
    pub word: Option<Word>,
    /// Its store does not answer: until it does, nothing is answered that has to be current.
    #[serde(default)]
    pub without_store: bool,
}

/// A planned switch, as it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Switch {
    pub from: Option<String>,
    pub to: String,
    /// From the hold to the release of mutations.
    pub held_ms: f64,
    pub epoch: u64,
    pub revision: u64,
}

struct Member {
    binary: PathBuf,
    state: State,
    pid: Option<u32>,
    epoch: u64,
    begun: Instant,
    again: Duration,
    /// The other end of its stdin: it ends when this is closed.
    _leash: Option<ChildStdin>,
    /// It is being taken out.
    leaving: bool,
    upstream: Upstream,
    /// The last line that it wrote to stderr.
    said: Arc<Plain<String>>,
}

/// Clones are handles to the same.
#[derive(Clone)]
pub struct Planes {
    inner: Arc<Inner>,
}

struct Inner {
    launch: Launch,
    door: Door,
    members: Plain<BTreeMap<String, Member>>,
    /// One thing at a time.
    turn: Mutex<()>,
    active: watch::Sender<Option<String>>,
}

impl Planes {
    pub fn new(launch: Launch, door: Door) -> Planes {
        let (members, turn, active) = (Plain::default(), Mutex::default(), watch::Sender::new(None));
        Planes { inner: Arc::new(Inner { launch, door, members, turn, active }) }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        self.inner.members.lock().expect("no holder panics")
    }

    fn sockets(&self, name: &str) -> Sockets {
        Sockets::of(&Directory::at(self.inner.launch.directory.clone()), name)
    }

    pub fn launch(&self) -> &Launch {
        &self.inner.launch
    }

    pub fn door(&self) -> &Door {
        &self.inner.door
    }

    /// Where the active plane serves nodes of this machine, and those of others.
    pub fn node_sockets(&self) -> Option<(PathBuf, PathBuf)> {
        let active = self.inner.active.borrow().clone()?;
        let sockets = self.sockets(&active);
        Some((sockets.nodes(), sockets.far()))
    }

    /// The active plane's name, as it changes.
    pub fn actives(&self) -> watch::Receiver<Option<String>> {
        self.inner.active.subscribe()
    }

    pub fn active(&self) -> Option<String> {
        self.inner.active.borrow().clone()
    }

    /// What a plane runs, what it is, and as which process.
    pub fn seat(&self, name: &str) -> Option<(PathBuf, State, Option<u32>)> {
        self.members().get(name).map(|m| (m.binary.clone(), m.state, m.pid))
    }

    /// Where a plane answers clients.
    ///
    /// Errors: `NotFound` when there is none of this name.
    pub fn upstream(&self, name: &str) -> Result<Upstream> {
        let none = || Error::not_found(format!("there is no plane {name}"));
        self.members().get(name).map(|m| m.upstream.clone()).ok_or_else(none)
    }

    /// Asks or tells a plane.
    pub async fn ask(
        &self,
        name: &str,
        method: Method,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<Value> {
        ask(&self.sockets(name).control(), method, path, body, limit).await
    }

    pub async fn word(&self, name: &str) -> Result<Word> {
        read(self.ask(name, Method::GET, "/word", &Value::Null, WORD_MAX).await?)
    }

    pub async fn list(&self) -> Vec<Listed> {
        let known: Vec<_> = {
            let members = self.members();
            members.iter().map(|(name, m)| (name.clone(), m.state, m.pid, m.binary.clone())).collect()
        };
        let mut listed = Vec::new();
        for (name, state, pid, binary) in known {
            let word = self.word(&name).await.ok();
            let stored = self.ask(&name, Method::GET, STORED, &Value::Null, WORD_MAX).await;
            // A plane of an older version does not know the question.
            let without_store = word.is_some() && stored.is_err_and(|e| e.kind() == Kind::Unavailable);
            listed.push(Listed { name, state, pid, binary, word, without_store });
        }
        listed
    }

    /// Starts a plane that follows.
    ///
    /// Errors: `Conflict` when there is one of this name; what kept it from starting.
    pub async fn add(&self, name: &str, binary: &Path) -> Result<Word> {
        let _turn = self.inner.turn.lock().await;
        if self.members().contains_key(name) {
            return Err(Error::conflict(format!("there is a plane {name} already")));
        }
        self.begin(name, binary, AGAIN)?;
        let word = self.booted(name).await;
        match &word {
            Ok(_) => self.set(name, State::Follow),
            Err(_) => {
                // The process may still be there, and is nobody's any more.
                if let Some(pid) = self.members().remove(name).and_then(|m| m.pid) {
                    kill(pid);
                }
            }
        }
        self.routed();
        word
    }

    /// Ends a plane that is not the active one.
    ///
    /// Errors: `NotFound`; `Conflict` for the active one.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let _turn = self.inner.turn.lock().await;
        if self.inner.active.borrow().as_deref() == Some(name) {
            return Err(Error::conflict(format!("{name} is the active plane: promote another one first")));
        }
        let pid = {
            let mut members = self.members();
            let none = || Error::not_found(format!("there is no plane {name}"));
            let member = members.get_mut(name).ok_or_else(none)?;
            member.leaving = true;
            let pid = member.pid;
            if pid.is_none() {
                // It ended, and is not started again.
                members.remove(name);
            }
            pid
        };
        self.routed();
        // One that does not end by itself is ended.
        for signal in [end as fn(u32), kill] {
            let begin = Instant::now();
            pid.filter(|_| self.members().contains_key(name)).into_iter().for_each(signal);
            while self.members().contains_key(name) && begin.elapsed() < END_MAX {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Lets a plane take over when the active one ends, or falls silent for the length of a lease.
    pub async fn stand_by(&self, name: &str) -> Result<()> {
        let _turn = self.inner.turn.lock().await;
        self.stands_by(name).await
    }

    async fn stands_by(&self, name: &str) -> Result<()> {
        self.tell(name, "/stand-by", json!({"yes": true})).await?;
        self.set(name, State::Standby);
        Ok(())
    }

    /// Makes a plane the active one: mutations are held, the old one lays the lease down, the new one takes it. When it
    /// does not in `SWITCH_MAX`, the old one takes it back.
    ///
    /// Errors: why it went back.
    pub async fn promote(&self, name: &str) -> Result<Switch> {
        let whose = self.inner.launch.whose;
        let _turn = self.inner.turn.lock().await;
        if !self.members().contains_key(name) {
            return Err(Error::not_found(format!("there is no plane {name}")));
        }
        let from = self.inner.active.borrow().clone();
        if from.as_deref() == Some(name) {
            return Err(Error::conflict(format!("{name} is the active plane")));
        }
        // A plane that does not answer is not switched to.
        self.word(name).await?;
        let begin = Instant::now();
        self.inner.door.route(|routes| routes.held = true);
        let switched = self.hand_over(from.as_deref(), name).await;
        let outcome = match switched {
            Ok(word) => {
                self.own(name, word.epoch);
                if let Some(from) = &from
                    && let Err(error) = self.stands_by(from).await
                {
                    tracing::warn!("{from} does not stand by: {}", error.chain());
                }
                Ok(word)
            }
            Err(error) => {
                let _ = self.tell(name, "/stand-by", json!({"yes": false})).await;
                let _ = self.tell(name, "/release", Value::Null).await;
                if let Some(from) = &from {
                    match self.take(from, SWITCH_MAX).await {
                        Ok(word) => self.own(from, word.epoch),
                        Err(error) => {
                            tracing::error!("{from} does not take the cell back: {}", error.chain())
                        }
                    }
                }
                Err(error)
            }
        };
        self.inner.door.route(|routes| routes.held = false);
        let held_ms = begin.elapsed().as_secs_f64() * 1000.0;
        let word = outcome?;
        tracing::info!("{whose}{name} is active under epoch {}, {held_ms:.1} ms", word.epoch);
        Ok(Switch { from, to: name.into(), held_ms, epoch: word.epoch, revision: word.revision })
    }

    async fn hand_over(&self, from: Option<&str>, to: &str) -> Result<Word> {
        if let Some(from) = from {
            self.ask(from, Method::POST, "/release", &Value::Null, SWITCH_MAX).await?;
        }
        self.take(to, SWITCH_MAX).await
    }

    /// Tells a plane to take the cell, and waits until it has.
    async fn take(&self, name: &str, limit: Duration) -> Result<Word> {
        self.tell(name, "/stand-by", json!({"yes": true})).await?;
        let word: Word = read(self.ask(name, Method::GET, "/owner", &Value::Null, limit).await?)?;
        match word.owner {
            true => Ok(word),
            false => Err(Error::unavailable(format!("{name} does not take the cell"))),
        }
    }

    async fn tell(&self, name: &str, path: &str, body: Value) -> Result<Value> {
        self.ask(name, Method::POST, path, &body, WORD_MAX).await
    }

    /// Takes the cell with the only plane, or with any when the active one ended.
    ///
    /// Errors: why none does.
    pub async fn take_any(&self) -> Result<Word> {
        let _turn = self.inner.turn.lock().await;
        self.take_over(None).await
    }

    /// `ended`: the epoch under which the last owner ended.
    async fn take_over(&self, ended: Option<u64>) -> Result<Word> {
        let mut candidates: Vec<(State, String)> = self
            .members()
            .iter()
            .filter(|(_, m)| !m.leaving)
            .map(|(name, m)| (m.state, name.clone()))
            .collect();
        // Those that stand by come first; a candidate of a rollout is better than nobody.
        candidates.retain(|(state, _)| *state != State::Boot);
        candidates.sort_by_key(|(state, _)| *state != State::Standby);
        let mut why = Error::unavailable("no plane is there");
        for (_, name) in candidates {
            if let Some(epoch) = ended {
                let _ = self.tell(&name, "/died", json!({"epoch": epoch})).await;
            }
            match self.take(&name, BOOT_MAX).await {
                Ok(word) => {
                    self.own(&name, word.epoch);
                    return Ok(word);
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Notes who owns the cell, and routes there.
    fn own(&self, name: &str, epoch: u64) {
        for (other, member) in self.members().iter_mut() {
            match other == name {
                true => (member.state, member.epoch) = (State::Active, epoch),
                false if member.state == State::Active => member.state = State::Standby,
                false => {}
            }
        }
        self.inner.active.send_replace(Some(name.into()));
        self.routed();
    }

    fn set(&self, name: &str, state: State) {
        if let Some(member) = self.members().get_mut(name) {
            member.state = state;
        }
    }

    /// Tells the door who answers.
    fn routed(&self) {
        let active = self.inner.active.borrow().clone();
        let members = self.members();
        let there = |m: &&Member| m.state != State::Boot && !m.leaving;
        let readers = members.values().filter(there).map(|m| m.upstream.clone()).collect();
        let active = active.and_then(|name| members.get(&name)).map(|m| m.upstream.clone());
        drop(members);
        self.inner.door.route(|routes| (routes.active, routes.readers) = (active, readers));
    }

    /// Starts the process of a plane.
    fn begin(&self, name: &str, binary: &Path, again: Duration) -> Result<()> {
        let launch = &self.inner.launch;
        let sockets = self.sockets(name);
        std::fs::create_dir_all(&sockets.folder)?;
        let _ = std::fs::remove_file(sockets.control());
        let mut child = Command::new(binary)
            .arg("--state")
            .arg(&launch.directory)
            .args(["plane", "run", "--name", name])
            .env(STORE, &launch.store)
            .args(&launch.words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the keeper, which lets a plane finish what the door still asks.
            .process_group(0)
            .spawn()
            .map_err(|e| Error::unavailable(format!("{} cannot be started", binary.display())).because(e))?;
        let said = Arc::new(Plain::default());
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(listen_to(stderr, said.clone()));
        }
        let member = Member {
            binary: binary.into(),
            state: State::Boot,
            pid: child.id(),
            epoch: 0,
            begun: Instant::now(),
            again,
            _leash: child.stdin.take(),
            leaving: false,
            upstream: Upstream::new(name, &sockets.api()),
            said,
        };
        self.members().insert(name.into(), member);
        let (planes, name) = (self.clone(), name.to_string());
        tokio::spawn(async move { planes.mind(&name, child).await });
        Ok(())
    }

    /// Waits until a plane that was started answers.
    async fn booted(&self, name: &str) -> Result<Word> {
        let begin = Instant::now();
        while begin.elapsed() < BOOT_MAX {
            if let Ok(word) = self.word(name).await {
                if let Some(member) = self.members().get_mut(name) {
                    member.begun = Instant::now();
                }
                return Ok(word);
            }
            if let Some(said) = self.members().get(name).filter(|m| m.pid.is_none()).map(|m| m.said.clone()) {
                let said = said.lock().expect("no holder panics").clone();
                let why = match said.strip_prefix("shisa: ").unwrap_or(&said) {
                    "" => "it said nothing; its log may say more",
                    why => why,
                };
                return Err(Error::unavailable(format!("the plane {name} does not start: {why}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(Error::unavailable(format!("the plane {name} does not answer")))
    }

    /// Watches one process of a plane to its end, and does what then is to be done.
    async fn mind(&self, name: &str, mut child: Child) {
        let whose = self.inner.launch.whose;
        let pid = child.id();
        let pinged = async {
            let (mut mute, mut pulse) = (0, None);
            loop {
                tokio::time::sleep(PING_EVERY).await;
                let up = || self.members().get(name).is_some_and(|m| m.state != State::Boot && !m.leaving);
                if !up() {
                    mute = 0;
                    continue;
                }
                let word = self.word(name).await;
                mute = if word.is_ok() { 0 } else { mute + 1 };
                let before = std::mem::replace(&mut pulse, pid.and_then(Pulse::of));
                let works = pulse.is_some_and(|now| now.works_since(before));
                match word {
                    Ok(word) if word.owner => self.seen_owner(name, word.epoch).await,
                    Ok(_) => {}
                    Err(_) if !up() || mute < self.mute_max(name, works) => {}
                    Err(_) => {
                        tracing::error!("{whose}the plane {name} does not answer, it is ended");
                        pid.into_iter().for_each(kill);
                        std::future::pending::<()>().await;
                    }
                }
            }
        };
        let status = tokio::select! { status = child.wait() => status, () = pinged => return };
        self.ended(name, pid, status.ok()).await;
    }

    fn mute_max(&self, name: &str, works: bool) -> u32 {
        let other = |(of, m): (&String, &Member)| of != name && m.state == State::Standby;
        match (works, self.members().iter().any(other)) {
            (false, true) => MUTE_MAX,
            (true, true) | (false, false) => MUTE_LONGER_MAX,
            (true, false) => MUTE_LONGEST_MAX,
        }
    }

    /// A plane that stands by may have taken the cell from one that fell silent.
    async fn seen_owner(&self, name: &str, epoch: u64) {
        let whose = self.inner.launch.whose;
        let newest = self.members().values().map(|m| m.epoch).max().unwrap_or(0);
        if epoch <= newest {
            return;
        }
        let _turn = self.inner.turn.lock().await;
        let before = self.inner.active.borrow().clone();
        let newest = self.members().values().map(|m| m.epoch).max().unwrap_or(0);
        if epoch > newest {
            tracing::warn!(
                "{whose}{name} took the cell from {} that was silent",
                before.as_deref().unwrap_or("one")
            );
            self.own(name, epoch);
        }
        if let Some(before) = before.filter(|before| before != name) {
            // It follows when it is back.
            let _ = self.stands_by(&before).await;
        }
    }

    async fn ended(&self, name: &str, pid: Option<u32>, status: Option<ExitStatus>) {
        let whose = self.inner.launch.whose;
        let (was, again) = {
            let mut members = self.members();
            // Another process may have the name by now.
            let Some(member) = members.get_mut(name).filter(|m| m.pid == pid) else { return };
            member.pid = None;
            if member.leaving {
                members.remove(name);
                return;
            }
            let was = (member.state, member.epoch, member.binary.clone());
            member.state = State::Boot;
            let most = if was.0 == State::Boot { AGAIN_MAX } else { AGAIN_READY_MAX };
            let again = if member.begun.elapsed() > WELL { AGAIN } else { (member.again * 2).min(most) };
            (was, again)
        };
        let (state, epoch, binary) = was;
        tracing::info!(
            "{whose}the plane {name} ended: {}",
            status.map_or("unknown".into(), |s| s.to_string())
        );
        if state == State::Active {
            self.inner.active.send_replace(None);
            self.routed();
            let _turn = self.inner.turn.lock().await;
            match self.take_over(Some(epoch)).await {
                Ok(word) => tracing::info!("{whose}{} took over under epoch {}", word.name, word.epoch),
                Err(error) => tracing::warn!("{whose}nobody takes over yet: {}", error.chain()),
            }
        }
        self.restart(name, &binary, state, again, epoch).await;
    }

    async fn restart(&self, name: &str, binary: &Path, was: State, again: Duration, epoch: u64) {
        let whose = self.inner.launch.whose;
        if self.members().get(name).is_none_or(|m| m.leaving) {
            return;
        }
        tokio::time::sleep(again).await;
        let _turn = self.inner.turn.lock().await;
        if self.members().get(name).is_none_or(|m| m.leaving || m.pid.is_some()) {
            return;
        }
        if let Err(error) = self.begin(name, binary, again) {
            return tracing::error!("{}", error.chain());
        }
        if let Err(error) = self.booted(name).await {
            return tracing::error!("{}", error.chain());
        }
        match was {
            State::Follow => self.set(name, State::Follow),
            State::Boot | State::Standby | State::Active => {
                if let Err(error) = self.stands_by(name).await {
                    return tracing::error!("{}", error.chain());
                }
            }
        }
        self.routed();
        if self.inner.active.borrow().is_none()
            && let Err(error) = self.take_over(Some(epoch)).await
        {
            tracing::error!("{whose}nobody owns the cell: {}", error.chain());
        }
    }

    /// Ends all planes; the active one finishes what it does.
    pub async fn stop(&self) {
        let pids: Vec<u32> = {
            let mut members = self.members();
            members.values_mut().for_each(|member| member.leaving = true);
            members.values().filter_map(|m| m.pid).collect()
        };
        let active = self.active();
        if let Some(active) = active {
            let _ = self.ask(&active, Method::POST, "/release", &Value::Null, END_MAX).await;
        }
        pids.into_iter().for_each(end);
        let begin = Instant::now();
        while !self.members().is_empty() && begin.elapsed() < END_MAX {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Passes on what a process says to the person, and remembers the last of it.
pub async fn listen_to(stderr: ChildStderr, said: Arc<Plain<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // Its last sentence comes back as an error.
        if !line.starts_with("shisa: ") {
            eprintln!("{line}");
        }
        // What Rust adds to a panic is not what it is about.
        if !line.starts_with("note: ") {
            *said.lock().expect("no holder panics") = line;
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| Error::internal("a plane's word is none").because(e))
}

fn end(pid: u32) {
    signal(pid, rustix::process::Signal::TERM);
}

fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

/// A process that is gone needs none. Its number is not another's: its keeper has not waited for it yet.
fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
