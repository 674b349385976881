//! The program that a node runs, and its way to another one.
//!
//! ```text
//! ordered --fetched, checked, tried--> trial --becomes it: greets and reports--> proven
//!    |                                   |--not in time, or with an error: becomes the one before--> given up
//!    +--any of it fails--> given up      +--ended: the next start is the one before--> given up
//! ```
//!
//! A process becomes another program by `execve`: its pid stays, and guests, network and responder go on as over a crash.
//! Which one a start is to be stands in `program.json`: the last that was proven, as long as what the operator installed
//! is what it was then; what is installed anew is run, and counts as proven. An order is carried out once.
//!
//! Limits: `FETCH_MAX`, `TRY_MAX`; `PROVE_MAX` is the caller's to keep.

use crate::file;
use crate::remote::Remote;
use base::join::hex;
use base::program::{Order, Program, Runs};
use base::{Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::Permissions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// A program greets its plane and reports what it found within this, or the node is the one before again.
pub const PROVE_MAX: Duration = Duration::from_secs(60);
/// A program's bytes come within this.
const FETCH_MAX: Duration = Duration::from_secs(600);
/// A program says what it is within this.
const TRY_MAX: Duration = Duration::from_secs(30);
/// A file that was just written may be open in a child that another thread is starting.
const BUSY_TRIES: u32 = 40;
const BUSY_WAIT: Duration = Duration::from_millis(25);
const CHUNK: usize = 256 << 10;

/// What a build says of itself with these words, as JSON: `Program`.
pub const SAY: [&str; 2] = ["node", "program"];

/// This process's own program.
pub fn own(version: &str) -> Result<Program> {
    digest(Path::new("/proc/self/exe"), version)
}

/// A file as the program of a version.
pub fn digest(path: &Path, version: &str) -> Result<Program> {
    let cannot = |e| Error::unavailable(format!("{} cannot be read", path.display())).because(e);
    let (mut file, mut hash, mut size) = (std::fs::File::open(path).map_err(cannot)?, Sha256::new(), 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).map_err(cannot)? {
            0 => break,
            n => {
                size += n as u64;
                hash.update(&chunk[..n]);
            }
        }
    }
    Ok(Program { version: version.into(), sha256: hex(&hash.finalize()), size })
}

/// `program.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// SHA-256 of what the operator installed.
    installed: String,
    proven: Program,
    /// The last order that was carried out or given up, and why that was.
    order: Option<Timestamp>,
    failed: Option<String>,
    /// What is being tried.
    trial: Option<Order>,
}

/// What a process is to do first.
#[derive(Debug, PartialEq)]
pub enum Begin {
    Run,
    /// It is the program of this order, and has not been proven.
    Trial(Order),
    /// It is to be the program of this file.
    Become(PathBuf),
}

impl Kept {
    fn new(own: &Program) -> Kept {
        let (installed, proven) = (own.sha256.clone(), own.clone());
        Kept { installed, proven, order: None, failed: None, trial: None }
    }

    /// What a process of the program `own` is; true: the proven one is to be in its place.
    fn begin(&mut self, own: &Program) -> bool {
        if let Some(trial) = &self.trial {
            if trial.program.sha256 == own.sha256 {
                return false;
            }
            self.give_up("it ended before it had reported");
        }
        if self.proven.sha256 == own.sha256 {
            return false;
        }
        if self.installed == own.sha256 {
            return true;
        }
        (self.installed, self.proven, self.failed) = (own.sha256.clone(), own.clone(), None);
        false
    }

    fn give_up(&mut self, why: &str) {
        if let Some(trial) = self.trial.take() {
            self.order = Some(trial.at);
            self.failed = Some(format!("{}: {why}", trial.program.shown()));
        }
    }
}

/// The programs of a node.
pub struct Programs {
    /// The node's directory.
    state: PathBuf,
    own: Program,
    kept: Kept,
}

impl Programs {
    /// Whether a node was here that knew of orders.
    pub fn are_kept(state: &Path) -> bool {
        state.join("program.json").exists()
    }

