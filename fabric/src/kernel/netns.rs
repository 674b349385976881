//! Network namespaces by name, as iproute2 keeps them: a file below `/run/netns` with the namespace mounted on it.
//!
//! Work inside of one is done by a thread that enters it and ends; sockets made there stay there. So no thread of the
//! runtime is ever left in the wrong namespace.

use base::{Error, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const FOLDER: &str = "/run/netns";

/// The namespace of the calling thread.
pub fn current() -> Result<OwnedFd> {
    let file = File::open("/proc/thread-self/ns/net").map_err(|e| failed("opening", "the host's", e))?;
    Ok(file.into())
}

pub fn open(name: &str) -> Result<OwnedFd> {
    let file = File::open(path(name)).map_err(|e| failed("opening", name, e))?;
    Ok(file.into())
}

/// Names of all namespaces, ours or not.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Makes a namespace with this name; one that is there already is left as it is.
pub fn create(name: &str) -> Result<()> {
    share_folder()?;
    let path = path(name);
    if open(name).is_ok() && is_namespace(&path) {
        return Ok(());
    }
    File::create(&path).map_err(|e| failed("naming", name, e))?;
    let made = std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        made.join().unwrap_or(Err(nix::Error::EIO))
    });
    made.map_err(|e| {
        let _ = fs::remove_file(&path);
        failed("making", name, e)
    })
}

/// A namespace without a name: it ends with its last holder.
pub fn unnamed() -> Result<OwnedFd> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("making", "without a name", e))?;
            current()
        });
        made.join().unwrap_or_else(|_| Err(Error::internal("making a network namespace panicked")))
    })
}

/// Takes the name away. The namespace ends with the last process and socket in it.
pub fn remove(name: &str) -> Result<()> {
    let path = path(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL) | Err(nix::Error::ENOENT) => {}
        Err(e) => return Err(failed("unmounting", name, e)),
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("removing", name, e)),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread inside of the namespace.
pub fn inside<T: Send>(namespace: impl AsFd + Send, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::internal("entering a network namespace failed").because(e))?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Error::internal("work inside a network namespace panicked")))
    })
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// A name left by a crash between making the file and mounting is an empty file on the folder's own file system.
fn is_namespace(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    device(path) != device(Path::new(FOLDER))
}

/// The folder must be a shared mount, so that names appear and vanish in every mount namespace, as `ip netns` has it.
fn share_folder() -> Result<()> {
    fs::create_dir_all(FOLDER).map_err(|e| failed("making", FOLDER, e))?;
    let shared =
        || mount(None::<&str>, FOLDER, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match shared() {
        Err(nix::Error::EINVAL) => {}
        other => return other.map_err(|e| failed("sharing", FOLDER, e)),
    }
    mount(Some(FOLDER), FOLDER, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .and_then(|()| shared())
        .map_err(|e| failed("sharing", FOLDER, e))
}

fn failed(verb: &str, name: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal(format!("{verb} network namespace '{name}' failed")).because(cause)
}
