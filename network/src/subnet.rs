//! Subnets: a CIDR of a network, its gateway, its pools, and what DHCP and router advertisements say.

use crate::SUBNET;
use crate::attr::{Flag, Meta, Whole, input, missing, nullable, read_only};
use crate::ipam;
use crate::network::Network;
use crate::port::{self, Port};
use crate::rbac;
use crate::resource::{self, Resource, Wanted};
use crate::subnet_pool::{self, SubnetPool};
use api::View;
use base::node::Ipv6Mode;
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use identity::limit;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// Name servers and host routes of one subnet. Source: neutron's `max_dns_nameservers`, `max_subnet_host_routes`.
const DNS_MAX: usize = 5;
const ROUTES_MAX: usize = 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subnet {
    pub id: Id<Subnet>,
    pub meta: Meta,
    pub network: Id<Network>,
    pub cidr: IpNet,
    pub gateway: Option<IpAddr>,
    pub pools: Vec<(IpAddr, IpAddr)>,
    pub dhcp: bool,
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    #[serde(default)]
    pub routes: Vec<HostRoute>,
    #[serde(default)]
    pub ra: Option<Ipv6Mode>,
    #[serde(default)]
    pub address_mode: Option<Ipv6Mode>,
    #[serde(default)]
    pub pool: Option<Id<SubnetPool>>,
    #[serde(default)]
    pub service_types: Vec<String>,
}

/// A route that guests or routers are given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRoute {
    pub destination: IpNet,
    pub nexthop: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    start: IpAddr,
    end: IpAddr,
}

impl IdKind for Subnet {}

pub const BY_NETWORK: Index<Subnet> = Index::many("network", |s, keys| keys.push(s.network.key()));
pub const BY_POOL: Index<Subnet> = Index::many("pool", |s, keys| keys.extend(s.pool.map(|p| p.key())));

impl Record for Subnet {
    const KIND: &'static str = "subnet";
    type Key = Id<Subnet>;
    const INDEXES: &'static [Index<Subnet>] = &[BY_NETWORK, BY_POOL];

    fn key(&self) -> Id<Subnet> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, SUBNET.name, 1);
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    network_id: Option<Id<Network>>,
    ip_version: Option<Whole>,
    #[serde(default, deserialize_with = "nullable")]
    cidr: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    subnetpool_id: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    prefixlen: Option<Option<Whole>>,
    #[serde(default, deserialize_with = "nullable")]
    gateway_ip: Option<Option<IpAddr>>,
    allocation_pools: Option<Vec<Range>>,
    enable_dhcp: Option<Flag>,
    #[serde(default, deserialize_with = "nullable")]
    dns_nameservers: Option<Option<Vec<IpAddr>>>,
    #[serde(default, deserialize_with = "nullable")]
    host_routes: Option<Option<Vec<HostRoute>>>,
    #[serde(default, deserialize_with = "nullable")]
    ipv6_ra_mode: Option<Option<Ipv6Mode>>,
    #[serde(default, deserialize_with = "nullable")]
    ipv6_address_mode: Option<Option<Ipv6Mode>>,
    service_types: Option<Vec<String>>,
    use_default_subnetpool: Option<Flag>,
}

impl Subnet {
    /// Whether a port of this owner gets addresses of it. A subnet that says nothing serves all.
    pub fn serves(&self, owner: &port::Owner) -> bool {
        self.service_types.is_empty() || self.service_types.contains(&owner.0)
    }

    /// Guests make their own address from the prefix.
    pub fn is_slaac(&self) -> bool {
        matches!(self.address_mode, Some(Ipv6Mode::Slaac | Ipv6Mode::Dhcpv6Stateless))
    }
}

