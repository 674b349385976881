//! How many addresses of each network are taken: a view of subnets and ports.

use crate::App;
use crate::ipam;
use crate::network::Network;
use crate::port;
use crate::resource::{self, Resource};
use crate::subnet::{self, Subnet};
use api::{Call, Reply, view};
use base::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::net::IpAddr;
use store::State;

/// What a list can be filtered by; others are refused.
const FILTERS: [&str; 5] = ["network_id", "network_name", "project_id", "tenant_id", "ip_version"];

fn total(subnet: &Subnet) -> u128 {
    let size = |first: IpAddr, last: IpAddr| (ipam::number(last) - ipam::number(first)).saturating_add(1);
    match subnet.pools.is_empty() {
        true => size(subnet.cidr.network(), subnet.cidr.broadcast()),
        false => subnet.pools.iter().fold(0, |sum, (a, b)| sum.saturating_add(size(*a, *b))),
    }
}

/// JSON has no integer this large; Neutron's clients read any number.
fn number(n: u128) -> Value {
    u64::try_from(n).map_or_else(|_| json!(n as f64), |n| json!(n))
}

fn view(state: &State, network: &Network, version: Option<&str>) -> Map<String, Value> {
    let mut used: HashMap<_, u64> = HashMap::new();
    for fixed in state.by(&port::BY_NETWORK, network.id).flat_map(|p| &p.fixed) {
        *used.entry(fixed.subnet).or_default() += 1;
    }
    let (mut all, mut taken, mut subnets) = (0u128, 0, Vec::new());
    for subnet in state.by(&subnet::BY_NETWORK, network.id) {
        let family = if subnet.cidr.addr().is_ipv4() { "4" } else { "6" };
        if version.is_some_and(|v| v != family) {
            continue;
        }
        let (size, mine) = (total(subnet), used.get(&subnet.id).copied().unwrap_or(0));
        (all, taken) = (all.saturating_add(size), taken + mine);
        subnets.push(json!({
            "subnet_id": subnet.id, "subnet_name": subnet.meta.name, "cidr": subnet.cidr,
            "ip_version": if family == "4" { 4 } else { 6 }, "total_ips": number(size), "used_ips": mine,
        }));
    }
    let mut view = view::value(|view| network.meta.owner(view));
    let shown = json!({
        "network_id": network.id, "network_name": network.meta.name, "subnet_ip_availability": subnets,
        "total_ips": number(all), "used_ips": taken,
    });
    view.extend(shown.as_object().cloned().unwrap_or_default());
    view
}

/// GET /network-ip-availabilities
pub async fn list(app: App, call: Call) -> Result<Reply> {
    let unknown = call.query.0.iter().find(|(n, _)| n != "fields" && !FILTERS.contains(&n.as_str()));
    if let Some((name, _)) = unknown {
        let text = format!("['{}'] is invalid attribute for filtering", name.escape_default());
        return Err(Error::invalid(text));
    }
    let state = app.cell.read();
    let version = call.query.get("ip_version");
    let networks = state.all::<Network>().filter(|n| n.visible(&state, &call.cx));
    let views = networks.map(|n| view(&state, n, version)).collect();
    resource::answer(&call, "network_ip_availabilities", views)
}

/// GET /network-ip-availabilities/{id}
pub async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let network = resource::get::<Network>(&state, &call.cx, resource::id_of(&call)?)?;
    Ok(Reply::ok(&json!({"network_ip_availability": view(&state, &network, None)})))
}
