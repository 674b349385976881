//! A machine that runs nothing: guests reach what is wanted at once, or after a delay.
//!
//! It keeps the node's contract with a map of states only, so that a thousand nodes and tens of thousands of guests
//! fit in one process. No files, no thread, no task per guest. With a real network it makes all of it but the guests.
//! Deliberately absent: faults.

use crate::network::Kept;
use crate::observed::Observed;
use base::node::{Document, PortReport, Power, Section, SectionKey, Vm, VmReport, VmState};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// What a simulated machine says it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulated {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_gib: u64,
    /// How long a guest takes to get from one state to the next.
    pub delay: Duration,
}

impl Default for Simulated {
    fn default() -> Simulated {
        Simulated { vcpus: 64, memory_mib: 256 * 1024, disk_gib: 4096, delay: Duration::ZERO }
    }
}

/// The end of a transition: what `vm` is when it is done.
fn settled(vm: &Vm) -> VmReport {
    let state = match vm.power {
        Power::On => VmState::Running,
        Power::Off => VmState::Stopped,
    };
    VmReport { state, reboots: vm.reboots, fault: None, password: None }
}

fn building(vm: &Vm) -> VmReport {
    VmReport { state: VmState::Building, ..settled(vm) }
}

pub fn vm_of(document: &Document, id: Uuid) -> Option<&Vm> {
    match document.sections.get(&SectionKey::Vm(id)) {
        Some(Section::Vm(vm)) => Some(vm),
        _ => None,
    }
}

/// The guests on their way, in the order of their arrival.
pub struct Machine {
    delay: Duration,
    observed: Arc<Observed>,
    due: VecDeque<(Instant, Uuid)>,
    /// None: ports only say that they are up.
    network: Option<Kept>,
}

impl Machine {
    pub fn new(kind: &Simulated, observed: Arc<Observed>, network: Option<Kept>) -> Machine {
        Machine { delay: kind.delay, observed, due: VecDeque::new(), network }
    }

    /// Sets off what differs between two documents.
    pub fn act(&mut self, before: &Document, document: &Document) {
        // Whatever else there is, it makes nothing of.
        let own = |key: &&SectionKey| matches!(key, SectionKey::Vm(_) | SectionKey::Port(_));
        let gone = before.sections.keys().filter(own).filter(|key| !document.sections.contains_key(key));
        let changed = document.sections.keys().filter(own);
        let changed = changed.filter(|key| before.sections.get(key) != document.sections.get(key));
        for key in gone.chain(changed) {
            match key {
                SectionKey::Vm(id) => self.vm(*id, vm_of(document, *id)),
                SectionKey::Port(id) if self.network.is_none() => {
                    let port = document
                        .sections
                        .contains_key(key)
                        .then_some(PortReport { up: true, ..PortReport::default() });
                    self.observed.port(*id, port);
                }
                _ => {}
            }
        }
        if let Some(network) = &self.network {
            network.wake();
        }
        self.observed.acted_on(document.generation);
    }

    fn vm(&mut self, id: Uuid, wanted: Option<&Vm>) {
        match wanted {
            Some(vm) if self.delay.is_zero() => self.observed.vm(id, Some(settled(vm))),
            Some(vm) => {
                if self.observed.vm_now(id).is_none() {
                    self.observed.vm(id, Some(building(vm)));
                }
                self.due.push_back((Instant::now() + self.delay, id));
            }
            None => self.observed.vm(id, None),
        }
    }

    /// Waits for the next guest that is due, for ever where there is none. Nothing is lost when it is dropped.
    pub async fn settle(&mut self, document: &Document) {
        let Some((at, id)) = self.due.front().copied() else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        self.due.pop_front();
        if let Some(vm) = vm_of(document, id) {
            self.observed.vm(id, Some(settled(vm)));
        }
    }
}

/// What a guest that does not exist would have said.
pub fn console(vm: &Vm) -> String {
    let host = &vm.metadata.hostname;
    format!(
        "[    0.000000] Linux version 6.1.0 (simulated)\n[    0.420000] {host}: up\nssh ready\n{host} login: "
    )
}
