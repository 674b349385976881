//! Floating IPs: an address of an external network that leads to a port's fixed address.

use crate::attr::{Meta, input, missing, nullable};
use crate::network::Network;
use crate::port::{self, NewPort, Port, WantedIp};
use crate::port_forwarding;
use crate::resource::{self, Resource, Wanted};
use crate::router::{self, Router};
use crate::subnet::{self, Subnet};
use crate::{App, FLOATING_IP};
use api::{Call, Reply, Target, View, view};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use identity::limit;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FloatingIp {
    pub id: Id<FloatingIp>,
    pub meta: Meta,
    /// The external network.
    pub network: Id<Network>,
    pub address: IpAddr,
    /// The port that holds the address on the external network.
    pub holder: Id<Port>,
    pub association: Option<Association>,
}

/// Where a floating IP leads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Association {
    pub port: Id<Port>,
    pub fixed: IpAddr,
    pub router: Id<Router>,
}

impl IdKind for FloatingIp {}

pub const BY_NETWORK: Index<FloatingIp> = Index::many("network", |f, keys| keys.push(f.network.key()));
pub const BY_PORT: Index<FloatingIp> =
    Index::many("port", |f, keys| keys.extend(f.association.as_ref().map(|a| a.port.key())));
const BY_FIXED: Index<FloatingIp> = Index::unique("fixed", |f, keys| {
    keys.extend(f.association.as_ref().map(|a| (f.network, a.port, a.fixed).key()))
});
const BY_ROUTER: Index<FloatingIp> =
    Index::many("router", |f, keys| keys.extend(f.association.as_ref().map(|a| a.router.key())));

impl Record for FloatingIp {
    const KIND: &'static str = "floating_ip";
    type Key = Id<FloatingIp>;
    const INDEXES: &'static [Index<FloatingIp>] = &[BY_NETWORK, BY_PORT, BY_FIXED, BY_ROUTER];

    fn key(&self) -> Id<FloatingIp> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, FLOATING_IP.name, 1);
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    floating_network_id: Option<Id<Network>>,
    floating_ip_address: Option<IpAddr>,
    #[serde(default, deserialize_with = "nullable")]
    subnet_id: Option<Option<Id<Subnet>>>,
    #[serde(default, deserialize_with = "nullable")]
    port_id: Option<Option<Id<Port>>>,
    #[serde(default, deserialize_with = "nullable")]
    fixed_ip_address: Option<Option<IpAddr>>,
}

