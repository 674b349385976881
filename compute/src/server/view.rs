//! Servers as they are shown: the newest shape, and for older microversions less of it.

use super::{Server, life};
use crate::text::{bookmark, links};
use api::{Call, Version, View, v};
use base::units::Mac;
use network::floating_ip::{self, FloatingIp};
use network::network::Network;
use network::port::{self, Port};
use network::security_group::SecurityGroup;
use serde::Serialize;
use sha2::{Digest, Sha224};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use store::State;

/// Id, name and links.
pub fn brief(call: &Call, server: &Server, view: &mut View) {
    view.put("id", &server.id);
    view.put("name", &server.name);
    view.put("links", &links(call, "servers", &server.id.to_string()));
}

/// Whether one server is shown, or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Alone,
    InList,
}

/// Everything that the caller may see at the call's microversion.
pub fn full(call: &Call, state: &State, server: &Server, shown: Shown, view: &mut View) {
    brief(call, server, view);
    view.put("tenant_id", &server.project);
    view.put("user_id", &server.user);
    view.put("metadata", &server.metadata);
    view.put("hostId", &host_id(server));
    image(call, server, view);
    flavor(call, server, view);
    view.put("created", &server.created.zulu());
    view.put("updated", &server.updated.zulu());
    view.put("accessIPv4", &server.access_v4.map_or_else(String::new, |a| a.to_string()));
    view.put("accessIPv6", &server.access_v6.map_or_else(String::new, |a| a.to_string()));
    view.put("OS-DCF:diskConfig", disk_config(server));
    view.put("OS-EXT-AZ:availability_zone", zone(state, server));
    view.put("config_drive", if server.config_drive { "True" } else { "" });
    view.put("key_name", &server.key_name);
    view.put("OS-SRV-USG:launched_at", &server.launched.map(|t| t.micros()));
    view.put("OS-SRV-USG:terminated_at", &());
    view.put("os-extended-volumes:volumes_attached", &[(); 0]);
    status(call, server, view);
    let ports = ports(state, server);
    view.put("addresses", &addresses(state, &ports));
    let groups = groups(state, &ports);
    if !groups.is_empty() {
        view.put("security_groups", &groups);
    }
    later(call, server, view, shown);
    if call.cx.everywhere {
        for_admin(call.version, server, view);
    }
}

/// What it is doing, and why it cannot.
fn status(call: &Call, server: &Server, view: &mut View) {
    let now = life::status_of(server);
    view.put("status", now.status);
    view.put("OS-EXT-STS:task_state", &now.task);
    view.put("OS-EXT-STS:vm_state", now.vm_state);
    view.put("OS-EXT-STS:power_state", &now.power);
    match now.status {
        "ACTIVE" => view.put("progress", &100),
        "BUILD" => view.put("progress", &0),
        "ERROR" => view.object("fault", |view| fault(call, server, view)),
        _ => {}
    }
}

fn fault(call: &Call, server: &Server, view: &mut View) {
    let (code, message, created) = match &server.fault {
        Some(fault) => (fault.code, fault.message.as_str(), fault.created),
        None => (500, "The node could not run the server.", server.updated),
    };
    view.put("code", &code);
    view.put("message", message);
    view.put("created", &created.zulu());
    if call.cx.everywhere {
        view.put("details", message);
    }
}

/// What microversions after 2.1 added for everybody.
fn later(call: &Call, server: &Server, view: &mut View, shown: Shown) {
    let version = call.version;
    if version >= v(2, 9) {
        view.put("locked", &server.locked);
    }
    if version >= v(2, 19) {
        view.put("description", &server.description);
    }
    if version >= v(2, 26) {
        view.put("tags", &server.tags);
    }
    if version >= v(2, 63) {
        view.put("trusted_image_certificates", &());
    }
    if version >= v(2, 71) && shown == Shown::Alone {
        view.put("server_groups", &[(); 0]);
    }
    if version >= v(2, 73) {
        view.put("locked_reason", &server.locked_reason);
    }
    // Administrators have it since 2.3.
    if version >= v(2, 90) || (call.cx.everywhere && version >= v(2, 3)) {
        view.put("OS-EXT-SRV-ATTR:hostname", &server.hostname);
    }
    if version >= v(2, 96) {
        view.put("pinned_availability_zone", &server.zone);
    }
    if version >= v(2, 100) {
        view.put("scheduler_hints", &server.hints);
    }
}

