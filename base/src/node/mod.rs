//! The contract between plane and node: one document of sections down, one report up.
//!
//! A document is derived from records and never stored by the plane. Its generation is the (epoch, revision) it was
//! computed at and never goes back; a node refuses an older one. Sections have string keys (`vm/ID`, `port/ID`,
//! `network/ID`, `members/NETWORK`, `router/ID`, `group/ID`, `rules/HASH`, `image/ID`), so that a change costs what it
//! touches. `vm` and `port` are of one node; the others are shared by all nodes that need them. `members` and `group`
//! are sets that may be large: a patch carries what came and what went (`Elements`), and a copy of one is cheap.
//!
//! Planes of a cell tell one line of generations: a node that comes from another plane is told what was touched since, and
//! compares the sum of its document afterwards (`Document::sum`); one that is another's asks for the whole. A field that
//! is added to a section is not written while it has its default (`skip_serializing_if`): nodes of an older build, which
//! do not know it, then have the same sums.
//!
//! A node is known to others by its underlay address (`vtep`), so a section says the same to all of them.
//!
//! Limits: `DOCUMENT_WAIT_MAX` for one answer, which has one patch or as many as there are to tell meanwhile.

mod report;

pub use report::{Hello, KernelCosts, PortReport, Report, VmReport, VmState, claim_id};

use crate::Timestamp;
use crate::fnv::{Fnv, fnv};
use crate::program::Order;
use crate::units::Mac;
use imbl::ordmap::DiffItem;
use imbl::ordset::DiffItem as SetDiffItem;
pub use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use uuid::Uuid;

/// An answer to a node that asks for its document goes on for at most this long.
pub const DOCUMENT_WAIT_MAX: Duration = Duration::from_secs(10);

/// When a document was computed: ordered first by epoch of the lane, then by revision of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    pub epoch: u64,
    pub revision: u64,
}

/// What a node is to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    pub generation: Generation,
    pub sections: BTreeMap<SectionKey, Section>,
}

/// What a node has, as it asks for what is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub generation: Generation,
    /// Of its document. Told when it may be asking another process than before.
    pub sum: Option<u64>,
    /// When the last order that it knows was given, zero where it had none. None: it takes none.
    pub order: Option<Timestamp>,
}

impl From<Generation> for Known {
    fn from(generation: Generation) -> Known {
        Known { generation, ..Known::default() }
    }
}

/// What changed since the generation that the node has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Patch {
    pub generation: Generation,
    /// The sections are all there are: what is not among them is gone.
    pub whole: bool,
    pub changed: BTreeMap<SectionKey, Section>,
    /// Sets that the node has already, by what came and what went. Never a key that is in `changed`.
    #[serde(default)]
    pub elements: BTreeMap<SectionKey, Elements>,
    pub removed: BTreeSet<SectionKey>,
    /// The keys that the document has now: what else the node has is gone. None: `removed` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<BTreeSet<SectionKey>>,
    /// The sum of the document that comes of it, where that is not certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<u64>,
    /// Which program the node is to run, where it does not know it yet. It is no part of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

/// What became of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patched {
    Taken,
    /// It is older than what is here, and was ignored.
    Older,
    /// What came of it is another document than the plane's; nothing was taken. The whole one mends it.
    Astray,
}

/// The change of a set: first `gone`, then `come`. An element that changed is among both or in `come` alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Elements {
    Members { come: BTreeMap<Uuid, Member>, gone: BTreeSet<Uuid> },
    Group { come: BTreeSet<IpAddr>, gone: BTreeSet<IpAddr> },
}

impl Elements {
    /// From one version of a set to the next; none when they are not versions of one set.
    pub fn between(before: &Section, after: &Section) -> Option<Elements> {
        match (before, after) {
            (Section::Members(a), Section::Members(b)) if a.network == b.network => {
                let (mut come, mut gone) = (BTreeMap::new(), BTreeSet::new());
                for id in a.differences(b) {
                    match b.ports.get(&id) {
                        Some(member) => _ = come.insert(id, member.clone()),
                        None => _ = gone.insert(id),
                    }
                }
                Some(Elements::Members { come, gone })
            }
            (Section::Group(a), Section::Group(b)) if a.id == b.id => {
                let (come, gone) = a.differences(b).partition(|address| b.members.contains(address));
                Some(Elements::Group { come, gone })
            }
            _ => None,
        }
    }

