//! A rollout: a new binary becomes the active plane, or nothing changes for anyone.
//!
//! It runs in the process that is up and keeps the planes; whoever started it only watches.
//!
//! ```text
//! start -> digest -> reads -> changes -> cost -> copy -> conformance -> rehearsal -> switch -> bake -> nodes -> active --finalise--> finalised
//!   |        |         |         |        |       |          |            |           |        |       |        |
//!   +--------+---------+---------+--------+-------+----------+------------+-----------+        +-------+        +--rollback--> rolled back
//!                        v                                                                     v
//!              withdraw: stopped                                       nodes back, back, withdraw: taken back
//! ```
//!
//! The candidate follows and does not stand by. Each gate and switch is a step in `record`; `gates` are before the
//! switch, `bake` watches after it, `waves` brings the binary to nodes. `shisa plane rollback` ends a rollout that goes on the same way as a trigger does.
//! The gates from `copy` on are on a copy of the cloud (`ground`), which is gone before the switch.

mod bake;
mod changes;
pub mod command;
mod gates;
mod ground;
mod inside;
mod record;
mod rehearsal;
mod suite;
mod waves;

use crate::clouds::Clouds;
use crate::doors::Doors;
use crate::nodes;
use crate::plane::Word;
use crate::planes::{COLOURS, Planes, State, Switch};
use crate::state::Directory;
use base::{Error, Result};
use gates::Sides;
use ground::Ground;
use hyper::Method;
use record::{Book, Mark, now};
pub use record::{Outcome, Rollout, Seat};
use rehearsal::Stage;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Plain};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::task::AbortHandle;

/// What no gate tries.
const NOT_REHEARSED: &str = "the front door, which `shisa plane finalise` replaces, and the process that keeps planes and door, which \
     has its binary until the next `shisa up`";
/// What an operator may leave out.
const LEFT_OUT: &str = "the way back and the conformance suite on a copy (--without-copy); ";
/// A switch back is tried again for so long; a plane that ended is followed by the other one meanwhile.
const BACK_MAX: Duration = Duration::from_secs(10);
/// A plane that is to stand by may be loading.
const READY_MAX: Duration = Duration::from_secs(120);
/// How often a plane of the old binary is started in the candidate's place, and what lies between.
const WITHDRAW_TIMES: usize = 5;
const WITHDRAW_AGAIN: Duration = Duration::from_secs(5);
/// A binary has this long to say its version.
const VERSION_MAX: Duration = Duration::from_secs(10);
/// One transaction.
const RAISE_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a rollout is asked for with.
#[derive(Serialize, Deserialize)]
pub struct New {
    pub binary: PathBuf,
    pub bake_s: u64,
    #[serde(default)]
    pub conformance: Option<String>,
    #[serde(default)]
    pub without_copy: bool,
    #[serde(default)]
    pub no_nodes: bool,
}

/// Clones are handles to the same.
#[derive(Clone)]
pub struct Rollouts {
    inner: Arc<Inner>,
}

struct Inner {
    planes: Planes,
    nodes: nodes::Keeper,
    book: Book,
    /// Held by whatever changes the planes for an operator.
    turn: Arc<Mutex<()>>,
    /// An operator wants the rollout to end.
    back: watch::Sender<bool>,
    task: Plain<Option<AbortHandle>>,
}

impl Rollouts {
    /// Errors: what keeps the record of earlier ones from being read.
    pub fn open(directory: &Directory, planes: Planes, nodes: nodes::Keeper) -> Result<Rollouts> {
        let (turn, back, task) = (Arc::default(), watch::Sender::new(false), Plain::default());
        let book = Book::open(directory)?;
        ground::sweep(directory);
        Ok(Rollouts { inner: Arc::new(Inner { planes, nodes, book, turn, back, task }) })
    }

    pub fn last(&self) -> Option<Rollout> {
        self.inner.book.last()
    }

    /// For what else changes the planes: nothing does while a rollout goes on.
    ///
    /// Errors: `Conflict`.
    pub fn turn(&self) -> Result<OwnedMutexGuard<()>> {
        self.inner.turn.clone().try_lock_owned().map_err(|_| {
            Error::conflict(
                "a rollout is going on: `shisa rollout show` says how far it is, `shisa plane rollback` ends it",
            )
        })
    }