impl Resource for FloatingIp {
    const ONE: &'static str = "floatingip";
    const MANY: &'static str = "floatingips";
    const TITLE: &'static str = "Floating IP";
    const NOT_FOUND: &'static str = "FloatingIPNotFound";
    const NAMED: bool = false;
    const ATTRIBUTES: &'static [&'static str] = &[
        "floating_network_id",
        "floating_ip_address",
        "fixed_ip_address",
        "port_id",
        "router_id",
        "status",
        "port_details",
        "port_forwardings",
        "dns_domain",
        "dns_name",
        "qos_policy_id",
        "qos_network_policy_id",
    ];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn view(&self, state: &State, _: &Context, view: &mut View) {
        self.meta.unnamed(self.id, view);
        view.put("tags", &self.meta.tags);
        let at = self.association.as_ref();
        let mut forwards = state.by(&port_forwarding::BY_FLOATING, self.id).peekable();
        let router = at.map(|a| a.router).or_else(|| forwards.peek().map(|f| f.router));
        view.put("floating_network_id", &self.network);
        view.put("floating_ip_address", &self.address);
        view.put("fixed_ip_address", &at.map(|a| a.fixed));
        view.put("port_id", &at.map(|a| a.port));
        view.put("router_id", &router);
        view.put("status", &if router.is_some() { "ACTIVE" } else { "DOWN" });
        match at.and_then(|a| state.get::<Port>(&a.port)) {
            Some(port) => view.object("port_details", |view| details(port, view)),
            None => view.put("port_details", &()),
        }
        view.objects("port_forwardings", forwards, |f, view| port_forwarding::summary(f, view));
        view.put("dns_domain", &"");
        view.put("dns_name", &"");
        view.put("qos_policy_id", &());
        view.put("qos_network_policy_id", &());
    }

    fn guard(call: &Call, body: &Body, verb: &str) -> Result<()> {
        match body.floating_ip_address.is_some() && verb == "create" {
            true => call.require("create_floatingip:floating_ip_address", &Target::new()),
            false => Ok(()),
        }
    }

    fn create(
        tx: &mut Tx,
        cx: &Context,
        project: ProjectId,
        body: &Wanted<FloatingIp>,
    ) -> Result<Arc<FloatingIp>> {
        limit::claim(tx, project, &FLOATING_IP, 1)?;
        let network = body.floating_network_id.ok_or_else(|| missing("floating_network_id"))?;
        let network = resource::get::<Network>(tx, cx, network)?;
        if !network.is_external(tx) {
            return Err(Error::invalid(format!(
                "Bad floatingip request: Network {} is not a valid external network.",
                network.id
            ))
            .named("BadRequest"));
        }
        let id: Id<FloatingIp> = tx.new_id();
        let holder = hold(tx, id, &network, body)?;
        let mut floating = FloatingIp {
            id,
            meta: Meta::new(tx, project),
            network: network.id,
            address: holder.fixed[0].address,
            holder: holder.id,
            association: None,
        };
        floating.meta.apply(&body.meta);
        if let Some(port) = body.port_id.flatten() {
            floating.association = Some(associate(tx, cx, &floating, port, body.fixed_ip_address.flatten())?);
        } else if body.fixed_ip_address.flatten().is_some() {
            return Err(Error::invalid(
                "Bad floatingip request: fixed_ip_address cannot be specified without a port_id.",
            )
            .named("BadRequest"));
        }
        put(tx, floating)
    }

    fn update(
        tx: &mut Tx,
        cx: &Context,
        old: &FloatingIp,
        body: &Wanted<FloatingIp>,
    ) -> Result<Arc<FloatingIp>> {
        if body.port_id.flatten().is_some() {
            check_forwardings(tx, old)?;
        }
        let mut floating = old.clone();
        floating.meta.apply(&body.meta);
        match body.port_id {
            Some(Some(port)) => {
                floating.association = Some(associate(tx, cx, old, port, body.fixed_ip_address.flatten())?);
            }
            Some(None) => floating.association = None,
            // As Neutron: an update that names no port lets go of it, unless it changes nothing but words.
            None if body.fixed_ip_address.is_some() => {
                let port = old
                    .association
                    .as_ref()
                    .map(|a| a.port)
                    .ok_or_else(|| input("fixed_ip_address needs a port_id"))?;
                floating.association = Some(associate(tx, cx, old, port, body.fixed_ip_address.flatten())?);
            }
            None if body.meta.description.is_none() => floating.association = None,
            None => {}
        }
        floating.meta.touch(tx);
        put(tx, floating)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &FloatingIp) -> Result<()> {
        check_forwardings(tx, old)?;
        tx.delete::<FloatingIp>(&old.id);
        tx.delete::<Port>(&old.holder);
        Ok(())
    }
}

/// Makes the port that holds the address on the external network.
fn hold(tx: &mut Tx, id: Id<FloatingIp>, network: &Network, body: &Body) -> Result<Arc<Port>> {
    let wanted = WantedIp { subnet: body.subnet_id.flatten(), address: body.floating_ip_address };
    let fixed = (wanted != WantedIp::default()).then(|| vec![wanted]);
    let new = NewPort {
        network: network.id,
        device: id.to_string(),
        owner: port::FLOATING_IP.into(),
        fixed,
        groups: Some(Default::default()),
        port_security: Some(false),
        ..NewPort::default()
    };
    let holder = port::create(tx, ProjectId::ZERO, &new)?;
    let v4: Vec<_> = holder.fixed.iter().filter(|f| f.address.is_ipv4()).take(1).cloned().collect();
    if v4.is_empty() {
        return Err(Error::invalid(format!(
            "Bad floatingip request: Network {} does not contain any IPv4 subnet.",
            network.id
        ))
        .named("BadRequest"));
    }
    port::change(tx, holder.id, |p| p.fixed = v4)
}

fn put(tx: &mut Tx, floating: FloatingIp) -> Result<Arc<FloatingIp>> {
    let (address, at) = (floating.address, floating.association.clone());
    tx.put(floating).map_err(|_| already_associated(address, at.map(|a| (a.port, a.fixed))))
}

/// The error of a fixed address that would have two floating ones, or the other way round.
pub fn already_associated(address: IpAddr, at: Option<(Id<Port>, IpAddr)>) -> Error {
    let (port, fixed) = at.map(|(port, fixed)| (port.to_string(), fixed.to_string())).unwrap_or_default();
    Error::conflict(format!(
        "Cannot associate floating IP {address} with port {port} using fixed IP {fixed}, as that fixed IP already has a floating IP on the external network."
    ))
    .named("FloatingIPPortAlreadyAssociated")
}

/// A floating IP with port forwardings leads nowhere else, and stays.
fn check_forwardings(tx: &Tx, floating: &FloatingIp) -> Result<()> {
    match tx.by(&port_forwarding::BY_FLOATING, floating.id).next() {
        Some(_) => {
            let text = format!("Floating IP {} in use by Port Forwarding resources.", floating.id);
            Err(Error::conflict(text).named("FipInUseByPortForwarding"))
        }
        None => Ok(()),
    }
}

