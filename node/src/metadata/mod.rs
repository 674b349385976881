//! What a guest learns of itself: the OpenStack and EC2 trees, for the metadata service and the config drive alike.
//!
//! One function, `files`, makes both. Dated versions are all the newest; they differ in nothing that a guest reads by
//! date. The administrator's password stands on the config drive only, where other users of the guest's network
//! address cannot ask for it.
//!
//! What is to come of the node's maintenance is Shisa's own in the OpenStack tree, and of later versions in EC2's.
//!
//! Source: Nova, "Metadata service" and "Config drives"; EC2 instance metadata as of 2009-04-04.

pub mod iso;
mod maintenance;
mod network;
pub mod serve;

use crate::vm::plan::{Guest, Nic};
use base::Result;
use base64::Engine;
use iso::Files;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub const OPENSTACK_VERSIONS: [&str; 10] = [
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
    "latest",
];

pub const EC2_VERSIONS: [&str; 10] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "latest",
];

/// What a random seed has.
pub const SEED_BYTES: usize = 512;

/// By which way a guest reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Service,
    Drive,
}

/// All files of a guest under their newest version (`openstack/latest/..`, `latest/..` for EC2), by path.
pub fn files(guest: &Guest, via: Via, seed: &[u8]) -> Files {
    let mut files = Files::new();
    let mut put = |path: &str, value: Value| _ = files.insert(path.into(), value.to_string().into_bytes());
    put("openstack/latest/meta_data.json", meta_data(guest, via, seed));
    put("openstack/latest/network_data.json", network::network_data(guest));
    put("openstack/latest/vendor_data.json", json!({}));
    put("openstack/latest/vendor_data2.json", json!({}));
    let ec2 = ec2(guest);
    match via {
        Via::Drive => put("ec2/latest/meta-data.json", ec2),
        Via::Service => {
            // What was to come when the drive was made says nothing later.
            put("openstack/latest/maintenance.json", maintenance::openstack(guest));
            put("latest/meta-data/events/maintenance/scheduled", maintenance::ec2(guest));
            flatten("latest/meta-data", &ec2, &mut files);
        }
    }
    if let Some(data) = &guest.vm.metadata.user_data {
        files.insert("openstack/latest/user_data".into(), data.clone());
        let ec2 = if via == Via::Drive { "ec2/latest/user-data" } else { "latest/user-data" };
        files.insert(ec2.into(), data.clone());
    }
    files
}

/// The image of the guest's config drive.
pub fn config_drive(guest: &Guest) -> Result<Vec<u8>> {
    let mut all = Files::new();
    for (path, bytes) in files(guest, Via::Drive, &seed()?) {
        let (tree, name) = path.split_once("/latest/").unwrap_or(("", &path));
        let versions = if tree == "ec2" { &EC2_VERSIONS[8..] } else { &OPENSTACK_VERSIONS[..] };
        all.extend(versions.iter().map(|version| (format!("{tree}/{version}/{name}"), bytes.clone())));
    }
    iso::image("config-2", &all)
}

/// Randomness for the guest's own generator.
pub fn seed() -> Result<[u8; SEED_BYTES]> {
    let mut seed = [0; SEED_BYTES];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    Ok(seed)
}

fn meta_data(guest: &Guest, via: Via, seed: &[u8]) -> Value {
    let m = &guest.vm.metadata;
    let keys = m.public_keys.iter().map(|(name, key)| json!({ "name": name, "type": "ssh", "data": key }));
    let mut data = json!({
        "uuid": guest.vm.id,
        "name": m.name,
        "hostname": m.hostname,
        "launch_index": m.launch_index,
        "availability_zone": m.availability_zone,
        "project_id": m.project,
        "random_seed": base64::engine::general_purpose::STANDARD.encode(seed),
        "devices": [],
        "dedicated_cpus": [],
    });
    if !m.public_keys.is_empty() {
        data["keys"] = keys.collect();
        data["public_keys"] = json!(m.public_keys);
    }
    if !m.meta.is_empty() {
        data["meta"] = json!(m.meta);
    }
    if let Some(password) = m.admin_pass.as_ref().filter(|_| via == Via::Drive) {
        data["admin_pass"] = json!(password);
    }
    data
}

