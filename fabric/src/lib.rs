//! The network of one node: from the sections of a document to the kernel, and the answers that guests get from it.
//!
//! `plan` and `diff` are pure and tested as text; `kernel` observes and applies; `respond` answers DHCP, DNS and
//! router solicitations beside it and holds the metadata sockets. `Fabric::sync` is the only way in: observe, diff,
//! apply, report. It may be called at any time and again; when all is right it changes nothing, also in a new process.
//! A change plans and touches only the namespaces that its sections have a say in (`plan::places_of`), from what is known to
//! be there, and of large sets only what it has to do with (`plan::part`).
//!
//! Every namespace carries the cloud's short id in its name, devices and tables in the host's namespace too; nothing
//! else is looked at, so two clouds run side by side and each removes only its own. A host's own firewall is the
//! operator's: guests reach the host by the external networks' gateway addresses as any neighbour does, and a host that
//! drops forwarded packets drops those to the uplink.
//!
//! Nodes meet by VXLAN, one device per network that has members elsewhere (`plan::tunnel`); a packet between subnets is
//! routed where it starts and goes to the node of its receiver alone.
//!
//! Floating addresses are on the node of their port; guests without one leave by a block of the gateway's ports, and what
//! comes back to the gateway's owner is passed on without state (`plan::gateway`).
//!
//! Addresses that guests announce by their pairs are claimed in the report (`claims`), which `news` tells at once.
//!
//! Where the kernel has them, flowtables and shortcuts take established and routed packets past what has no say in them
//! (`plan::shortcuts`), and flows that have just passed all rules past those (`plan::known`) and to other nodes past the
//! router (`plan::direct`).
//!
//! Deliberately absent for now: QoS, trunks, floating addresses of IPv6.

mod claims;
pub mod diff;
mod kernel;
pub mod plan;
pub mod respond;
pub mod state;
pub mod trace;

pub use respond::metadata::{Listener, Listeners};
pub use respond::{Post, Responder, Servers};
pub use state::Place;

use base::node::{Document, KernelCosts, PortReport, SectionKey};
use base::{Error, Result};
use claims::Claims;
use kernel::{Kernel, nft, tap, uplink};
use plan::{Powers, Sections};
use respond::metadata::Metadata;
use state::KernelState;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use uuid::Uuid;

/// All that is there is looked at as often as this, whether or not anything is to change.
pub const LOOK_EVERY: Duration = Duration::from_secs(300);

/// What a node is, as far as its network goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The cloud's short id, on everything that is ours.
    pub cloud: u32,
    /// Underlay address, by which other nodes know this one.
    pub node_address: IpAddr,
    /// UDP port of the tunnels between nodes, the same on all of them.
    pub vxlan_port: u16,
    /// The host's device to the world. None: external networks end at the host.
    pub uplink: Option<String>,
    /// Physical network to the host's device on it. The device is the network's then: it goes into its bridge.
    pub physical: BTreeMap<String, String>,
}

/// The UDP port of a cloud's tunnels: below the ports that hosts give to connections.
pub fn vxlan_port(cloud: u32) -> u16 {
    20_000 + (cloud % 10_000) as u16
}

/// What `down` took away.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Removed {
    pub namespaces: usize,
    /// Devices in the host's namespace.
    pub devices: usize,
    pub tables: usize,
    /// The uplink whose forwarding switch was set back.
    pub uplink: Option<String>,
}

/// The network of this node.
pub struct Fabric {
    settings: Settings,
    powers: Powers,
    kernel: Arc<Mutex<Kernel>>,
    metadata: Metadata,
    claims: Claims,
    /// As of the last `sync`: the document, and what the kernel is by it.
    before: Document,
    wanted: KernelState,
    /// Where something failed then.
    unsure: BTreeSet<Place>,
    /// When all was last looked at.
    looked: Option<Instant>,
    /// By network and fixed address, as of the last `sync`.
    ports: BTreeMap<(Uuid, IpAddr), Uuid>,
    /// Namespace and device of each port, as of the last `sync`.
    taps: BTreeMap<Uuid, (Place, String)>,
    done: Done,
}

