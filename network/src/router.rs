//! Routers: interfaces on subnets, a gateway to an external network, extra routes.

use crate::attr::{Flag, Meta, input, nullable};
use crate::floating_ip;
use crate::network::Network;
use crate::port::{self, Fixed, NewPort, Owner, Port, ROUTER_GATEWAY, ROUTER_INTERFACE, WantedIp};
use crate::port_forwarding;
use crate::resource::{self, Resource, Wanted};
use crate::subnet::{self, HostRoute, Subnet};
use crate::{App, ROUTER, ipam, spread, zone};
use api::{Call, Reply, Target, View};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use http::StatusCode;
use identity::limit;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// Extra routes of one router. Source: neutron's `max_routes`.
const ROUTES_MAX: usize = 30;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Router {
    pub id: Id<Router>,
    pub meta: Meta,
    pub admin_up: bool,
    pub gateway: Option<Gateway>,
    #[serde(default)]
    pub routes: Vec<HostRoute>,
    /// Every node routes for its own ports. False: one node does, `host`.
    #[serde(default = "yes")]
    pub distributed: bool,
    #[serde(default)]
    pub zone_hints: Vec<String>,
    /// The node of a central router; none while there is no node.
    #[serde(default)]
    pub host: Option<String>,
}

fn yes() -> bool {
    true
}

/// Where a router reaches the outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    pub network: Id<Network>,
    pub port: Id<Port>,
    pub snat: bool,
    /// The node that answers for the gateway's addresses.
    #[serde(default)]
    pub owner: Option<String>,
    /// Each node's block of source ports: none is given twice.
    #[serde(default)]
    pub blocks: BTreeMap<String, u16>,
}

impl IdKind for Router {}

pub const BY_GATEWAY: Index<Router> =
    Index::many("gateway", |r, keys| keys.extend(r.gateway.as_ref().map(|g| g.network.key())));

/// Central routers by their node.
pub const BY_HOST: Index<Router> =
    Index::many("host", |r, keys| keys.extend(r.host.as_ref().map(|h| h.key())));

impl Record for Router {
    const KIND: &'static str = "router";
    type Key = Id<Router>;
    const INDEXES: &'static [Index<Router>] = &[BY_GATEWAY, BY_HOST];

    fn key(&self) -> Id<Router> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, ROUTER.name, 1);
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    admin_state_up: Option<Flag>,
    #[serde(default, deserialize_with = "nullable")]
    external_gateway_info: Option<Option<WantedGateway>>,
    #[serde(default, deserialize_with = "nullable")]
    routes: Option<Option<Vec<HostRoute>>>,
    distributed: Option<Flag>,
    ha: Option<Flag>,
    availability_zone_hints: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedGateway {
    network_id: Option<Id<Network>>,
    enable_snat: Option<Flag>,
    external_fixed_ips: Option<Vec<WantedIp>>,
}

