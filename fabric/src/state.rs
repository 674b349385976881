//! What the kernel is to hold, or was seen to hold: places with their devices, addresses, routes and nft tables.
//!
//! The same type says both. What is wanted has the texts of the rules; what was observed has their marks only: a table
//! carries the hash of its fixed part as the name of an empty chain, and chains of rule sets are named by their hash.
//!
//! Shape: a namespace per network holds one bridge, its taps and the rules of its ports, and never routes; a
//! namespace per router holds one leg (a veth into the network's bridge) per interface, and never bridges. So two
//! networks never share a table of neighbours or connections, a router comes and goes without touching a device of a
//! running guest, a network may be on many routers, and no packet crosses two bridges of one namespace.
//! The cost over bridges inside of the router's namespace is two veth crossings per direction (see notes/dataplane.md).

use base::units::Mac;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use uuid::Uuid;

/// A network namespace that we know: the host's, of a network, or of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The namespace that the fabric was opened in. Foreign devices live there: ours are known by their name.
    Host,
    Network(Uuid),
    Router(Uuid),
}

impl Place {
    /// The name below `/run/netns`; none for the host.
    pub fn name(self, cloud: u32) -> Option<String> {
        match self {
            Place::Host => None,
            Place::Network(id) => Some(format!("shisa-{cloud:08x}-net-{id}")),
            Place::Router(id) => Some(format!("shisa-{cloud:08x}-router-{id}")),
        }
    }

    /// Reads what `name` writes; none for namespaces of others.
    pub fn parse(name: &str, cloud: u32) -> Option<Place> {
        let (kind, id) = name.strip_prefix(&format!("shisa-{cloud:08x}-"))?.split_once('-')?;
        let id = Uuid::try_parse(id).ok()?;
        match kind {
            "net" => Some(Place::Network(id)),
            "router" => Some(Place::Router(id)),
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::Host => write!(out, "host"),
            Place::Network(id) => write!(out, "network/{id}"),
            Place::Router(id) => write!(out, "router/{id}"),
        }
    }
}

/// Everything of one cloud on one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelState {
    pub places: BTreeMap<Place, Space>,
}

impl KernelState {
    /// Some places of it.
    pub fn of(&self, places: &BTreeSet<Place>) -> KernelState {
        let known = |place: &Place| Some((*place, self.places.get(place)?.clone()));
        KernelState { places: places.iter().filter_map(known).collect() }
    }

    /// Changes as a part of it does from `seen` to `wanted`. It costs what is in these.
    pub fn follow(&mut self, seen: &KernelState, wanted: &KernelState) {
        for place in seen.places.keys().filter(|place| !wanted.places.contains_key(place)) {
            self.places.remove(place);
        }
        for (place, want) in &wanted.places {
            match (self.places.get_mut(place), seen.places.get(place)) {
                (Some(space), Some(seen)) => space.follow(seen, want),
                _ => _ = self.places.insert(*place, want.clone()),
            }
        }
    }
}

/// One namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Space {
    /// Path below `/proc/sys` to value.
    pub sysctls: BTreeMap<String, String>,
    pub links: BTreeMap<String, Link>,
    /// Those of our own route protocol.
    pub routes: BTreeSet<Route>,
    /// Marks of packets that are routed by a table of the same number instead of the main one. IPv4.
    pub marks: BTreeSet<u32>,
    /// Permanent entries by device and address.
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    pub stations: BTreeSet<Station>,
    /// By family and name, such as `bridge shisa`.
    pub tables: BTreeMap<String, Table>,
}

impl Space {
    /// Whether a part of it differs from it by neighbours, stations and elements of sets only.
    pub fn has_frame_of(&self, part: &Space) -> bool {
        let same = |(a, b): (&Table, &Table)| {
            a.is_updated_to(b) && a.chains.keys().eq(b.chains.keys()) && a.sets.keys().eq(b.sets.keys())
        };
        self.sysctls == part.sysctls
            && self.links == part.links
            && self.routes == part.routes
            && self.marks == part.marks
            && self.tables.keys().eq(part.tables.keys())
            && self.tables.values().zip(part.tables.values()).all(same)
    }

