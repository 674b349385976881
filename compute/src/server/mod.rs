//! Servers: the record and its verbs. What a server is at the API is computed from what its owner wants (`desired`),
//! what we are doing to it (`phase`) and what its node saw (`observed`): see `life`.

pub mod action;
pub mod interface;
pub mod life;
pub mod list;
pub mod meta;
pub mod rest;
pub mod view;

use crate::flavor::Flavor;
use crate::schedule::Need;
use crate::{CORES, INSTANCES, RAM};
use base::node::{Power, VmState};
use base::{Context, Error, Id, IdKind, ProjectId, Result, Secret, Timestamp, UserId};
use network::port::Port;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use storage::image::Image;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub id: Id<Server>,
    pub project: ProjectId,
    pub user: UserId,
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    pub hostname: String,
    /// As it was when the server was made: later changes of the flavor do not reach it.
    pub flavor: Flavor,
    pub image: Option<Id<Image>>,
    #[serde(default)]
    pub key_name: Option<String>,
    #[serde(default)]
    pub public_key: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// The zone that its owner asked for.
    #[serde(default)]
    pub zone: Option<String>,
    /// The name of its node; none while and if it has no place.
    pub host: Option<String>,
    pub created: Timestamp,
    pub updated: Timestamp,
    #[serde(default)]
    pub launched: Option<Timestamp>,
    pub desired: Power,
    /// Counts reboots and starts: the node does one when it sees a larger number.
    #[serde(default)]
    pub reboots: u64,
    #[serde(default)]
    pub reboot_hard: bool,
    pub phase: Phase,
    #[serde(default)]
    pub observed: Option<Observed>,
    #[serde(default)]
    pub fault: Option<Fault>,
    #[serde(default)]
    pub config_drive: bool,
    #[serde(default)]
    pub user_data: Option<Secret>,
    #[serde(default)]
    pub admin_pass: Option<Secret>,
    /// What the guest posted, encrypted with its owner's key.
    #[serde(default)]
    pub password: String,
    #[serde(default)]
    pub access_v4: Option<Ipv4Addr>,
    #[serde(default)]
    pub access_v6: Option<Ipv6Addr>,
    #[serde(default)]
    pub disk_manual: bool,
    #[serde(default)]
    pub locked: bool,
    #[serde(default)]
    pub locked_reason: Option<String>,
    /// Ports that came with the server and go with it.
    #[serde(default)]
    pub own_ports: BTreeSet<Id<Port>>,
    /// Shared by the servers of one request.
    #[serde(default)]
    pub reservation: String,
    #[serde(default)]
    pub launch_index: u32,
    #[serde(default)]
    pub hints: BTreeMap<String, serde_json::Value>,
}

/// What we are doing to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing but what `desired` says.
    Settled,
    /// Its node still has it; the record goes when the node says that it is gone.
    Deleting,
}

/// What the node saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    pub state: VmState,
    pub reboots: u64,
}

/// Why a server is in ERROR, as its owner may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub code: u16,
    pub message: String,
    pub created: Timestamp,
}

impl IdKind for Server {}

pub const BY_PROJECT: Index<Server> = Index::many("project", |s, keys| keys.push(s.project.key()));
pub const BY_HOST: Index<Server> =
    Index::many("host", |s, keys| keys.extend(s.host.as_ref().map(|h| h.key())));

impl Record for Server {
    const KIND: &'static str = "server";
    type Key = Id<Server>;
    const INDEXES: &'static [Index<Server>] = &[BY_PROJECT, BY_HOST];

    fn key(&self) -> Id<Server> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.project, INSTANCES.name, 1);
        add(self.project, CORES.name, self.flavor.vcpus.into());
        add(self.project, RAM.name, self.flavor.ram_mib as i64);
    }
}

impl Server {
    pub fn need(&self) -> Need {
        Need {
            vcpus: self.flavor.vcpus.into(),
            memory_mib: self.flavor.ram_mib as i64,
            disk_gib: (self.flavor.disk_gib + self.flavor.ephemeral_gib) as i64,
        }
    }

    /// Wants it to run.
    pub fn start(&mut self) {
        self.desired = Power::On;
        // The guest may have ended by itself, and its node may not have seen "off" in between.
        self.reboots += 1;
        self.reboot_hard = true;
    }

    /// Wants it stopped: its guest is asked first.
    pub fn stop(&mut self) {
        self.desired = Power::Off;
    }

    /// `instance-` and the first digits of its id.
    pub fn instance_name(&self) -> String {
        format!("instance-{:08x}", self.id.short())
    }
}

pub fn not_found(id: &str) -> Error {
    Error::not_found(format!("Instance {} could not be found.", id.escape_default()))
}

/// The server, if the caller may see it.
pub fn get(state: &State, cx: &Context, id: Id<Server>) -> Result<Arc<Server>> {
    state.get::<Server>(&id).filter(|s| cx.sees(s.project)).cloned().ok_or_else(|| not_found(&id.to_string()))
}

/// The server, if the caller may change it: neither locked by another nor on its way out.
pub fn changeable(state: &State, cx: &Context, id: Id<Server>) -> Result<Arc<Server>> {
    let server = get(state, cx, id)?;
    if server.locked && !cx.has_role("admin") {
        return Err(Error::conflict(format!("Instance {id} is locked")));
    }
    match server.phase {
        Phase::Settled => Ok(server),
        Phase::Deleting => {
            Err(Error::conflict(format!("Cannot change instance {id} while it is in task_state deleting")))
        }
    }
}

/// Puts a changed server with its time.
pub fn put(tx: &mut Tx, mut server: Server) -> Result<Arc<Server>> {
    server.updated = tx.now();
    Ok(tx.put(server)?)
}

/// Asks for a server to go: at once when no node has it, else when its node says so.
pub fn delete(tx: &mut Tx, server: &Server) -> Result<()> {
    for port in network::port::of_device(tx, &server.id.to_string(), server.project) {
        match server.own_ports.contains(&port.id) {
            true => network::port::delete(tx, port.id)?,
            false => drop(network::port::unbind(tx, port.id)?),
        }
    }
    if server.observed.is_none() {
        tx.delete::<Server>(&server.id);
        return Ok(());
    }
    let mut going = server.clone();
    going.phase = Phase::Deleting;
    put(tx, going).map(drop)
}
