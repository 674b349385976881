//! Writes the ISO 9660 image of a config drive: one tree in plain names, one in Joliet's.
//!
//! Plain names are the files' own in capitals, which every reader folds back; those that hold to eight and three letters
//! read the Joliet tree. Equal files share their bytes. The same files give the same image.
//!
//! Limits: directories eight deep, names of `NAME_MAX` letters, 4 GiB. Source: ECMA-119, Joliet Specification.

use base::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

const SECTOR: usize = 2048;
const NAME_MAX: usize = 64;
/// The descriptors are sectors 16 to 18.
const FIRST_FREE: usize = 19;
/// 1970-01-01 00:00:00, as a directory writes it.
const DATE: [u8; 7] = [70, 1, 1, 0, 0, 0, 0];

pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Copy, PartialEq)]
enum Names {
    Plain,
    Joliet,
}

impl Names {
    fn encode(self, name: &str, file: bool) -> Vec<u8> {
        match self {
            Names::Plain if file && name.contains('.') => format!("{};1", name.to_uppercase()).into(),
            Names::Plain if file => format!("{}.;1", name.to_uppercase()).into(),
            Names::Plain => name.to_uppercase().into(),
            Names::Joliet if file => wide(&format!("{name};1")),
            Names::Joliet => wide(name),
        }
    }
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn both32(n: usize) -> [u8; 8] {
    let [a, b, c, d] = (n as u32).to_le_bytes();
    [a, b, c, d, d, c, b, a]
}

fn both16(n: u16) -> [u8; 4] {
    let [a, b] = n.to_le_bytes();
    [a, b, b, a]
}

fn sectors(bytes: usize) -> usize {
    bytes.div_ceil(SECTOR)
}

/// Where something is: first sector and bytes.
#[derive(Clone, Copy, Default)]
struct Extent {
    sector: usize,
    bytes: usize,
}

fn record(extent: Extent, directory: bool, name: &[u8]) -> Vec<u8> {
    let length = (33 + name.len()).next_multiple_of(2);
    let mut record = vec![length as u8, 0];
    record.extend(both32(extent.sector));
    record.extend(both32(extent.bytes));
    record.extend(DATE);
    record.extend([if directory { 2 } else { 0 }, 0, 0]);
    record.extend(both16(1));
    record.push(name.len() as u8);
    record.extend(name);
    record.resize(length, 0);
    record
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Directories by depth, then name: the order of the path table, parents first.
fn directories(files: &Files) -> Vec<&str> {
    let mut all = BTreeSet::from([(0, "")]);
    for path in files.keys() {
        let mut directory = split(path).0;
        while !directory.is_empty() {
            all.insert((directory.matches('/').count() + 1, directory));
            directory = split(directory).0;
        }
    }
    all.into_iter().map(|(_, path)| path).collect()
}

/// One of the two trees: the extents of its directories, by path.
struct Tree<'a> {
    names: Names,
    files: &'a Files,
    directories: &'a [&'a str],
    places: BTreeMap<&'a str, Extent>,
}

impl Tree<'_> {
    /// A directory's bytes; no record crosses the end of a sector.
    fn directory(&self, path: &str, data: &BTreeMap<&[u8], usize>) -> Vec<u8> {
        let place = |path: &str| self.places.get(path).copied().unwrap_or_default();
        let mut children: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (child, bytes) in self.files.iter().filter(|(child, _)| split(child).0 == path) {
            let sector = data.get(bytes.as_slice()).copied().unwrap_or_default();
            let name = self.names.encode(split(child).1, true);
            children.push((name.clone(), record(Extent { sector, bytes: bytes.len() }, false, &name)));
        }
        for child in self.directories.iter().filter(|child| !child.is_empty() && split(child).0 == path) {
            let name = self.names.encode(split(child).1, false);
            children.push((name.clone(), record(place(child), true, &name)));
        }
        children.sort();
        let mut bytes = [record(place(path), true, &[0]), record(place(split(path).0), true, &[1])].concat();
        for (_, record) in children {
            if sectors(bytes.len()) != sectors(bytes.len() + record.len()) {
                bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
            }
            bytes.extend(record);
        }
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        bytes
    }

    fn path_table(&self, number: fn(u32) -> [u8; 4], short: fn(u16) -> [u8; 2]) -> Vec<u8> {
        let mut table = Vec::new();
        for path in self.directories {
            let (parent, name) = split(path);
            let name = if path.is_empty() { vec![0] } else { self.names.encode(name, false) };
            let parent = self.directories.iter().position(|p| *p == parent).map_or(1, |n| n + 1);
            let sector = self.places.get(path).map_or(0, |extent| extent.sector);
            table.extend([name.len() as u8, 0]);
            table.extend(number(sector as u32));
            table.extend(short(parent as u16));
            table.extend(&name);
            table.resize(table.len().next_multiple_of(2), 0);
        }
        table
    }

    fn descriptor(&self, label: &str, sectors: usize, tables: [usize; 2]) -> Vec<u8> {
        let mut d = vec![0; SECTOR];
        let joliet = self.names == Names::Joliet;
        let blank = if joliet { wide(&" ".repeat(400)) } else { vec![b' '; 800] };
        let label = if joliet { wide(label) } else { label.into() };
        let mut put = |at: usize, bytes: &[u8]| d[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[if joliet { 2 } else { 1 }]);
        put(1, b"CD001\x01");
        put(8, &blank[..64]);
        put(40, &label);
        put(80, &both32(sectors));
        put(88, if joliet { b"%/E" } else { &[] });
        put(120, &both16(1));
        put(124, &both16(1));
        put(128, &both16(SECTOR as u16));
        put(132, &both32(self.path_table(u32::to_le_bytes, u16::to_le_bytes).len()));
        put(140, &(tables[0] as u32).to_le_bytes());
        put(148, &(tables[1] as u32).to_be_bytes());
        put(156, &record(self.places.get("").copied().unwrap_or_default(), true, &[0]));
        put(190, &blank[..622]);
        for date in 0..4 {
            put(813 + 17 * date, b"0000000000000000\0");
        }
        put(881, &[1]);
        d
    }
}