    /// How many elements are told of.
    pub fn len(&self) -> usize {
        match self {
            Elements::Members { come, gone } => come.len() + gone.len(),
            Elements::Group { come, gone } => come.len() + gone.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leaves out what makes no difference to a set.
    pub fn retain_new(&mut self, set: &Section) {
        match (self, set) {
            (Elements::Members { come, gone }, Section::Members(members)) => {
                gone.retain(|id| members.ports.contains_key(id) && !come.contains_key(id));
                come.retain(|id, member| members.ports.get(id) != Some(member));
            }
            (Elements::Group { come, gone }, Section::Group(group)) => {
                gone.retain(|address| group.members.contains(address) && !come.contains(address));
                come.retain(|address| !group.members.contains(address));
            }
            (Elements::Members { .. } | Elements::Group { .. }, _) => {}
        }
    }

    pub fn apply(&self, section: &mut Section) {
        match (self, section) {
            (Elements::Members { come, gone }, Section::Members(members)) => {
                gone.iter().for_each(|id| _ = members.ports.remove(id));
                members.ports.extend(come.iter().map(|(id, member)| (*id, member.clone())));
            }
            (Elements::Group { come, gone }, Section::Group(group)) => {
                gone.iter().for_each(|address| _ = group.members.remove(address));
                group.members.extend(come.iter().copied());
            }
            // A plane that mixes them up is mended by its next whole document.
            (Elements::Members { .. } | Elements::Group { .. }, _) => {}
        }
    }
}

impl Document {
    /// Applies a patch.
    pub fn patch(&mut self, patch: Patch) -> Patched {
        if patch.generation < self.generation {
            return Patched::Older;
        }
        // What is certain is applied in place; else what is here stays until the sum is known.
        match patch.sum {
            None => {
                self.apply(patch);
                Patched::Taken
            }
            Some(sum) => {
                let mut next = self.clone();
                next.apply(patch);
                if next.sum() != sum {
                    return Patched::Astray;
                }
                *self = next;
                Patched::Taken
            }
        }
    }

    fn apply(&mut self, patch: Patch) {
        if patch.whole {
            self.sections.clear();
        }
        if let Some(keys) = &patch.keys {
            self.sections.retain(|key, _| keys.contains(key));
        }
        self.sections.retain(|key, _| !patch.removed.contains(key));
        self.sections.extend(patch.changed);
        for (key, elements) in patch.elements {
            if let Some(section) = self.sections.get_mut(&key) {
                elements.apply(section);
            }
        }
        self.generation = patch.generation;
    }

    /// Of the sections, in whatever order: equal documents have equal sums.
    pub fn sum(&self) -> u64 {
        self.sections.iter().fold(0, |sum, (key, section)| sum.wrapping_add(section.sum(key)))
    }
}

/// The key of a section.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum SectionKey {
    Vm(Uuid),
    Port(Uuid),
    Network(Uuid),
    /// Of a network.
    Members(Uuid),
    Router(Uuid),
    Group(Uuid),
    /// Hash of the rule set (`RuleSet::hash`).
    Rules(u64),
    Image(Uuid),
}

impl From<SectionKey> for String {
    fn from(key: SectionKey) -> String {
        match key {
            SectionKey::Vm(id) => format!("vm/{id}"),
            SectionKey::Port(id) => format!("port/{id}"),
            SectionKey::Network(id) => format!("network/{id}"),
            SectionKey::Members(id) => format!("members/{id}"),
            SectionKey::Router(id) => format!("router/{id}"),
            SectionKey::Group(id) => format!("group/{id}"),
            SectionKey::Rules(hash) => format!("rules/{hash:016x}"),
            SectionKey::Image(id) => format!("image/{id}"),
        }
    }
}

impl TryFrom<String> for SectionKey {
    type Error = crate::Error;

