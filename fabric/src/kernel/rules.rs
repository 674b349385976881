//! What a namespace's rules were after our last batch, kept below `/run` for the next process of this node.
//!
//! It is taken only while the namespace is the same one and the kernel counts no later change of its rules, so it says
//! what a listing would; a listing of every namespace by `nft` takes seconds. A reboot clears it with the rules.
//!
//! A file has a line with all tables and then one for each change, so that a change of large sets costs what it is. When
//! it has become `GROWN` times as long as its first line, and `SHORT` more, it is written anew. One with half a line says
//! nothing.

use crate::diff::differing;
use crate::state::{Set, Table};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const GROWN: u64 = 2;
/// So many bytes more: a short file is not written anew all the time.
const SHORT: u64 = 1 << 16;

type Tables = BTreeMap<String, Table>;

/// One line.
#[derive(Serialize, Deserialize)]
struct Line {
    inode: u64,
    generation: u32,
    /// Those that are new or written anew. Of the first line: all.
    tables: BTreeMap<String, Written>,
    #[serde(default)]
    changed: BTreeMap<String, Change>,
    #[serde(default)]
    gone: BTreeSet<String>,
}

impl Line {
    fn whole((inode, generation): (u64, u32), tables: &Tables) -> Line {
        let tables = tables.iter().map(|(name, table)| (name.clone(), written(table))).collect();
        Line { inode, generation, tables, changed: BTreeMap::new(), gone: BTreeSet::new() }
    }
}

/// A table as a listing has it: without the texts of rules and types.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Written {
    mark: String,
    chains: Vec<String>,
    sets: BTreeMap<String, Elements>,
}

/// Keys with their values.
type Elements = Vec<(Vec<String>, String)>;

/// What became of a table's chains and elements.
#[derive(Default, Serialize, Deserialize)]
struct Change {
    chains: Vec<String>,
    sets: BTreeMap<String, (Elements, Vec<Vec<String>>)>,
    gone: BTreeSet<String>,
}

/// A file, of what generation it is, and how long its first line is and all.
pub struct File {
    path: PathBuf,
    inode: u64,
    generation: u32,
    first: u64,
    all: u64,
}

fn folder(cloud: u32) -> PathBuf {
    Path::new("/run/shisa").join(format!("{cloud:08x}.rules"))
}

/// Keeps the tables of a namespace. Without them the next process lists the rules, so a failure is none.
pub fn keep(cloud: u32, name: &str, (inode, generation): (u64, u32), tables: &Tables) -> Option<File> {
    let text = serde_json::to_vec(&Line::whole((inode, generation), tables)).ok()?;
    let (path, part) = (folder(cloud).join(name), folder(cloud).join(format!("{name}.part")));
    fs::create_dir_all(folder(cloud)).ok()?;
    fs::write(&part, &text).and_then(|()| fs::rename(&part, &path)).ok()?;
    let length = text.len() as u64;
    Some(File { path, inode, generation, first: length, all: length })
}

impl File {
    /// Adds what became of the tables from one generation to another. False: it is to be written anew.
    pub fn add(&mut self, (from, generation): (u32, u32), seen: &Tables, now: &Tables) -> bool {
        if self.generation != from || self.all > self.first * GROWN + SHORT {
            return false;
        }
        let mut line = Line {
            inode: self.inode,
            generation,
            tables: BTreeMap::new(),
            changed: BTreeMap::new(),
            gone: seen.keys().filter(|name| !now.contains_key(*name)).cloned().collect(),
        };
        for (name, table) in now {
            match seen.get(name) {
                Some(seen) if seen == table => {}
                Some(seen) if seen.is_updated_to(table) => {
                    line.changed.insert(name.clone(), change(seen, table));
                }
                _ => _ = line.tables.insert(name.clone(), written(table)),
            }
        }
        self.generation = generation;
        self.append(&line).is_ok()
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = vec![b'\n'];
        serde_json::to_writer(&mut text, line)?;
        fs::OpenOptions::new().append(true).open(&self.path)?.write_all(&text)?;
        self.all += text.len() as u64;
        Ok(())
    }
}

/// The tables of a namespace, and the generation that they are of.
pub fn kept(cloud: u32, name: &str, inode: u64) -> Option<(u32, Tables)> {
    read(&fs::read(folder(cloud).join(name)).ok()?, inode)
}

fn read(text: &[u8], inode: u64) -> Option<(u32, Tables)> {
    let (mut generation, mut tables) = (0, Tables::new());
    for line in text.split(|byte| *byte == b'\n') {
        let line: Line = serde_json::from_slice(line).ok().filter(|line: &Line| line.inode == inode)?;
        generation = line.generation;
        tables.retain(|name, _| !line.gone.contains(name));
        tables.extend(line.tables.into_iter().map(|(name, table)| (name, table.read())));
        for (name, change) in line.changed {
            change.make(tables.get_mut(&name)?);
        }
    }
    Some((generation, tables))
}