    /// Begins a rollout, which goes on by itself.
    ///
    /// Errors: `Conflict` while one goes on, or when the binary is the active plane's own file.
    pub fn start(&self, new: New) -> Result<Rollout> {
        let turn = self.turn()?;
        let planes = &self.inner.planes;
        let from = planes
            .active()
            .ok_or_else(|| Error::unavailable("no plane is active; look at `shisa plane list`"))?;
        let other = COLOURS.iter().find(|colour| **colour != from);
        let to = other.ok_or_else(|| Error::internal("there is no other colour"))?.to_string();
        let seat =
            |name: &str| planes.seat(name).ok_or_else(|| Error::unavailable(format!("{name} has ended")));
        let binary = seat(&from)?.0;
        if binary == new.binary {
            return Err(Error::conflict(format!(
                "{} is what the active plane runs: put the new version elsewhere, or there is no way back",
                binary.display()
            )));
        }
        let had_standby = planes.seat(&to).is_some();
        let rollout = self.inner.book.add(|number| Rollout {
            number,
            from: Seat { name: from, binary },
            to: Seat { name: to, binary: new.binary },
            version: String::new(),
            bake_s: new.bake_s,
            conformance: new.conformance,
            without_copy: new.without_copy,
            no_nodes: new.no_nodes,
            local_before: None,
            nodes_before: BTreeMap::new(),
            had_standby,
            outcome: Outcome::Running,
            begun: now(),
            ended: None,
            steps: Vec::new(),
        })?;
        self.inner.back.send_replace(false);
        let run = Run { inner: self.inner.clone(), rollout: rollout.clone() };
        let task = tokio::spawn(async move {
            let _turn = turn;
            let outcome = run.carry().await;
            run.inner.book.close(outcome);
        });
        *self.inner.task.lock().expect("no holder panics") = Some(task.abort_handle());
        Ok(rollout)
    }

    /// Makes the plane before the last rollout active again. While that goes on, it is told to end so.
    ///
    /// Errors: `Conflict` when there is nothing to go back to, or the plane before runs another binary by now; why the
    /// switch went back.
    pub async fn rollback(&self) -> Result<Rollout> {
        let last = self.last().filter(|last| matches!(last.outcome, Outcome::Running | Outcome::Active));
        let none = || {
            Error::conflict(
                "there is no rollout to take back: `shisa plane promote NAME` makes another plane active",
            )
        };
        let last = last.ok_or_else(none)?;
        if last.outcome == Outcome::Running {
            self.inner.back.send_replace(true);
            return Ok(last);
        }
        let _turn = self.turn()?;
        let run = Run { inner: self.inner.clone(), rollout: last };
        run.way_back()?;
        run.step("rollback", "", run.back()).await?;
        let nodes = run.nodes_back().await;
        let withdrawn = run.step("withdraw", "", run.withdraw()).await;
        run.inner.book.close(Outcome::RolledBack);
        nodes.and(withdrawn)?;
        self.last().ok_or_else(none)
    }

    /// Replaces the plane before the last rollout by one of the new binary: there is no way back any more. One that was
    /// cut off goes on where it was.
    ///
    /// Errors: `Conflict` when there is nothing to finalise; why the new one does not start.
    pub async fn finalise(&self, doors: &Doors) -> Result<Rollout> {
        let _turn = self.turn()?;
        let none = || {
            Error::conflict(
                "there is no rollout to finalise: `shisa rollout show` says what became of the last",
            )
        };
        let last = self.last().filter(|last| last.outcome == Outcome::Active).ok_or_else(none)?;
        if self.inner.planes.active().as_ref() != Some(&last.to.name) {
            return Err(Error::conflict(format!(
                "{} is not active: `shisa plane rollback` withdraws it, `shisa plane promote` makes it active",
                last.to.name
            )));
        }
        let run = Run { inner: self.inner.clone(), rollout: last };
        run.step("finalise", "", run.replaced(&run.rollout.from.name, &run.rollout.to.binary)).await?;
        run.step("format", "", run.raise()).await?;
        // A door that stays what it is serves any version.
        let _ = run.step("door", "", run.door(doors)).await;
        run.inner.book.close(Outcome::Finalised);
        self.last().ok_or_else(none)
    }

