//! Servers as they are shown: the newest shape, and for older microversions less of it.

use super::{Server, life};
use crate::text::links;
use api::{Call, Version, v};
use network::floating_ip::{self, FloatingIp};
use network::network::Network;
use network::port::{self, Port};
use network::security_group::SecurityGroup;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha224};
use std::sync::Arc;
use store::State;

/// Id, name and links.
pub fn brief(call: &Call, server: &Server) -> Value {
    json!({"id": server.id, "name": server.name, "links": links(call, "servers", &server.id.to_string())})
}

/// Whether one server is shown, or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Alone,
    InList,
}

/// Everything that the caller may see at the call's microversion.
pub fn full(call: &Call, state: &State, server: &Server, shown: Shown) -> Value {
    let now = life::status_of(server);
    let mut view = brief(call, server);
    let common = json!({
        "status": now.status, "tenant_id": server.project, "user_id": server.user, "metadata": server.metadata,
        "hostId": host_id(server), "image": image(call, server), "flavor": flavor(call, server),
        "created": server.created.zulu(), "updated": server.updated.zulu(), "addresses": addresses(state, server),
        "accessIPv4": server.access_v4.map_or_else(String::new, |a| a.to_string()),
        "accessIPv6": server.access_v6.map_or_else(String::new, |a| a.to_string()),
        "OS-DCF:diskConfig": disk_config(server), "OS-EXT-AZ:availability_zone": zone(state, server),
        "config_drive": if server.config_drive { "True" } else { "" }, "key_name": server.key_name,
        "OS-SRV-USG:launched_at": server.launched.map(|t| t.micros()), "OS-SRV-USG:terminated_at": null,
        "OS-EXT-STS:task_state": now.task, "OS-EXT-STS:vm_state": now.vm_state, "OS-EXT-STS:power_state": now.power,
        "os-extended-volumes:volumes_attached": [],
    });
    if let (Value::Object(view), Value::Object(common)) = (&mut view, common) {
        view.extend(common);
    }
    if ["ACTIVE", "BUILD"].contains(&now.status) {
        view["progress"] = json!(if now.status == "ACTIVE" { 100 } else { 0 });
    }
    let groups = groups(state, server);
    if !groups.is_empty() {
        view["security_groups"] = json!(groups);
    }
    if now.status == "ERROR" {
        view["fault"] = fault(call, server);
    }
    later(call.version, server, &mut view, shown);
    if call.cx.everywhere {
        for_admin(call.version, server, &mut view);
    }
    view
}

fn fault(call: &Call, server: &Server) -> Value {
    let (code, message, created) = match &server.fault {
        Some(fault) => (fault.code, fault.message.as_str(), fault.created),
        None => (500, "The node could not run the server.", server.updated),
    };
    let mut view = json!({"code": code, "message": message, "created": created.zulu()});
    if call.cx.everywhere {
        view["details"] = json!(message);
    }
    view
}

/// What microversions after 2.1 added for everybody.
fn later(version: Version, server: &Server, view: &mut Value, shown: Shown) {
    if version >= v(2, 9) {
        view["locked"] = json!(server.locked);
    }
    if version >= v(2, 19) {
        view["description"] = json!(server.description);
    }
    if version >= v(2, 26) {
        view["tags"] = json!(server.tags);
    }
    if version >= v(2, 63) {
        view["trusted_image_certificates"] = Value::Null;
    }
    if version >= v(2, 71) && shown == Shown::Alone {
        view["server_groups"] = json!([]);
    }
    if version >= v(2, 73) {
        view["locked_reason"] = json!(server.locked_reason);
    }
    if version >= v(2, 90) {
        view["OS-EXT-SRV-ATTR:hostname"] = json!(server.hostname);
    }
    if version >= v(2, 96) {
        view["pinned_availability_zone"] = json!(server.zone);
    }
    if version >= v(2, 100) {
        view["scheduler_hints"] = json!(server.hints);
    }
}

