//! Ports at the API.

use super::{
    BY_DEVICE, BY_GROUP, BY_NETWORK, DhcpOption, FLOATING_IP, Fixed, NewPort, Owner, PAIRS_MAX, Pair, Port,
    WantedIp, addresses, put,
};
use crate::attr::{Flag, Meta, Text, input, missing, nullable, read_only};
use crate::network::Network;
use crate::rbac;
use crate::resource::{self, Resource, Wanted};
use crate::security_group::SecurityGroup;
use api::{Call, Target, View};
use base::units::Mac;
use base::{Context, Error, Id, ProjectId, Result};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use store::{State, Tx};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    network_id: Option<Id<Network>>,
    admin_state_up: Option<Flag>,
    #[serde(default, deserialize_with = "nullable")]
    mac_address: Option<Option<Mac>>,
    propagate_uplink_status: Option<Flag>,
    fixed_ips: Option<Vec<WantedIp>>,
    device_id: Option<Text>,
    device_owner: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    security_groups: Option<Option<Vec<Id<SecurityGroup>>>>,
    allowed_address_pairs: Option<Vec<WantedPair>>,
    port_security_enabled: Option<Flag>,
    extra_dhcp_opts: Option<Vec<WantedOption>>,
    dns_name: Option<Text>,
    #[serde(rename = "binding:host_id", default, deserialize_with = "nullable")]
    host: Option<Option<String>>,
    #[serde(rename = "binding:vnic_type")]
    vnic_type: Option<String>,
    #[serde(rename = "binding:profile", default, deserialize_with = "nullable")]
    profile: Option<Option<Map<String, Value>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedPair {
    ip_address: String,
    mac_address: Option<Mac>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedOption {
    opt_name: String,
    opt_value: Option<String>,
    ip_version: Option<crate::attr::Whole>,
}

impl Resource for Port {
    const ONE: &'static str = "port";
    const MANY: &'static str = "ports";
    const TITLE: &'static str = "Port";
    const NOT_FOUND: &'static str = "PortNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "network_id",
        "mac_address",
        "admin_state_up",
        "status",
        "fixed_ips",
        "device_id",
        "device_owner",
        "security_groups",
        "allowed_address_pairs",
        "port_security_enabled",
        "extra_dhcp_opts",
        "dns_name",
        "dns_assignment",
        "qos_policy_id",
        "qos_network_policy_id",
        "binding:vnic_type",
        "binding:host_id",
        "binding:vif_type",
        "binding:vif_details",
        "binding:profile",
        "ip_allocation",
        "propagate_uplink_status",
    ];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    /// A port is its project's, and its network owner's.
    fn visible(&self, state: &State, cx: &Context) -> bool {
        cx.sees(self.meta.project)
            || state.get::<Network>(&self.network).is_some_and(|n| cx.sees(n.meta.project))
    }

    fn view(&self, _: &State, cx: &Context, view: &mut View) {
        self.meta.view(self.id, view);
        view.put("network_id", &self.network);
        view.put("mac_address", &self.mac);
        view.put("admin_state_up", &self.admin_up);
        view.put("status", &self.status());
        view.objects("fixed_ips", &self.fixed, Fixed::view);
        view.put("device_id", &self.device);
        view.put("device_owner", &self.owner);
        view.put("security_groups", &self.groups);
        view.objects("allowed_address_pairs", &self.pairs, |p, view| pair_view(p, self.mac, view));
        view.put("port_security_enabled", &self.port_security);
        view.objects("extra_dhcp_opts", &self.dhcp_options, option_view);
        view.put("dns_name", &self.dns_name);
        view.put("dns_assignment", &[(); 0]);
        view.put("qos_policy_id", &());
        view.put("qos_network_policy_id", &());
        view.put("binding:vnic_type", &"normal");
        view.put("propagate_uplink_status", &self.propagate_uplink);
        view.put("ip_allocation", &if self.fixed.is_empty() { "none" } else { "immediate" });
        if cx.everywhere {
            let bound = !self.host.is_empty();
            view.put("binding:host_id", &self.host);
            view.put("binding:vif_type", &if bound { "bridge" } else { "unbound" });
            view.object("binding:vif_details", |view| {
                if bound {
                    view.put("port_filter", &true);
                }
            });
            view.object("binding:profile", |_| {});
        }
    }

    fn having<'a>(state: &'a State, attribute: &str, value: &str) -> Option<Vec<&'a Arc<Port>>> {
        let none = Vec::new();
        Some(match attribute {
            "network_id" => value.parse().map_or(none, |id: Id<Network>| state.by(&BY_NETWORK, id).collect()),
            "security_groups" => {
                value.parse().map_or(none, |id: Id<SecurityGroup>| state.by(&BY_GROUP, id).collect())
            }
            "device_id" if !value.is_empty() => state.by(&BY_DEVICE, value.to_string()).collect(),
            _ => return None,
        })
    }

    fn shows(&self, attribute: &str, value: &str) -> Option<bool> {
        Some(match attribute {
            "network_id" => self.network.to_string() == value,
            "device_id" => self.device == value,
            "device_owner" => self.owner.0 == value,
            "status" => self.status() == value,
            "security_groups" => self.groups.iter().any(|g| g.to_string() == value),
            _ => return None,
        })
    }

    fn guard(call: &Call, body: &Body, verb: &str) -> Result<()> {
        let finer = [
            ("binding:host_id", body.host.is_some()),
            ("binding:profile", body.profile.clone().flatten().is_some_and(|p| !p.is_empty())),
            ("device_owner", body.device_owner.as_ref().is_some_and(|o| o.0.starts_with("network:"))),
        ];
        for (attribute, used) in finer {
            if used {
                call.require(&format!("{verb}_port:{attribute}"), &Target::new())?;
            }
        }
        match body.vnic_type.as_deref() {
            None | Some("normal") => Ok(()),
            Some(other) => {
                Err(input(format!("binding:vnic_type '{}' is not offered", other.escape_default())))
            }
        }
    }

    fn create(tx: &mut Tx, cx: &Context, project: ProjectId, body: &Wanted<Port>) -> Result<Arc<Port>> {
        let network = super::network_for(tx, cx, body.network_id.ok_or_else(|| missing("network_id"))?)?;
        let foreign = !cx.sees(network.meta.project);
        if foreign && (!rbac::shared(tx, network.id, cx) || body.mac_address.flatten().is_some()) {
            return Err(Error::forbidden(format!("The network {} belongs to another project.", network.id))
                .named("PolicyNotAuthorized"));
        }
        let new = NewPort {
            network: network.id,
            device: body.device_id.clone().unwrap_or_default().0,
            owner: body.device_owner.clone().unwrap_or_default().0,
            host: body.host.clone().flatten().unwrap_or_default(),
            mac: body.mac_address.flatten(),
            fixed: body.fixed_ips.clone(),
            groups: body.security_groups.clone().map(|g| groups(tx, cx, project, g)).transpose()?,
            port_security: body.port_security_enabled.map(|f| f.0),
            ..NewPort::default()
        };
        let mut port = Port::clone(&*super::create(tx, project, &new)?);
        apply(&mut port, body)?;
        put(tx, port)
    }

    fn update(tx: &mut Tx, cx: &Context, old: &Port, body: &Wanted<Port>) -> Result<Arc<Port>> {
        if body.network_id.is_some() {
            return Err(read_only("network_id"));
        }
        let mut port = old.clone();
        if let Some(wanted) = body.security_groups.clone() {
            port.groups = groups(tx, cx, old.meta.project, wanted)?;
        }
        port.mac = match body.mac_address {
            None => old.mac,
            Some(Some(mac)) => mac,
            Some(None) => super::draw_mac(tx, old.network),
        };
        if port.mac != old.mac && !old.host.is_empty() {
            let text = format!(
                "Unable to complete operation on port {} for network {}. Port already has an attached device {}.",
                old.id, old.network, old.device
            );
            return Err(Error::conflict(text).named("PortBound"));
        }
        if let Some(wanted) = &body.fixed_ips {
            let network =
                tx.get::<Network>(&old.network).cloned().expect("a port's network is there with it");
            let owner = body.device_owner.as_ref().map_or(old.owner.clone(), |o| Owner(o.0.clone()));
            port.fixed = addresses(tx, &network, port.mac, &owner, Some(wanted), &old.fixed)?;
        }
        if let Some(device) = &body.device_id {
            port.device = device.0.clone();
        }
        if let Some(owner) = &body.device_owner {
            port.owner = Owner(owner.0.clone());
        }
        if let Some(host) = &body.host {
            port.host = host.clone().unwrap_or_default();
        }
        let moved = port.device != old.device || port.owner != old.owner;
        if moved && old.owner.is_service() {
            // Whose the port is decides where it is plugged in. Source: OSSA-2014-008.
            return Err(service_port(old));
        }
        if moved && body.host.is_none() {
            // A node has it for the device that it was bound for.
            port.host.clear();
            port.up = false;
        }
        apply(&mut port, body)?;
        port.meta.touch(tx);
        put(tx, port)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &Port) -> Result<()> {
        if old.owner.is_service() {
            return Err(service_port(old));
        }
        super::delete(tx, old.id)
    }
}