fn associate(
    tx: &Tx,
    cx: &Context,
    floating: &FloatingIp,
    port: Id<Port>,
    fixed: Option<IpAddr>,
) -> Result<Association> {
    let port = resource::get::<Port>(tx, cx, port)?;
    let bad = |why: String| Error::invalid(format!("Bad floatingip request: {why}.")).named("BadRequest");
    let mut v4 = port.fixed.iter().filter(|f| f.address.is_ipv4());
    let fixed = match fixed {
        Some(address) => v4
            .find(|f| f.address == address)
            .ok_or_else(|| bad(format!("Port {} does not have fixed ip {address}", port.id)))?,
        None => match (v4.next(), v4.next()) {
            (Some(one), None) => one,
            (None, _) => {
                return Err(bad(format!(
                    "Cannot add floating IP to port {} that has no fixed IPv4 addresses",
                    port.id
                )));
            }
            (Some(_), Some(_)) => {
                return Err(bad(format!(
                    "Port {} has multiple fixed IPv4 addresses. Must provide a specific IPv4 address",
                    port.id
                )));
            }
        },
    };
    let router = router::between(tx, fixed.subnet, floating.network).ok_or_else(|| {
        Error::not_found(format!(
            "External network {} is not reachable from subnet {}. Therefore, cannot associate Port {} with a Floating IP.",
            floating.network, fixed.subnet, port.id
        ))
        .named("ExternalGatewayForFloatingIPNotFound")
    })?;
    if tx.by(&port_forwarding::BY_PORT, port.id).any(|f| f.fixed == fixed.address) {
        let text = format!(
            "Cannot associate floating IP to port {} because it already has a Port Forwarding binding.",
            port.id
        );
        return Err(Error::invalid(text).named("PortHasPortForwarding"));
    }
    Ok(Association { port: port.id, fixed: fixed.address, router })
}

/// Removes the floating IPs of an external network that lead nowhere: they go with it.
pub fn delete_idle(tx: &mut Tx, network: Id<Network>) {
    let idle: Vec<_> = tx
        .by(&BY_NETWORK, network)
        .filter(|f| f.association.is_none() && check_forwardings(tx, f).is_ok())
        .map(|f| (f.id, f.holder))
        .collect();
    for (id, holder) in idle {
        tx.delete::<FloatingIp>(&id);
        tx.delete::<Port>(&holder);
    }
}

/// What its owner sees of the port that a floating IP leads to.
fn details(port: &Port, view: &mut View) {
    view.put("name", &port.meta.name);
    view.put("network_id", &port.network);
    view.put("mac_address", &port.mac);
    view.put("admin_state_up", &port.admin_up);
    view.put("status", port.status());
    view.put("device_id", &port.device);
    view.put("device_owner", &port.owner);
}

/// GET /floatingip_pools: the subnets of external networks.
pub async fn pools(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let external = state.all::<Network>().filter(|n| n.is_external(&state) && n.visible(&state, &call.cx));
    let subnets = external.flat_map(|n| state.by(&subnet::BY_NETWORK, n.id).map(move |s| (n, s)));
    let show = |(network, subnet): (&Arc<Network>, &Arc<Subnet>), view: &mut View| {
        network.meta.owner(view);
        view.put("cidr", &subnet.cidr);
        view.put("subnet_id", &subnet.id);
        view.put("subnet_name", &subnet.meta.name);
        view.put("network_id", &network.id);
    };
    let v4 = subnets.filter(|(_, s)| s.cidr.addr().is_ipv4());
    resource::answer(&call, "floatingip_pools", v4.map(|at| view::value(|v| show(at, v))).collect())
}

/// The floating IPs that go through a router.
pub fn of_router(state: &State, router: Id<Router>) -> impl Iterator<Item = &Arc<FloatingIp>> {
    state.by(&BY_ROUTER, router)
}

/// A port has the addresses that it has: floating IPs that led to others lead nowhere.
pub fn follow(tx: &mut Tx, port: &Port) -> Result<()> {
    let stale = tx
        .by(&BY_PORT, port.id)
        .filter(|f| f.association.as_ref().is_some_and(|a| !port.fixed.iter().any(|p| p.address == a.fixed)));
    let stale: Vec<_> = stale.map(|f| f.id).collect();
    for id in stale {
        tx.update::<FloatingIp>(&id, |f| f.association = None)?;
    }
    Ok(())
}

/// Lets go of a port that is about to be removed.
pub fn release(tx: &mut Tx, port: Id<Port>) -> Result<()> {
    let mine: Vec<_> = tx.by(&BY_PORT, port).map(|f| f.id).collect();
    for id in mine {
        tx.update::<FloatingIp>(&id, |f| f.association = None)?;
    }
    Ok(())
}
