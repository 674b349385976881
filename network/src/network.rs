//! Networks: one L2 segment each, a VXLAN by its number (`vni`).

use crate::address_scope::AddressScope;
use crate::attr::{self, Flag, Meta, Text, Whole, input, nullable};
use crate::port::{self, Port};
use crate::rbac::{self, Action, Kind, Shared};
use crate::resource::{Resource, Wanted};
use crate::subnet::BY_NETWORK;
use crate::subnet::{self, Subnet};
use crate::subnet_pool::SubnetPool;
use crate::{NETWORK, floating_ip, zone};
use api::{Call, Target, View, view};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use fleet::Node;
use identity::limit;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// What a guest's frame may carry when the underlay has 1,500 bytes: less VXLAN over IPv4.
pub const MTU: u32 = 1450;
/// Without VXLAN.
const MTU_FLAT: u32 = 1500;
/// The least that IPv4 asks of a link.
const MTU_MIN: u32 = 68;
/// VXLAN has 24 bits.
const VNI_MAX: u32 = (1 << 24) - 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub id: Id<Network>,
    pub meta: Meta,
    pub admin_up: bool,
    #[serde(default)]
    pub default: bool,
    pub mtu: u32,
    pub vni: u32,
    /// `flat` with a physical network, else `vxlan`.
    #[serde(default)]
    pub physical: Option<String>,
    pub port_security: bool,
    #[serde(default)]
    pub zone_hints: Vec<String>,
    #[serde(default)]
    pub dns_domain: String,
}

impl IdKind for Network {}

const BY_VNI: Index<Network> = Index::unique("vni", |n, keys| keys.push(n.vni.key()));

/// A physical network is one segment, so one network.
const BY_PHYSICAL: Index<Network> =
    Index::unique("physical", |n, keys| keys.extend(n.physical.as_ref().map(|p| p.key())));

impl Record for Network {
    const KIND: &'static str = "network";
    type Key = Id<Network>;
    const INDEXES: &'static [Index<Network>] = &[BY_VNI, BY_PHYSICAL];

    fn key(&self) -> Id<Network> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, NETWORK.name, 1);
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    admin_state_up: Option<Flag>,
    shared: Option<Flag>,
    #[serde(rename = "router:external")]
    external: Option<Flag>,
    is_default: Option<Flag>,
    mtu: Option<Whole>,
    port_security_enabled: Option<Flag>,
    #[serde(rename = "provider:network_type", default, deserialize_with = "nullable")]
    network_type: Option<Option<String>>,
    #[serde(rename = "provider:physical_network", default, deserialize_with = "nullable")]
    physical: Option<Option<String>>,
    #[serde(rename = "provider:segmentation_id", default, deserialize_with = "nullable")]
    segment: Option<Option<Whole>>,
    availability_zone_hints: Option<Vec<String>>,
    dns_domain: Option<Text>,
}

impl Shared for Network {
    const RBAC: Kind = Kind::Network;
}

