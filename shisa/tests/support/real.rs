//! A cloud on this machine with real guests.

use super::{Cloud, run};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Why this machine cannot run guests.
pub fn lacks() -> Option<&'static str> {
    let there = |program: &str, word: &str| {
        Command::new(program).arg(word).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let checks = [
        (root, "root"),
        (there("qemu-system-x86_64", "--version"), "qemu-system-x86_64"),
        (there("nft", "--version"), "nft"),
        (there("ssh", "-V"), "ssh"),
        (there("ping", "-V"), "ping"),
        (top().join("guest/out/guest.qcow2").exists(), "guest/out/guest.qcow2 (guest/build)"),
    ];
    checks.iter().find(|(there, _)| !there).map(|(_, what)| *what)
}

/// A cloud with the demo; everything of it ends with the test.
pub struct Real {
    _dir: tempfile::TempDir,
    pub state: PathBuf,
}

impl Drop for Real {
    fn drop(&mut self) {
        let down = run(&self.state, &["down"]);
        assert!(down.status.success() || std::thread::panicking(), "{}", text(&down));
    }
}

impl Real {
    pub fn new() -> Real {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let state = dir.path().join("cloud");
        Real { _dir: dir, state }
    }

    pub fn up(&self) -> Cloud {
        let image = top().join("guest/out/guest.qcow2");
        Cloud::up_with(&self.state, &["--machine", "qemu", "--demo", "--image", image.to_str().unwrap()])
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
