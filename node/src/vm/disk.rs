//! A guest's disks: a qcow2 overlay on the image, an ephemeral disk, a swap disk.
//!
//! Each is made under another name and renamed, so that a disk that is there is whole. Formats are always named,
//! never guessed: a guest writes what it likes into its disk, and an image is what a user gave.

use super::plan::Root;
use crate::file;
use base::node::{Image, Vm};
use base::{Error, Result};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use tokio::process::Command;
use uuid::Uuid;

pub const ROOT: &str = "root.qcow2";
pub const EPHEMERAL: &str = "ephemeral.raw";
pub const SWAP: &str = "swap.raw";
pub const CONFIG: &str = "config.iso";

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Enough of a qcow2 file to have its header and the name of its backing file.
const HEAD: usize = 4096;
/// Bits of `incompatible_features` that mean: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// What the header of a qcow2 file says.
#[derive(Debug, PartialEq)]
pub struct Header {
    pub bytes: u64,
    pub backing: Option<String>,
    pub external_data: bool,
}

impl Header {
    /// None: it is not qcow2. Source: QEMU, docs/interop/qcow2.txt.
    pub fn parse(head: &[u8; HEAD]) -> Option<Header> {
        let number = |at: usize, n: usize| head[at..at + n].iter().fold(0, |v, b| v << 8 | u64::from(*b));
        if &head[..4] != b"QFI\xfb" || !(2..=3).contains(&number(4, 4)) {
            return None;
        }
        let (offset, length) = (number(8, 8) as usize, number(16, 4) as usize);
        let backing = match offset {
            0 => None,
            _ => Some(String::from_utf8_lossy(head.get(offset..offset.checked_add(length)?)?).into_owned()),
        };
        let external_data = number(4, 4) == 3 && number(72, 8) & EXTERNAL_DATA != 0;
        Some(Header { bytes: number(24, 8), backing, external_data })
    }

    pub fn read(path: &Path) -> Result<Option<Header>> {
        Ok(file::head::<HEAD>(path)?.and_then(|head| Header::parse(&head)))
    }
}

/// The root disk that is there, by its own header.
pub fn root(directory: &Path) -> Result<Option<Root>> {
    let Some(header) = Header::read(&directory.join(ROOT))? else { return Ok(None) };
    let stem = header.backing.as_deref().and_then(|name| Path::new(name).file_stem()?.to_str());
    Ok(Some(Root { image: stem.and_then(|stem| Uuid::try_parse(stem).ok()), bytes: header.bytes }))
}

/// How large a disk an image is, and that it stands on nothing else.
pub fn image_bytes(path: &Path, format: &str) -> Result<u64> {
    if format == "raw" {
        return Ok(path.metadata()?.len());
    }
    let header = Header::read(path)?.filter(|_| format == "qcow2");
    match header {
        Some(Header { bytes, backing: None, external_data: false }) => Ok(bytes),
        Some(_) => Err(Error::invalid("the image refers to other files")),
        None => Err(Error::invalid(format!("the image is not of the format {format}"))),
    }
}

/// The root disk's size: the flavor's, or the image's where the flavor leaves it open.
fn root_bytes(vm: &Vm, image: u64) -> Result<u64> {
    let flavor = vm.root_gib * GIB;
    match flavor {
        0 => Ok(image.next_multiple_of(512)),
        _ if flavor < image => Err(Error::invalid("Flavor's disk is too small for requested image.")),
        _ => Ok(flavor),
    }
}

