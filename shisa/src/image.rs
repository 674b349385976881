//! The guest image: uploaded once, through the API like any other.

use crate::clouds::Clouds;
use crate::http::{Client, text};
use crate::progress::Progress;
use crate::state::Directory;
use base::{Error, Result};
use serde_json::json;
use std::path::Path;

/// The public image that servers of the demo start from.
pub const GUEST: &str = "guest";

/// Errors: the file is not there or cannot be read.
pub fn check(file: &Path) -> Result<()> {
    let cannot = |e| Error::invalid(format!("the image file {} cannot be read", file.display())).because(e);
    std::fs::File::open(file).map(drop).map_err(cannot)
}

pub async fn upload_as_admin(directory: &Directory, file: &Path, progress: &Progress) -> Result<()> {
    let admin = admin(directory).await?;
    upload(&admin, Some(file), progress).await.map(drop)
}

/// The administrator, logged in.
pub async fn admin(directory: &Directory) -> Result<Client> {
    let clouds = Clouds::open(directory.clouds())?;
    let gone =
        || Error::not_found(format!("{} has no entry of the administrator", directory.clouds().display()));
    Client::login(directory, &clouds.get("admin").ok_or_else(gone)?.auth).await
}

/// The id of the image; uploaded when there is none that can be used.
pub async fn upload(admin: &Client, file: Option<&Path>, progress: &Progress) -> Result<String> {
    let found = admin.get(&format!("/image/v2/images?name={GUEST}&visibility=public&status=active")).await?;
    if let Some(image) = found["images"].get(0) {
        progress.step("image", format_args!("{GUEST} is there"));
        return Ok(text(&image["id"]));
    }
    let none = || Error::not_found(format!("there is no image {GUEST}; --image FILE uploads one"));
    let file = file.ok_or_else(none)?;
    check(file)?;
    let format = if file.extension().is_some_and(|e| e == "qcow2") { "qcow2" } else { "raw" };
    let new = json!({
        "name": GUEST, "visibility": "public", "disk_format": format, "container_format": "bare",
        "os_distro": "debian", "hw_rng_model": "virtio",
    });
    let image = text(&admin.post("/image/v2/images", new).await?["id"]);
    admin.upload(&format!("/image/v2/images/{image}/file"), file).await?;
    let mib = std::fs::metadata(file)?.len() >> 20;
    progress.step("image", format_args!("{GUEST} uploaded, {mib} MiB"));
    Ok(image)
}
