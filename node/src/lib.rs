//! What runs on a machine: guests, their images, metadata and consoles.
//!
//! A node is told one document and says one report (`base::node`). It keeps the document in its ledger, compares it
//! with what is really there, and takes the steps between; so it works on when its plane is away, and its own restart
//! touches no guest. Two machines stand behind the contract: `qemu` runs guests, `simulated` only says so.
//!
//! Limits: see `agent`, `vm`, `image`, `metadata`. Deliberately absent: migration, snapshots and volumes.

mod agent;
mod file;
mod ledger;
mod link;
mod observed;
mod simulated;

pub use link::{ImageBytes, Link};
pub use simulated::Simulated;

use base::node::{Document, Hello};
use base::{Error, Result};
use ledger::Ledger;
use observed::Observed;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// What a node is told by its operator.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub id: Uuid,
    /// Its own directory; no other node's. A simulated machine does not use it.
    pub state: PathBuf,
    pub machine: MachineKind,
    /// Short id of the cloud, in the name of everything that the kernel keeps for it.
    pub cloud: u32,
    /// The device to the world outside.
    pub uplink: Option<String>,
    /// Underlay address.
    pub address: IpAddr,
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
    document: Mutex<Arc<Document>>,
}

/// What carries a document out.
enum Machine {
    Simulated(simulated::Machine, Arc<Inner>),
}

impl Node {
    pub fn new(settings: Settings) -> Node {
        let inner = Inner { settings, observed: Arc::default(), document: Mutex::default() };
        Node { inner: Arc::new(inner) }
    }

    /// Works until `shutdown`; then leaves the guests as they are, as a crash would. Another `run` adopts them.
    ///
    /// Errors: what the machine lacks, or a ledger that cannot be read or written.
    pub async fn run(&self, link: Link, shutdown: impl Future<Output = ()>) -> Result<()> {
        let (mut machine, ledger) = self.machine()?;
        let hello = self.hello();
        tokio::select! {
            () = shutdown => Ok(()),
            result = agent::follow(&link, ledger, &mut machine) => result,
            () = async { tokio::join!(agent::greet(&link, hello), agent::tell(&link, &self.inner.observed)); } => Ok(()),
        }
    }

    fn machine(&self) -> Result<(Machine, Ledger)> {
        match &self.inner.settings.machine {
            MachineKind::Simulated(kind) => {
                let machine = simulated::Machine::new(kind, self.inner.observed.clone());
                Ok((Machine::Simulated(machine, self.inner.clone()), Ledger::in_memory()))
            }
            MachineKind::Qemu => Err(Error::not_implemented("qemu")),
        }
    }

    fn hello(&self) -> Hello {
        let settings = &self.inner.settings;
        let simulated = match &settings.machine {
            MachineKind::Simulated(simulated) => simulated.clone(),
            MachineKind::Qemu => Simulated::default(),
        };
        Hello {
            name: settings.name.clone(),
            id: settings.id,
            vcpus: simulated.vcpus,
            memory_mib: simulated.memory_mib,
            disk_gib: simulated.disk_gib,
            machine: "simulated".into(),
            acceleration: "tcg".into(),
            hypervisor_version: 0,
            cpu_info: "{}".into(),
            address: settings.address,
            booted: 0,
        }
    }

    /// The last `lines` lines of a guest's serial console, or as much as is kept.
    ///
    /// Errors: `NotFound` when the guest is not on this node.
    pub fn console(&self, vm: Uuid, lines: Option<usize>) -> Result<String> {
        let document = self.inner.document.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let absent = || Error::not_found(format!("server {vm} is not on this node"));
        let vm = simulated::vm_of(&document, vm).ok_or_else(absent)?;
        Ok(tail(&simulated::console(vm), lines).to_string())
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
    async fn act(&mut self, before: &Document, document: &Arc<Document>) -> Result<()> {
        match self {
            Machine::Simulated(machine, inner) => {
                *inner.document.lock().unwrap_or_else(PoisonError::into_inner) = document.clone();
                machine.act(before, document);
                Ok(())
            }
        }
    }

    async fn settle(&mut self, document: &Document) {
        match self {
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