/// Makes what is missing below `directory` as its owner. `base`: the image's file, as seen from the directory.
pub async fn make(directory: &Path, vm: &Vm, base: Option<(&Image, &str)>, owner: Option<u32>) -> Result<()> {
    let image = match base {
        Some((image, path)) => image_bytes(&directory.join(path), &image.format)?,
        None => 0,
    };
    let bytes = root_bytes(vm, image)?;
    match root(directory)? {
        None => make_root(directory, bytes, base, owner).await?,
        Some(there) if there.bytes < bytes => {
            qemu_img(directory, owner, &["resize", "-q", "-f", "qcow2", ROOT, &bytes.to_string()]).await?;
        }
        Some(_) => {}
    }
    raw(directory, EPHEMERAL, vm.ephemeral_gib * GIB, owner, |_, _| Ok(()))?;
    raw(directory, SWAP, vm.swap_mib * MIB, owner, write_swap)
}

async fn make_root(dir: &Path, bytes: u64, base: Option<(&Image, &str)>, owner: Option<u32>) -> Result<()> {
    let new = "root.new";
    let size = bytes.to_string();
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    if let Some((image, path)) = base {
        arguments.extend(["-b", path, "-F", &image.format]);
    }
    arguments.extend([new, &size]);
    qemu_img(dir, owner, &arguments).await?;
    Ok(std::fs::rename(dir.join(new), dir.join(ROOT))?)
}

/// Runs as the guest's user: it reads what the guest's QEMU may have written.
async fn qemu_img(directory: &Path, owner: Option<u32>, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(arguments).current_dir(directory).stdin(std::process::Stdio::null()).kill_on_drop(true);
    if let Some(owner) = owner {
        command.uid(owner).gid(owner);
    }
    let output = command.output().await.map_err(|e| Error::internal("cannot run qemu-img").because(e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(Error::internal("cannot make the root disk").because(said))
}

type Fill = fn(&mut std::fs::File, u64) -> std::io::Result<()>;

fn raw(directory: &Path, name: &str, bytes: u64, owner: Option<u32>, fill: Fill) -> Result<()> {
    let path = directory.join(name);
    if bytes == 0 || path.try_exists()? {
        return Ok(());
    }
    let new = path.with_extension("new");
    file::remove(&new)?;
    let mut file = std::fs::File::create_new(&new)?;
    file.set_len(bytes)?;
    fill(&mut file, bytes)?;
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner), Some(owner))?;
    }
    Ok(std::fs::rename(new, path)?)
}

/// Source: Linux, include/linux/swap.h, `union swap_header`, pages of 4096 bytes.
fn write_swap(file: &mut std::fs::File, bytes: u64) -> std::io::Result<()> {
    let last_page = u32::try_from(bytes / 4096 - 1).unwrap_or(u32::MAX);
    file.seek(SeekFrom::Start(1024))?;
    file.write_all(&[1u32.to_le_bytes(), last_page.to_le_bytes(), 0u32.to_le_bytes()].concat())?;
    file.seek(SeekFrom::Start(4096 - 10))?;
    file.write_all(b"SWAPSPACE2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(offset: u64, name: &str, incompatible: u64) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&3u32.to_be_bytes());
        head[8..16].copy_from_slice(&offset.to_be_bytes());
        head[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        head[24..32].copy_from_slice(&(5 * GIB).to_be_bytes());
        head[72..80].copy_from_slice(&incompatible.to_be_bytes());
        if let Some(space) = head.get_mut(offset as usize..offset as usize + name.len()) {
            space.copy_from_slice(name.as_bytes());
        }
        head
    }

    #[test]
    fn headers_tell_size_backing_and_data_elsewhere() {
        let check = |head: [u8; HEAD], expect: Option<(Option<&str>, bool)>| {
            let expect = expect.map(|(backing, external_data)| Header {
                bytes: 5 * GIB,
                backing: backing.map(String::from),
                external_data,
            });
            assert_eq!(Header::parse(&head), expect);
        };
        check(head(0, "", 0), Some((None, false)));
        check(head(512, "../x.raw", 0), Some((Some("../x.raw"), false)));
        check(head(0, "", 4), Some((None, true)));
        check(head(u64::MAX / 2, "x", 0), None);
        check([0; HEAD], None);
    }
}
