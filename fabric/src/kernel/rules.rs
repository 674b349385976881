//! What a namespace's rules were after our last batch, kept below `/run` for the next process of this node.
//!
//! It is taken only while the namespace is the same one and the kernel counts no later change of its rules, so it says
//! what a listing would; a listing of every namespace by `nft` takes seconds. A reboot clears it with the rules.

use crate::state::{Set, Table};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn folder(cloud: u32) -> PathBuf {
    Path::new("/run/shisa").join(format!("{cloud:08x}.rules"))
}

/// Keeps the tables of a namespace. Without them the next process lists the rules, so a failure is none.
pub fn keep(cloud: u32, name: &str, (inode, generation): (u64, u32), tables: &BTreeMap<String, Table>) {
    let tables: serde_json::Map<String, Value> =
        tables.iter().map(|(name, table)| (name.clone(), written(table))).collect();
    let text = json!({ "inode": inode, "generation": generation, "tables": tables }).to_string();
    let (path, part) = (folder(cloud).join(name), folder(cloud).join(format!("{name}.part")));
    let _ = fs::create_dir_all(folder(cloud))
        .and_then(|()| fs::write(&part, text))
        .and_then(|()| fs::rename(&part, path));
}

pub fn kept(cloud: u32, name: &str, inode: u64) -> Option<(u32, BTreeMap<String, Table>)> {
    let all: Value = serde_json::from_slice(&fs::read(folder(cloud).join(name)).ok()?).ok()?;
    let same = all["inode"].as_u64()? == inode;
    let tables = all["tables"].as_object()?.iter().map(|(name, table)| Some((name.clone(), read(table)?)));
    let tables: Option<BTreeMap<String, Table>> = tables.collect();
    Some((all["generation"].as_u64()? as u32, tables?)).filter(|_| same)
}

pub fn drop_one(cloud: u32, name: &str) {
    let _ = fs::remove_file(folder(cloud).join(name));
}

pub fn drop_all(cloud: u32) {
    let _ = fs::remove_dir_all(folder(cloud));
}

/// As a listing has it: without the texts of rules and types.
fn written(table: &Table) -> Value {
    let sets: serde_json::Map<String, Value> = table
        .sets
        .iter()
        .map(|(name, set)| {
            (name.clone(), set.elements.iter().map(|(key, value)| json!([key, value])).collect())
        })
        .collect();
    json!({ "mark": table.mark, "chains": table.chains.keys().collect::<Vec<_>>(), "sets": sets })
}

fn read(table: &Value) -> Option<Table> {
    let text = |value: &Value| value.as_str().map(str::to_string);
    let element = |pair: &Value| {
        let key: Option<Vec<String>> = pair[0].as_array()?.iter().map(text).collect();
        Some((key?, text(&pair[1])?))
    };
    let set = |(name, elements): (&String, &Value)| {
        let elements: Option<BTreeMap<_, _>> = elements.as_array()?.iter().map(element).collect();
        Some((name.clone(), Set { of: String::new(), elements: elements? }))
    };
    let chains = table["chains"].as_array()?.iter().map(|name| Some((text(name)?, Vec::new())));
    Some(Table {
        base: Vec::new(),
        mark: text(&table["mark"])?,
        chains: chains.collect::<Option<_>>()?,
        sets: table["sets"].as_object()?.iter().map(set).collect::<Option<_>>()?,
        devices: BTreeSet::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_as_a_listing_would() {
        let elements = [(vec!["tap1".to_string(), "10.0.0.1".to_string()], "goto x".to_string())];
        let set = Set { of: String::new(), elements: elements.into() };
        let table = Table {
            base: Vec::new(),
            mark: "v_1".to_string(),
            chains: [("in_1".to_string(), Vec::new())].into(),
            sets: [("a".to_string(), set)].into(),
            devices: BTreeSet::new(),
        };
        assert_eq!(read(&written(&table)), Some(table));
    }
}