    /// The process ends: a rollout that goes on is cut off.
    pub fn stop(&self) {
        if let Some(task) = self.inner.task.lock().expect("no holder panics").take() {
            task.abort();
        }
    }
}

/// One rollout, from its start to its end.
struct Run {
    inner: Arc<Inner>,
    rollout: Rollout,
}

impl Run {
    fn planes(&self) -> &Planes {
        &self.inner.planes
    }

    fn before(&self) -> &str {
        &self.rollout.from.name
    }

    fn candidate(&self) -> &str {
        &self.rollout.to.name
    }

    async fn carry(&self) -> Outcome {
        if self.gates().await.is_err() {
            let _ = self.step("withdraw", "", self.withdraw()).await;
            return Outcome::Stopped;
        }
        let before = bake::Before::of(self.planes());
        if self.step("switch", "", self.switch()).await.is_err() {
            let _ = self.step("withdraw", "", self.withdraw()).await;
            return Outcome::Stopped;
        }
        let watched = format!("{} is watched for {} s", self.candidate(), self.rollout.bake_s);
        let bake_max = Duration::from_secs(self.rollout.bake_s);
        let bake = bake::watch(self.planes(), &self.rollout, before, bake_max, self.inner.back.subscribe());
        if self.step("bake", &watched, bake).await.is_ok() && self.nodes().await.is_ok() {
            return Outcome::Active;
        }
        let _ = self.nodes_back().await;
        if self.step("back", "", self.back()).await.is_err() {
            return Outcome::Active;
        }
        let _ = self.step("withdraw", "", self.withdraw()).await;
        Outcome::TakenBack
    }

    async fn gates(&self) -> Result<()> {
        let sides = Sides { planes: self.planes(), old: self.before(), new: self.candidate() };
        self.step("start", "", self.start()).await?;
        let seats = self.seats();
        self.step("digest", "", self.steady(&seats, sides.digest())).await?;
        let mut reads = Vec::new();
        let compared = async {
            let (detail, equal) = sides.reads().await?;
            reads = equal;
            Ok(detail)
        };
        self.step("reads", "", self.steady(&seats, compared)).await?;
        self.step("changes", "", self.steady(&seats, sides.changes())).await?;
        self.step("cost", "", self.steady(&seats, sides.cost(&reads))).await?;
        match self.rollout.without_copy {
            true => Ok(()),
            false => self.on_a_copy(&seats).await,
        }
    }

    /// The gates that are tried on a copy of the cloud.
    async fn on_a_copy(&self, seats: &[Option<(State, Option<u32>)>; 2]) -> Result<()> {
        let directory = Directory::at(self.planes().launch().directory.clone());
        let mut ground = None;
        let made = async {
            let made = Ground::new(&directory, self.planes().launch(), &self.rollout).await?;
            let said = made.said.clone();
            ground = Some(made);
            Ok(said)
        };
        // It is not given up half-way: its processes are to end.
        self.step("copy", "the records are copied", made).await?;
        let Some(ground) = ground else { return Ok(()) };
        let tried = self.tried(seats, &directory, &ground).await;
        ground.end().await;
        tried
    }

    async fn tried(
        &self,
        seats: &[Option<(State, Option<u32>)>; 2],
        directory: &Directory,
        ground: &Ground,
    ) -> Result<()> {
        let clouds = Clouds::open(directory.clouds())?;
        let gone = || Error::not_found(format!("{} has no administrator", directory.clouds().display()));
        let auth = &clouds.get("admin").ok_or_else(gone)?.auth;
        let stage = Stage { ground, rollout: &self.rollout, admin: auth };
        let command = self.rollout.conformance.as_deref();
        let said = command.map(|command| format!("`{command}` runs")).unwrap_or_default();
        self.step("conformance", &said, self.steady(seats, stage.conformance(directory, command))).await?;
        self.step("rehearsal", "switched there and back", self.steady(seats, stage.rehearse())).await
    }

