//! Port forwardings: ports of a floating IP that lead to ports of fixed addresses, each perhaps of another server.
//!
//! A floating IP leads to one port or has forwardings, not both. A forwarding goes with its port, and with the address.
//!
//! Limits: many outer ports that lead to one inner port are at most `FUNNEL_MAX`.

use crate::App;
use crate::attr::{Meta, Whole, missing};
use crate::floating_ip::{self, FloatingIp};
use crate::port::{self, Port};
use crate::resource::{self, Resource, Wanted};
use crate::router::{self, Router};
use api::{Call, Reply, View};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// Each is a rule of its own on the node.
pub const FUNNEL_MAX: u16 = 256;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortForwarding {
    pub id: Id<PortForwarding>,
    pub meta: Meta,
    pub floating: Id<FloatingIp>,
    pub router: Id<Router>,
    pub port: Id<Port>,
    pub fixed: IpAddr,
    pub protocol: Protocol,
    /// First and last, outside and inside: as many, or one inside.
    pub outer: (u16, u16),
    pub inner: (u16, u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl IdKind for PortForwarding {}

pub const BY_FLOATING: Index<PortForwarding> = Index::many("floating", |f, keys| keys.push(f.floating.key()));
pub const BY_PORT: Index<PortForwarding> = Index::many("port", |f, keys| keys.push(f.port.key()));
pub const BY_ROUTER: Index<PortForwarding> = Index::many("router", |f, keys| keys.push(f.router.key()));

impl Record for PortForwarding {
    const KIND: &'static str = "port_forwarding";
    type Key = Id<PortForwarding>;
    const INDEXES: &'static [Index<PortForwarding>] = &[BY_FLOATING, BY_PORT, BY_ROUTER];

    fn key(&self) -> Id<PortForwarding> {
        self.id
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// From the path.
    floatingip_id: Option<Id<FloatingIp>>,
    external_port: Option<Whole>,
    external_port_range: Option<String>,
    internal_port: Option<Whole>,
    internal_port_range: Option<String>,
    internal_ip_address: Option<IpAddr>,
    internal_port_id: Option<Id<Port>>,
    protocol: Option<String>,
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("Bad port_forwarding request: {why}.")).named("BadRequest")
}

/// As the forwardings of a floating IP are shown with it.
pub fn summary(forwarding: &PortForwarding, view: &mut View) {
    let PortForwarding { outer, inner, .. } = forwarding;
    let range = |(a, b): &(u16, u16)| format!("{a}:{b}");
    let one = |(a, b): &(u16, u16)| (a == b).then_some(*a);
    view.put("protocol", &forwarding.protocol);
    view.put("internal_ip_address", &forwarding.fixed);
    view.put("external_port", &one(outer));
    view.put("external_port_range", &range(outer));
    view.put("internal_port", &one(inner));
    view.put("internal_port_range", &range(inner));
}

impl Resource for PortForwarding {
    const ONE: &'static str = "port_forwarding";
    const MANY: &'static str = "port_forwardings";
    const TITLE: &'static str = "Port Forwarding";
    const NOT_FOUND: &'static str = "PortForwardingNotFound";
    const NAMED: bool = false;
    const ATTRIBUTES: &'static [&'static str] = &[
        "protocol",
        "internal_ip_address",
        "internal_port_id",
        "external_port",
        "external_port_range",
        "internal_port",
        "internal_port_range",
    ];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn view(&self, _: &State, _: &Context, view: &mut View) {
        summary(self, view);
        view.put("id", &self.id);
        view.put("internal_port_id", &self.port);
        view.put("description", &self.meta.description);
    }

    fn create(
        tx: &mut Tx,
        cx: &Context,
        _: ProjectId,
        body: &Wanted<PortForwarding>,
    ) -> Result<Arc<PortForwarding>> {
        let floating = body.floatingip_id.ok_or_else(|| missing("floatingip_id"))?;
        let floating = resource::own::<FloatingIp>(tx, cx, floating)?;
        if let Some(at) = &floating.association {
            return Err(floating_ip::already_associated(floating.address, Some((at.port, at.fixed))));
        }
        let mut meta = Meta::new(tx, floating.meta.project);
        meta.apply(&body.meta);
        let outer = range(&body.external_port, &body.external_port_range, "external_port")?;
        let inner = range(&body.internal_port, &body.internal_port_range, "internal_port")?;
        let wanted = PortForwarding {
            id: tx.new_id(),
            meta,
            floating: floating.id,
            router: Id::ZERO,
            port: body.internal_port_id.ok_or_else(|| missing("internal_port_id"))?,
            fixed: body.internal_ip_address.ok_or_else(|| missing("internal_ip_address"))?,
            protocol: protocol(body.protocol.as_deref().ok_or_else(|| missing("protocol"))?)?,
            outer: outer.ok_or_else(|| missing("external_port"))?,
            inner: inner.ok_or_else(|| missing("internal_port"))?,
        };
        put(tx, cx, &floating, wanted)
    }

    fn update(
        tx: &mut Tx,
        cx: &Context,
        old: &PortForwarding,
        body: &Wanted<PortForwarding>,
    ) -> Result<Arc<PortForwarding>> {
        let floating = resource::own::<FloatingIp>(tx, cx, old.floating)?;
        let mut new = old.clone();
        new.meta.apply(&body.meta);
        new.meta.touch(tx);
        new.outer =
            range(&body.external_port, &body.external_port_range, "external_port")?.unwrap_or(new.outer);
        new.inner =
            range(&body.internal_port, &body.internal_port_range, "internal_port")?.unwrap_or(new.inner);
        new.fixed = body.internal_ip_address.unwrap_or(new.fixed);
        new.port = body.internal_port_id.unwrap_or(new.port);
        if let Some(text) = &body.protocol {
            new.protocol = protocol(text)?;
        }
        put(tx, cx, &floating, new)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &PortForwarding) -> Result<()> {
        tx.delete::<PortForwarding>(&old.id);
        Ok(())
    }
}

/// Checks a forwarding against its floating IP, its port, and the other forwardings.
fn put(
    tx: &mut Tx,
    cx: &Context,
    floating: &FloatingIp,
    mut new: PortForwarding,
) -> Result<Arc<PortForwarding>> {
    let port = resource::get::<Port>(tx, cx, new.port)?;
    let fixed = port.fixed.iter().find(|f| f.address == new.fixed && f.address.is_ipv4());
    let fixed = fixed.ok_or_else(|| {
        bad(format!(
            "The internal IP {} does not correspond to an address on the port {}",
            new.fixed, port.id
        ))
    })?;
    let leads = |f: &&Arc<FloatingIp>| f.association.as_ref().is_some_and(|at| at.fixed == new.fixed);
    if let Some(other) = tx.by(&floating_ip::BY_PORT, port.id).find(leads) {
        let text = format!(
            "Cannot create port forwarding to floating IP {} ({}) with port {} using fixed IP {}, as that port already has a binding floating IP.",
            other.address, other.id, port.id, new.fixed
        );
        return Err(Error::conflict(text).named("PortHasBindingFloatingIP"));
    }
    new.router = router::between(tx, fixed.subnet, floating.network).ok_or_else(|| {
        bad(format!(
            "External network {} is not reachable from subnet {}. Cannot set Port forwarding for port {} with Floating IP {}",
            floating.network, fixed.subnet, port.id, floating.id
        ))
    })?;
    let others: Vec<Arc<PortForwarding>> =
        tx.by(&BY_FLOATING, floating.id).filter(|f| f.id != new.id).cloned().collect();
    if others.iter().any(|f| f.router != new.router) {
        return Err(bad(format!(
            "The Floating IP {} had been set on another router, the internal Neutron port {} can not reach it",
            floating.id, port.id
        )));
    }
    check_ranges(&new)?;
    let same_port = tx.by(&BY_PORT, new.port).filter(|f| f.id != new.id && f.fixed == new.fixed);
    let inner = same_port.filter(|f| f.protocol == new.protocol).any(|f| meet(f.inner, new.inner));
    let outer = others.iter().filter(|f| f.protocol == new.protocol).any(|f| meet(f.outer, new.outer));
    for (which, collides) in [("internal_port_range", inner), ("external_port_range", outer)] {
        if collides {
            return Err(bad(format!("There is a port collision with the {which}")));
        }
    }
    Ok(tx.put(new)?)
}

fn meet(a: (u16, u16), b: (u16, u16)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

fn check_ranges(new: &PortForwarding) -> Result<()> {
    let size = |(a, b): (u16, u16)| b - a;
    match (size(new.outer), size(new.inner)) {
        (outer, inner) if outer == inner => Ok(()),
        (outer, 0) if outer < FUNNEL_MAX => Ok(()),
        (_, 0) => Err(bad(format!("At most {FUNNEL_MAX} external ports lead to one internal port"))),
        _ => Err(bad(
            "Invalid ranges of internal and/or external ports. The relation between internal and external ports must be N-N or 1-N",
        )),
    }
}

fn protocol(text: &str) -> Result<Protocol> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" | "6" => Ok(Protocol::Tcp),
        "udp" | "17" => Ok(Protocol::Udp),
        other => Err(Error::invalid(format!(
            "Invalid input for protocol. Reason: '{}' is not in ['tcp', 'udp'].",
            other.escape_default()
        ))),
    }
}

