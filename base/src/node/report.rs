//! What a node says: of itself (`Hello`), and of what it did (`Report`).

use super::Generation;
use crate::fnv::fnv;
use crate::program::Runs;
use crate::units::Mac;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use uuid::Uuid;

/// What a node says of itself. One that changes nothing writes nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The document acted on.
    pub generation: Generation,
    /// Everything, instead of what changed.
    pub whole: bool,
    pub vms: BTreeMap<Uuid, VmReport>,
    pub ports: BTreeMap<Uuid, PortReport>,
    /// Guests and ports that are gone from the node.
    pub gone: BTreeSet<Uuid>,
    /// When they were measured and are not what was told last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs: Option<KernelCosts>,
}

/// What calls of a node's kernel cost, in microseconds, each made and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCosts {
    /// A pair of devices.
    pub link_us: u64,
    /// A batch of rules.
    pub rules_us: u64,
    /// A network namespace.
    pub namespace_us: u64,
}

/// A cost has changed when it is this many times what it was, or that part of it.
const COST_CHANGE: u64 = 2;

impl KernelCosts {
    /// Whether any cost is another than before. They are measured on a machine that has other work: most changes say
    /// nothing.
    pub fn differs(&self, before: &KernelCosts) -> bool {
        let other = |a: u64, b: u64| a.max(b) >= a.min(b).max(1).saturating_mul(COST_CHANGE);
        other(self.link_us, before.link_us)
            || other(self.rules_us, before.rules_us)
            || other(self.namespace_us, before.namespace_us)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmReport {
    pub state: VmState,
    /// The reboot count that the running guest has.
    pub reboots: u64,
    /// Why it failed, in words for its owner.
    pub fault: Option<String>,
    /// What the guest posted as its password, encrypted with its key.
    pub password: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Image or disks are being made.
    Building,
    Running,
    Paused,
    /// Powered off, disks kept.
    Stopped,
    /// Could not be started, or died.
    Failed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// The device is there with all its rules.
    pub up: bool,
    /// Addresses of its allowed pairs that it announced by gratuitous ARP or neighbour advertisement, and that no
    /// other port of this node announced later.
    #[serde(default)]
    pub claims: BTreeSet<IpAddr>,
    /// The MAC that a claim was announced at, where that is a pair's and not the port's own, as VRRP's are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub macs: BTreeMap<IpAddr, Mac>,
}

/// The key of a port with a MAC of its pairs among the members of its network: with each it is a member of its own.
pub fn claim_id(port: Uuid, mac: Mac) -> Uuid {
    Uuid::from_u64_pair(fnv(format!("{port} {mac}").as_bytes()), fnv(format!("{mac} {port}").as_bytes()))
}

/// What a node is, told when it joins and when it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub name: String,
    pub id: Uuid,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_gib: u64,
    /// `qemu` or `simulated`.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub acceleration: String,
    /// QEMU's version as 1,000,000 x major + 1,000 x minor + micro.
    pub hypervisor_version: u64,
    pub cpu_info: String,
    /// Underlay address, the same for every other node.
    pub address: IpAddr,
    /// Physical networks that this node has a device to.
    #[serde(default)]
    pub physical: BTreeSet<String>,
    /// Unix time of its boot, in seconds.
    pub booted: i64,
    /// What it runs; none: it is of a version that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<Runs>,
}

impl Hello {
    /// A node of which no more is known: nothing fits on its machine.
    pub fn of(name: &str, id: Uuid, address: IpAddr) -> Hello {
        Hello {
            name: name.into(),
            id,
            vcpus: 0,
            memory_mib: 0,
            disk_gib: 0,
            machine: String::new(),
            acceleration: "tcg".into(),
            hypervisor_version: 0,
            cpu_info: String::new(),
            address,
            physical: BTreeSet::new(),
            booted: 0,
            runs: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_differs_from_the_double_on() {
        let of = |link_us| KernelCosts { link_us, rules_us: 0, namespace_us: 1 };
        for (before, now, expect) in
            [(100, 199, false), (100, 200, true), (200, 101, false), (200, 100, true)]
        {
            assert_eq!(of(now).differs(&of(before)), expect, "{before} {now}");
        }
    }
}
