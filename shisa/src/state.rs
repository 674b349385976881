//! The state directory: everything that one cloud keeps.
//!
//! ```text
//! cloud.json   what the cloud is on this machine (Ids); it says the format of all the rest
//! node.json    instead of it: which node of a cloud elsewhere this machine is (Membership)
//! credentials.json  that node's key and certificate
//! lock         held by the process that is up
//! process      who that is, and where it listens
//! state.db     records (state.db-owner is locked by the plane that writes); cell.key opens their secrets
//! planes/NAME/ sockets and log of a plane
//! rollouts.json  what became of the last rollouts; conformance.log is what a suite of theirs said
//! door/        socket of the front door for this machine's own commands, its log
//! programs/    builds that nodes run or are to run, by their SHA-256
//! program.json which of them this node runs (`node::program`)
//! local/       lock and log of the process that is this machine's nodes
//! rehearsal/   a copy of the cloud, while a rollout tries things on it
//! control      where `shisa plane` and `shisa rollout` ask the process that is up
//! clouds.yaml  for the clients; demo.key logs in to the demo server
//! storage/     bytes of images
//! nodes/NAME/  what a node keeps: disks, consoles, its ledger
//! log, log.1
//! ```
//!
//! Guests run as users of their own, so the directory may be passed through by all; files with secrets are 0600.

use crate::cli::Machine;
use base::{Error, Result};
use node::Process;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The format of the directory. A larger one in `cloud.json` is of a newer version.
pub const FORMAT: u32 = 1;
/// Names that are ours: `wipe` removes these and nothing else.
const OURS: [&str; 26] = [
    "door",
    "local",
    "programs",
    "program.json",
    "rehearsal",
    "conformance.log",
    "process",
    "control",
    "rollouts.json",
    "planes",
    "state.db",
    "state.db-owner",
    "state.db-wal",
    "state.db-shm",
    "cell.key",
    "clouds.yaml",
    "demo.key",
    "demo.key.pub",
    "storage",
    "nodes",
    "log",
    "log.1",
    "cloud.json",
    "node.json",
    "credentials.json",
    "lock",
];

/// What a cloud is on this machine; made once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ids {
    pub format: u32,
    /// Short id in the name of everything that the kernel keeps for the cloud.
    pub cloud: u32,
    pub machine: Machine,
    /// The node's name; with several, what their names start with.
    pub node_name: String,
    /// The first node's id; others count on from it.
    pub node_id: Uuid,
    /// Where the records are, if not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// Which node of a cloud elsewhere this machine is; made when it joins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Membership {
    pub format: u32,
    /// The cloud's short id, the same on all its nodes.
    pub cloud: u32,
    /// `HOST:PORT` of the plane's listener for nodes.
    pub plane: String,
    /// Hash of the token that it joined by.
    pub token: String,
    pub name: String,
    pub machine: Machine,
    pub fabric: bool,
    pub address: IpAddr,
    pub uplink: Option<String>,
    pub physical: BTreeMap<String, String>,
}

impl Membership {
    /// What the kernel keeps for it is to be taken back when it ends.
    pub fn has_network(&self) -> bool {
        self.fabric || self.machine == Machine::Qemu
    }
}

/// The process that is up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Running {
    pub process: Process,
    pub boot: String,
    /// `http://127.0.0.1:5000`: where this machine reaches it.
    pub address: String,
}

pub struct Directory {
    path: PathBuf,
}

/// Nobody else is up on this directory for as long as this lives.
pub struct Held {
    _lock: File,
}

