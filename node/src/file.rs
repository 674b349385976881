//! Small files that are either the old or the new ones, whatever happens in between.

use base::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes under another name, makes it durable, and renames. Only our own user may read it.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let fail = |e: std::io::Error| Error::internal(format!("cannot write {}", path.display())).because(e);
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(fail)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&new, path).map_err(fail)?;
    sync_directory(path).map_err(fail)
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, &serde_json::to_vec(value).map_err(|e| Error::internal("cannot encode").because(e))?)
}

/// None: there is no such file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    absent_is_none(path, fs::read(path))
}

/// None: there is no such file. What cannot be read as a `T` is an error: it is never taken for an empty one.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let fail = |e| Error::internal(format!("{} is not what was written", path.display())).because(e);
    serde_json::from_slice(&bytes).map(Some).map_err(fail)
}

/// The file's beginning, at most `N` bytes, zeroes behind it; a symbolic link is not followed.
pub fn head<const N: usize>(path: &Path) -> Result<Option<[u8; N]>> {
    let mut head = [0; N];
    let read = open_no_link(path).and_then(|file| file.take(N as u64).read(&mut head));
    Ok(absent_is_none(path, read)?.map(|_| head))
}

/// Opens for reading; a symbolic link in the last place is an error, as a guest's process may write there.
pub fn open_no_link(path: &Path) -> std::io::Result<fs::File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Empties a file; a symbolic link in the last place is an error.
pub fn truncate_no_link(path: &Path) -> std::io::Result<()> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    fs::OpenOptions::new().write(true).custom_flags(flags).open(path)?.set_len(0)
}

pub fn remove(path: &Path) -> Result<()> {
    absent_is_none(path, fs::remove_file(path)).map(|_| ())
}

pub fn remove_directory(path: &Path) -> Result<()> {
    absent_is_none(path, fs::remove_dir_all(path)).map(|_| ())
}

fn absent_is_none<T>(path: &Path, result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::internal(format!("cannot use {}", path.display())).because(e)),
    }
}