impl Resource for Network {
    const ONE: &'static str = "network";
    const MANY: &'static str = "networks";
    const TITLE: &'static str = "Network";
    const NOT_FOUND: &'static str = "NetworkNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "admin_state_up",
        "status",
        "subnets",
        "shared",
        "router:external",
        "mtu",
        "port_security_enabled",
        "availability_zone_hints",
        "availability_zones",
        "ipv4_address_scope",
        "ipv6_address_scope",
        "dns_domain",
        "is_default",
        "l2_adjacency",
        "provider:network_type",
        "provider:physical_network",
        "provider:segmentation_id",
    ];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn visible(&self, state: &State, cx: &Context) -> bool {
        cx.sees(self.meta.project)
            || rbac::shared(state, self.id, cx)
            || rbac::allows(state, self.id, Action::AccessAsExternal, cx.project())
    }

    fn view(&self, state: &State, cx: &Context, view: &mut View) {
        self.meta.view(self.id, view);
        let subnets = || state.by(&BY_NETWORK, self.id).filter(|s| s.visible(state, cx)).map(|s| s.id);
        view.put("admin_state_up", &self.admin_up);
        view.put("status", &if self.admin_up { "ACTIVE" } else { "DOWN" });
        view.put("subnets", &view::List(subnets));
        view.put("shared", &rbac::shared(state, self.id, cx));
        view.put("router:external", &self.is_external(state));
        view.put("mtu", &self.mtu);
        view.put("port_security_enabled", &self.port_security);
        view.put("availability_zone_hints", &self.zone_hints);
        view.put("availability_zones", &zone::names(state));
        view.put("ipv4_address_scope", &scope(state, self, false));
        view.put("ipv6_address_scope", &scope(state, self, true));
        view.put("dns_domain", &self.dns_domain);
        view.put("is_default", &self.default);
        view.put("l2_adjacency", &true);
        if cx.everywhere {
            let flat = self.physical.is_some();
            view.put("provider:network_type", &if flat { "flat" } else { "vxlan" });
            view.put("provider:physical_network", &self.physical);
            view.put("provider:segmentation_id", &(!flat).then_some(self.vni));
        }
    }

    fn guard(call: &Call, body: &Body, verb: &str) -> Result<()> {
        let finer = [
            ("shared", attr::privileged(body.shared, verb)),
            ("router:external", attr::privileged(body.external, verb)),
            ("is_default", attr::privileged(body.is_default, verb)),
            ("provider:network_type", body.network_type.is_some()),
            ("provider:physical_network", body.physical.is_some()),
            ("provider:segmentation_id", body.segment.is_some()),
        ];
        for (attribute, used) in finer {
            if used {
                call.require(&format!("{verb}_network:{attribute}"), &Target::new())?;
            }
        }
        Ok(())
    }

    fn create(tx: &mut Tx, _: &Context, project: ProjectId, body: &Wanted<Network>) -> Result<Arc<Network>> {
        limit::claim(tx, project, &NETWORK, 1)?;
        let mut network = Network {
            id: tx.new_id(),
            meta: Meta::new(tx, project),
            admin_up: true,
            default: false,
            mtu: MTU,
            vni: vni(tx, body)?,
            physical: physical(tx, body)?,
            port_security: true,
            zone_hints: Vec::new(),
            dns_domain: String::new(),
        };
        network.mtu = if network.physical.is_some() { MTU_FLAT } else { MTU };
        apply(&mut network, body)?;
        zone::check(tx, body.availability_zone_hints.as_deref().unwrap_or_default())?;
        network.zone_hints = body.availability_zone_hints.clone().unwrap_or_default();
        let network = tx.put(network).map_err(|broken| match broken.index {
            "physical" => {
                let text = "Unable to create the flat network. The physical network is in use.";
                Error::conflict(text).named("FlatNetworkInUse")
            }
            _ => {
                let text = "Unable to create the network. The segmentation id is in use.";
                Error::conflict(text).named("TunnelIdInUse")
            }
        })?;
        share(tx, &network, body)?;
        Ok(network)
    }

    fn update(tx: &mut Tx, _: &Context, old: &Network, body: &Wanted<Network>) -> Result<Arc<Network>> {
        if body.network_type.is_some() || body.physical.is_some() || body.segment.is_some() {
            return Err(input("Plugin does not support updating provider attributes"));
        }
        let mut network = old.clone();
        apply(&mut network, body)?;
        network.meta.touch(tx);
        let network = tx.put(network)?;
        share(tx, &network, body)?;
        Ok(network)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &Network) -> Result<()> {
        floating_ip::delete_idle(tx, old.id);
        if let Some(port) = tx.by(&port::BY_NETWORK, old.id).find(|p| !p.owner.is_automatic()) {
            return Err(Error::conflict(format!(
                "Unable to complete operation on network {}. There are one or more ports still in use on the network, id for these ports is: {}.",
                old.id, port.id
            ))
            .named("NetworkInUse"));
        }
        let automatic: Vec<_> = tx.by(&port::BY_NETWORK, old.id).map(|p| p.id).collect();
        automatic.iter().for_each(|id| drop(tx.delete::<Port>(id)));
        let subnets: Vec<_> = tx.by(&BY_NETWORK, old.id).map(|s| s.id).collect();
        subnets.iter().for_each(|id| drop(tx.delete::<Subnet>(id)));
        rbac::forget(tx, old.id);
        tx.delete::<Network>(&old.id);
        Ok(())
    }
}

impl Network {
    /// Routers and floating IPs may have addresses of it; nodes are plugged into it by their uplink.
    pub fn is_external(&self, state: &State) -> bool {
        rbac::is_external(state, self.id)
    }
}