impl Directory {
    pub fn at(path: PathBuf) -> Directory {
        Directory { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn database(&self) -> PathBuf {
        self.path.join("state.db")
    }

    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// What the front door keeps.
    pub fn door(&self) -> PathBuf {
        self.path.join("door")
    }

    /// Programs that nodes run or are to run.
    pub fn programs(&self) -> PathBuf {
        self.path.join("programs")
    }

    /// What the process of this machine's nodes keeps for itself.
    pub fn local(&self) -> PathBuf {
        self.path.join("local")
    }

    pub fn rollouts(&self) -> PathBuf {
        self.path.join("rollouts.json")
    }

    /// Where a rollout's copy of the cloud stands.
    /// It is that of another directory: whatever its cloud does stays in it.
    pub fn is_copy(&self) -> bool {
        let of = self.path.parent().map(|of| Directory::at(of.to_path_buf()));
        of.is_some_and(|of| of.rehearsal() == self.path && matches!(of.ids(), Ok(Some(_))))
    }

    pub fn rehearsal(&self) -> PathBuf {
        self.path.join("rehearsal")
    }

    pub fn conformance_log(&self) -> PathBuf {
        self.path.join("conformance.log")
    }

    pub fn key(&self) -> PathBuf {
        self.path.join("cell.key")
    }

    pub fn clouds(&self) -> PathBuf {
        self.path.join("clouds.yaml")
    }

    pub fn demo_key(&self) -> PathBuf {
        self.path.join("demo.key")
    }

    pub fn node(&self, name: &str) -> PathBuf {
        self.path.join("nodes").join(name)
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Directories of nodes that are or were.
    pub fn nodes(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join("nodes")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Makes the directory when there is none, and takes it.
    ///
    /// Errors: another process is up on it; it is something else's or a newer version's.
    pub fn hold(&self) -> Result<Held> {
        let shown = self.path.display();
        self.check_ours()?;
        fs::create_dir_all(&self.path)
            .map_err(|e| Error::unavailable(format!("the directory {shown} cannot be made")).because(e))?;
        self.ids()?;
        let lock = self.lock()?.ok_or_else(|| {
            let at = self.running().map(|r| format!(" (process {}, {})", r.process.pid, r.address));
            Error::conflict(format!("the cloud of {shown} is up already{}", at.unwrap_or_default()))
        })?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o711))?;
        Ok(lock)
    }

    /// A directory with things in it that holds no cloud is not ours to fill.
    fn check_ours(&self) -> Result<()> {
        let shown = self.path.display();
        let entries = match fs::read_dir(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| {
                Error::unavailable(format!("the directory {shown} cannot be read")).because(e)
            })?,
        };
        let foreign =
            entries.flatten().any(|entry| !OURS.iter().any(|ours| entry.file_name().to_str() == Some(ours)));
        let there = ["cloud.json", "node.json"].iter().any(|name| self.path.join(name).exists());
        match foreign && !there {
            true => {
                Err(Error::conflict(format!("{shown} has other files and no cloud; name another directory")))
            }
            false => Ok(()),
        }
    }

    /// The lock, unless someone has it.
    fn lock(&self) -> Result<Option<Held>> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file =
            file.map_err(|e| Error::unavailable(format!("{} cannot be written", path.display())).because(e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Held { _lock: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::internal(format!("{} cannot be locked", path.display())).because(e)),
        }
    }

    /// What the cloud is, if there is one here.
    ///
    /// Errors: `Conflict` when a newer version wrote it.
    pub fn ids(&self) -> Result<Option<Ids>> {
        self.read("cloud.json")
    }

    /// Which node this machine is, if it is one of a cloud elsewhere.
    ///
    /// Errors: `Conflict` when a newer version wrote it.
    pub fn membership(&self) -> Result<Option<Membership>> {
        self.read("node.json")
    }

    pub fn note_membership(&self, membership: &Membership) -> Result<()> {
        write(&self.path.join("node.json"), &to_json(membership), 0o644)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = self.path.join(name);
        if let Some(Format { format }) = read_json(&path)?
            && format > FORMAT
        {
            return Err(Error::conflict(format!(
                "{} was written by a newer version (format {format}, this one reads {FORMAT}); start that version",
                self.path.display()
            )));
        }
        read_json(&path)
    }

    /// As `ids`, for a command that needs a cloud.
    pub fn need_ids(&self) -> Result<Ids> {
        let none = || {
            Error::not_found(format!("there is no cloud in {}; `shisa up` makes one", self.path.display()))
        };
        self.ids()?.ok_or_else(none)
    }

    /// What the cloud is; made when there is none. One cloud keeps its machine.
    pub fn make_ids(&self, machine: Machine) -> Result<Ids> {
        if let Some(ids) = self.ids()? {
            return Ok(ids);
        }
        let node_name = match machine {
            Machine::Qemu => host_name(),
            Machine::Simulated => "node".into(),
        };
        let cloud = (Uuid::new_v4().as_u128() >> 96) as u32;
        let ids = Ids { format: FORMAT, cloud, machine, node_name, node_id: Uuid::new_v4(), store: None };
        self.note_ids(&ids)?;
        Ok(ids)
    }

    /// The URL of a store may hold a password.
    pub fn note_ids(&self, ids: &Ids) -> Result<()> {
        write(&self.path.join("cloud.json"), &to_json(ids), 0o600)
    }

    /// The URL of the cloud's store.
    ///
    /// Errors: `NotFound` when there is no cloud here.
    pub fn need_store(&self) -> Result<String> {
        let own = || format!("sqlite:{}", self.database().display());
        Ok(self.need_ids()?.store.unwrap_or_else(own))
    }

    /// Notes who is up; only for who holds the directory.
    pub fn note_running(&self, address: &str) -> Result<()> {
        let process = Process::of(std::process::id() as i32);
        let process = process.ok_or_else(|| Error::internal("this process is not in /proc"))?;
        let running = Running { process, boot: node::boot_id()?, address: address.into() };
        write(&self.path.join("process"), &to_json(&running), 0o644)
    }

    pub fn note_stopped(&self) {
        let _ = fs::remove_file(self.path.join("process"));
    }

    /// Who is up. None also for a note that a crash left.
    pub fn running(&self) -> Option<Running> {
        let running: Running = read_json(&self.path.join("process")).ok()??;
        let this_boot = node::boot_id().is_ok_and(|boot| boot == running.boot);
        (this_boot && running.process.alive()).then_some(running)
    }

    pub fn need_running(&self) -> Result<Running> {
        self.need_ids()?;
        let down = || Error::unavailable(format!("the cloud of {} is not up", self.path.display()));
        self.running().ok_or_else(down)
    }

    /// Removes everything of ours, and the directory when nothing else is in it.
    pub fn wipe(&self) -> Result<()> {
        for name in OURS {
            let path = self.path.join(name);
            let gone = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            match gone {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::internal(format!("{} cannot be removed", path.display())).because(e));
                }
                _ => {}
            }
        }
        let _ = fs::remove_dir(&self.path);
        Ok(())
    }
}

