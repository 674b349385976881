//! The files of images: written beside their place, made durable, moved there, and only then told in the record.
//!
//! Limits: `WAITING` chunks between a client and the disk; the bytes that the caller allows.

use super::inspect::{HEAD, Sample, TAIL};
use super::{BY_STATUS, Content, DiskFormat, Image, Status, Step, inspect, step};
use crate::{App, Settings};
use api::reply::ByteStream;
use base::pass::{Next, Pass};
use base::{Error, Id, Result, Timestamp};
use bytes::Bytes;
use futures_util::StreamExt;
use md5::Md5;
use sha2::{Digest, Sha512};
use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::Cause;
use tokio::sync::mpsc;

/// Chunks that wait for the disk.
const WAITING: usize = 16;
/// An upload that this process does not know of is lost after this long.
const LOST_AFTER_S: i64 = 60;

/// Where the bytes of an image are. They are there, whole, while the record is active.
pub fn path(settings: &Settings, id: Id<Image>) -> PathBuf {
    settings.dir.join("images").join(id.to_string())
}

/// Where they wait for the import.
pub(super) fn staged(settings: &Settings, id: Id<Image>) -> PathBuf {
    settings.dir.join("staging").join(id.to_string())
}

/// The uploads that are running.
#[derive(Clone, Default)]
pub struct Busy(Arc<Mutex<HashSet<Id<Image>>>>);

impl Busy {
    fn has(&self, id: Id<Image>) -> bool {
        self.0.lock().expect("no holder panics").contains(&id)
    }

    /// Marks an upload for as long as the guard lives.
    pub(super) fn mark(&self, id: Id<Image>) -> BusyGuard {
        self.0.lock().expect("no holder panics").insert(id);
        BusyGuard(self.clone(), id)
    }
}

pub(super) struct BusyGuard(Busy, Id<Image>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.0.lock().expect("no holder panics").remove(&self.1);
    }
}

/// Writes a stream to `to`: whole or not at all.
///
/// Errors: `TooLarge` beyond `max` bytes, `Invalid` when the stream ends early, `Unavailable` when the disk is full,
/// `MediaType` from `inspect::check`.
pub(super) async fn save(
    mut stream: ByteStream,
    to: &Path,
    format: Option<DiskFormat>,
    max: u64,
) -> Result<Content> {
    let (chunks, waiting) = mpsc::channel::<Bytes>(WAITING);
    let to = to.to_path_buf();
    let writer = tokio::task::spawn_blocking(move || write(waiting, &to, format, max));
    let mut cut = None;
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                // The writer has given up and says why.
                if chunks.send(bytes).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                cut = Some(Error::invalid("The image data ended early.").because(error));
                // An empty chunk tells the writer to give up.
                let _ = chunks.send(Bytes::new()).await;
                break;
            }
        }
    }
    drop(chunks);
    let written = writer.await.map_err(|e| Error::internal("the writer of an image panicked").because(e))?;
    match cut {
        Some(error) => Err(error),
        None => written,
    }
}

/// Removes the half-written file, unless it was moved to its place.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn write(
    mut chunks: mpsc::Receiver<Bytes>,
    to: &Path,
    format: Option<DiskFormat>,
    max: u64,
) -> Result<Content> {
    let dir = to.parent().ok_or_else(|| Error::internal("an image has no directory"))?;
    std::fs::create_dir_all(dir)?;
    let part = Part(dir.join(format!(".{}", uuid::Uuid::new_v4())));
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&part.0)?;
    let (mut md5, mut sha512, mut size) = (Md5::new(), Sha512::new(), 0_u64);
    while let Some(chunk) = chunks.blocking_recv() {
        if chunk.is_empty() {
            return Err(Error::invalid("The image data ended early."));
        }
        size += chunk.len() as u64;
        if size > max {
            return Err(Error::too_large(format!(
                "The image is larger than the {max} bytes that it may have."
            )));
        }
        md5.update(&chunk);
        sha512.update(&chunk);
        file.write_all(&chunk).map_err(full)?;
    }
    let virtual_size = match format {
        Some(format) => look(&mut file, format, size)?,
        None => size,
    };
    file.sync_all().map_err(full)?;
    std::fs::rename(&part.0, to)?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(Content {
        size,
        virtual_size,
        md5: format!("{:x}", md5.finalize()),
        sha512: format!("{:x}", sha512.finalize()),
    })
}

fn full(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::unavailable("There is no room left for images.").because(error)
        }
        _ => error.into(),
    }
}

/// Checks a written file against its format; the size that a guest will see.
pub(super) fn look(file: &mut std::fs::File, format: DiskFormat, size: u64) -> Result<u64> {
    let mut head = Vec::with_capacity(HEAD.min(size as usize));
    file.seek(SeekFrom::Start(0))?;
    file.take(HEAD as u64).read_to_end(&mut head)?;
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL as u64)))?;
    file.take(TAIL as u64).read_to_end(&mut tail)?;
    inspect::check(format, &Sample { head: &head, tail: &tail, size })
}

/// Removes the files of an image that is gone. What fails is left to the loop.
pub(super) async fn remove(settings: &Settings, id: Id<Image>) {
    for file in [path(settings, id), staged(settings, id)] {
        let _ = tokio::fs::remove_file(file).await;
    }
}

/// Keeps true: an image is saving only while somebody saves it.
pub struct LostUploadsReset {
    pub app: App,
}

impl Pass for LostUploadsReset {
    const NAME: &'static str = "lost_uploads_reset";
    const EVERY: Duration = Duration::from_secs(30);

    async fn pass(&mut self) -> Result<Next> {
        let state = self.app.cell.read();
        let before = Timestamp::wall().plus_secs(-LOST_AFTER_S);
        let lost: Vec<Id<Image>> = state
            .by(&BY_STATUS, Status::Saving as u32)
            .filter(|i| i.updated_at < before && !self.app.uploads.has(i.id))
            .map(|i| i.id)
            .collect();
        for id in lost {
            self.app
                .cell
                .write(Cause::step(Self::NAME), move |tx| step(tx, id, &Step::Lost).map(drop))
                .await?;
            remove(&self.app.settings, id).await;
        }
        Ok(Next::Usual)
    }
}

/// Keeps true: there is no file without its image.
pub struct UnownedFilesRemoved {
    pub app: App,
}

/// A file that nobody has touched for so long belongs to no upload any more.
const STALE: Duration = Duration::from_secs(24 * 3600);

impl Pass for UnownedFilesRemoved {
    const NAME: &'static str = "unowned_files_removed";
    const EVERY: Duration = Duration::from_secs(600);

    async fn pass(&mut self) -> Result<Next> {
        let app = self.app.clone();
        let swept = tokio::task::spawn_blocking(move || {
            sweep(&app, &app.settings.dir.join("images"))?;
            sweep(&app, &app.settings.dir.join("staging"))
        });
        swept.await.map_err(|e| Error::internal("sweeping panicked").because(e))??;
        Ok(Next::Usual)
    }
}

fn sweep(app: &App, dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|n| n.parse::<Id<Image>>().ok());
        let stale = entry.metadata()?.modified()?.elapsed().unwrap_or_default() > STALE;
        let unowned = match id {
            Some(id) => app.cell.read().get::<Image>(&id).is_none() && !app.uploads.has(id),
            None => stale,
        };
        if unowned {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
