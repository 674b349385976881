//! Ports: a MAC with addresses on a network. Whose it is stands in `owner` and `device`; this crate names no server.

pub mod rest;

use crate::attr::{Meta, input};
use crate::floating_ip;
use crate::network::{self, Network};
use crate::port_forwarding;
use crate::security_group::{self, SecurityGroup};
use crate::subnet::{self, Subnet};
use crate::{PORT, ipam, spread};
use base::node::PortReport;
use base::units::Mac;
use base::{Error, Id, IdKind, ProjectId, Result};
use identity::limit;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// Addresses of one port, pairs of one port. Source: neutron's `max_fixed_ips_per_port`, `max_allowed_address_pair`.
const FIXED_MAX: usize = 5;
const PAIRS_MAX: usize = 10;
/// The vendor half of generated MAC addresses, Neutron's own.
const MAC_BASE: [u8; 3] = [0xfa, 0x16, 0x3e];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    pub id: Id<Port>,
    pub meta: Meta,
    pub network: Id<Network>,
    pub mac: Mac,
    pub admin_up: bool,
    pub fixed: Vec<Fixed>,
    /// The id of what the port belongs to: a server, a router, a floating IP, or anything a user wrote.
    #[serde(default)]
    pub device: String,
    #[serde(default)]
    pub owner: Owner,
    pub groups: BTreeSet<Id<SecurityGroup>>,
    #[serde(default)]
    pub pairs: Vec<Pair>,
    pub port_security: bool,
    /// The name of the node that it is bound to.
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub dhcp_options: Vec<DhcpOption>,
    #[serde(default)]
    pub dns_name: String,
    /// For guests that read their link from a physical one; kept for its owner.
    #[serde(default = "yes")]
    pub propagate_uplink: bool,
    /// Observed by the node: its device is there with all its rules.
    #[serde(default)]
    pub up: bool,
    /// Observed by the node: addresses of its allowed pairs that its guest has announced, until another port's does.
    #[serde(default)]
    pub claims: BTreeSet<IpAddr>,
    /// Where they are found, when that is the MAC of a pair.
    #[serde(default)]
    pub claim_macs: BTreeMap<IpAddr, Mac>,
}

fn yes() -> bool {
    true
}

/// One address of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixed {
    pub subnet: Id<Subnet>,
    pub address: IpAddr,
}

/// An address beyond the fixed ones that a guest may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub net: IpNet,
    pub mac: Option<Mac>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpOption {
    pub name: String,
    pub value: String,
    pub v6: bool,
}

/// `device_owner`: free text with meanings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(pub String);

pub const ROUTER_INTERFACE: &str = "network:router_interface";
pub const ROUTER_GATEWAY: &str = "network:router_gateway";
pub const FLOATING_IP: &str = "network:floatingip";

impl Owner {
    /// Goes with its network without being in its way.
    pub fn is_automatic(&self) -> bool {
        self.0 == "network:dhcp"
    }

    pub fn is_router(&self) -> bool {
        self.0 == ROUTER_INTERFACE || self.0 == ROUTER_GATEWAY
    }

    /// Made and removed by the network service itself.
    pub fn is_service(&self) -> bool {
        self.is_router() || self.0 == FLOATING_IP
    }