impl Resource for Subnet {
    const ONE: &'static str = "subnet";
    const MANY: &'static str = "subnets";
    const TITLE: &'static str = "Subnet";
    const NOT_FOUND: &'static str = "SubnetNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "network_id",
        "ip_version",
        "cidr",
        "gateway_ip",
        "allocation_pools",
        "enable_dhcp",
        "dns_nameservers",
        "host_routes",
        "ipv6_ra_mode",
        "ipv6_address_mode",
        "subnetpool_id",
        "service_types",
        "segment_id",
        "dns_publish_fixed_ip",
        "router:external",
    ];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn visible(&self, state: &State, cx: &Context) -> bool {
        // As its network, external ones too: users choose a floating IP's subnet.
        cx.sees(self.meta.project)
            || state.get::<Network>(&self.network).is_some_and(|n| n.visible(state, cx))
    }

    fn view(&self, state: &State, _: &Context, view: &mut View) {
        self.meta.view(self.id, view);
        view.put("network_id", &self.network);
        view.put("ip_version", &if self.cidr.addr().is_ipv4() { 4 } else { 6 });
        view.put("cidr", &self.cidr);
        view.put("gateway_ip", &self.gateway);
        view.objects("allocation_pools", &self.pools, |(start, end), view| {
            view.put("start", start);
            view.put("end", end);
        });
        view.put("enable_dhcp", &self.dhcp);
        view.put("dns_nameservers", &self.dns);
        view.put("host_routes", &self.routes);
        view.put("ipv6_ra_mode", &self.ra);
        view.put("ipv6_address_mode", &self.address_mode);
        view.put("subnetpool_id", &self.pool);
        view.put("service_types", &self.service_types);
        view.put("segment_id", &());
        view.put("dns_publish_fixed_ip", &false);
        view.put("router:external", &rbac::is_external(state, self.network));
    }

    fn create(tx: &mut Tx, cx: &Context, project: ProjectId, body: &Wanted<Subnet>) -> Result<Arc<Subnet>> {
        let network = resource::get(tx, cx, body.network_id.ok_or_else(|| missing("network_id"))?)?;
        if !cx.sees(network.meta.project) {
            return Err(Error::forbidden("Only the owner of a network adds subnets to it.")
                .named("PolicyNotAuthorized"));
        }
        limit::claim(tx, project, &SUBNET, 1)?;
        let (cidr, pool) = cidr(tx, cx, project, body)?;
        check_overlap(tx, &network, &cidr)?;
        let (ra, address_mode) = ipv6_modes(&cidr, body)?;
        let gateway = match body.gateway_ip {
            Some(explicit) => explicit,
            None => Some(ipam::default_gateway(&cidr)),
        };
        let mut subnet = Subnet {
            id: tx.new_id(),
            meta: Meta::new(tx, project),
            network: network.id,
            cidr,
            gateway,
            pools: ipam::default_pools(&cidr, gateway),
            dhcp: true,
            dns: Vec::new(),
            routes: Vec::new(),
            ra,
            address_mode,
            pool,
            service_types: Vec::new(),
        };
        apply(&mut subnet, body)?;
        let subnet = tx.put(subnet)?;
        port::join_slaac(tx, &subnet)?;
        Ok(subnet)
    }

    fn update(tx: &mut Tx, _: &Context, old: &Subnet, body: &Wanted<Subnet>) -> Result<Arc<Subnet>> {
        let fixed = [
            ("network_id", body.network_id.is_some()),
            ("cidr", body.cidr.is_some()),
            ("ip_version", body.ip_version.is_some()),
            ("subnetpool_id", body.subnetpool_id.is_some()),
            ("prefixlen", body.prefixlen.is_some()),
            ("ipv6_ra_mode", body.ipv6_ra_mode.is_some()),
            ("ipv6_address_mode", body.ipv6_address_mode.is_some()),
        ];
        if let Some((attribute, _)) = fixed.iter().find(|(_, used)| *used) {
            return Err(read_only(attribute));
        }
        let mut subnet = old.clone();
        if let Some(gateway) = body.gateway_ip {
            if gateway != old.gateway
                && let Some(port) = gateway_port(tx, old)
            {
                return Err(Error::conflict(format!(
                    "Current gateway ip {} already in use by port {port}. Unable to update.",
                    old.gateway.map_or_else(String::new, |g| g.to_string())
                ))
                .named("GatewayIpInUse"));
            }
            subnet.gateway = gateway;
        }
        apply(&mut subnet, body)?;
        subnet.meta.touch(tx);
        Ok(tx.put(subnet)?)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &Subnet) -> Result<()> {
        let holders: Vec<Arc<Port>> =
            tx.by(&port::BY_NETWORK, old.network).filter(|p| p.has_address_of(old.id)).cloned().collect();
        let in_use = |p: &&Arc<Port>| !p.owner.is_automatic() && (!old.is_slaac() || p.owner.is_router());
        if let Some(port) = holders.iter().find(in_use) {
            return Err(Error::conflict(format!(
                "Unable to complete operation on subnet {}: One or more ports have an IP allocation from this subnet ({}).",
                old.id, port.id
            ))
            .named("SubnetInUse"));
        }
        for port in holders {
            let mut port = Port::clone(&port);
            port.fixed.retain(|f| f.subnet != old.id);
            tx.put(port)?;
        }
        tx.delete::<Subnet>(&old.id);
        Ok(())
    }
}

