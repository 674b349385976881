//! Records with the size and the indexes of the real servers and ports.

use base::id::ProjectId;
use base::units::Mac;
use base::{Id, IdKind};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use store::{Index, IndexPart, Record};

pub const SERVERS: u64 = 100_000;
pub const PORTS: u64 = 300_000;
const PROJECTS: u64 = 500;
const HOSTS: u64 = 1_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub id: Id<Server>,
    pub project: ProjectId,
    pub name: String,
    pub description: Option<String>,
    pub hostname: String,
    pub flavor: Flavor,
    pub image: Option<Id<Server>>,
    pub key_name: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub tags: BTreeSet<String>,
    pub zone: Option<String>,
    pub host: Option<String>,
    pub created: i64,
    pub updated: i64,
    pub desired: Power,
    pub reboots: u64,
    pub phase: Phase,
    pub observed: Option<Observed>,
    pub ports: Vec<Id<Port>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flavor {
    pub name: String,
    pub vcpus: u32,
    pub ram_mib: u64,
    pub disk_gib: u64,
    pub extra: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Power {
    Active,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase")]
pub enum Phase {
    Idle,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    pub generation: u64,
    pub power: Power,
    pub since: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    pub id: Id<Port>,
    pub project: ProjectId,
    pub name: String,
    pub network: Id<Server>,
    pub mac: Mac,
    pub admin_up: bool,
    pub fixed: Vec<(Id<Server>, IpAddr)>,
    pub device: String,
    pub owner: String,
    pub groups: BTreeSet<String>,
    pub host: String,
    pub up: bool,
    pub created: i64,
    pub updated: i64,
}

impl IdKind for Server {}
impl IdKind for Port {}

impl Record for Server {
    const KIND: &'static str = "server";
    type Key = Id<Server>;
    const INDEXES: &'static [Index<Server>] = &[
        Index::many("project", |s, keys| keys.push((s.project, s.created as u64).key())),
        Index::many("host", |s, keys| keys.extend(s.host.iter().map(|h| h.key()))),
        Index::many("name", |s, keys| keys.push(s.name.key())),
        Index::many("image", |s, keys| keys.extend(s.image.iter().map(|i| i.key()))),
        Index::many("tag", |s, keys| keys.extend(s.tags.iter().map(|t| t.key()))),
    ];

    fn key(&self) -> Id<Server> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.project, "compute:servers", 1);
        add(self.project, "compute:cores", self.flavor.vcpus.into());
        add(self.project, "compute:ram", self.flavor.ram_mib as i64);
    }
}

impl Record for Port {
    const KIND: &'static str = "port";
    type Key = Id<Port>;
    const INDEXES: &'static [Index<Port>] = &[
        Index::many("project", |p, keys| keys.push(p.project.key())),
        Index::unique("mac", |p, keys| keys.push((p.network, p.mac).key())),
        Index::unique("address", |p, keys| {
            keys.extend(p.fixed.iter().map(|(subnet, a)| (*subnet, *a).key()))
        }),
        Index::many("device", |p, keys| keys.push(p.device.key())),
        Index::many("host", |p, keys| keys.push(p.host.key())),
    ];

    fn key(&self) -> Id<Port> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.project, "network:ports", 1);
    }
}

pub fn server(n: u64) -> Server {
    Server {
        id: Id::from_random(hash(n, 1)),
        project: ProjectId::from_random(hash(n % PROJECTS, 2)),
        name: format!("server-{n}"),
        description: None,
        hostname: format!("server-{n}"),
        flavor: Flavor {
            name: "m1.small".into(),
            vcpus: 2,
            ram_mib: 2048,
            disk_gib: 20,
            extra: BTreeMap::from([("hw:cpu_policy".into(), "shared".into())]),
        },
        image: Some(Id::from_random(hash(n % 20, 3))),
        key_name: Some("default".into()),
        metadata: BTreeMap::from([("role".into(), format!("web-{}", n % 7))]),
        tags: BTreeSet::from([format!("tag-{}", n % 50)]),
        zone: Some("nova".into()),
        host: Some(format!("host-{}", n % HOSTS)),
        created: n as i64,
        updated: n as i64,
        desired: Power::Active,
        reboots: 0,
        phase: Phase::Idle,
        observed: Some(Observed { generation: n, power: Power::Active, since: n as i64 }),
        ports: (0..3).map(|i| Id::from_random(hash(n * 3 + i, 4))).collect(),
    }
}

pub fn port(n: u64) -> Port {
    let mac = [0xfa, 0x16, (n >> 24) as u8, (n >> 16) as u8, (n >> 8) as u8, n as u8];
    Port {
        id: Id::from_random(hash(n, 4)),
        project: ProjectId::from_random(hash(n / 3 % PROJECTS, 2)),
        name: String::new(),
        network: Id::from_random(hash(n % 1_000, 5)),
        mac: Mac(mac),
        admin_up: true,
        fixed: vec![(Id::from_random(hash(n % 1_000, 6)), Ipv4Addr::from(0x0a00_0000 + n as u32).into())],
        device: Id::<Server>::from_random(hash(n / 3, 1)).to_string(),
        owner: "compute:nova".into(),
        groups: BTreeSet::from([Id::<Server>::from_random(hash(n % PROJECTS, 7)).to_string()]),
        host: format!("host-{}", n / 3 % HOSTS),
        up: true,
        created: n as i64,
        updated: n as i64,
    }
}

pub fn hash(n: u64, kind: u64) -> u128 {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    (u128::from(mix(n * 64 + kind)) << 64) | u128::from(mix(n * 64 + kind + 32))
}
