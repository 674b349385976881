//! What nodes are told of servers, and what they say of them.

use crate::maintenance::{self, Maintenance};
use crate::server::{BY_HOST, Observed, Phase, Server, life};
use base::node::{self, GuestMetadata, Report, Section, SectionKey, VmReport, VmState};
use base::{Id, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleet::{Source, Touched};
use network::port;
use network::port::Port;
use std::collections::BTreeSet;
use storage::image::Image;
use store::{Entry, State, Tx};

/// This service, as far as documents go.
pub const SOURCE: Source = Source { keys, section, touched };

fn here<'a>(state: &'a State, node: &str) -> impl Iterator<Item = &'a Server> {
    state.by(&BY_HOST, node).map(|s| &**s).filter(|s| s.phase == Phase::Settled)
}

fn keys(state: &State, node: &str) -> BTreeSet<SectionKey> {
    let mut keys = BTreeSet::new();
    for server in here(state, node) {
        keys.insert(SectionKey::Vm(server.id.uuid()));
        keys.extend(server.image.map(|i| SectionKey::Image(i.uuid())));
    }
    keys
}

fn section(state: &State, _: &str, key: &SectionKey) -> Option<Section> {
    match key {
        SectionKey::Vm(id) => state.get::<Server>(&Id::from_uuid(*id)).map(|s| Section::Vm(vm(state, s))),
        SectionKey::Image(id) => {
            let image = state.get::<Image>(&Id::from_uuid(*id)).filter(|i| i.is_active())?;
            Some(Section::Image(image.section()))
        }
        SectionKey::Port(_)
        | SectionKey::Network(_)
        | SectionKey::Members(_)
        | SectionKey::Router(_)
        | SectionKey::Group(_)
        | SectionKey::Rules(_) => None,
    }
}

fn vm(state: &State, server: &Server) -> node::Vm {
    let ports = port::of_device(state, &server.id.to_string(), server.project);
    node::Vm {
        id: server.id.uuid(),
        power: server.desired,
        reboots: server.reboots,
        reboot_hard: server.reboot_hard,
        vcpus: server.flavor.vcpus,
        memory_mib: server.flavor.ram_mib,
        root_gib: server.flavor.disk_gib,
        ephemeral_gib: server.flavor.ephemeral_gib,
        swap_mib: server.flavor.swap_mib,
        image: server.image.map(|i| i.uuid()),
        ports: ports.iter().map(|p| p.id.uuid()).collect(),
        config_drive: server.config_drive,
        metadata: metadata(state, server, &ports),
        maintenance: server
            .host
            .as_ref()
            .and_then(|h| maintenance::active(state, h))
            .map(|m| told(m, server)),
    }
}

/// What a server is told of its node's maintenance.
fn told(m: &Maintenance, server: &Server) -> node::Maintenance {
    node::Maintenance {
        event: maintenance::event_id(m.id, server.id).uuid(),
        started: m.stage == maintenance::Stage::Started,
        not_before: m.deadline,
        not_after: m.until,
        reason: m.reason.clone(),
    }
}

fn metadata(state: &State, server: &Server, ports: &[std::sync::Arc<Port>]) -> GuestMetadata {
    use network::security_group::SecurityGroup;
    let groups: BTreeSet<String> = ports
        .iter()
        .flat_map(|p| p.groups.iter())
        .filter_map(|g| state.get::<SecurityGroup>(g))
        .map(|g| g.meta.name.clone())
        .collect();
    let key = server.key_name.clone().zip(server.public_key.clone());
    let node = server.host.as_ref().and_then(|h| fleet::node::named(state, h));
    let data = server.user_data.as_ref().map(|d| d.expose().replace(['\n', '\r'], ""));
    GuestMetadata {
        name: server.name.clone(),
        hostname: server.hostname.clone(),
        project: server.project.to_string(),
        availability_zone: node.map_or_else(String::new, |n| n.zone.clone()),
        launch_index: server.launch_index,
        public_keys: key.into_iter().collect(),
        meta: server.metadata.clone(),
        user_data: data.and_then(|d| STANDARD.decode(d).ok()),
        admin_pass: server.admin_pass.as_ref().map(|p| p.expose().to_string()),
        security_groups: groups.into_iter().collect(),
        flavor: server.flavor.name.clone(),
    }
}