    pub fn is_compute(&self) -> bool {
        self.0.starts_with("compute:")
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl IdKind for Port {}

pub const BY_NETWORK: Index<Port> = Index::many("network", |p, keys| keys.push(p.network.key()));
pub const BY_DEVICE: Index<Port> = Index::many("device", |p, keys| {
    if !p.device.is_empty() {
        keys.push(p.device.key());
    }
});
pub const BY_HOST: Index<Port> = Index::many("host", |p, keys| {
    if !p.host.is_empty() {
        keys.push(p.host.key());
    }
});
/// Of these the ports that other nodes are to know: bound, and no gateway of a router.
pub const BY_MEMBERS: Index<Port> = Index::many("members", |p, keys| {
    if p.is_member() {
        keys.push(p.network.key());
    }
});
/// The ports of routers on a network, and whether they are their gateways.
pub const BY_LEGS: Index<Port> = Index::many("legs", |p, keys| {
    if p.owner.is_router() {
        keys.push((p.network, p.owner.0 == ROUTER_GATEWAY).key());
    }
});
/// Who has an address that a rule with a remote group means.
pub const BY_GROUP_ADDRESS: Index<Port> = Index::many("group_address", |p, keys| {
    for group in &p.groups {
        keys.extend(p.group_addresses().map(|address| (*group, address).key()));
    }
});
pub const BY_GROUP: Index<Port> =
    Index::many("group", |p, keys| keys.extend(p.groups.iter().map(|g| g.key())));
pub const BY_ADDRESS: Index<Port> =
    Index::unique("address", |p, keys| keys.extend(p.fixed.iter().map(|f| (f.subnet, f.address).key())));
const BY_MAC: Index<Port> = Index::unique("mac", |p, keys| keys.push((p.network, p.mac).key()));

/// Who holds an address of its allowed pairs.
pub const BY_CLAIM: Index<Port> =
    Index::many("claim", |p, keys| keys.extend(p.claims.iter().map(|address| (p.network, *address).key())));

impl Record for Port {
    const KIND: &'static str = "port";
    type Key = Id<Port>;
    const INDEXES: &'static [Index<Port>] = &[
        BY_NETWORK,
        BY_MEMBERS,
        BY_LEGS,
        BY_DEVICE,
        BY_HOST,
        BY_GROUP,
        BY_GROUP_ADDRESS,
        BY_ADDRESS,
        BY_MAC,
        BY_CLAIM,
    ];

    fn key(&self) -> Id<Port> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, PORT.name, 1);
    }
}

impl Port {
    /// Other nodes are to know it. Routers reach each other on an external network by their addresses; of their gateways
    /// only the nodes are members.
    pub fn is_member(&self) -> bool {
        !self.host.is_empty() && self.owner.0 != ROUTER_GATEWAY
    }

    /// What a rule means that names one of its groups as the remote one.
    pub fn group_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let single = |p: &&Pair| p.net.prefix_len() == p.net.max_prefix_len();
        self.fixed.iter().map(|f| f.address).chain(self.pairs.iter().filter(single).map(|p| p.net.addr()))
    }

    pub fn has_address_of(&self, subnet: Id<Subnet>) -> bool {
        self.fixed.iter().any(|f| f.subnet == subnet)
    }

    /// ACTIVE, DOWN, or N/A for the address of a floating IP.
    pub fn status(&self) -> &'static str {
        match self.owner.0.as_str() {
            FLOATING_IP => "N/A",
            ROUTER_INTERFACE | ROUTER_GATEWAY if self.admin_up => "ACTIVE",
            _ if self.up && self.admin_up => "ACTIVE",
            _ => "DOWN",
        }
    }
}

/// What a new port is to be. The default is any address, the default group, nobody's.
#[derive(Clone, Debug, Default)]
pub struct NewPort {
    pub network: Id<Network>,
    pub name: String,
    pub device: String,
    pub owner: String,
    pub host: String,
    pub mac: Option<Mac>,
    /// None: one address of each IP version; empty: no address.
    pub fixed: Option<Vec<WantedIp>>,
    /// None: the project's default group.
    pub groups: Option<BTreeSet<Id<SecurityGroup>>>,
    pub port_security: Option<bool>,
    /// Its name in the network's domain.
    pub dns_name: String,
}

/// An address that a caller asks for, by subnet or exactly or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedIp {
    #[serde(rename = "subnet_id")]
    pub subnet: Option<Id<Subnet>>,
    #[serde(rename = "ip_address")]
    pub address: Option<IpAddr>,
}

/// Makes a port for `project` with its addresses and groups.
///
/// Errors: `OverQuota`; `Conflict` named `IpAddressAlreadyAllocated`, `IpAddressGenerationFailure`, `MacAddressInUse`;
/// `Invalid` for addresses that are not of the network.
pub fn create(tx: &mut Tx, project: ProjectId, new: &NewPort) -> Result<Arc<Port>> {
    limit::claim(tx, project, &PORT, 1)?;
    let network = tx
        .get::<Network>(&new.network)
        .cloned()
        .ok_or_else(|| crate::resource::not_found::<Network>(&new.network.to_string()))?;
    let mac = match new.mac {
        Some(mac) => mac,
        None => draw_mac(tx, network.id),
    };
    let owner = Owner(new.owner.clone());
    let fixed = addresses(tx, &network, mac, &owner, new.fixed.as_deref(), &[])?;
    let port_security = new.port_security.unwrap_or(network.port_security && !owner.is_service());
    let groups = match &new.groups {
        Some(groups) => groups.clone(),
        None if port_security && !owner.0.starts_with("network:") => {
            [security_group::default(tx, project)?].into()
        }
        None => BTreeSet::new(),
    };
    let mut meta = Meta::new(tx, project);
    meta.name = new.name.clone();
    let id = tx.new_id();
    let port = put(
        tx,
        Port {
            id,
            meta,
            network: network.id,
            mac,
            admin_up: true,
            fixed,
            device: new.device.clone(),
            owner,
            groups,
            pairs: Vec::new(),
            port_security,
            host: new.host.clone(),
            dhcp_options: Vec::new(),
            dns_name: new.dns_name.clone(),
            propagate_uplink: true,
            up: false,
            claims: BTreeSet::new(),
            claim_macs: BTreeMap::new(),
        },
    )?;
    spread::port_bound(tx, &port)?;
    Ok(port)
}