/// The error of a port that routers and floating IPs look after.
fn service_port(port: &Port) -> Error {
    let reason = if port.owner.0 == FLOATING_IP { "floating IP" } else { "device owner" };
    Error::conflict(format!(
        "Port {} cannot be deleted or moved directly via the port API: has {reason} {}.",
        port.id, port.owner
    ))
    .named("ServicePortInUse")
}

impl Fixed {
    pub(crate) fn view(&self, view: &mut View) {
        view.put("subnet_id", &self.subnet);
        view.put("ip_address", &self.address);
    }
}

fn option_view(option: &DhcpOption, view: &mut View) {
    view.put("opt_name", &option.name);
    view.put("opt_value", &option.value);
    view.put("ip_version", if option.v6 { &6 } else { &4 });
}

fn pair_view(pair: &Pair, mac: Mac, view: &mut View) {
    let whole = pair.net.prefix_len() == pair.net.max_prefix_len();
    let address = if whole { pair.net.addr().to_string() } else { pair.net.to_string() };
    view.put("ip_address", &address);
    view.put("mac_address", &pair.mac.unwrap_or(mac));
}

fn groups(
    tx: &Tx,
    cx: &Context,
    project: ProjectId,
    wanted: Option<Vec<Id<SecurityGroup>>>,
) -> Result<BTreeSet<Id<SecurityGroup>>> {
    let ids: BTreeSet<_> = wanted.unwrap_or_default().into_iter().collect();
    for id in &ids {
        let found = tx.get::<SecurityGroup>(id).filter(|g| g.meta.project == project || g.visible(tx, cx));
        found.ok_or_else(|| resource::not_found::<SecurityGroup>(&id.to_string()))?;
    }
    Ok(ids)
}

