//! What runs on a machine: guests, their images, metadata and consoles.
//!
//! A node is told one document and says one report (`base::node`). It keeps the document in its ledger, compares it
//! with what is really there, and takes the steps between; so it works on when its plane is away, and its own restart
//! touches no guest. Two machines stand behind the contract: `qemu` runs guests, `simulated` only says so.
//!
//! Limits: see `agent`, `vm`, `image`, `metadata`. Deliberately absent: migration, snapshots and volumes.

mod agent;
mod cost;
mod down;
mod file;
mod hello;
mod host;
mod image;
mod ledger;
mod link;
mod metadata;
mod network;
mod observed;
pub mod program;
pub mod remote;
mod responder;
mod simulated;
mod vm;

pub use down::{Ending, down};
pub use link::{Answer, ImageBytes, Link, Patches};
pub use responder::respond;
pub use simulated::Simulated;
pub use vm::process::{Process, boot_id};

use base::node::{Document, Hello};
use base::pass;
use base::program::{Order, Runs};
use base::{Error, Result, Timestamp};
use cost::KernelCostsKnown;
use ledger::Ledger;
use network::{Kept, Network};
use observed::Observed;
use responder::Answers;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// What a node is told by its operator.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub id: Uuid,
    /// Its own directory; no other node's. A simulated machine without a network does not use it.
    pub state: PathBuf,
    pub machine: MachineKind,
    /// Short id of the cloud, in the name of everything that the kernel keeps for it.
    pub cloud: u32,
    /// The device to the world outside.
    pub uplink: Option<String>,
    /// Physical network to the device on it.
    pub physical: BTreeMap<String, String>,
    /// Underlay address.
    pub address: IpAddr,
    /// False: no network is made, and a real guest with ports does not start. True on a simulated machine: the network
    /// is there, and nobody plugs in.
    pub fabric: bool,
    /// The first of 65,536 user ids that guests run as; none, or when we are not root: our own.
    pub guest_uids: Option<u32>,
    /// The program that answers guests beside this process, as `PROGRAM responder DIRECTORY CLOUD`; none: this process
    /// does, and guests are not answered while it is away.
    pub responder: Option<PathBuf>,
}

impl Settings {
    /// Of a machine that runs nothing, in no network and without a directory of its own.
    pub fn simulated(name: &str, id: Uuid, address: IpAddr, kind: Simulated) -> Settings {
        Settings {
            name: name.into(),
            id,
            state: PathBuf::new(),
            machine: MachineKind::Simulated(kind),
            cloud: 0,
            uplink: None,
            physical: BTreeMap::new(),
            address,
            fabric: false,
            guest_uids: None,
            responder: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum MachineKind {
    Qemu,
    Simulated(Simulated),
}

/// A node of this process. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    observed: Arc<Observed>,
    /// The newest document, for those who ask the node directly.
    document: watch::Sender<Arc<Document>>,
    met: watch::Sender<Met>,
    /// What it runs, where it says so.
    runs: watch::Sender<Option<Runs>>,
    /// The last order that came.
    order: watch::Sender<Option<Order>>,
}

impl Inner {
    /// When the newest order was given that is known here, zero for none.
    fn last_order(&self) -> Timestamp {
        let told = self.order.borrow().as_ref().map(|order| order.at);
        let had = self.runs.borrow().as_ref().and_then(|runs| runs.order);
        told.max(had).unwrap_or_default()
    }
}

/// How far a node's process has come with its plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// The plane has taken what the node is.
    pub greeted: bool,
    /// It has taken what the node saw when it had acted on a document.
    pub reported: bool,
}

impl Met {
    pub fn all(self) -> bool {
        self.greeted && self.reported
    }
}

/// What carries a document out.
enum Machine {
    Qemu(host::Machine, Arc<Inner>),
    Simulated(simulated::Machine, Arc<Inner>),
}

impl Node {
    pub fn new(settings: Settings) -> Node {
        let inner = Inner {
            settings,
            observed: Arc::default(),
            document: watch::Sender::default(),
            met: watch::Sender::default(),
            runs: watch::Sender::default(),
            order: watch::Sender::default(),
        };
        Node { inner: Arc::new(inner) }
    }