/// Puts a port, with Neutron's words for a taken address.
pub(crate) fn put(tx: &mut Tx, port: Port) -> Result<Arc<Port>> {
    let (network, mac) = (port.network, port.mac);
    let addresses: Vec<String> = port.fixed.iter().map(|f| f.address.to_string()).collect();
    port_forwarding::follow(tx, &port);
    floating_ip::follow(tx, &port)?;
    tx.put(port).map_err(|broken| match broken.index {
        "mac" => Error::conflict(format!(
            "Unable to complete operation for network {network}. The mac address {mac} is in use."
        ))
        .named("MacAddressInUse"),
        _ => Error::conflict(format!(
            "IP address {} already allocated in network {network}",
            addresses.join(", ")
        ))
        .named("IpAddressAlreadyAllocated"),
    })
}

fn draw_mac(tx: &mut Tx, network: Id<Network>) -> Mac {
    loop {
        let [.., d, e, f] = tx.random().to_be_bytes();
        let mac = Mac([MAC_BASE[0], MAC_BASE[1], MAC_BASE[2], d, e, f]);
        if tx.one(&BY_MAC, (network, mac)).is_none() {
            return mac;
        }
    }
}

/// The addresses of a port: what was wanted, or one of each IP version, and those that SLAAC makes.
pub(crate) fn addresses(
    tx: &mut Tx,
    network: &Network,
    mac: Mac,
    owner: &Owner,
    wanted: Option<&[WantedIp]>,
    keep: &[Fixed],
) -> Result<Vec<Fixed>> {
    let mut subnets: Vec<Arc<Subnet>> = tx.by(&subnet::BY_NETWORK, network.id).cloned().collect();
    if !subnets.is_empty() && wanted.is_none() && !subnets.iter().any(|s| s.serves(owner)) {
        let text = format!("No valid service subnet for the given device owner on network {}.", network.id);
        return Err(Error::conflict(text).named("IpAddressGenerationFailureNoMatchingSubnet"));
    }
    subnets.retain(|s| s.serves(owner));
    let mut fixed: Vec<Fixed> = Vec::new();
    match wanted {
        None => {
            for v4 in [true, false] {
                let mut family =
                    subnets.iter().filter(|s| s.cidr.addr().is_ipv4() == v4 && !s.is_slaac()).peekable();
                if family.peek().is_none() {
                    continue;
                }
                let found =
                    family.find_map(|s| free(tx, s, &fixed).map(|address| Fixed { subnet: s.id, address }));
                fixed.push(found.ok_or_else(|| exhausted(network))?);
            }
        }
        Some(list) => {
            for ip in list {
                let one = wanted_address(tx, network, &subnets, mac, ip, &fixed, keep)?;
                fixed.push(one);
            }
        }
    }
    let explicit_none = wanted.is_some_and(|w| w.is_empty());
    for subnet in subnets.iter().filter(|s| s.is_slaac() && !explicit_none) {
        if !fixed.iter().any(|f| f.subnet == subnet.id) {
            fixed.push(slaac(subnet, mac));
        }
    }
    match fixed.len() <= FIXED_MAX {
        true => Ok(fixed),
        false => Err(input(format!("Exceeded maximum amount of fixed ips per port: {FIXED_MAX}"))),
    }
}

fn slaac(subnet: &Subnet, mac: Mac) -> Fixed {
    let address = match subnet.cidr.network() {
        IpAddr::V6(prefix) => IpAddr::V6(mac.slaac(prefix)),
        v4 => v4,
    };
    Fixed { subnet: subnet.id, address }
}