    fn try_from(text: String) -> Result<SectionKey, crate::Error> {
        let bad = || crate::Error::invalid(format!("'{text}' is not the key of a section"));
        let (kind, id) = text.split_once('/').ok_or_else(bad)?;
        let uuid = || Uuid::try_parse(id).map_err(|_| bad());
        Ok(match kind {
            "vm" => SectionKey::Vm(uuid()?),
            "port" => SectionKey::Port(uuid()?),
            "network" => SectionKey::Network(uuid()?),
            "members" => SectionKey::Members(uuid()?),
            "router" => SectionKey::Router(uuid()?),
            "group" => SectionKey::Group(uuid()?),
            "rules" => SectionKey::Rules(u64::from_str_radix(id, 16).map_err(|_| bad())?),
            "image" => SectionKey::Image(uuid()?),
            _ => return Err(bad()),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Section {
    Vm(Vm),
    Port(Port),
    Network(Network),
    Members(Members),
    Router(Router),
    Group(Group),
    Rules(RuleSet),
    Image(Image),
}

impl Section {
    /// A hash of the section under its key, the same on every machine and build that knows its fields.
    pub fn sum(&self, key: &SectionKey) -> u64 {
        let mut hash = Fnv::default();
        hash.text(&String::from(key.clone()));
        match self {
            // Sets may be large.
            Section::Members(members) => members.ports.iter().for_each(|(id, m)| {
                hash.bytes(id.as_bytes());
                hash.bytes(&m.mac.0);
                m.addresses.iter().chain(&m.vtep).for_each(|a| address(&mut hash, *a));
                hash.bytes(&[u8::from(m.vtep.is_some())]);
                hash.text(&m.name);
            }),
            Section::Group(group) => group.members.iter().for_each(|a| address(&mut hash, *a)),
            other => serde_json::to_writer(&mut hash, other).expect("sections are plain data"),
        }
        hash.hash()
    }
}

fn address(hash: &mut Fnv, address: IpAddr) {
    match address {
        IpAddr::V4(a) => hash.bytes(&a.octets()),
        IpAddr::V6(a) => hash.bytes(&a.octets()),
    }
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    pub id: Uuid,
    pub power: Power,
    /// Counts the reboots that were asked for: a larger number than the running guest's means reboot once.
    pub reboots: u64,
    /// The last of them is a hard one: power off and on. Soft: ask the guest first.
    pub reboot_hard: bool,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub root_gib: u64,
    pub ephemeral_gib: u64,
    pub swap_mib: u64,
    /// The image that the root disk starts from; none: an empty disk.
    pub image: Option<Uuid>,
    /// Ports in the order of the guest's NICs.
    pub ports: Vec<Uuid>,
    pub config_drive: bool,
    pub metadata: GuestMetadata,
    /// Its node's, while there is one to come or going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
}

/// What a guest is told of the maintenance of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// Of what it is to this guest.
    pub event: Uuid,
    /// The deadline is over.
    pub started: bool,
    /// The deadline: what runs then is stopped.
    pub not_before: Timestamp,
    /// When it is expected to be over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    On,
    /// The guest is asked by its power button and stopped after `STOP_SECS_MAX`.
    Off,
}

/// What a guest learns of itself from the metadata service and the config drive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestMetadata {
    pub name: String,
    pub hostname: String,
    /// 32 hex digits.
    pub project: String,
    pub availability_zone: String,
    pub launch_index: u32,
    /// Name to OpenSSH public key.
    pub public_keys: BTreeMap<String, String>,
    pub meta: BTreeMap<String, String>,
    /// As it was given, decoded. None: the metadata service answers 404.
    pub user_data: Option<Vec<u8>>,
    pub admin_pass: Option<String>,
    /// Names of the security groups, for the EC2 tree.
    pub security_groups: Vec<String>,
    /// Name of the flavor, for the EC2 tree.
    pub flavor: String,
}

/// A NIC of a guest on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    pub id: Uuid,
    pub network: Uuid,
    pub vm: Option<Uuid>,
    pub mac: Mac,
    pub admin_up: bool,
    pub fixed: Vec<FixedIp>,
    /// Allowed address pairs beyond `fixed`.
    pub pairs: Vec<(IpNet, Mac)>,
    /// False: no anti-spoofing, no rules.
    pub port_security: bool,
    /// Its name in the network's domain; empty: none.
    #[serde(default)]
    pub name: String,
    /// The rule set of its security groups together; none: nothing in or out but DHCP and the like.
    pub rules: Option<u64>,
    pub floating: Vec<FloatingIp>,
    /// Extra DHCP options by number or dnsmasq name, as given at the API.
    pub dhcp_options: Vec<DhcpOption>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FixedIp {
    pub subnet: Uuid,
    pub address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIp {
    pub floating: IpAddr,
    pub fixed: IpAddr,
    pub router: Uuid,
    /// The external network that the address is of.
    pub network: Uuid,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpOption {
    pub name: String,
    pub value: String,
    pub v6: bool,
}

/// A network that a port or router of this node is on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub id: Uuid,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    pub mtu: u32,
    pub external: bool,
    /// The physical network that it is, flat: each node's bridge holds the node's device to it. None: VXLAN.
    #[serde(default)]
    pub physical: Option<String>,
    /// The router that a plain default gateway of this network belongs to.
    pub router: Option<Uuid>,
    pub subnets: Vec<Subnet>,
    pub dns_domain: String,
}

/// The ports of a network that have a node, this one's too: the same list for every node. Of an external network also
/// the legs of routers, one for each node that has a leg (`leg_id`, `leg_mac`), without addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Members {
    pub network: Uuid,
    pub ports: OrdMap<Uuid, Member>,
}

impl Members {
    /// Whose elements differ between two versions. It costs what differs where one was made from the other.
    pub fn differences<'a>(&'a self, other: &'a Members) -> impl Iterator<Item = Uuid> + 'a {
        self.ports.diff(&other.ports).map(|difference| match difference {
            DiffItem::Add(id, _) | DiffItem::Update { new: (id, _), .. } | DiffItem::Remove(id, _) => *id,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subnet {
    pub id: Uuid,
    pub cidr: IpNet,
    pub gateway: Option<IpAddr>,
    pub dhcp: bool,
    pub dns: Vec<IpAddr>,
    /// Destination and next hop.
    pub routes: Vec<(IpNet, IpAddr)>,
    pub ipv6_ra: Option<Ipv6Mode>,
    pub ipv6_address: Option<Ipv6Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6Mode {
    Slaac,
    Dhcpv6Stateful,
    Dhcpv6Stateless,
}

/// A port of a network as other nodes need to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub mac: Mac,
    /// Fixed addresses, and those that it was seen to claim by its allowed pairs.
    pub addresses: Vec<IpAddr>,
    /// The underlay address of its node; none while it has no node.
    pub vtep: Option<IpAddr>,
    /// Its name in the network's domain; empty: none.
    #[serde(default)]
    pub name: String,
}

/// A router with an interface on a network of this node. A central one is only in its own node's document; to the
/// others its interfaces are members of their networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Router {
    pub id: Uuid,
    pub admin_up: bool,
    pub interfaces: Vec<RouterInterface>,
    pub gateway: Option<RouterGateway>,
    /// Extra routes: destination and next hop.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// On one node, instead of on every node for its own guests.
    #[serde(default)]
    pub central: bool,
    #[serde(default)]
    pub forwards: Vec<PortForward>,
}

/// Ports of a floating address that go to ports of a fixed one, on the node of the fixed one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    pub floating: IpAddr,
    /// 6 or 17.
    pub protocol: u8,
    /// First and last; as many as of `fixed_ports`.
    pub ports: (u16, u16),
    pub fixed: IpAddr,
    pub fixed_ports: (u16, u16),
    /// The node of the fixed address; none: nothing is forwarded.
    pub vtep: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterInterface {
    pub port: Uuid,
    pub network: Uuid,
    pub mac: Mac,
    /// Address with the prefix length of its subnet.
    pub addresses: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterGateway {
    pub port: Uuid,
    /// The external network.
    pub network: Uuid,
    pub mac: Mac,
    pub addresses: Vec<IpNet>,
    /// Next hops, one per address family at most.
    pub next_hops: Vec<IpAddr>,
    pub snat: bool,
    /// The node that answers for `addresses` and for the floating addresses of `PortForward`s, and passes on to the
    /// others what is theirs. None: no node has a port behind this router.
    #[serde(default)]
    pub owner: Option<IpAddr>,
    /// What each node's guests leave by, when they have no floating address.
    #[serde(default)]
    pub shares: Vec<SnatShare>,
}

impl RouterGateway {
    /// The MAC of a node's leg into the external network: the port's own where its addresses are, else one that every
    /// node can compute.
    pub fn mac_at(&self, vtep: IpAddr) -> Mac {
        leg_mac(self.port, self.mac, self.owner, vtep)
    }
}

/// What `RouterGateway::mac_at` says, from the parts.
pub fn leg_mac(port: Uuid, mac: Mac, owner: Option<IpAddr>, vtep: IpAddr) -> Mac {
    if owner == Some(vtep) {
        return mac;
    }
    let hash = fnv(format!("{port} {vtep}").as_bytes()).to_be_bytes();
    Mac([0x02, hash[1], hash[2], hash[3], hash[4], hash[5]])
}

/// The key of a node's leg among the members of the external network.
pub fn leg_id(port: Uuid, vtep: IpAddr) -> Uuid {
    Uuid::from_u64_pair(fnv(format!("{port} {vtep}").as_bytes()), fnv(format!("{vtep} {port}").as_bytes()))
}

/// One node's part of a router's source addresses: a block of ports of an address that nodes share, or an address of
/// its own with all its ports. ICMP identifiers count as ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnatShare {
    pub vtep: IpAddr,
    pub address: IpAddr,
    /// First and last.
    pub ports: (u16, u16),
}

/// Ports in a block, and the first port of the first block: 31 blocks of one address.
pub const SNAT_BLOCK: u16 = 2048;
pub const SNAT_BLOCKS: u16 = 31;

impl SnatShare {
    /// The ports of a block.
    pub fn block(n: u16) -> (u16, u16) {
        (SNAT_BLOCK * (n + 1), SNAT_BLOCK * (n + 1) + (SNAT_BLOCK - 1))
    }
}

/// The addresses that a rule with a remote group means.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub id: Uuid,
    pub members: OrdSet<IpAddr>,
}

impl Group {
    /// The elements that one of two versions alone has. It costs what differs where one was made from the other.
    pub fn differences<'a>(&'a self, other: &'a Group) -> impl Iterator<Item = IpAddr> + 'a {
        self.members.diff(&other.members).map(|difference| match difference {
            SetDiffItem::Add(address) | SetDiffItem::Remove(address) => *address,
        })
    }
}

/// What a port's security groups allow, taken together. Ports with equal sets share one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleSet {
    /// Sorted, without doubles.
    pub rules: Vec<Rule>,
    pub stateful: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub direction: Direction,
    pub v6: bool,
    /// IP protocol number; none: any.
    pub protocol: Option<u8>,
    /// Ports, or ICMP type and code (code none: `max` absent).
    pub min: Option<u16>,
    pub max: Option<u16>,
    pub remote: Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Ingress,
    Egress,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    Any,
    Cidr(IpNet),
    Group(Uuid),
}

impl RuleSet {
    /// Over the text of the rules: the same on every build and machine.
    pub fn hash(&self) -> u64 {
        fnv(serde_json::to_string(self).expect("rules are plain data").as_bytes())
    }
}

/// An image that a guest of this node starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub id: Uuid,
    /// `raw` or `qcow2`, as checked at upload; never guessed by the node.
    pub format: String,
    pub size: u64,
    /// SHA-512 in hex.
    pub sha512: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_patch_is_refused_and_a_whole_one_replaces() {
        let group = |n: u128| Section::Group(Group { id: Uuid::from_u128(n), ..Group::default() });
        let key = |n: u128| SectionKey::Group(Uuid::from_u128(n));
        let at = |revision| Generation { epoch: 1, revision };
        let mut document = Document { generation: at(5), sections: [(key(1), group(1))].into() };
        let patched = document.patch(Patch { generation: at(4), whole: true, ..Patch::default() });
        assert_eq!(patched, Patched::Older);
        document.patch(Patch { generation: at(6), changed: [(key(2), group(2))].into(), ..Patch::default() });
        assert_eq!(document.sections.len(), 2);
        document.patch(Patch { generation: at(7), removed: [key(1)].into(), ..Patch::default() });
        document.patch(Patch {
            generation: at(8),
            whole: true,
            changed: [(key(3), group(3))].into(),
            ..Patch::default()
        });
        assert_eq!(document.sections.keys().cloned().collect::<Vec<_>>(), [key(3)]);
    }

    #[test]
    fn a_set_is_patched_by_its_elements() {
        let group = |members: &[&str]| {
            let members = members.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect();
            Section::Group(Group { id: Uuid::nil(), members })
        };
        let (before, after) = (group(&["10.0.0.1", "10.0.0.2"]), group(&["10.0.0.2", "10.0.0.3"]));
        let key = SectionKey::Group(Uuid::nil());
        let mut document =
            Document { sections: [(key.clone(), before.clone())].into(), ..Document::default() };
        let elements = Elements::between(&before, &after).unwrap();
        let patch = Patch { elements: [(key.clone(), elements)].into(), ..Patch::default() };
        assert_eq!(document.patch(patch.clone()), Patched::Taken);
        assert_eq!(document.sections[&key], after);
        // A sum that is another's takes nothing.
        let sum = Some(document.sum());
        assert_eq!(document.patch(Patch { sum, ..patch.clone() }), Patched::Taken);
        let same = document.clone();
        assert_eq!(document.patch(Patch { sum, whole: true, ..patch }), Patched::Astray);
        assert_eq!(document, same);
    }

    #[test]
    fn blocks_of_ports_fill_an_address() {
        assert_eq!(SnatShare::block(0), (2048, 4095));
        assert_eq!(SnatShare::block(SNAT_BLOCKS - 1), (63488, 65535));
    }

    #[test]
    fn keys_read_as_they_are_written() {
        for key in
            [SectionKey::Vm(Uuid::from_u128(9)), SectionKey::Rules(0xfeed), SectionKey::Image(Uuid::nil())]
        {
            assert_eq!(SectionKey::try_from(String::from(key.clone())).unwrap(), key);
        }
        assert!(SectionKey::try_from("disk/1".to_string()).is_err());
    }
}