/// An image with these files, by their paths, and this label.
pub fn image(label: &str, files: &Files) -> Result<Vec<u8>> {
    let too_long = |part: &str| part.len() > NAME_MAX || !part.is_ascii();
    if let Some(path) = files.keys().find(|path| path.split('/').any(too_long)) {
        return Err(Error::internal(format!("{path} cannot stand on a config drive")));
    }
    let directories = directories(files);
    let tree = |names| Tree { names, files, directories: &directories, places: BTreeMap::new() };
    let mut trees = [tree(Names::Plain), tree(Names::Joliet)];
    let mut next = FIRST_FREE;
    let mut take = |bytes: usize| {
        next += sectors(bytes);
        next - sectors(bytes)
    };
    let none = BTreeMap::new();
    let mut tables = [[0; 2]; 2];
    for (tree, tables) in trees.iter_mut().zip(&mut tables) {
        let bytes = tree.path_table(u32::to_le_bytes, u16::to_le_bytes).len();
        *tables = [take(bytes), take(bytes)];
        for path in &directories {
            let bytes = tree.directory(path, &none).len();
            tree.places.insert(path, Extent { sector: take(bytes), bytes });
        }
    }
    let mut data: BTreeMap<&[u8], usize> = BTreeMap::new();
    for bytes in files.values() {
        data.entry(bytes).or_insert_with(|| take(bytes.len()));
    }
    Ok(write(label, &trees, tables, &data, next))
}

fn write(
    label: &str,
    trees: &[Tree; 2],
    tables: [[usize; 2]; 2],
    data: &BTreeMap<&[u8], usize>,
    all: usize,
) -> Vec<u8> {
    let mut image = vec![0; all * SECTOR];
    let mut put = |sector: usize, bytes: &[u8]| {
        image[sector * SECTOR..sector * SECTOR + bytes.len()].copy_from_slice(bytes);
    };
    for (n, (tree, tables)) in trees.iter().zip(tables).enumerate() {
        put(16 + n, &tree.descriptor(label, all, tables));
        put(tables[0], &tree.path_table(u32::to_le_bytes, u16::to_le_bytes));
        put(tables[1], &tree.path_table(u32::to_be_bytes, u16::to_be_bytes));
        for (path, extent) in &tree.places {
            put(extent.sector, &tree.directory(path, data));
        }
    }
    put(18, b"\xffCD001\x01");
    for (bytes, sector) in data {
        put(*sector, bytes);
    }
    image
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> usize {
        bytes[..4].iter().rev().fold(0, |n, b| n << 8 | *b as usize)
    }

    /// Reads a tree back as a driver does: descriptor, root, records.
    pub fn read(image: &[u8], joliet: bool) -> Files {
        let root = (if joliet { 17 } else { 16 }) * SECTOR + 156;
        let mut files = Files::new();
        walk(image, &image[root..root + 34], "", joliet, &mut files);
        files
    }

    fn walk(image: &[u8], record: &[u8], path: &str, joliet: bool, files: &mut Files) {
        let from = number(&record[2..]) * SECTOR;
        let bytes = &image[from..from + number(&record[10..])];
        if record[25] & 2 == 0 {
            files.insert(path.into(), bytes.into());
            return;
        }
        let mut at = 0;
        while at < bytes.len() {
            let length = bytes[at] as usize;
            if length == 0 {
                at = (at + 1).next_multiple_of(SECTOR);
                continue;
            }
            let child = &bytes[at..at + length];
            at += length;
            let name = &child[33..33 + child[32] as usize];
            if name.len() == 1 && name[0] < 2 {
                continue;
            }
            let name = match joliet {
                true => String::from_utf16(
                    &name.chunks(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect::<Vec<_>>(),
                )
                .unwrap(),
                false => String::from_utf8(name.into()).unwrap().to_lowercase(),
            };
            let name = name.strip_suffix(";1").unwrap_or(&name).trim_end_matches('.').to_string();
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            walk(image, child, &path, joliet, files);
        }
    }

    #[test]
    fn both_trees_read_as_they_were_written() {
        let mut files = Files::new();
        files.insert("openstack/latest/meta_data.json".into(), vec![b'x'; 5000]);
        files.insert("openstack/2020-10-14/meta_data.json".into(), vec![b'x'; 5000]);
        files.insert("openstack/latest/user_data".into(), b"#!/bin/sh\n".to_vec());
        files.insert("ec2/latest/empty".into(), vec![]);
        files.extend((0..100).map(|n| (format!("many/file-{n:03}.json"), vec![n])));
        let image = image("config-2", &files).unwrap();
        assert_eq!(read(&image, true), files);
        assert_eq!(read(&image, false), files);
        assert_eq!(&image[16 * SECTOR + 40..][..8], b"config-2");
        assert!(image.len() < 300_000, "equal files are written once");
    }
}