    pub fn name(&self) -> &str {
        &self.inner.settings.name
    }

    /// Works until `shutdown`; then leaves the guests as they are, as a crash would. Another `run` adopts them.
    ///
    /// Errors: what the machine lacks, or a ledger that cannot be read or written.
    pub async fn run(&self, link: Link, shutdown: impl Future<Output = ()>) -> Result<()> {
        tokio::select! {
            () = shutdown => Ok(()),
            result = self.work(link) => result,
        }
    }

    async fn work(&self, link: Link) -> Result<()> {
        let (mut machine, ledger, hello) = match &self.inner.settings.machine {
            MachineKind::Simulated(kind) => self.simulated(kind).await?,
            MachineKind::Qemu => self.qemu(&link).await?,
        };
        let Inner { observed, met, .. } = &*self.inner;
        let greet = agent::greet(&link, hello, self.inner.runs.subscribe(), met);
        let tell = async { tokio::join!(greet, agent::tell(&link, observed, met)) };
        tokio::select! {
            result = agent::follow(&link, ledger, &mut machine) => result,
            _ = tell => Ok(()),
            () = self.know_costs() => Ok(()),
        }
    }

    async fn simulated(&self, kind: &Simulated) -> Result<(Machine, Ledger, Hello)> {
        let (state, observed) = (&self.inner.settings.state, self.inner.observed.clone());
        let hello = Hello {
            vcpus: kind.vcpus,
            memory_mib: kind.memory_mib,
            disk_gib: kind.disk_gib,
            machine: "simulated".into(),
            cpu_info: "{}".into(),
            ..self.hello()
        };
        let network = self.network().await?;
        let ledger = match &network {
            // What the kernel keeps outlives this process, and so does what it is for.
            Some(_) => {
                std::fs::create_dir_all(state)?;
                Ledger::open(state.join("ledger.json"))?
            }
            None => Ledger::in_memory(),
        };
        let keep = network.map(|network| {
            Kept::start(network, observed.clone(), self.inner.document.subscribe(), state.clone())
        });
        let machine = simulated::Machine::new(kind, observed, keep);
        Ok((Machine::Simulated(machine, self.inner.clone()), ledger, hello))
    }

    async fn qemu(&self, link: &Link) -> Result<(Machine, Ledger, Hello)> {
        let settings = &self.inner.settings;
        std::fs::create_dir_all(&settings.state)?;
        let hypervisor_version = hello::qemu_version().await?;
        let acceleration = vm::probe::acceleration(&settings.state, hypervisor_version).await?;
        let hardware = hello::Hardware::read(&settings.state)?;
        let network = self.network().await?;
        let observed = self.inner.observed.clone();
        let host = host::Host::new(settings, link.clone(), observed, acceleration, network)?;
        let machine = host::Machine::new(Arc::new(host), self.inner.document.subscribe());
        let ledger = Ledger::open(responder::ledger(&settings.state))?;
        let hello = Hello {
            vcpus: hardware.vcpus,
            memory_mib: hardware.memory_mib,
            disk_gib: hardware.disk_gib,
            machine: "qemu".into(),
            acceleration: acceleration.name().into(),
            hypervisor_version,
            cpu_info: hardware.cpu_info,
            booted: hardware.booted,
            ..self.hello()
        };
        Ok((Machine::Qemu(machine, self.inner.clone()), ledger, hello))
    }

    /// Of a kernel that is used, for ever.
    async fn know_costs(&self) {
        match self.inner.settings.fabric {
            true => {
                pass::run(KernelCostsKnown { observed: self.inner.observed.clone() }, &Notify::new()).await
            }
            false => std::future::pending().await,
        }
    }

