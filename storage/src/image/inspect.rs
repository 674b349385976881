//! What bytes really are, and whether they are safe to be a disk.
//!
//! A format is told by its header alone, read in place and with bounds; nothing is executed and no other program is asked.
//! A disk that names another file (backing file, external data, extents) is refused, whatever it claims to be: it would
//! be opened on a host. Sources: OSSA-2015-014, OSSA-2023-002, OSSA-2024-001, OSSA-2026-002; the QCOW2 specification; the
//! VMDK 5.0 specification.

use super::DiskFormat;
use base::{Error, Result};

/// Bytes of the start that are looked at: enough for an ISO's volume descriptor and a VMDK's text.
pub const HEAD: usize = 256 << 10;
/// Bytes of the end that are looked at: a fixed VHD has its footer there.
pub const TAIL: usize = 512;

/// The parts of a file that formats are told by.
pub struct Sample<'a> {
    pub head: &'a [u8],
    pub tail: &'a [u8],
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Known(DiskFormat),
    /// Formats that are never taken.
    Qed,
    Luks,
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// All formats whose marks the bytes have.
fn found(sample: &Sample) -> Vec<Found> {
    use DiskFormat::*;
    let head = sample.head;
    let at = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
    let marks = [
        (at(0, b"QFI\xfb"), Found::Known(Qcow2)),
        (at(0, b"KDMV") || at(0, b"# Disk DescriptorFile"), Found::Known(Vmdk)),
        (at(0, b"conectix") || sample.tail.starts_with(b"conectix"), Found::Known(Vhd)),
        (at(0, b"vhdxfile"), Found::Known(Vhdx)),
        (at(0x40, &0xbeda_107f_u32.to_le_bytes()), Found::Known(Vdi)),
        (at(0x8001, b"CD001"), Found::Known(Iso)),
        (at(0, b"WithoutFreeSpace") || at(0, b"WithouFreSpacExt"), Found::Known(Ploop)),
        (at(0, b"QED\0"), Found::Qed),
        (at(0, b"LUKS\xba\xbe"), Found::Luks),
    ];
    marks.into_iter().filter(|(has, _)| *has).map(|(_, found)| found).collect()
}

/// Checks bytes against the format that they are declared as; the size that a guest will see.
///
/// Errors: `MediaType` when they are something else or not safe.
pub fn check(declared: DiskFormat, sample: &Sample) -> Result<u64> {
    use DiskFormat::*;
    let found = found(sample);
    let refuse = |why: String| Err(Error::media_type(why));
    let is = match found.as_slice() {
        [] => None,
        [Found::Known(one)] => Some(*one),
        [Found::Qed | Found::Luks] => return refuse("The image is of a format that is not taken.".into()),
        [_, _, ..] => return refuse("The image has the marks of several formats.".into()),
    };
    match (declared, is) {
        (Raw | Ami | Ari | Aki, None) => Ok(sample.size),
        (Qcow2, Some(Qcow2)) => qcow2(sample.head),
        (Vmdk, Some(Vmdk)) => vmdk(sample.head),
        (Vhd, Some(Vhd)) => vhd(sample),
        (Vdi, Some(Vdi)) => bounded(le64(sample.head, 0x170), "vdi"),
        (Iso, Some(Iso)) => Ok(sample.size),
        (Vhdx, Some(Vhdx)) | (Ploop, Some(Ploop)) => Ok(sample.size),
        (_, is) => {
            let is = is.map_or("raw".to_string(), DiskFormat::word);
            refuse(format!("Image disk_format {} does not match stream data {is}", declared.word()))
        }
    }
}

/// Bytes that a guest may see of an image at most.
const VIRTUAL_MAX: u64 = 1 << 50;

fn bounded(size: Option<u64>, format: &str) -> Result<u64> {
    let cut = || Error::media_type(format!("The {format} header is cut short."));
    match size.ok_or_else(cut)? {
        size if size > VIRTUAL_MAX => {
            Err(Error::media_type(format!("The {format} header claims too large a disk.")))
        }
        size => Ok(size),
    }
}