impl Resource for Router {
    const ONE: &'static str = "router";
    const MANY: &'static str = "routers";
    const TITLE: &'static str = "Router";
    const NOT_FOUND: &'static str = "RouterNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "admin_state_up",
        "status",
        "external_gateway_info",
        "routes",
        "availability_zones",
        "availability_zone_hints",
        "flavor_id",
        "distributed",
        "ha",
    ];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn view(&self, state: &State, cx: &Context, view: &mut View) {
        self.meta.view(self.id, view);
        view.put("admin_state_up", &self.admin_up);
        view.put("status", &"ACTIVE");
        match &self.gateway {
            Some(gateway) => view.object("external_gateway_info", |view| shown(state, gateway, view)),
            None => view.put("external_gateway_info", &()),
        }
        view.put("routes", &self.routes);
        view.put("availability_zones", &zone::names(state));
        view.put("availability_zone_hints", &self.zone_hints);
        view.put("flavor_id", &());
        if cx.everywhere {
            view.put("distributed", &self.distributed);
            view.put("ha", &false);
        }
    }

    fn guard(call: &Call, body: &Body, verb: &str) -> Result<()> {
        for (attribute, used) in [("distributed", body.distributed), ("ha", body.ha)] {
            if used.is_some() {
                call.require(&format!("{verb}_router:{attribute}"), &Target::new())?;
            }
        }
        if body.ha == Some(Flag(true)) {
            return Err(input("HA routers are not offered: a central router moves when its node is lost"));
        }
        let gateway = body.external_gateway_info.clone().flatten();
        if gateway.as_ref().is_some_and(|g| g.enable_snat.is_some()) {
            call.require(&format!("{verb}_router:external_gateway_info:enable_snat"), &Target::new())?;
        }
        if gateway.is_some_and(|g| g.external_fixed_ips.is_some()) {
            call.require(&format!("{verb}_router:external_gateway_info:external_fixed_ips"), &Target::new())?;
        }
        Ok(())
    }

    fn create(tx: &mut Tx, cx: &Context, project: ProjectId, body: &Wanted<Router>) -> Result<Arc<Router>> {
        limit::claim(tx, project, &ROUTER, 1)?;
        let id = tx.new_id();
        let mut router = Router {
            id,
            meta: Meta::new(tx, project),
            admin_up: true,
            gateway: None,
            routes: Vec::new(),
            zone_hints: Vec::new(),
            distributed: body.distributed.is_none_or(|f| f.0),
            host: None,
        };
        apply(tx, cx, &mut router, body)?;
        tx.put(router)?;
        spread::settle(tx, id)
    }

    fn update(tx: &mut Tx, cx: &Context, old: &Router, body: &Wanted<Router>) -> Result<Arc<Router>> {
        let mut router = old.clone();
        if body.distributed.is_some_and(|f| f.0 != router.distributed) && router.admin_up {
            return Err(bad_router(
                "Cannot upgrade active router to distributed or back. Please set router admin_state_up to False first",
            ));
        }
        router.distributed = body.distributed.map_or(router.distributed, |f| f.0);
        apply(tx, cx, &mut router, body)?;
        router.meta.touch(tx);
        tx.put(router)?;
        spread::settle(tx, old.id)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &Router) -> Result<()> {
        if interfaces(tx, old.id).next().is_some() {
            return Err(Error::conflict(format!("Router {} still has ports", old.id)).named("RouterInUse"));
        }
        if let Some(gateway) = &old.gateway {
            port::delete(tx, gateway.port)?;
        }
        tx.delete::<Router>(&old.id);
        Ok(())
    }
}

/// The interface ports of a router.
pub fn interfaces(state: &State, router: Id<Router>) -> impl Iterator<Item = &Arc<Port>> {
    state.by(&port::BY_DEVICE, router.to_string()).filter(|p| p.owner.0 == ROUTER_INTERFACE)
}

/// The router whose interface holds the gateway address of a subnet, else any with an interface on it.
pub fn of_subnet(state: &State, subnet: &Subnet) -> Option<Id<Router>> {
    let holder = subnet.gateway.and_then(|g| state.one(&port::BY_ADDRESS, (subnet.id, g)));
    let holder = holder.filter(|p| p.owner.0 == ROUTER_INTERFACE).cloned();
    let any =
        || state.by(&port::BY_LEGS, (subnet.network, false)).find(|p| p.has_address_of(subnet.id)).cloned();
    holder.or_else(any)?.device.parse().ok()
}

fn shown(state: &State, gateway: &Gateway, view: &mut View) {
    let fixed = state.get::<Port>(&gateway.port).map_or(&[][..], |port| &port.fixed);
    view.put("network_id", &gateway.network);
    view.put("enable_snat", &gateway.snat);
    view.objects("external_fixed_ips", fixed, Fixed::view);
}

fn apply(tx: &mut Tx, cx: &Context, router: &mut Router, body: &Wanted<Router>) -> Result<()> {
    router.meta.apply(&body.meta);
    router.admin_up = body.admin_state_up.map_or(router.admin_up, |f| f.0);
    if let Some(hints) = &body.availability_zone_hints {
        zone::check(tx, hints)?;
        router.zone_hints = hints.clone();
    }
    if let Some(wanted) = &body.external_gateway_info {
        set_gateway(tx, cx, router, wanted.as_ref().filter(|w| w.network_id.is_some()))?;
    }
    if let Some(routes) = &body.routes {
        router.routes = routes.clone().unwrap_or_default();
        check_routes(tx, router)?;
    }
    Ok(())
}

