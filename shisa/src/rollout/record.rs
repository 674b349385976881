//! What is written down of rollouts: `rollouts.json` in the state directory, replaced as a whole at each step.
//!
//! Limit: the last `ROLLOUTS_MAX`.

use crate::state::{self, Directory};
use base::program::Program;
use base::{Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// Rollouts that are remembered.
pub const ROLLOUTS_MAX: usize = 20;

/// How a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Running,
    /// The candidate is active, the plane before it stands by.
    Active,
    /// A gate did not let the candidate through.
    Stopped,
    /// The candidate was active, and the plane before it is again.
    TakenBack,
    /// The process that ran it ended.
    CutOff,
    /// Taken back by an operator after it was done.
    RolledBack,
    /// Both planes run the candidate's binary.
    Finalised,
}

impl Outcome {
    pub fn told(self) -> &'static str {
        match self {
            Outcome::Running => "it goes on",
            Outcome::Active => "the candidate is active",
            Outcome::Stopped => "stopped before the switch",
            Outcome::TakenBack => "taken back",
            Outcome::CutOff => "cut off by the end of the cloud's process",
            Outcome::RolledBack => "rolled back by an operator",
            Outcome::Finalised => "finalised",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    Running,
    Passed,
    Failed,
}

impl Mark {
    fn told(self) -> &'static str {
        match self {
            Mark::Running => "running",
            Mark::Passed => "passed",
            Mark::Failed => "failed",
        }
    }
}

/// A gate, a switch, or what was done when one failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub mark: Mark,
    /// What was found, in words.
    pub detail: String,
    pub begun: String,
    pub took_ms: f64,
}

impl Step {
    pub fn line(&self) -> String {
        let (mark, seconds) = (self.mark.told(), self.took_ms / 1000.0);
        format!("{}  {mark:<7} {seconds:>8.2} s  {:<11} {}", self.begun, self.name, self.detail)
    }
}

/// A plane, by its name and program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seat {
    pub name: String,
    pub binary: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rollout {
    pub number: u64,
    pub from: Seat,
    pub to: Seat,
    /// The candidate's own word; empty until it says so.
    pub version: String,
    pub bake_s: u64,
    /// What tries the candidate on a copy, instead of the built-in suite.
    #[serde(default)]
    pub conformance: Option<String>,
    /// Nothing was tried on a copy, as the operator wished.
    #[serde(default)]
    pub without_copy: bool,
    /// Nodes keep their binary, as the operator wished.
    #[serde(default)]
    pub no_nodes: bool,
    /// What the nodes of this machine ran before, once they run the candidate's binary.
    #[serde(default)]
    pub local_before: Option<PathBuf>,
    /// What nodes on other machines ran before they were ordered to run the candidate's.
    #[serde(default)]
    pub nodes_before: BTreeMap<String, Program>,
    /// A plane of the old binary stood by before.
    pub had_standby: bool,
    pub outcome: Outcome,
    pub begun: String,
    pub ended: Option<String>,
    pub steps: Vec<Step>,
}

impl Rollout {
    /// As `shisa rollout show` prints it.
    pub fn lines(&self) -> Vec<String> {
        let (from, to) = (&self.from, &self.to);
        let mut lines = vec![
            format!("rollout {}: {}", self.number, self.outcome.told()),
            format!(
                "  from {} ({}) to {} ({})",
                from.name,
                from.binary.display(),
                to.name,
                to.binary.display()
            ),
            format!("  begun {}, ended {}", self.begun, self.ended.as_deref().unwrap_or("not yet")),
        ];
        lines.extend(self.steps.iter().map(|step| format!("  {}", step.line())));
        let left_out = if self.without_copy { super::LEFT_OUT } else { "" };
        lines.push(format!("  not rehearsed: {left_out}{}", super::NOT_REHEARSED));
        lines
    }

    /// The step that ended it, when one did.
    pub fn failed(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.mark == Mark::Failed)
    }
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    rollouts: Vec<Rollout>,
}

/// All that were, oldest first.
///
/// Errors: `Internal` when the file is not what shisa wrote.
pub fn read(directory: &Directory) -> Result<Vec<Rollout>> {
    read_file(&directory.rollouts())
}

fn read_file(path: &Path) -> Result<Vec<Rollout>> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => {
            bytes.map_err(|e| Error::unavailable(format!("{} cannot be read", path.display())).because(e))?
        }
    };
    let wrong = |e| {
        let sentence = format!("{} is not what shisa wrote; move it away to begin anew", path.display());
        Error::internal(sentence).because(e)
    };
    serde_json::from_slice::<File>(&bytes).map(|file| file.rollouts).map_err(wrong)
}