/// The port of a router that holds the gateway's address.
fn gateway_port(tx: &Tx, subnet: &Subnet) -> Option<Id<Port>> {
    let port = tx.one(&port::BY_ADDRESS, (subnet.id, subnet.gateway?))?;
    port.owner.is_router().then_some(port.id)
}

fn apply(subnet: &mut Subnet, body: &Wanted<Subnet>) -> Result<()> {
    subnet.meta.apply(&body.meta);
    if let Some(ranges) = &body.allocation_pools {
        subnet.pools = pools(&subnet.cidr, ranges)?;
    }
    if let Some(gateway) = subnet.gateway {
        check_gateway(subnet, gateway)?;
    }
    subnet.dhcp = body.enable_dhcp.map_or(subnet.dhcp, |f| f.0);
    if let Some(dns) = &body.dns_nameservers {
        subnet.dns = dns.clone().unwrap_or_default();
    }
    if let Some(routes) = &body.host_routes {
        subnet.routes = routes.clone().unwrap_or_default();
    }
    if let Some(types) = &body.service_types {
        if let Some(bad) = types.iter().find(|t| !t.starts_with("network:") && !t.starts_with("compute:")) {
            let text = format!(
                "Subnet service type '{}' does not correspond to a valid device owner.",
                bad.escape_default()
            );
            return Err(Error::invalid(text).named("InvalidSubnetServiceType"));
        }
        subnet.service_types = types.clone();
    }
    if subnet.dns.len() > DNS_MAX {
        return Err(input(format!("a subnet has at most {DNS_MAX} DNS name servers"))
            .named("DNSNameServersExhausted"));
    }
    if subnet.routes.len() > ROUTES_MAX {
        return Err(
            input(format!("a subnet has at most {ROUTES_MAX} host routes")).named("HostRoutesExhausted")
        );
    }
    let v4 = subnet.cidr.addr().is_ipv4();
    if subnet.routes.iter().any(|r| r.destination.addr().is_ipv4() != v4 || r.nexthop.is_ipv4() != v4) {
        return Err(input("a host route is of another IP version than its subnet"));
    }
    Ok(())
}

fn check_gateway(subnet: &Subnet, gateway: IpAddr) -> Result<()> {
    if gateway.is_ipv4() != subnet.cidr.addr().is_ipv4() {
        return Err(input(format!("gateway_ip {gateway} is of another IP version than the subnet")));
    }
    let (network, broadcast) = (subnet.cidr.network(), subnet.cidr.broadcast());
    let narrow = subnet.cidr.prefix_len() + 1 >= subnet.cidr.max_prefix_len();
    if subnet.cidr.contains(&gateway)
        && !narrow
        && (gateway == network || (gateway.is_ipv4() && gateway == broadcast))
    {
        return Err(input(format!("Gateway {gateway} is not valid on subnet {}", subnet.cidr)));
    }
    match ipam::in_pools(&subnet.pools, gateway) {
        true => Err(Error::conflict(format!("Gateway ip {gateway} conflicts with allocation pool."))
            .named("GatewayConflictWithAllocationPools")),
        false => Ok(()),
    }
}

fn pools(cidr: &IpNet, ranges: &[Range]) -> Result<Vec<(IpAddr, IpAddr)>> {
    let mut pools: Vec<(IpAddr, IpAddr)> = ranges.iter().map(|r| (r.start, r.end)).collect();
    pools.sort();
    let (first, last) = ipam::usable(cidr);
    for (start, end) in &pools {
        let family = start.is_ipv4() == cidr.addr().is_ipv4() && end.is_ipv4() == cidr.addr().is_ipv4();
        if !family || start > end {
            return Err(input(format!("The allocation pool {start}-{end} is not valid"))
                .named("InvalidAllocationPool"));
        }
        if ipam::number(*start) < first || ipam::number(*end) > last {
            let what = format!("The allocation pool {start}-{end} spans beyond the subnet cidr {cidr}.");
            return Err(Error::invalid(what).named("OutOfBoundsAllocationPool"));
        }
    }
    match pools.windows(2).find(|pair| pair[0].1 >= pair[1].0) {
        Some(pair) => Err(Error::conflict(format!(
            "Found overlapping allocation pools: {}-{} {}-{} for subnet {cidr}.",
            pair[0].0, pair[0].1, pair[1].0, pair[1].1
        ))
        .named("OverlappingAllocationPools")),
        None => Ok(pools),
    }
}