/// Features of a QCOW2 that change what a reader must do: dirty, corrupt, compression type, extended L2.
const QCOW2_KNOWN: u64 = 0b1_1011;
/// The one that names another file for the data.
const QCOW2_EXTERNAL: u64 = 0b100;

fn qcow2(head: &[u8]) -> Result<u64> {
    let bad = |why: &str| Error::media_type(format!("The qcow2 image {why}."));
    let version = be32(head, 4).ok_or_else(|| bad("is cut short"))?;
    if !(2..=3).contains(&version) {
        return Err(bad("has an unknown version"));
    }
    if be64(head, 8) != Some(0) {
        return Err(bad("has a backing file"));
    }
    if version == 3 {
        let features = be64(head, 72).ok_or_else(|| bad("is cut short"))?;
        if features & QCOW2_EXTERNAL != 0 {
            return Err(bad("has an external data file"));
        }
        if features & !QCOW2_KNOWN != 0 {
            return Err(bad("has unknown features"));
        }
    }
    bounded(be64(head, 24), "qcow2")
}

/// Sectors of a VMDK.
const SECTOR: u64 = 512;
/// Bytes of a VMDK's text that are read.
const DESCRIPTOR_MAX: u64 = 64 << 10;

/// Only the kinds that are one file: a text alone, or extents elsewhere, name paths on the host.
fn vmdk(head: &[u8]) -> Result<u64> {
    let bad = |why: &str| Error::media_type(format!("The vmdk image {why}."));
    if !head.starts_with(b"KDMV") {
        return Err(bad("is a descriptor of other files"));
    }
    let (capacity, at, len) = (le64(head, 12), le64(head, 28), le64(head, 36));
    let (at, len) = at.zip(len).ok_or_else(|| bad("is cut short"))?;
    let start = at
        .checked_mul(SECTOR)
        .filter(|s| *s > 0 && *s < HEAD as u64)
        .ok_or_else(|| bad("has its descriptor out of place"))?;
    let len = len.checked_mul(SECTOR).map_or(DESCRIPTOR_MAX, |l| l.min(DESCRIPTOR_MAX));
    let end = ((start + len) as usize).min(head.len());
    let text = head.get(start as usize..end).ok_or_else(|| bad("is cut short"))?;
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end_matches('\0');
    let kind = text.lines().find_map(|l| l.trim().strip_prefix("createType=")).unwrap_or("");
    if !matches!(kind.trim_matches('"'), "monolithicSparse" | "streamOptimized") {
        return Err(bad("is of a kind that is not one file"));
    }
    let extents =
        text.lines().filter(|l| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|a| l.trim().starts_with(a)));
    if extents.clone().count() > 1 || extents.clone().any(|l| l.contains('/') || !l.contains(" SPARSE ")) {
        return Err(bad("names other files"));
    }
    bounded(capacity.and_then(|c| c.checked_mul(SECTOR)), "vmdk")
}

