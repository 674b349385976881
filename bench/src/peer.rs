//! A real OpenStack beside: what starts and ends it is a directory outside of this repository, with `openstack-up.sh`
//! and `openstack-down.sh`. They keep pids in `run` and an `openrc` in the directory that `OSPEER_STATE` names.
//!
//! One that is up already is used and left as it is; one that was started here is ended here.

use crate::{Connection, Processes, Request, Result, Target, password, sign_in};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The directory of its scripts.
pub const DIRECTORY_ENV: &str = "PEER";
const UP: &str = "openstack-up.sh";
const DOWN: &str = "openstack-down.sh";

pub struct Peer {
    /// Its Networking service, with `/v2.0` to come.
    pub network: Target,
    /// Ends it.
    _ends: Option<Ends>,
}

struct Ends(PathBuf);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = Command::new(&self.0).stdout(Stdio::null()).status();
    }
}

impl Peer {
    /// None, and why, when there is none to compare with.
    pub fn up(services: &[&str]) -> Result<std::result::Result<Peer, String>> {
        let named = std::env::var_os(DIRECTORY_ENV).filter(|directory| !directory.is_empty());
        let Some(directory) = named.map(PathBuf::from) else {
            return Ok(Err(format!(
                "no neutron-server beside it: {DIRECTORY_ENV}=DIR names a directory with {UP} and {DOWN}"
            )));
        };
        if let Some(missing) = [UP, DOWN].into_iter().find(|name| !directory.join(name).is_file()) {
            return Ok(Err(format!("no neutron-server beside it: {} has no {missing}", directory.display())));
        }
        let state = std::env::var_os("OSPEER_STATE").map_or("/var/tmp/ospeer".into(), PathBuf::from);
        let mut ends = None;
        if sign_in_to(&state).is_err() {
            println!("starting {}", directory.join(UP).display());
            ends = Some(Ends(directory.join(DOWN)));
            if !Command::new(directory.join(UP)).stdout(Stdio::null()).status()?.success() {
                return Err(format!("{} failed", directory.join(UP).display()).into());
            }
        }
        let (token, authority) = sign_in_to(&state)?;
        let processes = Processes::Sessions(leaders(&state, services)?);
        Ok(Ok(Peer { network: Target { authority, token, processes }, _ends: ends }))
    }
}

/// A token, and the authority of the Networking service.
fn sign_in_to(state: &Path) -> Result<(String, String)> {
    let text = read_to_string(state.join("openrc"))?;
    let words = text.split_whitespace().filter_map(|word| word.split_once('='));
    let words: BTreeMap<&str, &str> = words.collect();
    let word = |name: &str| words.get(name).copied().ok_or_else(|| format!("no {name} in openrc"));
    let (authority, path) =
        word("OS_AUTH_URL")?.trim_start_matches("http://").split_once('/').ok_or("no path in OS_AUTH_URL")?;
    let mut connection = Connection::open(authority)?;
    let body = sign_in(password(word("OS_PASSWORD")?));
    connection.call("", &Request::new("POST", &format!("/{path}/auth/tokens"), Some(&body)))?;
    let token = connection.header("x-subject-token").ok_or("no token")?.to_string();
    let answer: Value = serde_json::from_slice(connection.body())?;
    let services = answer["token"]["catalog"].as_array().into_iter().flatten();
    let network =
        services.filter(|service| service["type"] == "network").flat_map(|s| s["endpoints"].as_array());
    let url = network.flatten().find_map(|endpoint| endpoint["url"].as_str()).ok_or("no network endpoint")?;
    Ok((token, url.trim_start_matches("http://").trim_end_matches('/').to_string()))
}

fn leaders(state: &Path, services: &[&str]) -> Result<Vec<u32>> {
    let mut leaders = Vec::new();
    for entry in read_dir(state.join("run"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".pid"));
        if name.is_some_and(|name| services.contains(&name)) {
            let text = read_to_string(&path)?;
            leaders.push(text.split_whitespace().next().ok_or("no pid")?.parse()?);
        }
    }
    if leaders.len() != services.len() {
        return Err(format!("of {services:?} {} run", leaders.len()).into());
    }
    Ok(leaders)
}