/// The CIDR that the body names, or one of its pool.
fn cidr(tx: &Tx, cx: &Context, project: ProjectId, body: &Body) -> Result<(IpNet, Option<Id<SubnetPool>>)> {
    let version = body.ip_version.map(|v| v.0);
    if let Some(v) = version.filter(|v| ![4, 6].contains(v)) {
        return Err(Error::invalid(format!("Invalid input for ip_version. Reason: '{v}' is not in [4, 6].")));
    }
    let pool = match body.subnetpool_id.clone().flatten() {
        Some(_) if body.use_default_subnetpool == Some(Flag(true)) => {
            return Err(Error::invalid("subnetpool_id and use_default_subnetpool cannot both be specified")
                .named("BadRequest"));
        }
        None if body.use_default_subnetpool == Some(Flag(true)) => {
            let v4 = version.ok_or_else(|| missing("ip_version"))? == 4;
            let none = || Error::not_found("No default subnetpool was found.").named("NotFound");
            Some(subnet_pool::default(tx, v4).cloned().ok_or_else(none)?)
        }
        None => None,
        Some(id) => Some(subnet_pool::find(tx, cx, &id)?),
    };
    let explicit = body.cidr.clone().flatten().map(|text| parse_cidr(&text)).transpose()?;
    let cidr = match (&pool, explicit) {
        (None, None) => {
            return Err(
                Error::invalid("a subnetpool must be specified in the absence of a cidr").named("BadRequest")
            );
        }
        (None, Some(cidr)) => cidr,
        (Some(pool), asked) => {
            subnet_pool::allocate(tx, project, pool, asked, body.prefixlen.flatten().map(|n| n.0))?
        }
    };
    let family = if cidr.addr().is_ipv4() { 4 } else { 6 };
    if version.is_some_and(|v| v != family) {
        return Err(input(format!("cidr {cidr} is of another IP version than ip_version")));
    }
    Ok((cidr, pool.map(|p| p.id)))
}

/// Reads a CIDR without host bits.
pub fn parse_cidr(text: &str) -> Result<IpNet> {
    let bad = |why: String| Error::invalid(format!("Invalid input for cidr. Reason: {why}."));
    let cidr: IpNet =
        text.parse().map_err(|_| bad(format!("'{}' is not a valid IP subnet", text.escape_default())))?;
    match cidr.addr() == cidr.network() {
        true => Ok(cidr),
        false => {
            Err(bad(format!("'{text}' isn't a recognized IP subnet cidr, '{}' is recommended", cidr.trunc())))
        }
    }
}

fn check_overlap(tx: &Tx, network: &Network, cidr: &IpNet) -> Result<()> {
    match tx.by(&BY_NETWORK, network.id).find(|other| ipam::overlap(&other.cidr, cidr)) {
        Some(_) => Err(input(format!(
            "Requested subnet with cidr: {cidr} for network: {} overlaps with another subnet",
            network.id
        ))),
        None => Ok(()),
    }
}

fn ipv6_modes(cidr: &IpNet, body: &Body) -> Result<(Option<Ipv6Mode>, Option<Ipv6Mode>)> {
    let (ra, address) = (body.ipv6_ra_mode.flatten(), body.ipv6_address_mode.flatten());
    if ra.is_none() && address.is_none() {
        return Ok((None, None));
    }
    if cidr.addr().is_ipv4() {
        return Err(input("ipv6_ra_mode and ipv6_address_mode are of IPv6 subnets"));
    }
    if body.enable_dhcp == Some(Flag(false)) {
        return Err(Error::invalid(
            "ipv6_ra_mode or ipv6_address_mode cannot be set when enable_dhcp is set to False.",
        ));
    }
    if let (Some(ra), Some(address)) = (ra, address)
        && ra != address
    {
        return Err(input("ipv6_ra_mode and ipv6_address_mode, when both are set, are the same"));
    }
    let slaac = [ra, address].iter().flatten().any(|m| *m != Ipv6Mode::Dhcpv6Stateful);
    match slaac && cidr.prefix_len() != 64 {
        true => Err(input("Invalid CIDR for an address mode of SLAAC: its prefix is 64 bits long")),
        false => Ok((ra, address)),
    }
}