fn wanted_address(
    tx: &mut Tx,
    network: &Network,
    subnets: &[Arc<Subnet>],
    mac: Mac,
    wanted: &WantedIp,
    fixed: &[Fixed],
    keep: &[Fixed],
) -> Result<Fixed> {
    let subnet = match (wanted.subnet, wanted.address) {
        (Some(id), _) => subnets.iter().find(|s| s.id == id).ok_or_else(|| {
            Error::invalid(format!(
                "Invalid input for operation: Failed to create port on network {}, because fixed_ips included invalid subnet {id}.",
                network.id
            ))
            .named("InvalidInput")
        })?,
        (None, Some(address)) => subnets.iter().find(|s| s.cidr.contains(&address)).ok_or_else(|| {
            Error::invalid(format!("IP address {address} is not a valid IP for any of the subnets on the specified network."))
                .named("InvalidIpForNetwork")
        })?,
        (None, None) => return Err(input("IP allocation requires subnet_id or ip_address")),
    };
    let Some(address) = wanted.address else {
        // An address that the port has of this subnet stays.
        if let Some(kept) = keep.iter().find(|k| k.subnet == subnet.id && !fixed.contains(k)) {
            return Ok(kept.clone());
        }
        if subnet.is_slaac() {
            return Ok(slaac(subnet, mac));
        }
        let address = free(tx, subnet, fixed).ok_or_else(|| exhausted(network))?;
        return Ok(Fixed { subnet: subnet.id, address });
    };
    let (first, last) = ipam::usable(&subnet.cidr);
    if !subnet.cidr.contains(&address) || !(first..=last).contains(&ipam::number(address)) {
        return Err(Error::invalid(format!(
            "IP address {address} is not a valid IP for the specified subnet."
        ))
        .named("InvalidIpForSubnet"));
    }
    Ok(Fixed { subnet: subnet.id, address })
}

fn exhausted(network: &Network) -> Error {
    Error::conflict(format!("No more IP addresses available on network {}.", network.id))
        .named("IpAddressGenerationFailure")
}

fn free(tx: &mut Tx, subnet: &Subnet, also: &[Fixed]) -> Option<IpAddr> {
    let drawn: [u128; 12] = std::array::from_fn(|_| tx.random());
    let mut next = drawn.into_iter().cycle();
    let taken = |address| {
        tx.one(&BY_ADDRESS, (subnet.id, address)).is_some()
            || also.iter().any(|f| f.subnet == subnet.id && f.address == address)
    };
    ipam::pick(&subnet.cidr, &subnet.pools, || next.next().unwrap_or(0), taken)
}

/// Gives the ports of a network their address of a new SLAAC subnet.
pub(crate) fn join_slaac(tx: &mut Tx, subnet: &Subnet) -> Result<()> {
    if !subnet.is_slaac() {
        return Ok(());
    }
    let ports: Vec<Arc<Port>> = tx
        .by(&BY_NETWORK, subnet.network)
        .filter(|p| !p.owner.is_service() && !p.fixed.is_empty())
        .cloned()
        .collect();
    for port in ports.iter().filter(|p| p.fixed.len() < FIXED_MAX) {
        let mut port = Port::clone(port);
        port.fixed.push(slaac(subnet, port.mac));
        put(tx, port)?;
    }
    Ok(())
}

/// Changes a port's fields under `change`; the caller has checked that it may.
pub fn change(tx: &mut Tx, id: Id<Port>, change: impl FnOnce(&mut Port)) -> Result<Arc<Port>> {
    let old =
        tx.get::<Port>(&id).cloned().ok_or_else(|| crate::resource::not_found::<Port>(&id.to_string()))?;
    let mut port = Port::clone(&old);
    change(&mut port);
    if port == *old {
        return Ok(old);
    }
    port.meta.touch(tx);
    put(tx, port)
}

/// Binds a port to a device on a node.
pub fn bind(tx: &mut Tx, id: Id<Port>, device: &str, owner: &str, host: &str) -> Result<Arc<Port>> {
    let port = change(tx, id, |port| {
        port.device = device.into();
        port.owner = Owner(owner.into());
        port.host = host.into();
        port.up = false;
    })?;
    spread::port_bound(tx, &port)?;
    Ok(port)
}

/// Lets go of a port that its user made. Its name goes with its guest, as Nova has it.
pub fn unbind(tx: &mut Tx, id: Id<Port>) -> Result<Arc<Port>> {
    change(tx, id, |port| port.dns_name.clear())?;
    bind(tx, id, "", "", "")
}