fn apply(port: &mut Port, body: &Wanted<Port>) -> Result<()> {
    port.meta.apply(&body.meta);
    port.propagate_uplink = body.propagate_uplink_status.map_or(port.propagate_uplink, |f| f.0);
    port.admin_up = body.admin_state_up.map_or(port.admin_up, |f| f.0);
    port.port_security = body.port_security_enabled.map_or(port.port_security, |f| f.0);
    if let Some(pairs) = &body.allowed_address_pairs {
        port.pairs = pairs.iter().map(pair).collect::<Result<_>>()?;
    }
    if let Some(options) = &body.extra_dhcp_opts {
        for option in options {
            apply_option(port, option)?;
        }
    }
    if let Some(name) = &body.dns_name {
        port.dns_name = name.0.clone();
    }
    if port.pairs.len() > PAIRS_MAX {
        return Err(input(format!("Exceeded maximum amount of allowed address pairs: {PAIRS_MAX}")));
    }
    if !port.port_security && !port.groups.is_empty() {
        let message = "Port has security group associated. Cannot disable port security or IP address until security group is removed.";
        return Err(Error::conflict(message).named("PortSecurityPortHasSecurityGroup"));
    }
    if !port.port_security && !port.pairs.is_empty() {
        let message = "Port Security must be enabled in order to have allowed address pairs on a port.";
        return Err(Error::conflict(message).named("AddressPairAndPortSecurityRequired"));
    }
    Ok(())
}

fn pair(wanted: &WantedPair) -> Result<Pair> {
    let text = wanted.ip_address.as_str();
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let net =
        net.ok_or_else(|| input(format!("'{}' is not a valid IP address or subnet", text.escape_default())))?;
    Ok(Pair { net: net.trunc(), mac: wanted.mac_address })
}

/// An option replaces the one of its name; without a value it removes it. Source: OSSA-2021-005 for the newline.
fn apply_option(port: &mut Port, wanted: &WantedOption) -> Result<()> {
    let v6 = wanted.ip_version.is_some_and(|v| v.0 == 6);
    let name = wanted.opt_name.trim();
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(input("opt_name is empty or has control characters"));
    }
    port.dhcp_options.retain(|o| o.name != name || o.v6 != v6);
    match &wanted.opt_value {
        None => {}
        Some(value) if value.chars().any(char::is_control) => {
            return Err(input(format!("opt_value of {name} has control characters")));
        }
        Some(value) => port.dhcp_options.push(DhcpOption { name: name.into(), value: value.clone(), v6 }),
    }
    Ok(())
}