fn for_admin(version: Version, server: &Server, view: &mut Value) {
    view["OS-EXT-SRV-ATTR:host"] = json!(server.host);
    view["OS-EXT-SRV-ATTR:hypervisor_hostname"] = json!(server.host);
    view["OS-EXT-SRV-ATTR:instance_name"] = json!(server.instance_name());
    if version >= v(2, 3) {
        view["OS-EXT-SRV-ATTR:reservation_id"] = json!(server.reservation);
        view["OS-EXT-SRV-ATTR:launch_index"] = json!(server.launch_index);
        view["OS-EXT-SRV-ATTR:hostname"] = json!(server.hostname);
        view["OS-EXT-SRV-ATTR:kernel_id"] = json!("");
        view["OS-EXT-SRV-ATTR:ramdisk_id"] = json!("");
        view["OS-EXT-SRV-ATTR:root_device_name"] = json!("/dev/vda");
        view["OS-EXT-SRV-ATTR:user_data"] = json!(server.user_data.as_ref().map(|d| d.expose()));
    }
    if version >= v(2, 16) {
        view["host_status"] = json!(if server.host.is_some() { "UP" } else { "" });
    }
}

pub fn disk_config(server: &Server) -> &'static str {
    if server.disk_manual { "MANUAL" } else { "AUTO" }
}

/// A word for the node that shows to its project only whether two servers share one.
fn host_id(server: &Server) -> String {
    let Some(host) = &server.host else { return String::new() };
    let hash = Sha224::new().chain_update(server.project.to_string()).chain_update(host).finalize();
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

fn zone(state: &State, server: &Server) -> String {
    let node = server.host.as_ref().and_then(|h| fleet::node::named(state, h));
    node.map(|n| n.zone.clone()).or_else(|| server.zone.clone()).unwrap_or_default()
}

fn image(call: &Call, server: &Server) -> Value {
    let Some(id) = server.image else { return json!("") };
    let link = json!([{"rel": "bookmark", "href": format!("{}/images/{id}", call.base)}]);
    let mut view = json!({"id": id, "links": link});
    if call.version >= v(2, 98) {
        view["properties"] = json!({});
    }
    view
}

fn flavor(call: &Call, server: &Server) -> Value {
    let flavor = &server.flavor;
    if call.version < v(2, 47) {
        let link = json!([{"rel": "bookmark", "href": format!("{}/flavors/{}", call.base, flavor.id)}]);
        return json!({"id": flavor.id, "links": link});
    }
    json!({
        "original_name": flavor.name, "vcpus": flavor.vcpus, "ram": flavor.ram_mib, "disk": flavor.disk_gib,
        "ephemeral": flavor.ephemeral_gib, "swap": flavor.swap_mib, "extra_specs": flavor.extra_specs,
    })
}

/// The server's ports in the order of their making.
pub fn ports(state: &State, server: &Server) -> Vec<Arc<Port>> {
    port::of_device(state, &server.id.to_string(), server.project)
}

/// Addresses by the name of their network; floating ones after the fixed one they lead to.
pub fn addresses(state: &State, server: &Server) -> Map<String, Value> {
    let mut networks = Map::new();
    for port in ports(state, server) {
        let name = state.get::<Network>(&port.network).map_or_else(String::new, |n| n.meta.name.clone());
        let list = networks.entry(name).or_insert_with(|| json!([]));
        let floating: Vec<&Arc<FloatingIp>> = state.by(&floating_ip::BY_PORT, port.id).collect();
        let mut add = |address: std::net::IpAddr, kind: &str| {
            let version = if address.is_ipv4() { 4 } else { 6 };
            let one = json!({
                "addr": address, "version": version, "OS-EXT-IPS:type": kind, "OS-EXT-IPS-MAC:mac_addr": port.mac,
            });
            list.as_array_mut().expect("made as a list").push(one);
        };
        for fixed in &port.fixed {
            add(fixed.address, "fixed");
            let leads =
                |f: &&&Arc<FloatingIp>| f.association.as_ref().is_some_and(|a| a.fixed == fixed.address);
            floating.iter().filter(leads).for_each(|f| add(f.address, "floating"));
        }
    }
    networks
}

/// The names of the security groups of its ports.
pub fn groups(state: &State, server: &Server) -> Vec<Value> {
    let ports = ports(state, server);
    let groups = ports.iter().flat_map(|p| &p.groups).filter_map(|g| state.get::<SecurityGroup>(g));
    let mut names: Vec<&str> = groups.map(|g| g.meta.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| json!({"name": name})).collect()
}