/// Adds an address of the port's network; Nova's addFixedIp.
pub fn add_address(tx: &mut Tx, id: Id<Port>) -> Result<Arc<Port>> {
    let port =
        tx.get::<Port>(&id).cloned().ok_or_else(|| crate::resource::not_found::<Port>(&id.to_string()))?;
    let network =
        tx.get::<Network>(&port.network).cloned().expect("a port's network is there as long as the port");
    let subnets: Vec<Arc<Subnet>> =
        tx.by(&subnet::BY_NETWORK, network.id).filter(|s| s.cidr.addr().is_ipv4()).cloned().collect();
    let found =
        subnets.iter().find_map(|s| free(tx, s, &port.fixed).map(|address| Fixed { subnet: s.id, address }));
    let fixed = found.ok_or_else(|| exhausted(&network))?;
    if port.fixed.len() >= FIXED_MAX {
        return Err(input(format!("Exceeded maximum amount of fixed ips per port: {FIXED_MAX}")));
    }
    change(tx, id, |port| port.fixed.push(fixed))
}

/// Takes an address from the port; Nova's removeFixedIp.
pub fn remove_address(tx: &mut Tx, id: Id<Port>, address: IpAddr) -> Result<Arc<Port>> {
    change(tx, id, |port| port.fixed.retain(|f| f.address != address))
}

/// The port of a network that has a fixed address.
pub fn with_address(state: &State, network: Id<Network>, address: IpAddr) -> Option<&Arc<Port>> {
    let mut subnets = state.by(&subnet::BY_NETWORK, network);
    subnets.find_map(|subnet| state.one(&BY_ADDRESS, (subnet.id, address)))
}

/// What a node saw of a port. An address that it claims anew is taken from whoever had claimed it before; one that is
/// a fixed address of a port with a node is nobody's to claim. A node drops a claim once it is told of a later one.
pub fn observed(tx: &mut Tx, id: Id<Port>, seen: &PortReport) -> Result<()> {
    let Some(port) = tx.get::<Port>(&id).cloned() else { return Ok(()) };
    let in_use =
        |a: IpAddr| with_address(tx, port.network, a).is_some_and(|p| p.id != id && !p.host.is_empty());
    let allowed = |a: &IpAddr| port.pairs.iter().any(|pair| pair.net.contains(a)) && !in_use(*a);
    let claims: BTreeSet<IpAddr> = seen.claims.iter().copied().filter(allowed).collect();
    let of_pair = |a: IpAddr, mac: Mac| port.pairs.iter().any(|p| p.net.contains(&a) && p.mac == Some(mac));
    let macs = seen.macs.iter().map(|(a, mac)| (*a, *mac));
    let macs = macs.filter(|(a, mac)| claims.contains(a) && *mac != port.mac && of_pair(*a, *mac)).collect();
    for address in claims.difference(&port.claims) {
        let before: Vec<Id<Port>> = tx.by(&BY_CLAIM, (port.network, *address)).map(|p| p.id).collect();
        for other in before {
            tx.update::<Port>(&other, |other| {
                other.claims.remove(address);
                other.claim_macs.remove(address);
            })?;
        }
    }
    tx.update::<Port>(&id, |port| (port.up, port.claims, port.claim_macs) = (seen.up, claims, macs))?;
    Ok(())
}

/// Removes a port; its floating IPs go dark.
pub fn delete(tx: &mut Tx, id: Id<Port>) -> Result<()> {
    floating_ip::release(tx, id)?;
    port_forwarding::release(tx, id);
    tx.delete::<Port>(&id);
    Ok(())
}

/// The ports of a project's device, in the order they were made.
///
/// Anyone may write anyone's device into a port of their own: another project's does not count. Source: OSSA-2014-008.
pub fn of_device(state: &State, device: &str, project: ProjectId) -> Vec<Arc<Port>> {
    let mut ports: Vec<_> =
        state.by(&BY_DEVICE, device).filter(|p| p.meta.project == project).cloned().collect();
    ports.sort_by_key(|p| (p.meta.created, p.id));
    ports
}

/// Whether the network may be used for a port of `project`.
pub(crate) fn network_for(
    state: &State,
    cx: &base::Context,
    id: Id<network::Network>,
) -> Result<Arc<Network>> {
    crate::resource::get(state, cx, id)
}