/// Writes the policies that `shared` and `router:external` stand for.
fn share(tx: &mut Tx, network: &Network, body: &Body) -> Result<()> {
    if let Some(Flag(shared)) = body.shared {
        rbac::for_everyone(tx, network, Action::AccessAsShared, shared).map_err(|_| {
            let text = "Multiple tenants are using it.";
            Error::conflict(format!(
                "Unable to reconfigure sharing settings for network {}. {text}",
                network.id
            ))
            .named("InvalidSharedSetting")
        })?;
    }
    match body.external {
        Some(Flag(true)) if !network.is_external(tx) => {
            rbac::for_everyone(tx, network, Action::AccessAsExternal, true)?;
        }
        Some(Flag(false)) => rbac::not_external(tx, network.id)?,
        Some(Flag(true)) | None => {}
    }
    Ok(())
}

fn apply(network: &mut Network, body: &Wanted<Network>) -> Result<()> {
    network.meta.apply(&body.meta);
    let set = |flag: &Option<Flag>, field: &mut bool| *field = flag.map_or(*field, |f| f.0);
    set(&body.admin_state_up, &mut network.admin_up);
    set(&body.is_default, &mut network.default);
    set(&body.port_security_enabled, &mut network.port_security);
    if let Some(Whole(mtu)) = body.mtu {
        let max = if network.physical.is_some() { MTU_FLAT } else { MTU };
        network.mtu = match u32::try_from(mtu) {
            Ok(0) => max,
            Ok(fits) if (MTU_MIN..=max).contains(&fits) => fits,
            _ => {
                return Err(input(format!(
                    "Requested MTU is too big or too small, it is from {MTU_MIN} to {max}"
                )));
            }
        };
    }
    if let Some(domain) = &body.dns_domain {
        network.dns_domain = domain.0.clone();
    }
    Ok(())
}

fn physical(state: &State, body: &Body) -> Result<Option<String>> {
    let kind = body.network_type.clone().flatten();
    match kind.as_deref() {
        None | Some("vxlan") if body.physical.clone().flatten().is_none() => Ok(None),
        None | Some("vxlan") => {
            Err(input("provider:physical_network is of flat networks, not of vxlan ones"))
        }
        Some("flat") => match body.physical.clone().flatten() {
            Some(name) if state.all::<Node>().any(|n| n.hello.physical.contains(&name)) => Ok(Some(name)),
            Some(name) => Err(input(format!("Unknown provider:physical_network {}", name.escape_default()))),
            None => Err(input("physical_network required for flat provider network")),
        },
        Some("vlan") => Err(input("provider:network_type 'vlan' is not offered; use vxlan or flat")),
        Some(other) => Err(input(format!("provider:network_type '{}' is not known", other.escape_default()))),
    }
}

fn vni(tx: &mut Tx, body: &Body) -> Result<u32> {
    if let Some(Whole(n)) = body.segment.flatten() {
        let fits = u32::try_from(n).ok().filter(|n| (1..=VNI_MAX).contains(n));
        return fits.ok_or_else(|| input(format!("provider:segmentation_id is from 1 to {VNI_MAX}")));
    }
    loop {
        let drawn = (tx.random() as u32) % VNI_MAX + 1;
        if tx.one(&BY_VNI, drawn).is_none() {
            return Ok(drawn);
        }
    }
}

/// The address scope of the pools that its subnets of one IP version are of.
fn scope(state: &State, network: &Network, v6: bool) -> Option<Id<AddressScope>> {
    let mut subnets = state.by(&BY_NETWORK, network.id).filter(|s| s.cidr.addr().is_ipv6() == v6);
    subnets.find_map(|s| state.get::<SubnetPool>(&s.pool?)?.scope)
}

/// The network that a server gets when it names none: the only one that its project may use.
///
/// Errors: `Conflict` when there are several. `None` when there is none with a subnet.
pub fn automatic(state: &State, project: ProjectId) -> Result<Option<Id<Network>>> {
    let usable = |n: &&Arc<Network>| {
        !n.is_external(state)
            && n.admin_up
            && (n.meta.project == project)
            && state.by(&subnet::BY_NETWORK, n.id).next().is_some()
    };
    let mut found = state.all::<Network>().filter(usable);
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(one), None) => Ok(Some(one.id)),
        (Some(_), Some(_)) => {
            Err(Error::conflict("Multiple possible networks found, use a Network ID to be more specific."))
        }
    }
}
