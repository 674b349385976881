//! Base images: fetched once, checked while they are written, shared by all guests that start from them.
//!
//! A file that is there is whole and has its checksum. Limits: one fetch per image at a time; no more bytes than the
//! document says. Deliberately absent, until it is measured: chunks, peers, starting before the last byte is here.

use crate::file;
use crate::link::Link;
use crate::vm::disk;
use base::node::Image;
use base::{Error, Result};
use sha2::{Digest, Sha512};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

const CHUNK: usize = 256 * 1024;

pub struct Images {
    directory: PathBuf,
    link: Link,
    fetching: Mutex<BTreeMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
}

/// The name of an image's file. Errors: a format that the node does not know.
fn name(image: &Image) -> Result<String> {
    match image.format.as_str() {
        "raw" | "qcow2" => Ok(format!("{}.{}", image.id, image.format)),
        other => Err(Error::invalid(format!("the image has the format {other}, which cannot be started"))),
    }
}

impl Images {
    pub fn new(directory: PathBuf, link: Link) -> Images {
        Images { directory, link, fetching: Mutex::default() }
    }

    /// The name of the image's file, after it is there.
    ///
    /// Errors: `Unavailable` when the plane is; `Invalid` when the bytes are not those that the document names.
    pub async fn fetched(&self, image: &Image) -> Result<String> {
        let name = name(image)?;
        let path = self.directory.join(&name);
        let turn = self.turn(image.id);
        let _turn = turn.lock().await;
        if !path.try_exists()? {
            self.fetch(image, &path).await?;
        }
        Ok(name)
    }

    fn turn(&self, id: Uuid) -> Arc<tokio::sync::Mutex<()>> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }

    async fn fetch(&self, image: &Image, path: &Path) -> Result<()> {
        let part = path.with_extension("part");
        let bytes = self.link.image(image.id).await?;
        let result = match copy(bytes, &part, image).await {
            Ok(()) => disk::image_bytes(&part, &image.format).map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            file::remove(&part)?;
            return Err(error);
        }
        // Every guest's own user reads it.
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o644))?;
        Ok(std::fs::rename(part, path)?)
    }

    /// Removes what is not in `used`, and what an interrupted fetch left behind.
    pub fn keep(&self, used: &BTreeSet<Uuid>) {
        let id = |name: &str| name.split('.').next().and_then(|id| Uuid::try_parse(id).ok());
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let unused = entry.file_name().to_str().and_then(id).is_some_and(|id| !used.contains(&id));
            if unused && let Err(error) = file::remove(&entry.path()) {
                tracing::warn!("an unused image stays: {}", error.chain());
            }
        }
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| used.contains(id));
    }
}

async fn copy(mut bytes: crate::ImageBytes, part: &Path, image: &Image) -> Result<()> {
    let away = |e| Error::unavailable("the image's bytes ended early").because(e);
    let mut file = tokio::fs::File::create(part).await?;
    let (mut chunk, mut size, mut hash) = (vec![0; CHUNK], 0, Sha512::new());
    loop {
        let n = bytes.read(&mut chunk).await.map_err(away)?;
        size += n as u64;
        if n == 0 || size > image.size {
            break;
        }
        hash.update(&chunk[..n]);
        file.write_all(&chunk[..n]).await?;
    }
    file.sync_all().await?;
    let sum: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if size != image.size || !sum.eq_ignore_ascii_case(&image.sha512) {
        return Err(Error::invalid("the image's bytes are not those of its checksum"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(directory: &Path, bytes: &'static [u8]) -> Images {
        let link = Link::new(
            async |_| Ok(()),
            async |_, _| std::future::pending().await,
            async |_| Ok(()),
            move |_| async move { Ok(Box::pin(bytes) as crate::ImageBytes) },
        );
        Images::new(directory.into(), link)
    }

    #[tokio::test]
    async fn an_image_is_kept_when_its_checksum_is_right_and_while_it_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let images = images(directory.path(), b"abc");
        let sum = Sha512::digest(b"abc").iter().map(|b| format!("{b:02x}")).collect::<String>();
        let right = Image { id: Uuid::from_u128(1), format: "raw".into(), size: 3, sha512: sum };
        let name = images.fetched(&right).await.unwrap();
        assert_eq!(std::fs::read(directory.path().join(&name)).unwrap(), b"abc");
        images.keep(&[right.id].into());
        assert!(directory.path().join(&name).exists());
        images.keep(&BTreeSet::new());
        for wrong in [
            Image { sha512: "00".into(), ..right.clone() },
            Image { size: 2, ..right.clone() },
            Image { size: 4, ..right.clone() },
            Image { format: "qcow2".into(), ..right.clone() },
            Image { format: "vmdk".into(), ..right.clone() },
        ] {
            assert_eq!(images.fetched(&wrong).await.unwrap_err().kind(), base::Kind::Invalid);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
