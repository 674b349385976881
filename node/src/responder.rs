//! Who answers the guests of a node: a process of its own, so that DHCP and DNS go on when the node's process ends,
//! or, where no program is named, this one.
//!
//! The responder's process reads the ledger, as the node does, and never writes it. It holds a lock on the file
//! `responder`, in which it stands with pid and start time: there is one for a node, and whoever comes next finds it.
//! One of another build is ended and started anew. It ends by itself when the ledger is gone.

use crate::file;
use crate::vm::process::Process;
use base::node::Document;
use base::{Error, Result};
use fabric::{Responder, Servers};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

/// How often the responder looks at the ledger, and at devices that are not there yet.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const MISSING_MAX: Duration = Duration::from_secs(1);
/// Devices may be made again without a change of the document.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
const KILL_MAX: Duration = Duration::from_secs(5);

/// Where a node's ledger is.
pub fn ledger(state: &Path) -> PathBuf {
    state.join("ledger.json")
}

pub enum Answers {
    Here(Box<Responder>),
    Beside { program: PathBuf, state: PathBuf, cloud: u32, child: Option<Child> },
}

impl Answers {
    /// `program` is run as `PROGRAM responder DIRECTORY CLOUD`.
    pub fn new(program: Option<PathBuf>, state: PathBuf, cloud: u32) -> Answers {
        match program {
            None => Answers::Here(Box::new(Responder::new(cloud, Servers::default()))),
            Some(program) => Answers::Beside { program, state, cloud, child: None },
        }
    }

    /// Sees to it that guests are answered as the document says.
    pub async fn keep(&mut self, document: &Document) -> Result<()> {
        match self {
            Answers::Here(responder) => {
                report(responder.follow(document));
                Ok(())
            }
            Answers::Beside { program, state, cloud, child } => {
                // A child that has ended is waited for, so that it is not there any more.
                if child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
                    *child = None;
                }
                if !same_program(state, program) {
                    end(state).await?;
                    *child = Some(start(program, state, *cloud)?);
                }
                Ok(())
            }
        }
    }
}

fn report(failures: Vec<(fabric::Place, Error)>) {
    for (place, error) in failures {
        tracing::warn!(error = error.chain(), %place, "guests are not answered there");
    }
}

/// Whether the responder is there and runs this very program.
fn same_program(state: &Path, program: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let Some(process) = running(state) else { return false };
    let theirs = file(&PathBuf::from(format!("/proc/{}/exe", process.pid)));
    theirs.is_some() && theirs == file(program)
}

fn start(program: &Path, state: &Path, cloud: u32) -> Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(state.join("responder.log"))?;
    let mut command = Command::new(program);
    command.arg("responder").arg(state).arg(cloud.to_string()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    command.spawn().map_err(|e| Error::unavailable("the responder does not start").because(e))
}

/// The lock of a node's responder; none while a responder has it.
fn lock(state: &Path) -> Result<Option<File>> {
    let path = state.join("responder");
    let file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(Error::internal("the responder's lock cannot be taken").because(e)),
    }
}

/// The responder of a node that is there.
fn running(state: &Path) -> Option<Process> {
    if !matches!(lock(state), Ok(None)) {
        return None;
    }
    let mut text = String::new();
    File::open(state.join("responder")).ok()?.read_to_string(&mut text).ok()?;
    serde_json::from_str::<Process>(&text).ok().filter(|process| process.alive())
}

/// Ends the responder of a node, if there is one.
pub async fn end(state: &Path) -> Result<()> {
    let Some(process) = running(state) else { return Ok(()) };
    process.kill()?;
    match process.gone(KILL_MAX).await {
        true => Ok(()),
        false => Err(Error::unavailable(format!("the responder, process {}, does not end", process.pid))),
    }
}

/// The life of a responder's process.
///
/// Errors: `Conflict` when the node has one already.
pub async fn respond(state: &Path, cloud: u32) -> Result<()> {
    let held = lock(state)?.ok_or_else(|| Error::conflict("this node has a responder already"))?;
    let own = Process::of(std::process::id() as i32);
    let text = serde_json::to_string(&own).map_err(|e| Error::internal("cannot encode").because(e))?;
    held.set_len(0)?;
    (&held).rewind()?;
    (&held).write_all(text.as_bytes())?;
    let ledger = ledger(state);
    let mut responder = Responder::new(cloud, Servers::default());
    let mut missing = LOOK_EVERY;
    while let Some(seen) = changed(&ledger) {
        let Some(document) = file::read_json::<Document>(&ledger)? else { break };
        report(responder.follow(&document));
        let complete = responder.complete(&document);
        missing = if complete { LOOK_EVERY } else { (missing * 2).min(MISSING_MAX) };
        let again = tokio::time::Instant::now() + if complete { AGAIN_EVERY } else { missing };
        while changed(&ledger) == Some(seen) && tokio::time::Instant::now() < again {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// Which version of the file this is: each is a file of its own.
fn changed(ledger: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(ledger).ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}