fn first(addresses: impl Iterator<Item = IpAddr>) -> String {
    addresses.into_iter().find(IpAddr::is_ipv4).map(|a| a.to_string()).unwrap_or_default()
}

fn ec2(guest: &Guest) -> Value {
    let m = &guest.vm.metadata;
    let short = |prefix: &str, id: uuid::Uuid| format!("{prefix}-{}", &id.simple().to_string()[..8]);
    let fixed = |nic: &Nic| nic.port.fixed.iter().map(|f| f.address).collect::<Vec<_>>();
    let floating = |nic: &Nic| nic.port.floating.iter().map(|f| f.floating).collect::<Vec<_>>();
    let mut data = json!({
        "ami-id": short("ami", guest.vm.image.unwrap_or_default()),
        "ami-launch-index": m.launch_index.to_string(),
        "ami-manifest-path": "FIXME",
        "block-device-mapping": block_devices(guest),
        "hostname": m.hostname,
        "instance-action": "none",
        "instance-id": short("i", guest.vm.id),
        "instance-type": m.flavor,
        "local-hostname": m.hostname,
        "local-ipv4": first(guest.nics.iter().flat_map(fixed)),
        "placement": { "availability-zone": m.availability_zone },
        "public-hostname": m.hostname,
        "public-ipv4": first(guest.nics.iter().flat_map(floating)),
        "reservation-id": short("r", guest.vm.id),
        "security-groups": m.security_groups.join("\n"),
    });
    if !m.public_keys.is_empty() {
        let key = |(n, (name, key)): (usize, (&String, &String))| {
            (n.to_string(), json!({ "_name": format!("{n}={name}"), "openssh-key": key }))
        };
        data["public-keys"] = Value::Object(m.public_keys.iter().enumerate().map(key).collect());
    }
    data
}

fn block_devices(guest: &Guest) -> Value {
    let mut devices = Map::from_iter([("ami".into(), json!("vda")), ("root".into(), json!("/dev/vda"))]);
    let mut rest = ["/dev/vdb", "/dev/vdc"].into_iter();
    let disks = [("ephemeral0", guest.vm.ephemeral_gib), ("swap", guest.vm.swap_mib)];
    for ((name, _), device) in disks.into_iter().filter(|(_, size)| *size > 0).zip(&mut rest) {
        devices.insert(name.into(), json!(device));
    }
    Value::Object(devices)
}

/// One file per value; a directory that lists its children by another name gets a file with a slash at its end.
fn flatten(path: &str, value: &Value, files: &mut Files) {
    let Value::Object(children) = value else {
        files.insert(path.into(), value.as_str().unwrap_or_default().into());
        return;
    };
    let named: Vec<&str> = children.values().filter_map(|child| child["_name"].as_str()).collect();
    if !named.is_empty() {
        files.insert(format!("{path}/"), named.join("\n").into_bytes());
    }
    for (name, child) in children.iter().filter(|(name, _)| *name != "_name") {
        flatten(&format!("{path}/{name}"), child, files);
    }
}

/// What a path answers: a file, or the list of a directory. None: there is no such path.
pub fn lookup(files: &Files, path: &str) -> Option<Vec<u8>> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let newest = match parts.as_slice() {
        [] => return Some(EC2_VERSIONS.join("\n").into_bytes()),
        ["openstack"] => return Some(OPENSTACK_VERSIONS.join("\n").into_bytes()),
        ["openstack", version, rest @ ..] if OPENSTACK_VERSIONS.contains(version) => {
            ("openstack/latest", rest)
        }
        [version, rest @ ..] if EC2_VERSIONS.contains(version) => ("latest", rest),
        _ => return None,
    };
    let path = [&[newest.0], newest.1].concat().join("/");
    files.get(&path).or_else(|| files.get(&format!("{path}/"))).cloned().or_else(|| list(files, &path))
}

fn list(files: &Files, directory: &str) -> Option<Vec<u8>> {
    let prefix = format!("{directory}/");
    let below = files.keys().filter_map(|path| path.strip_prefix(&prefix)).filter(|rest| !rest.is_empty());
    let name = |rest: &str| match rest.split_once('/') {
        Some((directory, _)) => format!("{directory}/"),
        None => rest.to_string(),
    };
    let names: BTreeSet<String> = below.map(name).collect();
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join("\n").into_bytes())
}

#[cfg(test)]
mod tests;
