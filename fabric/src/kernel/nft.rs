//! The one door to nftables: a batch in, a listing out, each one process of `nft` inside of the namespace.
//!
//! A listing is read only when the kernel's generation of the rules is not the one that our last batch left.
//! Batches are text: every value in them has a type of its own (address, MAC, number, id), and text is what an
//! operator reads in `nft list ruleset`.

use super::netlink::{Netlink, attributes};
use crate::plan::LEARNED;
use crate::state::{Set, Table};
use base::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

const NFTABLES_GETGEN: u16 = (10 << 8) | 16;
const NFTA_GEN_ID: u16 = 1;

/// Applies a batch in the calling thread's namespace: all of it or nothing.
pub fn apply(batch: &str) -> Result<()> {
    run(&["-f", "-"], batch).map(drop)
}

/// The tables of the calling thread's namespace, by family and name.
pub fn list() -> Result<BTreeMap<String, Table>> {
    let text = run(&["-j", "list", "ruleset"], "")?;
    let listing: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::internal("the listing of nft could not be read").because(e))?;
    Ok(read(&listing))
}

/// Counts the changes of the rules in the socket's namespace.
pub fn generation(netfilter: &mut Netlink) -> std::io::Result<u32> {
    let answers = netfilter.raw(NFTABLES_GETGEN, netlink_packet_core::NLM_F_ACK, &[0; 4])?;
    let body = answers.first().and_then(|answer| answer.body.get(4..)).unwrap_or_default();
    let id = attributes(body).into_iter().find(|(kind, _)| *kind == NFTA_GEN_ID);
    let bytes = id.and_then(|(_, bytes)| <[u8; 4]>::try_from(bytes).ok());
    bytes.map(u32::from_be_bytes).ok_or(std::io::ErrorKind::InvalidData.into())
}

fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>> {
    let start = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child =
        start.map_err(|e| Error::unavailable("the program nft could not be started").because(e))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|e| Error::internal("nft took no input").because(e))?;
    }
    let done = child.wait_with_output().map_err(|e| Error::internal("nft did not end").because(e))?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(Error::internal("nft refused a batch").because(said.lines().take(6).collect::<Vec<_>>().join(" | ")))
}

fn read(listing: &Value) -> BTreeMap<String, Table> {
    let mut out: BTreeMap<String, Table> = BTreeMap::new();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        let Some((kind, object)) = object.as_object().and_then(|o| o.iter().next()) else { continue };
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_string();
        let name = text("name");
        let owner = if kind == "table" { name.clone() } else { text("table") };
        let table = out.entry(format!("{} {owner}", text("family")));
        match kind.as_str() {
            "table" => drop(table.or_default()),
            "chain" if name.starts_with("v_") => table.or_default().mark = name,
            "chain" if is_rule_chain(&name) => drop(table.or_default().chains.insert(name, Vec::new())),
            "set" | "map" if owner == "known" && LEARNED.iter().any(|(learned, _)| *learned == name) => {
                table.or_default().sets.insert(name, Set::default());
            }
            "set" | "map" => drop(table.or_default().sets.insert(name, set(object))),
            _ => {}
        }
    }
    out
}

fn is_rule_chain(name: &str) -> bool {
    let hash = ["in_", "out_", "na_"].iter().find_map(|kind| name.strip_prefix(kind));
    hash.is_some_and(|hash| hash.len() == 16)
}

fn set(object: &Value) -> Set {
    let map = object.get("map").is_some();
    let elements = object["elem"].as_array().into_iter().flatten().map(|element| match element.as_array() {
        Some(pair) if map && pair.len() == 2 => (key(&pair[0]), value(&pair[1])),
        _ => (key(element), String::new()),
    });
    Set { of: String::new(), elements: elements.collect() }
}

fn key(value: &Value) -> Vec<String> {
    match value["concat"].as_array() {
        Some(parts) => parts.iter().map(part).collect(),
        None => vec![part(value)],
    }
}

fn part(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        return text.to_string();
    }
    if let Some([first, last]) = value["range"].as_array().map(Vec::as_slice) {
        return format!("{}-{}", part(first), part(last));
    }
    let prefix = &value["prefix"];
    match (prefix["addr"].as_str(), prefix["len"].as_u64()) {
        (Some(address), Some(length)) => format!("{address}/{length}"),
        _ => value.to_string(),
    }
}

fn value(value: &Value) -> String {
    match value["goto"]["target"].as_str() {
        Some(target) => format!("goto {target}"),
        None => key(value).join(" . "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_reads_as_the_elements_that_made_it() {
        let listing = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "bridge", "name": "shisa", "handle": 1}},
            {"chain": {"family": "bridge", "table": "shisa", "name": "v_00ff", "handle": 1}},
            {"chain": {"family": "bridge", "table": "shisa", "name": "in_none", "handle": 2}},
            {"chain": {"family": "bridge", "table": "shisa", "name": "in_0123456789abcdef", "handle": 2}},
            {"set": {"family": "bridge", "table": "shisa", "name": "pair4", "elem": [
                {"concat": ["tap1", "fa:16:3e:00:00:01", {"prefix": {"addr": "10.0.0.0", "len": 24}}]}]}},
            {"map": {"family": "bridge", "table": "shisa", "name": "egress", "map": "verdict",
                "elem": [["tap1", {"goto": {"target": "out_none"}}]]}},
        ]});
        let table = &read(&listing)["bridge shisa"];
        assert_eq!(table.mark, "v_00ff");
        assert_eq!(table.chains.keys().collect::<Vec<_>>(), ["in_0123456789abcdef"]);
        let pair = vec!["tap1".to_string(), "fa:16:3e:00:00:01".to_string(), "10.0.0.0/24".to_string()];
        assert_eq!(table.sets["pair4"].elements.keys().collect::<Vec<_>>(), [&pair]);
        assert_eq!(table.sets["egress"].elements[&vec!["tap1".to_string()]], "goto out_none");
    }
}