    /// Only for who holds the directory. `own`: the program of this process.
    pub fn open(state: &Path, own: Program) -> Result<(Programs, Begin)> {
        let kept: Option<Kept> = file::read_json(&state.join("program.json"))?;
        let mut kept = kept.unwrap_or_else(|| Kept::new(&own));
        let elsewhere = kept.begin(&own);
        let mut programs = Programs { state: state.into(), own, kept };
        let begin = match (programs.kept.trial.clone(), elsewhere) {
            (Some(trial), _) => Begin::Trial(trial),
            (None, true) => match programs.whole(&programs.kept.proven) {
                Some(file) => Begin::Become(file),
                None => {
                    // Its file is gone: what is installed is all there is.
                    programs.kept.proven = programs.own.clone();
                    Begin::Run
                }
            },
            (None, false) => Begin::Run,
        };
        programs.write()?;
        Ok((programs, begin))
    }

    pub fn own(&self) -> &Program {
        &self.own
    }

    pub fn runs(&self) -> Runs {
        Runs { program: self.own.clone(), order: self.kept.order, failed: self.kept.failed.clone() }
    }

    fn write(&self) -> Result<()> {
        file::write_json(&self.state.join("program.json"), &self.kept)
    }

    fn path(&self, program: &Program) -> PathBuf {
        self.state.join("programs").join(&program.sha256)
    }

    /// The file of a program, if it is there as a whole.
    fn whole(&self, program: &Program) -> Option<PathBuf> {
        let path = self.path(program);
        let there = digest(&path, &program.version).ok()?;
        (there.sha256 == program.sha256).then_some(path)
    }

    /// The order is this process's own program already: nothing is to be done for it.
    pub fn is(&mut self, order: &Order) -> Result<bool> {
        let same = order.program.sha256 == self.own.sha256;
        if same {
            (self.kept.order, self.kept.failed) = (Some(order.at), None);
            self.write()?;
        }
        Ok(same)
    }

    /// What a process needs to fetch an order's program.
    pub fn fetch(&self, order: &Order) -> Fetch {
        Fetch {
            path: self.path(&order.program),
            there: self.whole(&order.program),
            program: order.program.clone(),
        }
    }

    /// Notes that this process is about to become an order's program.
    pub fn try_out(&mut self, order: &Order) -> Result<()> {
        let own = self.path(&self.own);
        if self.whole(&self.own).is_none() {
            copy(Path::new("/proc/self/exe"), &own)?;
        }
        (self.kept.trial, self.kept.proven) = (Some(order.clone()), self.own.clone());
        self.write()
    }

    /// An order that is not carried out, before anything was tried.
    pub fn given_up(&mut self, order: &Order, why: &str) -> Result<()> {
        (self.kept.order, self.kept.failed) = (Some(order.at), Some(why.into()));
        self.write()
    }

    /// The trial is over, and this process's program is what the node is.
    pub fn proven(&mut self) -> Result<()> {
        let Some(order) = self.kept.trial.take() else { return Ok(()) };
        let before = std::mem::replace(&mut self.kept.proven, self.own.clone());
        (self.kept.order, self.kept.failed) = (Some(order.at), None);
        self.write()?;
        self.sweep(&[&before.sha256, &self.own.sha256, &self.kept.installed]);
        Ok(())
    }

    /// The trial is over; the file that this process is to become. None: there is no trial any more.
    pub fn unproven(&mut self, why: &str) -> Result<Option<PathBuf>> {
        if self.kept.trial.is_none() {
            return Ok(None);
        }
        self.kept.give_up(why);
        self.write()?;
        Ok(Some(self.path(&self.kept.proven)))
    }

    /// The process ends because it was told to: that says nothing of its program, and the order is carried out later.
    pub fn stopped(&mut self) -> Result<()> {
        match self.kept.trial.take() {
            Some(_) => self.write(),
            None => Ok(()),
        }
    }

    /// Removes the files of other programs, and what an interrupted fetch left.
    fn sweep(&self, used: &[&str]) {
        for entry in std::fs::read_dir(self.state.join("programs")).into_iter().flatten().flatten() {
            if !used.iter().any(|used| entry.file_name().to_str() == Some(used)) {
                let _ = file::remove(&entry.path());
            }
        }
    }
}