/// This machine's name, as far as it is one that a node can have.
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if name.is_empty() || !name.chars().all(good) { "node".into() } else { name }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("names and numbers are JSON");
    text.push(b'\n');
    text
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        bytes => {
            bytes.map_err(|e| Error::unavailable(format!("{} cannot be read", path.display())).because(e))?
        }
    };
    let wrong = |e| Error::internal(format!("{} is not what shisa wrote", path.display())).because(e);
    serde_json::from_slice(&bytes).map(Some).map_err(wrong)
}

/// Replaces a file as a whole, durably.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let cannot = |e| Error::unavailable(format!("{} cannot be written", path.display())).because(e);
    let _ = fs::remove_file(&new);
    let replace = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The parent of a bare name is empty.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    replace().map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once_and_keeps_its_ids() {
        let dir = tempfile::tempdir().unwrap();
        let one = Directory::at(dir.path().join("state"));
        let held = one.hold().unwrap();
        let ids = one.make_ids(Machine::Simulated).unwrap();
        assert_eq!(one.make_ids(Machine::Qemu).unwrap(), ids);
        let again = Directory::at(dir.path().join("state"));
        assert!(again.hold().err().unwrap().message().contains("is up already"));
        drop(held);
        again.hold().unwrap();
    }

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let error = Directory::at(dir.path().into()).hold().err().unwrap();
        assert!(error.message().contains("has other files and no cloud"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn wiping_takes_only_what_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::at(dir.path().into());
        drop(directory.hold().unwrap());
        directory.make_ids(Machine::Simulated).unwrap();
        fs::write(dir.path().join("notes"), "x").unwrap();
        directory.wipe().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