fn touched(state: &State, entry: &Entry) -> Touched {
    let mut touched = Touched::default();
    for change in &entry.changes {
        if let Some((before, after)) = change.of::<Server>() {
            let sets = |s: Option<&Server>| s.map(|s| (s.host.clone(), s.phase, s.image));
            for server in before.into_iter().chain(after) {
                touched.key(SectionKey::Vm(server.id.uuid()));
                if sets(before) != sets(after) {
                    touched.hosts.extend(server.host.clone());
                }
            }
        } else if let Some((before, after)) = change.of::<Port>() {
            let ids = before.into_iter().chain(after).filter_map(|p| p.device.parse::<Id<Server>>().ok());
            ids.for_each(|id| touched.key(SectionKey::Vm(id.uuid())));
        } else if let Some((before, after)) = change.of::<Maintenance>() {
            // A step that no guest is told of touches none.
            let facts = |m: &Maintenance| (m.stage, m.deadline, m.until, m.reason.clone());
            if before.map(facts) != after.map(facts)
                && let Some(m) = after.or(before)
            {
                here(state, &m.node).for_each(|s| touched.key(SectionKey::Vm(s.id.uuid())));
            }
        } else if let Some((before, after)) = change.of::<Image>() {
            before.into_iter().chain(after).for_each(|i| touched.key(SectionKey::Image(i.id.uuid())));
        }
    }
    touched
}

/// Takes what a node saw of its servers. One that changes nothing changes no record.
pub fn observed(tx: &mut Tx, node: &str, report: &Report) -> Result<()> {
    for (id, seen) in &report.vms {
        observe(tx, node, Id::from_uuid(*id), seen)?;
    }
    for id in &report.gone {
        gone(tx, node, Id::from_uuid(*id))?;
    }
    if report.whole {
        let known: Vec<_> =
            tx.by(&BY_HOST, node).filter(|s| !report.vms.contains_key(&s.id.uuid())).map(|s| s.id).collect();
        known.into_iter().try_for_each(|id| gone(tx, node, id))?;
    }
    Ok(())
}

fn observe(tx: &mut Tx, node: &str, id: Id<Server>, seen: &VmReport) -> Result<()> {
    let Some(old) = tx.get::<Server>(&id).filter(|s| s.host.as_deref() == Some(node)).cloned() else {
        return Ok(());
    };
    let mut server = Server::clone(&old);
    let now = Observed { state: seen.state, reboots: seen.reboots };
    server.desired = life::wanted_after(server.desired, server.observed, now, server.reboots);
    server.observed = Some(now);
    if let Some(password) = &seen.password {
        server.password.clone_from(password);
    }
    if seen.state == VmState::Running && server.launched.is_none() {
        server.launched = Some(tx.now());
    }
    let fault = seen.fault.as_ref().filter(|_| seen.state == VmState::Failed);
    server.fault = match (fault, &old.fault) {
        (Some(message), Some(old)) if old.message == *message => Some(old.clone()),
        (Some(message), _) => {
            Some(crate::server::Fault { code: 500, message: message.clone(), created: tx.now() })
        }
        (None, _) => None,
    };
    if server != *old {
        crate::server::put(tx, server)?;
    }
    Ok(())
}

/// The node no longer has a server: one that was to go is gone; any other is seen no more.
fn gone(tx: &mut Tx, node: &str, id: Id<Server>) -> Result<()> {
    let Some(server) = tx.get::<Server>(&id).filter(|s| s.host.as_deref() == Some(node)).cloned() else {
        return Ok(());
    };
    match server.phase {
        Phase::Deleting => drop(tx.delete::<Server>(&id)),
        Phase::Settled => drop(tx.update::<Server>(&id, |s| s.observed = None)?),
    }
    Ok(())
}