/// A program that is to be here.
pub struct Fetch {
    path: PathBuf,
    there: Option<PathBuf>,
    program: Program,
}

impl Fetch {
    /// Its file, fetched and checked if it was not there, when it has said what it is.
    ///
    /// Errors: `Unavailable` when the plane is; `Invalid` when the bytes are others or it is no build that can go back.
    pub async fn carry(self, plane: &Remote) -> Result<PathBuf> {
        if self.there.is_none() {
            let late = |e| Error::unavailable("the program did not come in time").because(e);
            tokio::time::timeout(FETCH_MAX, self.fetch(plane)).await.map_err(late)??;
        }
        say(&self.path, &self.program).await?;
        Ok(self.path)
    }

    async fn fetch(&self, plane: &Remote) -> Result<()> {
        let bytes = plane.program(&self.program.sha256).await?;
        folder(&self.path)?;
        let part = self.path.with_extension("part");
        let fetched = match save(bytes, &part, &self.program).await {
            Ok(()) => place(&part, &self.path),
            Err(error) => Err(error),
        };
        if fetched.is_err() {
            file::remove(&part)?;
        }
        fetched
    }
}

/// Keeps a file under another name, whatever becomes of the first; it is there as a whole or not at all.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    folder(to)?;
    let part = to.with_extension("part");
    let cannot = |e| Error::unavailable(format!("{} cannot be kept", from.display())).because(e);
    let copied = std::fs::copy(from, &part).and_then(|_| std::fs::File::open(&part)?.sync_all());
    copied.map_err(cannot)?;
    place(&part, to)
}

fn folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    // Nobody else is to look at it, or to run it.
    Ok(std::fs::set_permissions(folder, Permissions::from_mode(0o700))?)
}

fn place(part: &Path, path: &Path) -> Result<()> {
    std::fs::set_permissions(part, Permissions::from_mode(0o700))?;
    Ok(std::fs::rename(part, path)?)
}

async fn save(mut bytes: crate::ImageBytes, part: &Path, program: &Program) -> Result<()> {
    let away = |e| Error::unavailable("the program's bytes ended early").because(e);
    let mut file = tokio::fs::File::create(part).await?;
    let (mut chunk, mut size, mut hash) = (vec![0; CHUNK], 0, Sha256::new());
    loop {
        let n = bytes.read(&mut chunk).await.map_err(away)?;
        size += n as u64;
        if n == 0 || size > program.size {
            break;
        }
        hash.update(&chunk[..n]);
        file.write_all(&chunk[..n]).await?;
    }
    file.sync_all().await?;
    match size == program.size && hex(&hash.finalize()) == program.sha256 {
        true => Ok(()),
        false => Err(Error::invalid("the program's bytes are not those of its digest")),
    }
}