    async fn network(&self) -> Result<Option<Arc<Network>>> {
        let settings = &self.inner.settings;
        if !settings.fabric {
            return Ok(None);
        }
        let fabric = fabric::Settings {
            cloud: settings.cloud,
            node_address: settings.address,
            vxlan_port: fabric::vxlan_port(settings.cloud),
            uplink: settings.uplink.clone(),
            physical: settings.physical.clone(),
        };
        let answers = Answers::new(settings.responder.clone(), settings.state.clone(), settings.cloud);
        Ok(Some(Arc::new(Network::new(fabric::Fabric::open(fabric).await?, answers))))
    }

    /// What is the same for both machines.
    fn hello(&self) -> Hello {
        let settings = &self.inner.settings;
        let physical = settings.physical.keys().cloned().collect();
        Hello { physical, ..Hello::of(&settings.name, settings.id, settings.address) }
    }

    /// What the node says of its program from now on.
    pub fn says(&self, runs: Runs) {
        self.inner.runs.send_replace(Some(runs));
    }

    /// What program it is to run, as orders come.
    pub fn orders(&self) -> watch::Receiver<Option<Order>> {
        self.inner.order.subscribe()
    }

    /// The document that the node acts on, as it comes.
    pub fn document(&self) -> watch::Receiver<Arc<Document>> {
        self.inner.document.subscribe()
    }

    /// How far this process has come with the plane, as it comes.
    pub fn met(&self) -> watch::Receiver<Met> {
        self.inner.met.subscribe()
    }

    /// The last `lines` lines of a guest's serial console, or as much as is kept.
    ///
    /// Errors: `NotFound` when the guest is not on this node.
    pub fn console(&self, vm: Uuid, lines: Option<usize>) -> Result<String> {
        let document = self.inner.document.borrow().clone();
        let absent = || Error::not_found(format!("server {vm} is not on this node"));
        let section = simulated::vm_of(&document, vm).ok_or_else(absent)?;
        let text = match &self.inner.settings.machine {
            MachineKind::Qemu => host::files(&self.inner.settings.state, vm).console()?,
            MachineKind::Simulated(_) => simulated::console(section),
        };
        Ok(tail(&text, lines).to_string())
    }
}

/// The last `lines` lines of a text.
fn tail(text: &str, lines: Option<usize>) -> &str {
    let Some(lines) = lines else { return text };
    let end = text.strip_suffix('\n').unwrap_or(text);
    let cut = lines.checked_sub(1).and_then(|n| end.rmatch_indices('\n').nth(n));
    match (lines, cut) {
        (0, _) => "",
        (_, None) => text,
        (_, Some((at, _))) => &text[at + 1..],
    }
}

impl Machine {
    fn inner(&self) -> &Inner {
        let (Machine::Qemu(_, inner) | Machine::Simulated(_, inner)) = self;
        inner
    }

    async fn act(&mut self, before: &Document, document: &Arc<Document>) -> Result<()> {
        let (Machine::Qemu(_, inner) | Machine::Simulated(_, inner)) = self;
        inner.document.send_replace(document.clone());
        match self {
            Machine::Qemu(machine, _) => machine.act(document).await,
            Machine::Simulated(machine, _) => {
                machine.act(before, document);
                Ok(())
            }
        }
    }

    /// Time passes in the machine while the node waits for its plane.
    async fn settle(&mut self, document: &Document) {
        match self {
            Machine::Qemu(..) => std::future::pending().await,
            Machine::Simulated(machine, _) => machine.settle(document).await,
        }
    }
}

#[cfg(test)]
mod tests {
    fn check(text: &str, lines: Option<usize>, expect: &str) {
        assert_eq!(super::tail(text, lines), expect);
    }

    #[test]
    fn a_tail_counts_lines_with_and_without_an_end() {
        check("a\nb\nc\n", Some(2), "b\nc\n");
        check("a\nb\nc", Some(2), "b\nc");
        check("a\nb\n", Some(9), "a\nb\n");
        check("a\nb\n", Some(0), "");
        check("a\nb\n", None, "a\nb\n");
        check("", Some(3), "");
    }
}