pub fn drop_one(cloud: u32, name: &str) {
    let _ = fs::remove_file(folder(cloud).join(name));
}

pub fn drop_all(cloud: u32) {
    let _ = fs::remove_dir_all(folder(cloud));
}

fn written(table: &Table) -> Written {
    let elements = |set: &Set| set.elements.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Written {
        mark: table.mark.clone(),
        chains: table.chains.keys().cloned().collect(),
        sets: table.sets.iter().map(|(name, set)| (name.clone(), elements(set))).collect(),
    }
}

impl Written {
    fn read(self) -> Table {
        let set = |elements: Elements| Set { of: String::new(), elements: elements.into_iter().collect() };
        Table {
            base: Vec::new(),
            mark: self.mark,
            chains: self.chains.into_iter().map(|name| (name, Vec::new())).collect(),
            sets: self.sets.into_iter().map(|(name, elements)| (name, set(elements))).collect(),
            devices: BTreeSet::new(),
        }
    }
}

fn change(seen: &Table, now: &Table) -> Change {
    let none = Set::default();
    let mut sets = BTreeMap::new();
    for (name, set) in &now.sets {
        let old = &seen.sets.get(name).unwrap_or(&none).elements;
        let come: Elements = differing(&set.elements, old).into_iter().collect();
        let gone = old.keys().filter(|key| !set.elements.contains_key(*key)).cloned().collect::<Vec<_>>();
        if !(come.is_empty() && gone.is_empty() && seen.sets.contains_key(name)) {
            sets.insert(name.clone(), (come, gone));
        }
    }
    let gone = seen.sets.keys().filter(|name| !now.sets.contains_key(*name)).cloned().collect();
    Change { chains: now.chains.keys().cloned().collect(), sets, gone }
}

impl Change {
    fn make(self, table: &mut Table) {
        table.chains = self.chains.into_iter().map(|name| (name, Vec::new())).collect();
        table.sets.retain(|name, _| !self.gone.contains(name));
        for (name, (come, gone)) in self.sets {
            let elements = &mut table.sets.entry(name).or_default().elements;
            gone.iter().for_each(|key| _ = elements.remove(key));
            elements.extend(come);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(mark: &str, chain: &str, sets: &[(&str, &[(&str, &str)])]) -> Table {
        let elements = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(key, value)| (vec!["tap1".to_string(), key.to_string()], value.to_string()))
                .collect()
        };
        let set = |(name, list): &(&str, &[(&str, &str)])| {
            (name.to_string(), Set { of: String::new(), elements: elements(list) })
        };
        Table {
            base: Vec::new(),
            mark: mark.to_string(),
            chains: [(chain.to_string(), Vec::new())].into(),
            sets: sets.iter().map(set).collect(),
            devices: BTreeSet::new(),
        }
    }

    fn tables(all: &[(&str, Table)]) -> Tables {
        all.iter().map(|(name, table)| (name.to_string(), table.clone())).collect()
    }

    #[test]
    fn what_is_kept_reads_as_a_listing_would_after_each_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net-1");
        let first = tables(&[
            ("bridge shisa", table("v_1", "in_1", &[("a", &[("10.0.0.1", "goto x")]), ("g4_1", &[])])),
            ("netdev known", table("v_2", "out", &[])),
        ]);
        let mut text = serde_json::to_vec(&Line::whole((7, 20), &first)).unwrap();
        fs::write(&path, &text).unwrap();
        let length = text.len() as u64;
        let mut file = File { path: path.clone(), inode: 7, generation: 20, first: length, all: length };
        let second = tables(&[
            (
                "bridge shisa",
                table("v_1", "in_2", &[("a", &[("10.0.0.2", "goto y")]), ("g4_2", &[("10.0.0.9", "")])]),
            ),
            ("netdev known", table("v_3", "out", &[])),
        ]);
        let third = tables(&[("bridge shisa", table("v_1", "in_2", &[("a", &[("10.0.0.2", "goto z")])]))]);
        let read_now = || read(&fs::read(&path).unwrap(), 7);
        assert_eq!(read_now(), Some((20, first.clone())));
        assert!(!file.add((19, 21), &first, &second), "it is of another generation");
        assert!(file.add((20, 21), &first, &second));
        assert_eq!(read_now(), Some((21, second.clone())));
        assert!(file.add((21, 22), &second, &third));
        assert_eq!(read_now(), Some((22, third)));
        assert_eq!(read(&fs::read(&path).unwrap(), 8), None, "another namespace");
        text = fs::read(&path).unwrap();
        text.pop();
        assert_eq!(read(&text, 7), None, "cut off");
        file.all = file.first * GROWN + SHORT + 1;
        assert!(!file.add((22, 23), &first, &second), "it is written anew");
    }
}