    fn follow(&mut self, seen: &Space, want: &Space) {
        self.sysctls.clone_from(&want.sysctls);
        self.links.clone_from(&want.links);
        self.routes.clone_from(&want.routes);
        self.marks.clone_from(&want.marks);
        follow_map(&mut self.neighbours, &seen.neighbours, &want.neighbours);
        for station in seen.stations.difference(&want.stations) {
            self.stations.remove(station);
        }
        self.stations.extend(want.stations.difference(&seen.stations).cloned());
        follow_tables(&mut self.tables, &seen.tables, &want.tables);
    }
}

/// As `KernelState::follow`.
pub fn follow_tables(
    tables: &mut BTreeMap<String, Table>,
    seen: &BTreeMap<String, Table>,
    want: &BTreeMap<String, Table>,
) {
    tables.retain(|name, _| want.contains_key(name));
    for (name, want) in want {
        match (tables.get_mut(name), seen.get(name)) {
            (Some(table), Some(seen)) if seen.is_updated_to(want) => table.follow(seen, want),
            _ => _ = tables.insert(name.clone(), want.clone()),
        }
    }
}

fn follow_map<K: Ord + Clone, V: PartialEq + Clone>(
    map: &mut BTreeMap<K, V>,
    seen: &BTreeMap<K, V>,
    want: &BTreeMap<K, V>,
) {
    for key in seen.keys().filter(|key| !want.contains_key(key)) {
        map.remove(key);
    }
    let differ = want.iter().filter(|(key, value)| seen.get(key) != Some(*value));
    map.extend(differ.map(|(key, value)| (key.clone(), value.clone())));
}

/// The table of routes that packets without a mark take.
pub const MAIN: u32 = 254;

/// By a next hop, or a device alone: the destination is on its link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub table: u32,
    pub to: IpNet,
    pub via: Option<IpAddr>,
    /// None: the one that reaches the next hop.
    pub device: Option<String>,
}

/// Where a bridge sends the frames for a MAC: to a port of it, and if that is a tunnel, to a node.
///
/// The zero MAC, of tunnels only, is for frames without a single or known receiver: each node gets a copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    pub device: String,
    pub mac: Mac,
    /// The underlay address of the node; none behind ports that are no tunnel.
    pub vtep: Option<IpAddr>,
    /// The network that it is in, of tunnels that are in no bridge. None: the tunnel's own.
    pub vni: Option<u32>,
}

/// What a port of a bridge does beyond passing frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgePort {
    /// Takes the sources of frames from here for stations behind it.
    pub learning: bool,
    /// Questions for an address whose station is behind it are answered by the bridge.
    pub suppress: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub kind: LinkKind,
    /// None: whatever it has.
    pub mac: Option<Mac>,
    /// None: whatever it has.
    pub mtu: Option<u32>,
    pub up: bool,
    pub master: Option<String>,
    /// None: whatever it has.
    pub port: Option<BridgePort>,
    pub addresses: BTreeSet<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Loopback,
    Bridge,
    Tap,
    /// The end of a pair that makes the other one.
    Veth {
        peer: (Place, String),
    },
    /// Its socket is in the host's namespace.
    Vxlan {
        vni: u32,
        port: u16,
        local: IpAddr,
    },
    /// A device of the host's that is not ours: only its master is, while that is a bridge of ours.
    Foreign,
    /// The end that is made by the other, or an end as observed.
    VethEnd,
}

impl LinkKind {
    /// Whether a device seen as `self` can serve as `wanted`.
    pub fn serves(&self, wanted: &LinkKind) -> bool {
        let end = |kind: &LinkKind| matches!(kind, LinkKind::Veth { .. } | LinkKind::VethEnd);
        self == wanted || (end(self) && end(wanted))
    }
}

/// An nft table: a fixed part known by its hash, chains known by their names, sets and maps known by their elements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Base chains and their rules, as commands without `add`; empty when observed.
    pub base: Vec<String>,
    /// `v_` and the hash of the fixed part.
    pub mark: String,
    /// Further chains, named by what is in them, with their rules; without rules when observed.
    pub chains: BTreeMap<String, Vec<String>>,
    pub sets: BTreeMap<String, Set>,
    /// What it hangs on: it comes after them, and anew with them. Empty when observed.
    pub devices: BTreeSet<String>,
}

