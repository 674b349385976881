//! The first start: all that a new cloud has before anybody asks, in one transaction.

use crate::clouds::REGION;
use base::{Context, DomainId, Error, ProjectId, Result, Secret};
use compute::Flavor;
use identity::domain::Domain;
use identity::{Bootstrap, bootstrap};
use ipnet::{IpNet, Ipv4Net};
use network::network::Network;
use network::resource::{Resource, Wanted};
use network::subnet::{self, Subnet};
use serde_json::json;
use std::sync::Arc;
use store::{Cause, Cell, State, Tx};

/// The external network whose gateway address the host holds.
pub const PUBLIC: &str = "public";

/// Id, name, vCPUs, MiB of memory, GiB of disk. The guest of `make guest` is content with the first.
const FLAVORS: [(&str, &str, u32, u64, u64); 7] = [
    ("1", "m1.nano", 1, 128, 1),
    ("2", "m1.micro", 1, 192, 1),
    ("3", "m1.tiny", 1, 512, 1),
    ("4", "m1.small", 1, 2048, 20),
    ("5", "m1.medium", 2, 4096, 40),
    ("6", "m1.large", 4, 8192, 80),
    ("7", "m1.xlarge", 8, 16384, 160),
];

/// Whether the first start was.
pub fn done(state: &State) -> bool {
    state.get::<Domain>(&DomainId::ZERO).is_some()
}

/// `range` becomes the external network's.
pub async fn start(cell: &Cell, admin_password_hash: Secret, range: Ipv4Net) -> Result<()> {
    let new = Bootstrap { region: REGION.into(), ..Bootstrap::new(admin_password_hash) };
    cell.write(Cause::step("first start"), move |tx| make(tx, &new, range)).await
}

fn make(tx: &mut Tx, new: &Bootstrap, range: Ipv4Net) -> Result<()> {
    if done(tx) {
        return Ok(());
    }
    // Nobody has to go back to a version before.
    store::format::finalise(tx)?;
    bootstrap(tx, new)?;
    for (id, name, vcpus, ram_mib, disk_gib) in FLAVORS {
        tx.put(Flavor::simple(id, name, vcpus, ram_mib, disk_gib))?;
    }
    let project = identity::project::named(tx, DomainId::ZERO, "admin").map(|p| p.id);
    external(tx, project.ok_or_else(|| Error::internal("the bootstrap makes the project admin"))?, range)
}

/// Routers plug in here; servers do not, so nothing answers DHCP.
fn external(tx: &mut Tx, project: ProjectId, range: Ipv4Net) -> Result<()> {
    let cx = Context::system("first start");
    let network = json!({
        "name": PUBLIC, "description": "Floating addresses, reached from this machine",
        "router:external": true, "is_default": true,
    });
    let network = Network::create(tx, &cx, project, &Wanted::parse(network)?)?;
    let subnet = json!({
        "name": PUBLIC, "network_id": network.id, "ip_version": 4, "cidr": range, "enable_dhcp": false,
    });
    Subnet::create(tx, &cx, project, &Wanted::parse(subnet)?)?;
    Ok(())
}

/// The IPv4 ranges of external networks.
pub fn ranges(state: &State) -> Vec<Ipv4Net> {
    let networks = state.all::<Network>().filter(|n| n.is_external(state));
    let subnets = networks.flat_map(|n| state.by(&subnet::BY_NETWORK, n.id));
    let v4 = |s: &Arc<Subnet>| match s.cidr {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    };
    subnets.filter_map(v4).collect()
}