fn for_admin(version: Version, server: &Server, view: &mut View) {
    view.put("OS-EXT-SRV-ATTR:host", &server.host);
    view.put("OS-EXT-SRV-ATTR:hypervisor_hostname", &server.host);
    view.put("OS-EXT-SRV-ATTR:instance_name", &server.instance_name());
    if version >= v(2, 3) {
        view.put("OS-EXT-SRV-ATTR:reservation_id", &server.reservation);
        view.put("OS-EXT-SRV-ATTR:launch_index", &server.launch_index);
        view.put("OS-EXT-SRV-ATTR:kernel_id", "");
        view.put("OS-EXT-SRV-ATTR:ramdisk_id", "");
        view.put("OS-EXT-SRV-ATTR:root_device_name", "/dev/vda");
        view.put("OS-EXT-SRV-ATTR:user_data", &server.user_data.as_ref().map(|d| d.expose()));
    }
    if version >= v(2, 16) {
        view.put("host_status", if server.host.is_some() { "UP" } else { "" });
    }
}

pub fn disk_config(server: &Server) -> &'static str {
    if server.disk_manual { "MANUAL" } else { "AUTO" }
}

/// A word for the node that shows to its project only whether two servers share one.
fn host_id(server: &Server) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let Some(host) = &server.host else { return String::new() };
    let hash = Sha224::new().chain_update(server.project.to_string()).chain_update(host).finalize();
    let digits = hash.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn zone<'a>(state: &'a State, server: &'a Server) -> &'a str {
    let node = server.host.as_ref().and_then(|h| fleet::node::named(state, h));
    node.map(|n| n.zone.as_str()).or(server.zone.as_deref()).unwrap_or_default()
}

fn image(call: &Call, server: &Server, view: &mut View) {
    let Some(id) = server.image else { return view.put("image", "") };
    view.object("image", |view| {
        view.put("id", &id);
        view.put("links", &[bookmark(call, "images", &id.to_string())]);
        if call.version >= v(2, 98) {
            view.object("properties", |_| {});
        }
    });
}

fn flavor(call: &Call, server: &Server, view: &mut View) {
    let flavor = &server.flavor;
    view.object("flavor", |view| {
        if call.version < v(2, 47) {
            view.put("id", &flavor.id);
            return view.put("links", &[bookmark(call, "flavors", &flavor.id)]);
        }
        view.put("original_name", &flavor.name);
        view.put("vcpus", &flavor.vcpus);
        view.put("ram", &flavor.ram_mib);
        view.put("disk", &flavor.disk_gib);
        view.put("ephemeral", &flavor.ephemeral_gib);
        view.put("swap", &flavor.swap_mib);
        view.put("extra_specs", &flavor.extra_specs);
    });
}

/// The server's ports in the order of their making.
pub fn ports(state: &State, server: &Server) -> Vec<Arc<Port>> {
    port::of_device(state, &server.id.to_string(), server.project)
}

#[derive(Serialize)]
pub struct Address {
    pub addr: IpAddr,
    pub version: u8,
    #[serde(rename = "OS-EXT-IPS:type")]
    kind: &'static str,
    #[serde(rename = "OS-EXT-IPS-MAC:mac_addr")]
    mac: Mac,
}

/// Addresses of ports by the name of their network; floating ones after the fixed one they lead to.
pub fn addresses<'a>(state: &'a State, ports: &[Arc<Port>]) -> BTreeMap<&'a str, Vec<Address>> {
    let mut networks = BTreeMap::<&str, Vec<Address>>::new();
    for port in ports {
        let name = state.get::<Network>(&port.network).map_or("", |n| n.meta.name.as_str());
        let list = networks.entry(name).or_default();
        let mut add = |addr: IpAddr, kind| {
            list.push(Address { addr, version: if addr.is_ipv4() { 4 } else { 6 }, kind, mac: port.mac })
        };
        let floating: Vec<&Arc<FloatingIp>> = state.by(&floating_ip::BY_PORT, port.id).collect();
        for fixed in &port.fixed {
            add(fixed.address, "fixed");
            let leads =
                |f: &&&Arc<FloatingIp>| f.association.as_ref().is_some_and(|a| a.fixed == fixed.address);
            floating.iter().filter(leads).for_each(|f| add(f.address, "floating"));
        }
    }
    networks
}

#[derive(Serialize)]
pub struct Named<'a> {
    pub name: &'a str,
}

/// The security groups of ports, by name.
pub fn groups<'a>(state: &'a State, ports: &[Arc<Port>]) -> Vec<Named<'a>> {
    let groups = ports.iter().flat_map(|p| &p.groups).filter_map(|g| state.get::<SecurityGroup>(g));
    let names: BTreeSet<&str> = groups.map(|g| g.meta.name.as_str()).collect();
    names.into_iter().map(|name| Named { name }).collect()
}