    /// Does a step and writes down what came of it.
    async fn step(
        &self,
        name: &str,
        detail: &str,
        doing: impl Future<Output = Result<String>>,
    ) -> Result<()> {
        self.inner.book.begin(name, detail);
        match doing.await {
            Ok(detail) => {
                self.inner.book.end(Mark::Passed, &detail);
                Ok(())
            }
            Err(error) => {
                self.inner.book.end(Mark::Failed, &error.chain());
                Err(error)
            }
        }
    }

    fn seats(&self) -> [Option<(State, Option<u32>)>; 2] {
        [self.before(), self.candidate()]
            .map(|name| self.planes().seat(name).map(|(_, state, pid)| (state, pid)))
    }

    /// A gate counts only between the two processes that the rollout began with.
    async fn steady<T>(
        &self,
        seats: &[Option<(State, Option<u32>)>; 2],
        gate: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut back = self.inner.back.subscribe();
        let outcome = tokio::select! {
            outcome = gate => outcome,
            _ = back.wait_for(|back| *back) => Err(Error::conflict("an operator ended it")),
        };
        let seen = self.seats();
        for (n, name) in [self.before(), self.candidate()].into_iter().enumerate() {
            if seen[n] != seats[n] {
                return Err(Error::unavailable(format!(
                    "{name} ended meanwhile; planes/{name}/log says more"
                )));
            }
        }
        outcome
    }

    async fn start(&self) -> Result<String> {
        // Before the plane that stands by makes room for it.
        runs(&self.rollout.to.binary).await?;
        let mut drained = String::new();
        if let Some((binary, ..)) = self.planes().seat(self.candidate()) {
            self.planes().remove(self.candidate()).await?;
            let gone =
                if binary == self.rollout.from.binary { "" } else { ", and there is no way back to that" };
            drained = format!(
                "; the {} that stood by with {} was drained{gone}",
                self.candidate(),
                binary.display()
            );
        }
        let word = self.planes().add(self.candidate(), &self.rollout.to.binary).await?;
        self.inner.book.change(|rollout| rollout.version = word.version.clone());
        let Word { version, revision, .. } = word;
        Ok(format!("{} follows at revision {revision} with version {version}{drained}", self.candidate()))
    }

    async fn switch(&self) -> Result<String> {
        let Switch { to, held_ms, epoch, revision, .. } = self.planes().promote(self.candidate()).await?;
        Ok(format!(
            "{to} is active under epoch {epoch} from revision {revision}; mutations were held {held_ms:.1} ms"
        ))
    }

    async fn door(&self, doors: &Doors) -> Result<String> {
        let door = doors.upgrade(&self.rollout.to.binary).await?;
        Ok(format!("the front door is process {} with version {}", door.pid, door.version))
    }

