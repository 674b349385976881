//! The machine `qemu`: what its guests share, and the tasks that keep them.

use crate::Settings;
use crate::image::Images;
use crate::link::Link;
use crate::network::{Kept, Network};
use crate::observed::Observed;
use crate::vm;
use crate::vm::life::{Files, Life};
use crate::vm::plan::{self, Guest};
use crate::vm::probe::Acceleration;
use base::node::{Document, Section, SectionKey};
use base::{Error, Result, pass};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// What all guests of a node share.
pub struct Host {
    pub state: PathBuf,
    pub cloud: u32,
    pub acceleration: Acceleration,
    pub images: Images,
    pub observed: Arc<Observed>,
    /// None: guests have no network.
    network: Option<Arc<Network>>,
    guest_uids: Option<u32>,
}

/// Where the files of a node's guest are.
pub fn files(state: &Path, vm: Uuid) -> Files {
    Files { all: state.join("vms").join(vm.to_string()) }
}

impl Host {
    pub fn new(
        settings: &Settings,
        link: Link,
        observed: Arc<Observed>,
        acceleration: Acceleration,
        network: Option<Arc<Network>>,
    ) -> Result<Host> {
        let state = settings.state.clone();
        for name in ["", "vms", "images"] {
            let directory = state.join(name);
            fs::create_dir_all(&directory)?;
            fs::set_permissions(&directory, Permissions::from_mode(0o711))?;
        }
        let images = Images::new(state.join("images"), link);
        let guest_uids = settings.guest_uids.filter(|_| rustix::process::geteuid().is_root());
        Ok(Host { state, cloud: settings.cloud, acceleration, images, observed, network, guest_uids })
    }

    pub fn files(&self, vm: Uuid) -> Files {
        files(&self.state, vm)
    }

    /// The user that a guest's QEMU is; none: ours. Two guests share one only by chance.
    pub fn owner(&self, vm: Uuid) -> Option<u32> {
        self.guest_uids.map(|first| first + (vm.as_u128() % 65_536) as u32)
    }

    /// KVM's device is for its group.
    pub fn user_and_group(&self, vm: Uuid) -> Option<(u32, u32)> {
        let owner = self.owner(vm)?;
        let kvm = fs::metadata("/dev/kvm").ok().map(|device| device.gid());
        let group = kvm.filter(|gid| self.acceleration == Acceleration::Kvm && *gid != 0);
        Some((owner, group.unwrap_or(owner)))
    }

    pub async fn open_tap(&self, port: Uuid) -> Result<OwnedFd> {
        match &self.network {
            Some(network) => network.open_tap(port).await,
            None => Err(Error::invalid("this node has no network")),
        }
    }
}

/// The task that keeps a guest. Dropping it leaves the guest as it is.
struct Keeper {
    wanted: watch::Sender<Option<Arc<Guest>>>,
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All guests of a node.
pub struct Machine {
    host: Arc<Host>,
    keepers: BTreeMap<Uuid, Keeper>,
    network: Option<Kept>,
}

impl Machine {
    pub fn new(host: Arc<Host>, document: watch::Receiver<Arc<Document>>) -> Machine {
        let network = host
            .network
            .clone()
            .map(|network| Kept::start(network, host.observed.clone(), document, host.state.clone()));
        Machine { host, keepers: BTreeMap::new(), network }
    }

    /// Hands each guest its wish; the guests' own tasks do the rest.
    pub async fn act(&mut self, document: &Document) -> Result<()> {
        let there = guests_of(&self.host.state)?;
        let wanted: BTreeSet<Uuid> = document.sections.keys().filter_map(vm_key).collect();
        let known = there.iter().chain(self.keepers.keys()).chain(&wanted).copied();
        for id in known.collect::<BTreeSet<_>>() {
            self.wish(id, Guest::of(document, id))?;
        }
        if let Some(network) = &self.network {
            network.wake();
        }
        self.keepers.retain(|id, _| wanted.contains(id) || self.host.observed.vm_now(*id).is_some());
        self.host.images.keep(&used_images(document, &there, &self.host));
        self.host.observed.acted_on(document.generation);
        Ok(())
    }

    fn wish(&mut self, id: Uuid, guest: Option<Guest>) -> Result<()> {
        if !self.keepers.contains_key(&id) {
            self.adopt(id, guest.as_ref())?;
        }
        let Some(keeper) = self.keepers.get(&id) else { return Ok(()) };
        let changed = keeper.wanted.send_if_modified(|now| {
            let same = now.as_deref() == guest.as_ref();
            if !same {
                *now = guest.map(Arc::new);
            }
            !same
        });
        if changed {
            keeper.wake.notify_one();
        }
        Ok(())
    }

    /// Starts a guest's task. What is there is told at once, so that a report never lacks a guest that runs.
    fn adopt(&mut self, id: Uuid, guest: Option<&Guest>) -> Result<()> {
        let seen = self.host.files(id).glance()?;
        self.host.observed.vm(id, Some(plan::report(guest, &seen, None, None)));
        let (wanted, receiver) = watch::channel(guest.cloned().map(Arc::new));
        let wake = Arc::new(Notify::new());
        let life = Life::new(id, self.host.clone(), receiver, wake.clone());
        let own = wake.clone();
        let task = tokio::spawn(async move { pass::run(life, &own).await });
        self.keepers.insert(id, Keeper { wanted, wake, task });
        Ok(())
    }
}

fn vm_key(key: &SectionKey) -> Option<Uuid> {
    match key {
        SectionKey::Vm(id) => Some(*id),
        _ => None,
    }
}

/// The guests that have a directory.
pub fn guests_of(state: &Path) -> Result<BTreeSet<Uuid>> {
    let entries = match fs::read_dir(state.join("vms")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| Uuid::try_parse(&name).ok()).collect())
}

/// Images that a section names or a disk stands on.
fn used_images(document: &Document, there: &BTreeSet<Uuid>, host: &Host) -> BTreeSet<Uuid> {
    let named = document.sections.values().filter_map(|section| match section {
        Section::Image(image) => Some(image.id),
        Section::Vm(vm) => vm.image,
        _ => None,
    });
    let roots = there.iter().filter_map(|id| vm::disk::root(&host.files(*id).qemu()).ok()??.image);
    named.chain(roots).collect()
}