/// A set, or a map when its type has a colon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    /// Type and flags, such as `type ifname . ether_addr; flags interval;`; empty when observed.
    pub of: String,
    /// Parts of the key to the value (empty in sets).
    pub elements: BTreeMap<Vec<String>, String>,
}

impl Table {
    /// Whether it becomes another by its chains and elements, and need not be written anew while its devices stay.
    pub fn is_updated_to(&self, other: &Table) -> bool {
        self.mark == other.mark && self.devices == other.devices
    }

    /// As `KernelState::follow`, where nothing but chains and elements differs or all of it is to be known.
    pub fn follow(&mut self, seen: &Table, want: &Table) {
        self.sets.retain(|name, _| want.sets.contains_key(name));
        let none = Set::default();
        for (name, want) in &want.sets {
            let set = self.sets.entry(name.clone()).or_default();
            follow_map(&mut set.elements, &seen.sets.get(name).unwrap_or(&none).elements, &want.elements);
            set.of.clone_from(&want.of);
        }
        self.base.clone_from(&want.base);
        self.mark.clone_from(&want.mark);
        self.chains.clone_from(&want.chains);
        self.devices.clone_from(&want.devices);
    }

    /// Writes the mark of the fixed part. Sets of remote groups (`g4_`, `g6_`) come and go and are not of it.
    pub fn seal(mut self) -> Table {
        let sets = self.sets.iter().filter(|(name, _)| !is_group_set(name));
        let sets = sets.map(|(name, set)| format!("{name} {}", set.of));
        let hash = fnv(self.base.iter().cloned().chain(sets));
        self.mark = format!("v_{hash:016x}");
        self
    }
}

pub fn is_group_set(name: &str) -> bool {
    name.starts_with("g4_") || name.starts_with("g6_")
}

/// FNV-1a over lines: the same on every build and machine.
pub fn fnv(lines: impl IntoIterator<Item = String>) -> u64 {
    let bytes = lines.into_iter().flat_map(|line| line.into_bytes().into_iter().chain([b'\n']));
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A stable, locally administered MAC for a device of ours.
pub fn own_mac(cloud: u32, what: &str) -> Mac {
    let hash = fnv([format!("{cloud:08x} {what}")]).to_be_bytes();
    Mac([0x02, hash[1], hash[2], hash[3], hash[4], hash[5]])
}

/// The first eleven hex digits of an id: what is left of 15 characters after a prefix.
pub fn short(id: Uuid) -> String {
    let mut text = id.simple().to_string();
    text.truncate(11);
    text
}

/// The tap of a port, inside of its network's namespace.
pub fn tap(port: Uuid) -> String {
    format!("tap{}", short(port))
}

/// The bridge inside of each network's namespace. Not `br`: iproute2 reads that as a keyword.
pub const BRIDGE: &str = "bridge0";

/// The tunnel to other nodes, inside of a network's namespace.
pub const TUNNEL: &str = "vxlan0";

/// The tunnel from a network to members of its router's other networks, beside its bridge.
pub const DIRECT: &str = "direct0";

/// The end inside of an external network's namespace of the pair to the host.
pub const HOST_LEG: &str = "host0";

/// The host's end of that pair: `sx`, the cloud, and what fits of the network.
pub fn host_device(cloud: u32, network: Uuid) -> String {
    format!("sx{cloud:08x}{}", &short(network)[..5])
}

/// The host's bridge of a physical network, with the host's device to it.
pub fn provider_bridge(cloud: u32, network: Uuid) -> String {
    format!("sx{cloud:08x}b{}", &short(network)[..4])
}

/// The router's end of an interface, or of its gateway.
pub fn leg(port: Uuid, gateway: bool) -> String {
    format!("{}-{}", if gateway { "qg" } else { "qr" }, short(port))
}

/// The network's end of it.
pub fn leg_port(port: Uuid) -> String {
    format!("leg-{}", &short(port)[..11])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_read_back() {
        let id = Uuid::from_u128(u128::MAX);
        for place in [Place::Network(id), Place::Router(id)] {
            let name = place.name(0xfeed).unwrap();
            assert_eq!(Place::parse(&name, 0xfeed), Some(place));
            assert_eq!(Place::parse(&name, 0xbeef), None);
        }
        for name in [tap(id), host_device(1, id), leg(id, true), leg_port(id)] {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