    /// Makes the plane before active again, unless it has become so by itself.
    async fn back(&self) -> Result<String> {
        let begin = Instant::now();
        let mut why = Error::unavailable(format!("{} does not take over", self.before()));
        while begin.elapsed() < BACK_MAX {
            let ms = |begin: Instant| begin.elapsed().as_secs_f64() * 1000.0;
            match self.planes().active() {
                Some(active) if active == self.before() => {
                    return Ok(format!("{active} is active again after {:.0} ms", ms(begin)));
                }
                Some(_) => match self.planes().promote(self.before()).await {
                    Ok(switch) => {
                        let (to, held) = (switch.to, switch.held_ms);
                        return Ok(format!(
                            "{to} is active again after {:.0} ms; mutations were held {held:.1} ms",
                            ms(begin)
                        ));
                    }
                    Err(error) => why = error,
                },
                None => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(Error::unavailable(format!(
            "{} cannot be taken back to; look at `shisa plane list`, then `shisa plane rollback`",
            self.before()
        ))
        .because(why))
    }

    /// Ends the candidate; where a plane of the old binary stood by, there is one again.
    async fn withdraw(&self) -> Result<String> {
        let begin = Instant::now();
        while self.planes().active().is_none() && begin.elapsed() < BACK_MAX {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if self.planes().active().as_deref() == Some(self.candidate()) {
            // It took over from the active one, which ended meanwhile and is back, or will be.
            self.standing_by(self.before()).await?;
            self.planes().promote(self.before()).await?;
        }
        if self.rollout.had_standby {
            // A store that is slow for a while is no reason to be without a plane that stands by.
            let mut tries = 1;
            loop {
                match self.replace(self.candidate(), &self.rollout.from.binary).await {
                    Err(error) if tries < WITHDRAW_TIMES => {
                        tracing::warn!("no plane stands by yet, it is tried again: {}", error.chain());
                    }
                    replaced => {
                        let advice = "no plane stands by; `shisa plane add` starts one";
                        return replaced.map_err(|error| Error::unavailable(advice).because(error));
                    }
                }
                tries += 1;
                tokio::time::sleep(WITHDRAW_AGAIN).await;
            }
        }
        if self.planes().seat(self.candidate()).is_some() {
            self.planes().remove(self.candidate()).await?;
        }
        Ok(format!("{} has ended", self.candidate()))
    }

    async fn standing_by(&self, name: &str) -> Result<()> {
        let begin = Instant::now();
        while self.planes().seat(name).is_none_or(|(_, state, _)| state != State::Standby) {
            if begin.elapsed() > READY_MAX {
                return Err(Error::unavailable(format!(
                    "{name} does not come back; planes/{name}/log says why"
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// What the new version brings to the records may be used from now on: no plane of the one before is left.
    async fn raise(&self) -> Result<String> {
        let planes = self.planes();
        let said = planes.ask(self.candidate(), Method::POST, "/finalise", &Value::Null, RAISE_MAX).await?;
        let (before, now) = (&said["before"], &said["format"]);
        Ok(match before == now {
            true => format!("the records stay in format {now}"),
            false => {
                format!("the records are of format {now}, of {before} before: older versions refuse them")
            }
        })
    }

    /// The plane before is still what it was: what it runs is looked at, not remembered.
    ///
    /// Errors: `Conflict` when it runs another binary.
    fn way_back(&self) -> Result<()> {
        match self.planes().seat(self.before()) {
            Some((binary, ..)) if binary != self.rollout.from.binary => {
                let candidate = self.planes().active().as_deref() == Some(self.candidate());
                let on = if candidate { "; `shisa plane finalise` goes on from there" } else { "" };
                Err(Error::conflict(format!(
                    "there is no way back: {} runs {} by now{on}",
                    self.before(),
                    binary.display()
                )))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// As `replace`, where that is not so already.
    async fn replaced(&self, name: &str, binary: &std::path::Path) -> Result<String> {
        match self.planes().seat(name) {
            Some((is, State::Standby, _)) if is == binary => {
                Ok(format!("{name} stands by with {} already", binary.display()))
            }
            Some(_) | None => self.replace(name, binary).await,
        }
    }

    /// A plane that is not active gets another binary, and stands by.
    async fn replace(&self, name: &str, binary: &std::path::Path) -> Result<String> {
        if self.planes().seat(name).is_some() {
            self.planes().remove(name).await?;
        }
        self.planes().add(name, binary).await?;
        self.planes().stand_by(name).await?;
        Ok(format!("{name} stands by with {}", binary.display()))
    }
}

/// Errors: `Invalid` for a file that is no Shisa.
async fn runs(binary: &std::path::Path) -> Result<()> {
    let shown = binary.display();
    let asked = tokio::process::Command::new(binary)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let said = tokio::time::timeout(VERSION_MAX, asked).await;
    let said = said.map_err(|_| {
        Error::invalid(format!("{shown} does not say its version in {} s", VERSION_MAX.as_secs()))
    })?;
    let said = said.map_err(|e| {
        Error::invalid(format!("{shown} cannot be started; is it an executable file of this machine?"))
            .because(e)
    })?;
    match said.status.success() && said.stdout.starts_with(b"shisa ") {
        true => Ok(()),
        false => Err(Error::invalid(format!("{shown} --version does not answer as Shisa does"))),
    }
}