fn set_gateway(tx: &mut Tx, cx: &Context, router: &mut Router, wanted: Option<&WantedGateway>) -> Result<()> {
    let Some(wanted) = wanted else {
        return clear_gateway(tx, router);
    };
    let network = resource::get::<Network>(tx, cx, wanted.network_id.unwrap_or_default())?;
    if !network.is_external(tx) {
        return Err(Error::invalid(format!(
            "Bad router request: Network {} is not an external network.",
            network.id
        ))
        .named("BadRequest"));
    }
    let snat = wanted.enable_snat.map_or(router.gateway.as_ref().is_none_or(|g| g.snat), |f| f.0);
    let kept =
        router.gateway.clone().filter(|g| g.network == network.id && wanted.external_fixed_ips.is_none());
    if let Some(gateway) = kept {
        router.gateway = Some(Gateway { snat, ..gateway });
        return Ok(());
    }
    clear_gateway(tx, router)?;
    let new = NewPort {
        network: network.id,
        device: router.id.to_string(),
        owner: ROUTER_GATEWAY.into(),
        fixed: wanted.external_fixed_ips.clone(),
        groups: Some(Default::default()),
        port_security: Some(false),
        ..NewPort::default()
    };
    let port = port::create(tx, ProjectId::ZERO, &new)?;
    router.gateway =
        Some(Gateway { network: network.id, port: port.id, snat, owner: None, blocks: BTreeMap::new() });
    Ok(())
}

fn clear_gateway(tx: &mut Tx, router: &mut Router) -> Result<()> {
    let Some(gateway) = &router.gateway else { return Ok(()) };
    let forwards = tx.by(&port_forwarding::BY_ROUTER, router.id).next().is_some();
    if forwards || floating_ip::of_router(tx, router.id).next().is_some() {
        return Err(Error::conflict(format!(
            "Gateway cannot be updated for router {}, since a gateway to external network {} is required by one or more floating IPs.",
            router.id, gateway.network
        ))
        .named("RouterExternalGatewayInUseByFloatingIp"));
    }
    port::delete(tx, gateway.port)?;
    router.gateway = None;
    Ok(())
}

