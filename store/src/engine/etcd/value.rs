//! The keys of a cell, and a batch as one value.
//!
//! ```text
//! CELL/head/format epoch revision batch time total owner counter free folded
//! CELL/log/LAST           a batch, under its last revision (16 hexadecimal digits)
//! CELL/image/XX/KIND/KEY  the newest image of a record, up to `folded`; XX is a part of the key's hash
//! ```
//!
//! Images lie in parts because etcd, asked for the first thousand keys of a range, walks through all of them.

use super::message::KeyValue;
use crate::engine::{Batch, Logged};
use crate::log::Revision;
use base::{Error, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::HashMap;

/// By kind and key: the newest image, or none where the record was deleted.
pub type Images = HashMap<(Box<str>, Box<str>), Option<Bytes>>;

#[derive(Clone)]
pub struct Keys(pub String);

impl Keys {
    pub fn head(&self, name: &str) -> String {
        format!("{}/head/{name}", self.0)
    }

    pub fn log(&self, last: Revision) -> String {
        format!("{}/log/{last:016x}", self.0)
    }

    pub fn image(&self, kind: &str, key: &str) -> String {
        format!("{}/image/{:02x}/{kind}/{key}", self.0, part(key))
    }

    /// From the first key of a folder to behind its last.
    pub fn all(&self, folder: &str) -> (String, String) {
        // `0` follows `/`.
        (format!("{}/{folder}/", self.0), format!("{}/{folder}0", self.0))
    }

    /// Kind and key of an image's key.
    pub fn named<'a>(&self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        std::str::from_utf8(key).ok()?.get(self.0.len() + "/image/XX/".len()..)?.split_once('/')
    }
}

/// The part that a record's image is in: FNV-1a, which never changes.
fn part(key: &str) -> u8 {
    let hash = base::fnv::fnv(key.as_bytes());
    (hash ^ (hash >> 32)) as u8
}

/// The small keys, read at once.
#[derive(Default)]
pub struct Small(HashMap<String, String>);

impl Small {
    pub fn of(kvs: &[KeyValue]) -> Small {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let name = |kv: &KeyValue| text(&kv.key).rsplit('/').next().unwrap_or_default().to_string();
        Small(kvs.iter().map(|kv| (name(kv), text(&kv.value))).collect())
    }

    pub fn text(&self, name: &str) -> String {
        self.0.get(name).cloned().unwrap_or_default()
    }

    pub fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        self.0.get(name).and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

/// The first line of a batch's value; the entries follow it, one after the other.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Top {
    pub epoch: u64,
    pub first: Revision,
    pub time: i64,
    /// Bytes of all batches of the cell up to this one.
    pub total: u64,
    /// Of each entry.
    sizes: Vec<usize>,
}

/// The value of a batch, when `before` bytes came before it.
pub fn encode(batch: &Batch, before: u64) -> Result<Bytes> {
    let bodies = || batch.entries.iter().map(|(_, encoded)| &encoded.body);
    let size: usize = bodies().map(Vec::len).sum();
    let top = Top {
        epoch: batch.epoch,
        first: batch.previous + 1,
        time: batch.time().0,
        total: before + size as u64,
        sizes: bodies().map(Vec::len).collect(),
    };
    let mut value = Vec::with_capacity(size + 128 + 6 * batch.entries.len());
    serde_json::to_writer(&mut value, &top).map_err(unreadable)?;
    value.push(b'\n');
    bodies().for_each(|body| value.extend_from_slice(body));
    Ok(value.into())
}

/// Its first line, and the rest.
pub fn top(value: &Bytes) -> Result<(Top, Bytes)> {
    let end = value.iter().position(|b| *b == b'\n').ok_or_else(|| unreadable("it has no first line"))?;
    let top = serde_json::from_slice(&value[..end]).map_err(unreadable)?;
    Ok((top, value.slice(end + 1..)))
}

/// The entries of a batch.
pub fn entries(value: &Bytes) -> Result<Vec<(Revision, Bytes)>> {
    let (top, mut rest) = top(value)?;
    let mut entries = Vec::with_capacity(top.sizes.len());
    for (n, size) in top.sizes.iter().enumerate() {
        if *size > rest.len() {
            return Err(unreadable("it is too short"));
        }
        entries.push((top.first + n as Revision, rest.split_to(*size)));
    }
    Ok(entries)
}

pub fn logged(value: &Bytes) -> Result<Vec<Logged>> {
    let epoch = top(value)?.0.epoch;
    let entry = |(revision, body): (Revision, Bytes)| Logged { revision, epoch, body: body.into() };
    Ok(entries(value)?.into_iter().map(entry).collect())
}

#[derive(Deserialize)]
struct Changes<'a> {
    #[serde(borrow)]
    changes: Vec<(String, String, Option<&'a RawValue>)>,
}

/// Lets images follow the batch.
pub fn apply(value: &Bytes, images: &mut Images) -> Result<()> {
    for (_, body) in entries(value)? {
        let entry: Changes = serde_json::from_slice(&body).map_err(unreadable)?;
        for (kind, key, image) in entry.changes {
            let image = image.map(|image| body.slice_ref(image.get().as_bytes()));
            images.insert((kind.into(), key.into()), image);
        }
    }
    Ok(())
}

fn unreadable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::internal("A batch in etcd cannot be read.").because(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_as_it_was_written_and_the_newest_image_counts() {
        let one =
            r#"{"time":1,"seed":"0","cause":{"id":"x"},"changes":[["note","a",{"n":1}],["note","b",null]]}"#;
        let two = r#"{"time":2,"seed":"0","cause":{"id":"y"},"changes":[["note","a",{"n":2}]]}"#;
        let top_line =
            format!(r#"{{"epoch":3,"first":8,"time":2,"total":99,"sizes":[{},{}]}}"#, one.len(), two.len());
        let value = Bytes::from(format!("{top_line}\n{one}{two}"));
        let logged = logged(&value).unwrap();
        assert_eq!((logged[0].revision, logged[1].revision, logged[1].epoch), (8, 9, 3));
        assert_eq!(logged[1].body, two.as_bytes());
        let mut images = Images::new();
        apply(&value, &mut images).unwrap();
        assert_eq!(images[&("note".into(), "a".into())].as_deref(), Some(&br#"{"n":2}"#[..]));
        assert_eq!(images[&("note".into(), "b".into())], None);
        for cut in [0, 9, value.len() - 1] {
            assert!(entries(&value.slice(..cut)).is_err());
        }
    }

    #[test]
    fn keys_sort_by_revision_and_name_their_record() {
        let keys = Keys("blue".into());
        assert!(keys.log(9) < keys.log(10) && keys.log(255) < keys.log(256));
        let (from, to) = keys.all("log");
        assert!(from < keys.log(0) && keys.log(u64::MAX) < to);
        assert_eq!(keys.image("note", "a"), "blue/image/c0/note/a", "parts stay what they are");
        assert_eq!(keys.named(keys.image("object", "a/b").as_bytes()), Some(("object", "a/b")));
    }
}