/// The size stands in the footer, or in its copy at the start of a dynamic disk. A differencing disk has a parent.
fn vhd(sample: &Sample) -> Result<u64> {
    let footer = if sample.head.starts_with(b"conectix") { sample.head } else { sample.tail };
    match be32(footer, 60) {
        Some(2 | 3) => bounded(be64(footer, 48), "vhd"),
        Some(_) | None => Err(Error::media_type("The vhd image is of a kind that is not one file.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2_head(version: u32, backing: u64, features: u64, size: u64) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[8..16].copy_from_slice(&backing.to_be_bytes());
        head[24..32].copy_from_slice(&size.to_be_bytes());
        head[72..80].copy_from_slice(&features.to_be_bytes());
        head
    }

    fn vmdk_head(text: &str) -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[..4].copy_from_slice(b"KDMV");
        head[12..20].copy_from_slice(&8_u64.to_le_bytes());
        head[28..36].copy_from_slice(&1_u64.to_le_bytes());
        head[36..44].copy_from_slice(&2_u64.to_le_bytes());
        head[512..512 + text.len()].copy_from_slice(text.as_bytes());
        head
    }

    fn marked(at: usize, mark: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 0x9000];
        head[at..at + mark.len()].copy_from_slice(mark);
        head
    }

    fn check(declared: DiskFormat, head: &[u8], expect: Option<u64>) {
        let tail = &head[head.len().saturating_sub(TAIL)..];
        let sample = Sample { head, tail, size: head.len() as u64 };
        assert_eq!(super::check(declared, &sample).ok(), expect, "{declared:?}");
    }

    #[test]
    fn what_is_declared_must_be_there() {
        use DiskFormat::*;
        check(Raw, &[1; 1024], Some(1024));
        check(Raw, &[], Some(0));
        check(Aki, &[1; 1024], Some(1024));
        check(Qcow2, &qcow2_head(3, 0, 0, 1 << 30), Some(1 << 30));
        check(Qcow2, &qcow2_head(2, 0, u64::MAX, 77), Some(77));
        check(Qcow2, &[1; 1024], None);
        check(Iso, &marked(0x8001, b"CD001"), Some(0x9000));
        check(Iso, &[0; 0x9000], None);
    }

    /// OSSA-2026-002, OSSA-2016-001: a guest writes a header on its raw disk.
    #[test]
    fn raw_is_nothing_else() {
        use DiskFormat::*;
        for head in [
            qcow2_head(3, 0, 0, 1),
            marked(0, b"KDMV"),
            marked(0, b"# Disk DescriptorFile"),
            marked(0, b"vhdxfile"),
            marked(0, b"conectix"),
            marked(0x9000 - 512, b"conectix"),
            marked(0x40, &0xbeda_107f_u32.to_le_bytes()),
            marked(0x8001, b"CD001"),
            marked(0, b"QED\0"),
            marked(0, b"LUKS\xba\xbe"),
        ] {
            check(Raw, &head, None);
            check(Ami, &head, None);
        }
    }

    /// OSSA-2015-014, OSSA-2024-001: a disk that reads files of the host.
    #[test]
    fn a_qcow2_names_no_other_file() {
        use DiskFormat::Qcow2;
        check(Qcow2, &qcow2_head(3, 0x200, 0, 1), None);
        check(Qcow2, &qcow2_head(2, 0x200, 0, 1), None);
        check(Qcow2, &qcow2_head(3, 0, 0b100, 1), None);
        check(Qcow2, &qcow2_head(3, 0, 1 << 40, 1), None);
        check(Qcow2, &qcow2_head(4, 0, 0, 1), None);
        check(Qcow2, &qcow2_head(3, 0, 0, u64::MAX), None);
        check(Qcow2, &qcow2_head(3, 0, 0, 1)[..40], None);
    }

    /// OSSA-2023-002.
    #[test]
    fn a_vmdk_names_no_other_file() {
        use DiskFormat::Vmdk;
        let good = "createType=\"monolithicSparse\"\nRW 8 SPARSE \"disk.vmdk\"\n";
        check(Vmdk, &vmdk_head(good), Some(8 * 512));
        check(Vmdk, &vmdk_head("createType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/passwd\" 0\n"), None);
        check(Vmdk, &vmdk_head("createType=\"monolithicSparse\"\nRW 8 FLAT \"disk\" 0\n"), None);
        check(Vmdk, &vmdk_head("createType=\"monolithicSparse\"\nRW 8 SPARSE \"/etc/shadow\"\n"), None);
        check(Vmdk, &vmdk_head("createType=\"twoGbMaxExtentSparse\"\n"), None);
        check(Vmdk, &marked(0, b"# Disk DescriptorFile\ncreateType=\"monolithicSparse\"\n"), None);
        let mut far = vmdk_head(good);
        far[28..36].copy_from_slice(&u64::MAX.to_le_bytes());
        check(Vmdk, &far, None);
    }

    #[test]
    fn two_formats_at_once_are_none() {
        let mut both = marked(0x8001, b"CD001");
        both[..512].copy_from_slice(&qcow2_head(3, 0, 0, 1));
        check(DiskFormat::Qcow2, &both, None);
        check(DiskFormat::Iso, &both, None);
    }
}