/// The rollouts of a cloud that is up.
pub struct Book {
    path: PathBuf,
    rollouts: Mutex<Vec<Rollout>>,
    step: Mutex<Option<Instant>>,
}

impl Book {
    /// What went on when the last process ended, goes on no more.
    pub fn open(directory: &Directory) -> Result<Book> {
        let path = directory.rollouts();
        let mut rollouts = read_file(&path)?;
        let mut cut = 0;
        for one in rollouts.iter_mut().filter(|r| r.outcome == Outcome::Running) {
            (one.outcome, one.ended, cut) = (Outcome::CutOff, Some(now()), cut + 1);
        }
        let book = Book { path, rollouts: Mutex::new(rollouts), step: Mutex::default() };
        if cut > 0 {
            book.write(&book.rollouts())?;
        }
        Ok(book)
    }

    fn rollouts(&self) -> MutexGuard<'_, Vec<Rollout>> {
        self.rollouts.lock().expect("no holder panics")
    }

    pub fn last(&self) -> Option<Rollout> {
        self.rollouts().last().cloned()
    }

    /// Begins one.
    ///
    /// Errors: what keeps the file from being written.
    pub fn add(&self, make: impl FnOnce(u64) -> Rollout) -> Result<Rollout> {
        let mut rollouts = self.rollouts();
        let rollout = make(rollouts.last().map_or(1, |last| last.number + 1));
        rollouts.push(rollout.clone());
        let over = rollouts.len().saturating_sub(ROLLOUTS_MAX);
        rollouts.drain(..over);
        self.write(&rollouts)?;
        Ok(rollout)
    }

    /// Changes the last one. A rollout does not end because a disk is full: that is only said.
    pub fn change(&self, change: impl FnOnce(&mut Rollout)) {
        let mut rollouts = self.rollouts();
        if let Some(last) = rollouts.last_mut() {
            change(last);
        }
        if let Err(error) = self.write(&rollouts) {
            tracing::warn!("a rollout's record is not written: {}", error.chain());
        }
    }

    pub fn begin(&self, name: &str, detail: &str) {
        *self.step.lock().expect("no holder panics") = Some(Instant::now());
        let step = Step {
            name: name.into(),
            mark: Mark::Running,
            detail: detail.into(),
            begun: now(),
            took_ms: 0.0,
        };
        self.change(|rollout| rollout.steps.push(step));
    }

    pub fn end(&self, mark: Mark, detail: &str) {
        let begin = self.step.lock().expect("no holder panics").take();
        let took_ms = begin.map_or(0.0, |begin| begin.elapsed().as_secs_f64() * 1000.0);
        tracing::info!("rollout: {detail}");
        self.change(|rollout| {
            if let Some(step) = rollout.steps.last_mut() {
                (step.mark, step.detail, step.took_ms) = (mark, detail.into(), took_ms);
            }
        });
    }

    pub fn close(&self, outcome: Outcome) {
        self.change(|rollout| (rollout.outcome, rollout.ended) = (outcome, Some(now())));
    }

    fn write(&self, rollouts: &[Rollout]) -> Result<()> {
        let file = File { rollouts: rollouts.to_vec() };
        let cannot = |e| Error::internal("a rollout cannot be written as JSON").because(e);
        state::write(&self.path, &serde_json::to_vec_pretty(&file).map_err(cannot)?, 0o644)
    }
}

pub fn now() -> String {
    Timestamp::wall().zulu()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(number: u64) -> Rollout {
        let seat = |name: &str| Seat { name: name.into(), binary: "/shisa".into() };
        Rollout {
            number,
            from: seat("blue"),
            to: seat("green"),
            version: String::new(),
            bake_s: 60,
            conformance: None,
            without_copy: false,
            no_nodes: false,
            local_before: None,
            nodes_before: BTreeMap::new(),
            had_standby: false,
            outcome: Outcome::Running,
            begun: now(),
            ended: None,
            steps: Vec::new(),
        }
    }

    #[test]
    fn the_last_rollouts_are_kept_and_one_that_was_cut_off_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::at(dir.path().into());
        let book = Book::open(&directory).unwrap();
        (0..ROLLOUTS_MAX + 3).for_each(|_| drop(book.add(rollout).unwrap()));
        book.begin("start", "");
        book.end(Mark::Passed, "green follows");
        let read = read(&directory).unwrap();
        assert_eq!((read.len(), read[0].number), (ROLLOUTS_MAX, 4));
        assert_eq!(read.last().unwrap().steps[0].detail, "green follows");
        assert_eq!(Book::open(&directory).unwrap().last().unwrap().outcome, Outcome::CutOff);
    }
}