/// One port, or `first:last`.
fn range(one: &Option<Whole>, many: &Option<String>, name: &str) -> Result<Option<(u16, u16)>> {
    let bad = || {
        Error::invalid(format!(
            "Invalid input for {name}. Reason: a port is from 1 to 65535, a range FIRST:LAST."
        ))
    };
    let port = |n: i64| u16::try_from(n).ok().filter(|n| *n > 0);
    match (one, many) {
        (None, None) => Ok(None),
        (Some(Whole(n)), None) => port(*n).map(|n| Some((n, n))).ok_or_else(bad),
        (None, Some(text)) => {
            let (first, last) = text.split_once(':').unwrap_or((text, text));
            let number = |t: &str| t.parse().ok().and_then(port);
            let range = number(first).zip(number(last)).filter(|(a, b)| a <= b);
            range.map(Some).ok_or_else(bad)
        }
        (Some(_), Some(_)) => Err(Error::invalid(format!("Give {name} or {name}_range, not both."))),
    }
}

/// A port has the addresses that it has: forwardings to others are removed.
pub fn follow(tx: &mut Tx, port: &Port) {
    let stale = tx.by(&BY_PORT, port.id).filter(|f| !port.fixed.iter().any(|a| a.address == f.fixed));
    let stale: Vec<_> = stale.map(|f| f.id).collect();
    stale.iter().for_each(|id| drop(tx.delete::<PortForwarding>(id)));
}