/// Runs a program's file once: it says that it is this build, which knows how to go back.
async fn say(path: &Path, program: &Program) -> Result<()> {
    let bad = |why: String| Error::invalid(format!("{} does not say what it is: {why}", program.shown()));
    let mut tries = 0;
    let output = loop {
        let mut command = Command::new(path);
        command.args(SAY).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(TRY_MAX, command.output());
        match output.await.map_err(|_| bad("it is silent".into()))? {
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                tokio::time::sleep(BUSY_WAIT).await;
            }
            output => break output.map_err(|e| bad(e.to_string()))?,
        }
    };
    let said: Option<Program> = serde_json::from_slice(&output.stdout).ok();
    match said {
        Some(said) if output.status.success() && said.sha256 == program.sha256 => Ok(()),
        Some(said) if output.status.success() => Err(bad(format!("it is {}", said.shown()))),
        _ => {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
            Err(bad(format!("{}{last}", output.status)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> Program {
        Program { version: "1".into(), sha256: name.into(), size: 1 }
    }

    fn order(name: &str) -> Order {
        Order { at: Timestamp(7), program: program(name) }
    }

    #[test]
    fn a_start_is_what_was_proven_last_unless_something_else_was_installed() {
        // Installed, proven, tried; what starts; whether it becomes the proven one, and what is proven then.
        let check = |installed: &str,
                     proven: &str,
                     trial: Option<&str>,
                     own: &str,
                     expect: (bool, &str, bool)| {
            let mut kept =
                Kept { proven: program(proven), trial: trial.map(order), ..Kept::new(&program(installed)) };
            let elsewhere = kept.begin(&program(own));
            assert_eq!((elsewhere, kept.proven.sha256.as_str(), kept.failed.is_some()), expect);
        };
        check("a", "a", None, "a", (false, "a", false));
        check("a", "b", None, "a", (true, "b", false));
        check("a", "b", None, "b", (false, "b", false));
        check("a", "b", None, "c", (false, "c", false));
        // A trial goes on; one that ended is given up, whoever starts then.
        check("a", "b", Some("d"), "d", (false, "b", false));
        check("a", "a", Some("d"), "a", (false, "a", true));
        check("a", "b", Some("d"), "a", (true, "b", true));
        check("a", "b", Some("d"), "c", (false, "c", false));
    }

    #[test]
    fn a_trial_that_is_over_is_not_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let own = own("1").unwrap();
        let (mut programs, begin) = Programs::open(dir.path(), own.clone()).unwrap();
        assert_eq!(begin, Begin::Run);
        programs.try_out(&order("d")).unwrap();
        let (mut trial, begin) = Programs::open(dir.path(), program("d")).unwrap();
        assert_eq!(begin, Begin::Trial(order("d")));
        assert_eq!(trial.runs().order, None);
        let back = trial.unproven("it was silent").unwrap().unwrap();
        assert_eq!(digest(&back, "1").unwrap(), own);
        assert_eq!(trial.unproven("again").unwrap(), None);
        let (programs, begin) = Programs::open(dir.path(), own).unwrap();
        assert_eq!(begin, Begin::Run);
        assert_eq!(programs.runs().order, Some(Timestamp(7)));
        assert_eq!(programs.runs().failed.unwrap(), "1 (d): it was silent");
    }

    #[test]
    fn what_was_proven_is_the_next_start_and_other_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let installed = own("1").unwrap();
        let (mut programs, _) = Programs::open(dir.path(), installed.clone()).unwrap();
        let file = dir.path().join("new");
        std::fs::write(&file, "a build").unwrap();
        let new = Order { program: digest(&file, "2").unwrap(), ..order("") };
        copy(&file, &programs.path(&new.program)).unwrap();
        std::fs::write(dir.path().join("programs/older"), "").unwrap();
        programs.try_out(&new).unwrap();
        let (mut trial, begin) = Programs::open(dir.path(), new.program.clone()).unwrap();
        assert_eq!(begin, Begin::Trial(new.clone()));
        trial.proven().unwrap();
        assert_eq!(trial.runs(), Runs { program: new.program.clone(), order: Some(new.at), failed: None });
        assert_eq!(std::fs::read_dir(dir.path().join("programs")).unwrap().count(), 2);
        let begin = Programs::open(dir.path(), installed.clone()).unwrap().1;
        assert_eq!(begin, Begin::Become(trial.path(&new.program)));
        std::fs::write(trial.path(&new.program), "half").unwrap();
        assert_eq!(Programs::open(dir.path(), installed).unwrap().1, Begin::Run);
    }

    #[tokio::test]
    async fn what_does_not_say_what_it_is_is_not_tried() {
        let dir = tempfile::tempdir().unwrap();
        let check = async |script: &str, expect: &str| {
            let path = dir.path().join("program");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            let why = say(&path, &program("d")).await.unwrap_err();
            assert!(why.message().contains(expect), "{why}");
        };
        check("echo 'shisa: no such word' >&2; exit 2", "exit status: 2: shisa: no such word").await;
        check(r#"echo '{"version": "3", "sha256": "e", "size": 1}'"#, "it is 3 (e)").await;
        check("true", "does not say what it is").await;
    }
}