fn check_routes(tx: &Tx, router: &Router) -> Result<()> {
    if router.routes.len() > ROUTES_MAX {
        return Err(Error::invalid(format!(
            "Unable to complete operation for {}. The number of routes exceeds the maximum {ROUTES_MAX}.",
            router.id
        ))
        .named("RoutesExhausted"));
    }
    let mut addresses = interfaces(tx, router.id).cloned().collect::<Vec<_>>();
    addresses.extend(router.gateway.as_ref().and_then(|g| tx.get::<Port>(&g.port)).cloned());
    let on: Vec<Fixed> = addresses.iter().flat_map(|p| p.fixed.clone()).collect();
    let invalid =
        |why: String| Error::invalid(format!("Invalid format for routes: {why}.")).named("InvalidRoutes");
    for route in &router.routes {
        let reached =
            on.iter().any(|f| tx.get::<Subnet>(&f.subnet).is_some_and(|s| s.cidr.contains(&route.nexthop)));
        if !reached {
            return Err(invalid(format!("the nexthop {} is not connected with router", route.nexthop)));
        }
        if on.iter().any(|f| f.address == route.nexthop) {
            return Err(invalid(format!("the nexthop {} is used by router", route.nexthop)));
        }
    }
    Ok(())
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceBody {
    #[serde(default)]
    subnet_id: Option<Id<Subnet>>,
    #[serde(default)]
    port_id: Option<Id<Port>>,
}

/// PUT /routers/{id}/add_router_interface
pub async fn add_interface(app: App, call: Call) -> Result<Reply> {
    let (id, body, cx) = interface_call(&call)?;
    let view = call
        .write(&app.cell, move |tx| {
            let router = resource::own::<Router>(tx, &cx, id)?;
            let port = match (body.subnet_id, body.port_id) {
                (Some(subnet), None) => plug_subnet(tx, &cx, &router, subnet)?,
                (None, Some(port)) => plug_port(tx, &cx, &router, port)?,
                (Some(_), Some(_)) => return Err(bad_router("Cannot specify both subnet-id and port-id")),
                (None, None) => return Err(bad_router("Either subnet_id or port_id must be specified")),
            };
            spread::settle(tx, id)?;
            Ok(interface_view(&router, &port))
        })
        .await?;
    Ok(Reply::ok(&view))
}

/// PUT /routers/{id}/remove_router_interface
pub async fn remove_interface(app: App, call: Call) -> Result<Reply> {
    let (id, body, cx) = interface_call(&call)?;
    let view = call
        .write(&app.cell, move |tx| {
            let router = resource::own::<Router>(tx, &cx, id)?;
            let port = find_interface(tx, &router, &body)?;
            let mut view = interface_view(&router, &port);
            unplug(tx, &router, &port, body.subnet_id)?;
            spread::settle(tx, id)?;
            if let Some(subnet) = body.subnet_id {
                view["subnet_id"] = json!(subnet);
            }
            Ok(view)
        })
        .await?;
    Ok(Reply::ok(&view))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Routes {
    routes: Vec<HostRoute>,
}

async fn change_routes(app: App, call: Call, change: fn(&mut Vec<HostRoute>, &HostRoute)) -> Result<Reply> {
    let body: Routes = call.json_in(Router::ONE)?;
    let (id, cx) = (resource::id_of::<Router>(&call)?, call.cx.clone());
    let changed = call
        .write(&app.cell, move |tx| {
            let mut router = Router::clone(&*resource::own::<Router>(tx, &cx, id)?);
            body.routes.iter().for_each(|route| change(&mut router.routes, route));
            check_routes(tx, &router)?;
            router.meta.touch(tx);
            tx.put(router)?;
            spread::settle(tx, id)
        })
        .await?;
    Ok(resource::answer_one(&app, &call, StatusCode::OK, &*changed))
}

/// PUT /routers/{id}/add_extraroutes: those that are there stay.
pub async fn add_routes(app: App, call: Call) -> Result<Reply> {
    let add = |routes: &mut Vec<HostRoute>, new: &HostRoute| {
        if !routes.contains(new) {
            routes.push(new.clone());
        }
    };
    change_routes(app, call, add).await
}

/// PUT /routers/{id}/remove_extraroutes: those that are not there are gone.
pub async fn remove_routes(app: App, call: Call) -> Result<Reply> {
    change_routes(app, call, |routes, old| routes.retain(|r| r != old)).await
}

fn interface_call(call: &Call) -> Result<(Id<Router>, InterfaceBody, Context)> {
    let id = call.param("id").parse().map_err(|_| resource::not_found::<Router>(call.param("id")))?;
    Ok((id, call.json()?, call.cx.clone()))
}

fn bad_router(why: &str) -> Error {
    Error::invalid(format!("Bad router request: {why}.")).named("BadRequest")
}

fn interface_view(router: &Router, port: &Port) -> Value {
    let subnets: Vec<_> = port.fixed.iter().map(|f| f.subnet).collect();
    json!({
        "id": router.id, "project_id": router.meta.project, "tenant_id": router.meta.project, "port_id": port.id,
        "network_id": port.network, "subnet_id": subnets.first(), "subnet_ids": subnets, "tags": router.meta.tags,
    })
}

/// The routed subnets must not overlap.
fn check_overlap(tx: &Tx, router: &Router, new: &[Id<Subnet>]) -> Result<()> {
    let routed: Vec<Arc<Subnet>> = interfaces(tx, router.id)
        .flat_map(|p| &p.fixed)
        .filter_map(|f| tx.get::<Subnet>(&f.subnet).cloned())
        .collect();
    for subnet in new.iter().filter_map(|id| tx.get::<Subnet>(id)) {
        if routed.iter().any(|r| r.id == subnet.id) {
            return Err(bad_router(&format!("Router already has a port on subnet {}", subnet.id)));
        }
        if let Some(other) = routed.iter().find(|r| ipam::overlap(&r.cidr, &subnet.cidr)) {
            return Err(bad_router(&format!(
                "Cidr {} of subnet {} overlaps with cidr {} of subnet {}",
                subnet.cidr, subnet.id, other.cidr, other.id
            )));
        }
    }
    Ok(())
}

/// Gives a router an interface on a subnet, with the subnet's gateway address.
pub fn plug_subnet(tx: &mut Tx, cx: &Context, router: &Router, id: Id<Subnet>) -> Result<Arc<Port>> {
    let subnet = resource::get::<Subnet>(tx, cx, id)?;
    let gateway =
        subnet.gateway.ok_or_else(|| bad_router("Subnet for router interface must have a gateway IP"))?;
    check_overlap(tx, router, &[id])?;
    let new = NewPort {
        network: subnet.network,
        device: router.id.to_string(),
        owner: ROUTER_INTERFACE.into(),
        fixed: Some(vec![WantedIp { subnet: Some(id), address: Some(gateway) }]),
        groups: Some(Default::default()),
        port_security: Some(false),
        ..NewPort::default()
    };
    let port = port::create(tx, router.meta.project, &new)?;
    // An interface has no addresses but the one it was made for.
    port::change(tx, port.id, |p| p.fixed.retain(|f| f.subnet == id))
}

fn plug_port(tx: &mut Tx, cx: &Context, router: &Router, id: Id<Port>) -> Result<Arc<Port>> {
    let port = resource::own::<Port>(tx, cx, id)?;
    if !port.device.is_empty() {
        return Err(Error::conflict(format!(
            "Unable to complete operation on port {id} for network {}. Port already has an attached device {}.",
            port.network, port.device
        ))
        .named("PortInUse"));
    }
    if port.fixed.is_empty() {
        return Err(bad_router("Router port must have at least one fixed IP"));
    }
    let subnets: Vec<_> = port.fixed.iter().map(|f| f.subnet).collect();
    check_overlap(tx, router, &subnets)?;
    let device = router.id.to_string();
    port::change(tx, id, |p| {
        p.device = device;
        p.owner = Owner(ROUTER_INTERFACE.into());
        p.groups.clear();
        p.port_security = false;
    })
}

fn find_interface(tx: &Tx, router: &Router, body: &InterfaceBody) -> Result<Arc<Port>> {
    let by_port = |id: Id<Port>| interfaces(tx, router.id).find(|p| p.id == id).cloned();
    let by_subnet = |id: Id<Subnet>| interfaces(tx, router.id).find(|p| p.has_address_of(id)).cloned();
    match (body.port_id, body.subnet_id) {
        (Some(port), subnet) => {
            let found = by_port(port).ok_or_else(|| {
                Error::not_found(format!("Router {} does not have an interface with id {port}", router.id))
                    .named("RouterInterfaceNotFound")
            })?;
            match subnet.is_none_or(|s| found.has_address_of(s)) {
                true => Ok(found),
                false => Err(bad_router("the port does not have an address of the subnet")
                    .named("SubnetMismatchForPort")),
            }
        }
        (None, Some(subnet)) => by_subnet(subnet).ok_or_else(|| {
            Error::not_found(format!("Router {} has no interface on subnet {subnet}", router.id))
                .named("RouterInterfaceNotFoundForSubnet")
        }),
        (None, None) => Err(bad_router("Either subnet_id or port_id must be specified")),
    }
}

/// Takes from a router the addresses that an interface has of a subnet, or the interface.
pub fn unplug(tx: &mut Tx, router: &Router, port: &Port, only: Option<Id<Subnet>>) -> Result<()> {
    let leaving: Vec<_> =
        port.fixed.iter().map(|f| f.subnet).filter(|s| only.is_none_or(|o| o == *s)).collect();
    let needed = floating_ip::of_router(tx, router.id)
        .filter_map(|f| f.association.as_ref())
        .filter_map(|a| Some((a, tx.get::<Port>(&a.port)?)))
        .any(|(a, p)| p.fixed.iter().any(|f| f.address == a.fixed && leaving.contains(&f.subnet)));
    if needed || port_forwarding::needs(tx, router.id, &|f| leaving.contains(&f.subnet)) {
        return Err(Error::conflict(format!(
            "Router interface for subnet {} on router {} cannot be deleted, as it is required by one or more floating IPs.",
            leaving[0], router.id
        ))
        .named("RouterInterfaceInUseByFloatingIP"));
    }
    let left =
        |hop: &IpAddr| leaving.iter().any(|s| tx.get::<Subnet>(s).is_some_and(|s| s.cidr.contains(hop)));
    if router.routes.iter().any(|r| left(&r.nexthop)) {
        return Err(Error::conflict(format!(
            "Router interface for subnet {} on router {} cannot be deleted, as it is required by one or more routes.",
            leaving[0], router.id
        ))
        .named("RouterInterfaceInUseByRoute"));
    }
    match port.fixed.len() > leaving.len() {
        true => port::change(tx, port.id, |p| p.fixed.retain(|f| !leaving.contains(&f.subnet))).map(drop),
        false => port::delete(tx, port.id),
    }
}

/// The router that connects a subnet with an external network.
pub fn between(state: &State, subnet: Id<Subnet>, external: Id<Network>) -> Option<Id<Router>> {
    state
        .by(&BY_GATEWAY, external)
        .find(|r| interfaces(state, r.id).any(|p| p.has_address_of(subnet)))
        .map(|r| r.id)
}

/// The subnets of an external network, for the next hops of a gateway.
pub fn next_hops(state: &State, network: Id<Network>) -> Vec<IpAddr> {
    state.by(&subnet::BY_NETWORK, network).filter_map(|s| s.gateway).collect()
}