/// Places, what is known of them, and what they are to be.
type Planned = (BTreeSet<Place>, Option<Arc<KernelState>>, Arc<KernelState>);

/// What a `sync` did.
#[derive(Default)]
struct Done {
    steps: Vec<String>,
    failures: Vec<(Place, String)>,
    /// Namespaces or devices came or went.
    devices: bool,
}

impl Fabric {
    /// Looks whether this process may and this kernel can; changes nothing.
    ///
    /// Errors: `Unavailable`, in one sentence, when not root or without nft, bridges' tables or taps.
    pub async fn open(settings: Settings) -> Result<Fabric> {
        let cloud = settings.cloud;
        let (kernel, powers) = blocking(move || enter(cloud)).await?;
        Ok(Fabric {
            settings,
            powers,
            kernel: Arc::new(Mutex::new(kernel)),
            metadata: Metadata::default(),
            claims: Claims::default(),
            before: Document::default(),
            wanted: KernelState::default(),
            unsure: BTreeSet::new(),
            looked: None,
            ports: BTreeMap::new(),
            taps: BTreeMap::new(),
            done: Done::default(),
        })
    }

    /// Makes the kernel what the document says, and tells of each port whether it is there with all its rules.
    ///
    /// Only the places that changed sections touch are planned; what is there is known from before, and looked at as a
    /// whole at first, after failures, and every `LOOK_EVERY`.
    ///
    /// A step that fails is logged and leaves the ports of its namespace not up; the next call tries it again.
    /// Errors: `Internal` when the kernel could not be read.
    pub async fn sync(&mut self, document: &Document) -> Result<BTreeMap<Uuid, PortReport>> {
        let sure = self.unsure.is_empty() && self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY);
        self.follow(document, !sure).await
    }

    /// As `sync`, and looks at all that is there.
    pub async fn check(&mut self, document: &Document) -> Result<BTreeMap<Uuid, PortReport>> {
        self.follow(document, true).await
    }

    async fn follow(&mut self, document: &Document, whole: bool) -> Result<BTreeMap<Uuid, PortReport>> {
        let sections = Sections::of(document);
        let changed = changed(&self.before, document);
        let (places, known, wanted) = match whole {
            true => {
                let places = sections.places();
                let wanted = plan::plan_of(&sections, &self.settings, self.powers, &places);
                (places, None, Arc::new(wanted))
            }
            false => self.planned(&sections, &changed),
        };
        // Cut off half way, nothing is known.
        let looked = self.looked.take().filter(|_| !whole);
        self.done = self.converge(known.clone(), wanted.clone()).await?;
        self.looked = looked.or(Some(Instant::now()));
        self.unsure = self.done.failures.iter().map(|(place, _)| *place).collect();
        match known {
            None => self.wanted = Arc::unwrap_or_clone(wanted),
            Some(known) => self.wanted.follow(&known, &wanted),
        }
        note(&mut self.before, document, changed);
        self.remember(&sections);
        self.answer(&sections, whole, &places);
        Ok(sections.ports.values().map(|port| (port.id, self.report(port))).collect())
    }

    /// The places that a change touches, what is known of them and what they are to be: of large sets only what the
    /// change has to do with, where that says it all.
    fn planned(&self, sections: &Sections, changed: &BTreeSet<SectionKey>) -> Planned {
        let before = Sections::of(&self.before);
        let places = touched(&before, sections, &self.settings, changed);
        let by = (&self.settings, self.powers);
        let (known, wanted) = match plan::part::of((&before, sections), changed, by, &places, &self.wanted) {
            Some(part) => (part.seen, part.wanted),
            None => (self.wanted.of(&places), plan::plan_of(sections, by.0, by.1, &places)),
        };
        (places, Some(Arc::new(known)), Arc::new(wanted))
    }

    async fn converge(&self, known: Option<Arc<KernelState>>, wanted: Arc<KernelState>) -> Result<Done> {
        let (kernel, settings) = (self.kernel.clone(), self.settings.clone());
        blocking(move || converge(&kernel, &settings, known.as_deref(), &wanted)).await
    }

    /// Sockets for metadata where devices came or went, and ears for claims.
    fn answer(&mut self, sections: &Sections, whole: bool, places: &BTreeSet<Place>) {
        let mut failures = Vec::new();
        if whole || self.done.devices {
            failures.extend(self.metadata.follow(self.settings.cloud, sections));
        }
        failures.extend(self.claims.follow(&lock(&self.kernel), sections, places));
        for (place, error) in failures {
            tracing::warn!(error = error.chain(), %place, "guests are not answered or heard there");
            self.unsure.insert(place);
            self.done.failures.push((place, error.chain()));
        }
    }

    fn report(&self, port: &base::node::Port) -> PortReport {
        let sure = !self.unsure.contains(&Place::Network(port.network));
        let up = port.admin_up && self.taps.contains_key(&port.id) && sure;
        let mut macs = self.claims.of(port.id);
        let claims = macs.keys().copied().collect();
        macs.retain(|_, mac| *mac != port.mac);
        PortReport { up, claims, macs }
    }

    fn remember(&mut self, sections: &Sections) {
        let mut ports = BTreeMap::new();
        let mut taps = BTreeMap::new();
        for port in sections.ports.values() {
            ports.extend(port.fixed.iter().map(|fixed| ((port.network, fixed.address), port.id)));
            let (place, name) = (Place::Network(port.network), state::tap(port.id));
            if self.wanted.places.get(&place).is_some_and(|space| space.links.contains_key(&name)) {
                taps.insert(port.id, (place, name));
            }
        }
        (self.ports, self.taps) = (ports, taps);
    }

    /// A descriptor of the port's tap (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`), for QEMU.
    ///
    /// Errors: `NotFound` before the port was in a `sync`; `Unavailable` while another process has the tap.
    pub fn open_tap(&self, port: Uuid) -> Result<OwnedFd> {
        let (place, name) = self
            .taps
            .get(&port)
            .ok_or_else(|| Error::not_found(format!("port {port} is not on this node")))?;
        let namespace = lock(&self.kernel).namespace(*place)?;
        tap::open(namespace, name)
    }

    /// Metadata sockets that came and went since the last call: ask after each `sync`.
    pub fn metadata_listeners(&mut self) -> Listeners {
        self.metadata.listeners()
    }

    /// Whose address it is on a network; the network is the listener's.
    pub fn port_of(&self, network: Uuid, source: IpAddr) -> Option<Uuid> {
        self.ports.get(&(network, source)).copied()
    }

    /// Told when the report has changed by itself: `sync` again.
    pub fn news(&self) -> Arc<Notify> {
        self.claims.news()
    }

    /// The steps that the last `sync` took, as text; none when all was right.
    pub fn last_steps(&self) -> &[String] {
        &self.done.steps
    }

    /// Those of them that failed, and why.
    pub fn last_failures(&self) -> &[(Place, String)] {
        &self.done.failures
    }

    /// What the kernel's calls cost on this node. Touches nothing of the cloud's and nothing of the host's.
    pub async fn costs() -> Result<KernelCosts> {
        blocking(kernel::probe::costs).await
    }

    /// Removes everything of this cloud from the node, also what a crash left behind, and nothing else.
    /// Guests must be stopped before: their taps go.
    pub async fn down(settings: &Settings) -> Result<Removed> {
        let cloud = settings.cloud;
        blocking(move || remove_all(cloud)).await
    }
}

fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs blocking work off the runtime's threads, in the network namespace of the calling thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let namespace = kernel::netns::current()?;
    let run = tokio::task::spawn_blocking(move || kernel::netns::inside(namespace, work));
    run.await.map_err(|e| Error::internal("work on the kernel was cut off").because(e))?
}

fn enter(cloud: u32) -> Result<(Kernel, Powers)> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::unavailable("the network of a node needs root"));
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(Error::unavailable("this kernel has no /dev/net/tun: load the module tun"));
    }
    nft::list()
        .map_err(|e| Error::unavailable("the program nft is missing or does not work here").because(e))?;
    let kernel = Kernel::open(cloud)?;
    let powers = kernel.powers()?;
    Ok((kernel, powers))
}

/// From what is known of the places, or else from what is seen of all.
fn converge(
    kernel: &Mutex<Kernel>,
    settings: &Settings,
    known: Option<&KernelState>,
    wanted: &KernelState,
) -> Result<Done> {
    uplink::keep_only(settings.cloud, settings.uplink.as_deref())?;
    let mut kernel = lock(kernel);
    let steps = match known {
        Some(known) => diff::diff(known, wanted),
        None => diff::diff(&kernel.observe(wanted)?, wanted),
    };
    let failures: Vec<(Place, String)> =
        kernel.apply(&steps).into_iter().map(|(place, error)| (place, error.chain())).collect();
    if failures.is_empty() {
        kernel.keep(known, wanted);
    }
    for (_, error) in &failures {
        tracing::warn!(error, "the network of this node is not as it should be");
    }
    let devices = steps.iter().any(|step| {
        use diff::Action::{Create, LinkAdd, LinkRemove, Remove};
        matches!(step.action, Create | LinkAdd(..) | LinkRemove(_) | Remove)
    });
    Ok(Done { steps: steps.iter().map(diff::Step::to_string).collect(), failures, devices })
}

