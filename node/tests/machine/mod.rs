//! A node with QEMU in a directory of its own, ended with the test.

#![allow(dead_code, clippy::unwrap_used)]

use crate::plane::Plane;
use base::node::{Image, Section, SectionKey, Vm};
use node::{MachineKind, Node, Settings};
use sha2::{Digest, Sha512};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A boot under emulation on a busy machine.
const BOOT_SECS_MAX: u64 = 60;

pub fn qemu_is_missing() -> bool {
    let missing = std::process::Command::new("qemu-system-x86_64").arg("--version").output().is_err();
    if missing {
        println!("skipped: this machine has no qemu-system-x86_64");
    }
    missing
}

pub fn guest_image() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/out/guest.qcow2");
    let path = std::env::var_os("SHISA_GUEST").map_or(built, PathBuf::from);
    assert!(path.exists(), "{} is not there: run guest/build first", path.display());
    path
}

/// A node's directory; its guests end with it.
pub struct State(tempfile::TempDir, pub u32);

impl State {
    pub fn new() -> State {
        let directory = tempfile::tempdir().unwrap();
        // Guests run as users of their own and must reach their files.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        State(directory, std::process::id() << 8 | n)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn run_of(&self, vm: Uuid) -> serde_json::Value {
        let path = self.path().join("vms").join(vm.to_string()).join("run.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let (state, cloud) = (self.path().to_path_buf(), self.1);
        let down = move || {
            tokio::runtime::Runtime::new()
                .unwrap()
                .block_on(async move { node::down(&state, cloud, node::Ending::Kill).await })
        };
        std::thread::spawn(down).join().unwrap().unwrap();
    }
}

pub struct Running {
    pub node: Node,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub fn start(state: &State, plane: &Arc<Plane>) -> Running {
        Running::start_with(state, plane, false)
    }

    pub fn start_with(state: &State, plane: &Arc<Plane>, fabric: bool) -> Running {
        let node = Node::new(Settings {
            name: "node".into(),
            id: Uuid::from_u128(1),
            state: state.path().into(),
            machine: MachineKind::Qemu,
            cloud: state.1,
            uplink: None,
            physical: Default::default(),
            address: [127, 0, 0, 1].into(),
            fabric,
            guest_uids: Some(1_700_000_000),
            responder: None,
        });
        let (run, link) = (node.clone(), plane.link());
        let task = tokio::spawn(async move { run.run(link, std::future::pending()).await.unwrap() });
        Running { node, task }
    }

    /// As a crash would: nothing is said to anybody.
    pub async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn says(&self, vm: Uuid, words: &str, times: usize) -> Duration {
        let begin = Instant::now();
        loop {
            let console = self.node.console(vm, None).unwrap_or_default();
            if console.matches(words).count() >= times {
                return begin.elapsed();
            }
            let late = begin.elapsed().as_secs() > BOOT_SECS_MAX;
            assert!(!late, "the guest did not say '{words}' {times} times:\n{console}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub fn put_image(plane: &Plane, id: Uuid) {
    let path = guest_image();
    let bytes = std::fs::read(&path).unwrap();
    let sha512 = Sha512::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let image = Image { id, format: "qcow2".into(), size: bytes.len() as u64, sha512 };
    plane.images.lock().unwrap().insert(id, path);
    plane.change(|sections| _ = sections.insert(SectionKey::Image(id), Section::Image(image)));
}

pub fn put(plane: &Plane, vm: Vm) {
    plane.change(|sections| _ = sections.insert(SectionKey::Vm(vm.id), Section::Vm(vm)));
}
