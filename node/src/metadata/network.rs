//! `network_data.json`: links, networks and services of a guest.
//!
//! Source: Nova, doc/api_schemas/network_data.json.

use crate::vm::plan::{Guest, Nic};
use base::node::{FixedIp, Ipv6Mode, Subnet};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;

pub fn network_data(guest: &Guest) -> Value {
    let links: Value = guest.nics.iter().map(link).collect();
    let pairs = guest.nics.iter().flat_map(|nic| nic.port.fixed.iter().map(move |fixed| (nic, fixed)));
    let with = pairs.filter_map(|(nic, fixed)| {
        nic.subnets.iter().find(|subnet| subnet.id == fixed.subnet).map(|subnet| (nic, fixed, subnet))
    });
    let networks: Value =
        with.enumerate().map(|(n, (nic, fixed, subnet))| network(n, nic, fixed, subnet)).collect();
    let mut services: Vec<Value> = Vec::new();
    for address in guest.nics.iter().flat_map(|nic| &nic.subnets).flat_map(|subnet| &subnet.dns) {
        let service = dns(address);
        if !services.contains(&service) {
            services.push(service);
        }
    }
    json!({ "links": links, "networks": networks, "services": services })
}

fn link_id(nic: &Nic) -> String {
    format!("tap{}", &nic.port.id.to_string()[..11])
}

fn link(nic: &Nic) -> Value {
    json!({
        "id": link_id(nic),
        "vif_id": nic.port.id,
        "type": "tap",
        "mtu": nic.mtu,
        "ethernet_mac_address": nic.port.mac,
    })
}

fn dns(address: &IpAddr) -> Value {
    json!({ "type": "dns", "address": address })
}

/// None: the address is set by hand.
fn automatic(subnet: &Subnet) -> Option<&'static str> {
    match (subnet.cidr, subnet.ipv6_address) {
        (IpNet::V4(_), _) if subnet.dhcp => Some("ipv4_dhcp"),
        (IpNet::V6(_), Some(Ipv6Mode::Slaac)) => Some("ipv6_slaac"),
        (IpNet::V6(_), Some(Ipv6Mode::Dhcpv6Stateful)) => Some("ipv6_dhcpv6-stateful"),
        (IpNet::V6(_), Some(Ipv6Mode::Dhcpv6Stateless)) => Some("ipv6_dhcpv6-stateless"),
        (IpNet::V6(_), None) if subnet.dhcp => Some("ipv6_dhcp"),
        (IpNet::V4(_) | IpNet::V6(_), _) => None,
    }
}

fn network(n: usize, nic: &Nic, fixed: &FixedIp, subnet: &Subnet) -> Value {
    let mut network = json!({
        "id": format!("network{n}"),
        "link": link_id(nic),
        "network_id": nic.port.network,
    });
    match automatic(subnet) {
        Some(kind) => network["type"] = json!(kind),
        None => {
            network["type"] = json!(if subnet.cidr.addr().is_ipv4() { "ipv4" } else { "ipv6" });
            network["ip_address"] = json!(fixed.address);
            network["netmask"] = json!(subnet.cidr.netmask());
            network["services"] = subnet.dns.iter().map(dns).collect();
            network["routes"] = routes(subnet);
        }
    }
    network
}

fn routes(subnet: &Subnet) -> Value {
    let default: IpNet = match subnet.cidr {
        IpNet::V4(_) => ipnet::Ipv4Net::default().into(),
        IpNet::V6(_) => ipnet::Ipv6Net::default().into(),
    };
    let gateway = subnet.gateway.map(|gateway| (default, gateway));
    let all = gateway.iter().chain(&subnet.routes);
    all.map(|(to, via)| json!({ "network": to.addr(), "netmask": to.netmask(), "gateway": via })).collect()
}