/// The sections that differ.
fn changed(before: &Document, after: &Document) -> BTreeSet<SectionKey> {
    let gone = before.sections.keys().filter(|key| !after.sections.contains_key(key)).cloned();
    let come = after.sections.iter().filter(|(key, section)| before.sections.get(key) != Some(*section));
    gone.chain(come.map(|(key, _)| key.clone())).collect()
}

/// Brings one document to another, of which these sections differ.
fn note(before: &mut Document, after: &Document, changed: BTreeSet<SectionKey>) {
    for key in changed {
        match after.sections.get(&key) {
            Some(section) => before.sections.insert(key, section.clone()),
            None => before.sections.remove(&key),
        };
    }
}

/// The places that a change of these sections can touch.
fn touched(
    before: &Sections,
    after: &Sections,
    settings: &Settings,
    changed: &BTreeSet<SectionKey>,
) -> BTreeSet<Place> {
    let mut out = BTreeSet::new();
    for key in changed {
        let shared = match key {
            SectionKey::Members(id) => {
                plan::is_elsewhere(before, settings, *id) != plan::is_elsewhere(after, settings, *id)
            }
            _ => false,
        };
        out.extend(plan::places_of(before, key, shared));
        out.extend(plan::places_of(after, key, shared));
    }
    out
}

fn remove_all(cloud: u32) -> Result<Removed> {
    let mut kernel = Kernel::open(cloud)?;
    let nothing = KernelState::default();
    let seen = kernel.observe(&nothing)?;
    let host = seen.places.get(&Place::Host);
    let removed = Removed {
        namespaces: seen.places.keys().filter(|place| **place != Place::Host).count(),
        devices: host.map_or(0, |host| host.links.len()),
        tables: host.map_or(0, |host| host.tables.len()),
        uplink: uplink::take_back(cloud)?,
    };
    let failed = kernel.apply(&diff::diff(&seen, &nothing)).pop();
    kernel.keep_nothing();
    match failed {
        Some((_, error)) => Err(error),
        None => Ok(removed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_may_run_on_any_thread() {
        fn send<T: Send>(_: T) {}
        let _ = |fabric: Fabric| send(fabric);
        let _ = |fabric: &mut Fabric, document: &Document| send(fabric.sync(document));
    }
}