/// A port is removed, and its forwardings with it.
pub fn release(tx: &mut Tx, port: Id<Port>) {
    let mine: Vec<_> = tx.by(&BY_PORT, port).map(|f| f.id).collect();
    mine.iter().for_each(|id| drop(tx.delete::<PortForwarding>(id)));
}

fn parent(call: &Call) -> Result<Id<FloatingIp>> {
    let text = call.param("floatingip_id");
    text.parse().map_err(|_| resource::not_found::<FloatingIp>(text))
}

/// Whether the forwarding in the path is one of the floating IP in the path.
fn check_parent(app: &App, call: &Call) -> Result<()> {
    let (state, parent) = (app.cell.read(), parent(call)?);
    resource::get::<FloatingIp>(&state, &call.cx, parent)?;
    let id = resource::id_of::<PortForwarding>(call)?;
    match resource::get::<PortForwarding>(&state, &call.cx, id)?.floating == parent {
        true => Ok(()),
        false => Err(resource::not_found::<PortForwarding>(&id.to_string())),
    }
}

/// GET /floatingips/{floatingip_id}/port_forwardings
pub async fn list(app: App, call: Call) -> Result<Reply> {
    let (state, parent) = (app.cell.read(), parent(&call)?);
    resource::get::<FloatingIp>(&state, &call.cx, parent)?;
    resource::check_filters::<PortForwarding>(&call)?;
    resource::answer_all(&call, &state, state.by(&BY_FLOATING, parent).collect())
}

/// POST /floatingips/{floatingip_id}/port_forwardings
pub async fn create(app: App, call: Call) -> Result<Reply> {
    let mut body: Map<String, Value> = call.json_in(PortForwarding::ONE)?;
    body.insert("floatingip_id".into(), json!(parent(&call)?));
    resource::create_one::<PortForwarding>(&app, &call, Value::Object(body)).await
}

/// GET /floatingips/{floatingip_id}/port_forwardings/{id}
pub async fn show(app: App, call: Call) -> Result<Reply> {
    check_parent(&app, &call)?;
    resource::show::<PortForwarding>(app, call).await
}

/// PUT /floatingips/{floatingip_id}/port_forwardings/{id}
pub async fn update(app: App, call: Call) -> Result<Reply> {
    check_parent(&app, &call)?;
    resource::update::<PortForwarding>(app, call).await
}

/// DELETE /floatingips/{floatingip_id}/port_forwardings/{id}
pub async fn delete(app: App, call: Call) -> Result<Reply> {
    check_parent(&app, &call)?;
    resource::delete::<PortForwarding>(app, call).await
}

/// Whether a router is needed between a port's address and a floating IP.
pub fn needs(state: &State, router: Id<Router>, leaving: &dyn Fn(&port::Fixed) -> bool) -> bool {
    state.by(&BY_ROUTER, router).any(|f| {
        let port = state.get::<Port>(&f.port);
        port.is_some_and(|p| p.fixed.iter().any(|a| a.address == f.fixed && leaving(a)))
    })
}
