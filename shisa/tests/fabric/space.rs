//! Namespaces without a name: they end with the last process, device and descriptor in them, so nothing is left behind
//! whichever way a run ends.

use crate::Outcome;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A network namespace; a host has a mount namespace beside it, with a `/run/netns` of its own.
pub struct Space {
    net: File,
    mount: Option<File>,
}

impl Space {
    pub fn new() -> Space {
        Space::make(false)
    }

    pub fn host() -> Space {
        Space::make(true)
    }

    /// The one that this thread is in.
    pub fn here() -> Space {
        Space { net: File::open("/proc/thread-self/ns/net").unwrap(), mount: None }
    }

    fn make(host: bool) -> Space {
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            if host {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let none = None::<&str>;
                mount(none, "/run/netns", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            }
            let mount = host.then(|| File::open("/proc/thread-self/ns/mnt").unwrap());
            Space { mount, ..Space::here() }
        });
        let space = made.join().unwrap();
        space.ip("link set lo up");
        space
    }

    /// One of a host, by its name there.
    pub fn named(&self, name: &str) -> Outcome<Space> {
        let path = format!("/run/netns/{name}");
        let net = self.inside(|| File::open(&path)).map_err(|e| format!("{path}: {e}"))?;
        Ok(Space { net, mount: None })
    }

    /// Runs work on a thread inside of it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if self.mount.is_some() {
                    // A thread shares its root folder with the others until then.
                    unshare(CloneFlags::CLONE_FS).unwrap();
                }
                self.enter().unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn enter(&self) -> nix::Result<()> {
        if let Some(mount) = &self.mount {
            setns(mount, CloneFlags::CLONE_NEWNS)?;
        }
        setns(&self.net, CloneFlags::CLONE_NEWNET)
    }

    /// A program inside of it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let (net, mount) = (self.net.as_raw_fd(), self.mount.as_ref().map(AsRawFd::as_raw_fd));
        let enter = move || {
            for (fd, kind) in mount
                .map(|fd| (fd, CloneFlags::CLONE_NEWNS))
                .into_iter()
                .chain([(net, CloneFlags::CLONE_NEWNET)])
            {
                // SAFETY: the space lives until the program has started, and a fork has its descriptors.
                setns(unsafe { BorrowedFd::borrow_raw(fd) }, kind)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(enter) };
        command.stdin(Stdio::null());
        command
    }

    /// What a program says, both ways; an error when it fails.
    pub fn run(&self, words: &str) -> Outcome {
        let mut words = words.split_whitespace();
        let mut command = self.command(words.next().unwrap());
        let output = command.args(words).output().map_err(|e| format!("{command:?}: {e}"))?;
        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    /// For what cannot fail but by a slip in the test.
    pub fn ip(&self, words: &str) {
        self.run(&format!("ip {words}")).unwrap_or_else(|said| panic!("ip {words}: {said}"));
    }

    /// `net.ipv4.ip_forward=1`
    pub fn sysctl(&self, setting: &str) {
        let (key, value) = setting.split_once('=').unwrap();
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(|| std::fs::write(&path, value)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// What `ip link` calls it, for as long as this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// Whether a process is in this host.
    pub fn holds(&self, pid: &str) -> bool {
        use std::os::unix::fs::MetadataExt;
        let inode = |meta: std::io::Result<std::fs::Metadata>| meta.ok().map(|m| m.ino());
        let own = self.mount.as_ref().and_then(|mount| inode(mount.metadata()));
        own.is_some() && own == inode(std::fs::metadata(format!("/proc/{pid}/ns/mnt")))
    }

    /// Joins it to another one by a pair of devices, each `(name, mtu)`.
    pub fn pair(&self, name: &str, other: &Space, peer: &str, mtu: u32) {
        let path = other.path();
        self.ip(&format!("link add {name} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {path}"));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {peer} up"));
    }
}
