//! Images: what servers start from.
//!
//! ```text
//! queued --upload--> saving --whole--> active <--> deactivated
//!    \---stage----> uploading --import--/
//! ```
//!
//! A failed upload is queued again. Any of these may be deleted, unless it is protected; the file goes afterwards. Who
//! sees an image: its project, everybody (`public`, `community`), or the projects it is shared with.
//!
//! Limits: `TAGS_MAX` tags, `PROPERTIES_MAX` properties, `member::MEMBERS_MAX` members.

mod data;
mod discovery;
pub mod files;
mod import;
pub mod inspect;
mod list;
pub mod member;
mod patch;
mod rest;
mod rules;
mod schema;
mod view;

pub use files::{LostUploadsReset, UnownedFilesRemoved, path};

use crate::App;
use api::{Faults, Service};
use base::{Context, Error, Id, IdKind, ProjectId, Result, Timestamp};
use identity::limit::{self, Resource};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::{Index, IndexPart, Record, Schema, State, Tx};

pub const TAGS_MAX: usize = 128;
pub const PROPERTIES_MAX: usize = 128;

/// Images of a project, and their bytes in MiB, each rounded up.
pub const COUNT: Resource = Resource { name: "image:image_count_total", default: 1_000 };
pub const SIZE: Resource = Resource { name: "image:image_size_total", default: 1 << 20 };

/// All limits of this service, for the quota views.
pub const RESOURCES: &[Resource] = &[COUNT, SIZE];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Queued,
    /// An upload is running.
    Saving,
    /// Its bytes are staged and wait for the import.
    Uploading,
    Active,
    Deactivated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    Private,
    Shared,
    Community,
    Public,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    Ami,
    Ari,
    Aki,
    Vhd,
    Vhdx,
    Vmdk,
    Raw,
    Qcow2,
    Vdi,
    Iso,
    Ploop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerFormat {
    Ami,
    Ari,
    Aki,
    Bare,
    Ovf,
    Ova,
    Docker,
    Compressed,
}

macro_rules! words {
    ($name:ident) => {
        impl $name {
            /// The word that the API has for it.
            pub fn word(self) -> String {
                format!("{self:?}").to_ascii_lowercase()
            }
        }
    };
}
words!(Status);
words!(Visibility);
words!(DiskFormat);
words!(ContainerFormat);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub id: Id<Image>,
    pub owner: ProjectId,
    pub status: Status,
    pub fields: ImageFields,
    /// Bytes, when there are some.
    #[serde(default)]
    pub content: Option<Content>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a client writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageFields {
    #[serde(default)]
    pub name: Option<String>,
    pub visibility: Visibility,
    #[serde(default)]
    pub protected: bool,
    #[serde(default)]
    pub hidden: bool,
    #[serde(default)]
    pub disk_format: Option<DiskFormat>,
    #[serde(default)]
    pub container_format: Option<ContainerFormat>,
    #[serde(default)]
    pub min_disk_gib: u64,
    #[serde(default)]
    pub min_ram_mib: u64,
    #[serde(default)]
    pub tags: BTreeSet<String>,
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

impl Default for ImageFields {
    fn default() -> ImageFields {
        ImageFields {
            name: None,
            visibility: Visibility::Shared,
            protected: false,
            hidden: false,
            disk_format: None,
            container_format: None,
            min_disk_gib: 0,
            min_ram_mib: 0,
            tags: BTreeSet::new(),
            properties: BTreeMap::new(),
        }
    }
}

/// What is known of the bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    pub size: u64,
    /// What a guest sees of them.
    pub virtual_size: u64,
    pub md5: String,
    pub sha512: String,
}

pub const BY_OWNER: Index<Image> = Index::many("owner", |i, keys| keys.push(i.owner.key()));
pub const BY_VISIBILITY: Index<Image> =
    Index::many("visibility", |i, keys| keys.push((i.fields.visibility as u32).key()));
pub const BY_STATUS: Index<Image> = Index::many("status", |i, keys| keys.push((i.status as u32).key()));

impl IdKind for Image {}

impl Record for Image {
    const KIND: &'static str = "image";
    type Key = Id<Image>;
    const INDEXES: &'static [Index<Image>] = &[BY_OWNER, BY_VISIBILITY, BY_STATUS];

    fn key(&self) -> Id<Image> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.owner, COUNT.name, 1);
        add(self.owner, SIZE.name, self.content.as_ref().map_or(0, |c| mib(c.size)));
    }
}

/// Whole MiB that hold so many bytes.
pub fn mib(bytes: u64) -> i64 {
    bytes.div_ceil(1 << 20) as i64
}

impl Image {
    pub fn is_active(&self) -> bool {
        self.status == Status::Active
    }

    /// Bytes of the disk that a server needs for it.
    pub fn size_needed(&self) -> u64 {
        self.content.as_ref().map_or(0, |c| c.virtual_size.max(c.size))
    }

    pub fn min_ram_mib(&self) -> u64 {
        self.fields.min_ram_mib
    }

    pub fn min_disk_gib(&self) -> u64 {
        self.fields.min_disk_gib
    }

    /// What a node is told of it.
    pub fn section(&self) -> base::node::Image {
        let content = self.content.as_ref();
        base::node::Image {
            id: self.id.uuid(),
            format: self.fields.disk_format.map(DiskFormat::word).unwrap_or_default(),
            size: content.map_or(0, |c| c.size),
            sha512: content.map(|c| c.sha512.clone()).unwrap_or_default(),
        }
    }
}

pub(crate) fn records(schema: Schema) -> Schema {
    schema.record::<Image>().record::<member::Member>().record::<import::Task>()
}

pub(crate) fn service() -> Service<App> {
    Service {
        name: "image",
        prefix: "/image",
        faults: Faults::Image,
        microversions: None,
        project_in_path: false,
        request_id_header: None,
        rules: &[rules::RULES, crate::metadef::rest::RULES],
        routes: [
            discovery::routes(),
            rest::routes(),
            data::routes(),
            import::routes(),
            member::routes(),
            schema::routes(),
            crate::metadef::rest::routes(),
        ]
        .into_iter()
        .flatten()
        .collect(),
    }
}

pub(crate) fn missing(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("No image found with ID {id}"))
}

/// Whether the caller may know of an image at all.
pub fn sees(state: &State, cx: &Context, image: &Image) -> bool {
    cx.sees(image.owner)
        || matches!(image.fields.visibility, Visibility::Public | Visibility::Community)
        || member::is(state, image, cx.project())
}

/// Errors: `NotFound` when it is not there or not for this caller.
pub fn get(state: &State, cx: &Context, id: Id<Image>) -> Result<Arc<Image>> {
    let found = state.get::<Image>(&id).filter(|image| sees(state, cx, image));
    found.cloned().ok_or_else(|| missing(id))
}

/// Errors: `Conflict` for an id that is taken, `OverQuota`.
pub fn create(
    tx: &mut Tx,
    _cx: &Context,
    id: Option<Id<Image>>,
    owner: ProjectId,
    fields: ImageFields,
) -> Result<Arc<Image>> {
    let id = id.unwrap_or_else(|| tx.new_id());
    if tx.get::<Image>(&id).is_some() {
        return Err(Error::conflict(format!("Image ID {id} already exists!")));
    }
    limit::claim(tx, owner, &COUNT, 1)?;
    checked(&fields)?;
    let now = tx.now();
    let image =
        Image { id, owner, status: Status::Queued, fields, content: None, created_at: now, updated_at: now };
    Ok(tx.put(image)?)
}

fn checked(fields: &ImageFields) -> Result<()> {
    let too_many = |what: &str, max: usize| Error::too_large(format!("An image has at most {max} {what}."));
    match (fields.tags.len() > TAGS_MAX, fields.properties.len() > PROPERTIES_MAX) {
        (true, _) => Err(too_many("tags", TAGS_MAX)),
        (false, true) => Err(too_many("properties", PROPERTIES_MAX)),
        (false, false) => Ok(()),
    }
}

/// Changes what a client writes, and the owner.
///
/// Errors: `Forbidden` for the formats of an image that has its bytes.
pub fn update(
    tx: &mut Tx,
    cx: &Context,
    id: Id<Image>,
    owner: ProjectId,
    fields: ImageFields,
) -> Result<Arc<Image>> {
    let mut image = Image::clone(&*get(tx, cx, id)?);
    let formats = |f: &ImageFields| (f.disk_format, f.container_format);
    if image.status != Status::Queued && formats(&image.fields) != formats(&fields) {
        return Err(Error::forbidden(
            "Attribute container_format and disk_format can be only replaced for a queued image.",
        ));
    }
    checked(&fields)?;
    if owner != image.owner {
        limit::claim(tx, owner, &COUNT, 1)?;
        limit::claim(tx, owner, &SIZE, image.content.as_ref().map_or(0, |c| mib(c.size)))?;
    }
    (image.owner, image.fields) = (owner, fields);
    touch(tx, image)
}

pub(crate) fn touch(tx: &mut Tx, mut image: Image) -> Result<Arc<Image>> {
    image.updated_at = tx.now();
    Ok(tx.put(image)?)
}

/// Forgets an image and its members; the loop removes the file.
///
/// Errors: `Forbidden` when it is protected.
pub fn delete(tx: &mut Tx, cx: &Context, id: Id<Image>) -> Result<()> {
    if get(tx, cx, id)?.fields.protected {
        return Err(Error::forbidden(format!("Image {id} is protected and cannot be deleted.")));
    }
    member::forget(tx, id);
    import::forget(tx, id);
    tx.delete::<Image>(&id);
    Ok(())
}

/// What happens to the bytes of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// An upload starts, straight or to be staged.
    Save,
    Stage,
    /// Its bytes are in the stage.
    Staged,
    /// They are whole and in their place.
    Saved(Content),
    /// They will not come.
    Lost,
    Deactivate,
    Reactivate,
}

/// The status after a step. `None`: the status does not allow it.
pub fn next(status: Status, step: &Step) -> Option<Status> {
    match (status, step) {
        (Status::Queued, Step::Save | Step::Stage) => Some(Status::Saving),
        (Status::Saving, Step::Staged) => Some(Status::Uploading),
        (Status::Uploading, Step::Save) => Some(Status::Saving),
        (Status::Saving, Step::Saved(_)) => Some(Status::Active),
        (Status::Saving | Status::Uploading, Step::Lost) => Some(Status::Queued),
        (Status::Active | Status::Deactivated, Step::Deactivate) => Some(Status::Deactivated),
        (Status::Active | Status::Deactivated, Step::Reactivate) => Some(Status::Active),
        (
            Status::Queued,
            Step::Staged | Step::Saved(_) | Step::Lost | Step::Deactivate | Step::Reactivate,
        )
        | (Status::Saving, Step::Save | Step::Stage | Step::Deactivate | Step::Reactivate)
        | (
            Status::Uploading,
            Step::Stage | Step::Staged | Step::Saved(_) | Step::Deactivate | Step::Reactivate,
        )
        | (
            Status::Active | Status::Deactivated,
            Step::Save | Step::Stage | Step::Staged | Step::Saved(_) | Step::Lost,
        ) => None,
    }
}

/// Takes a step, whoever asks: the route's rule was theirs.
///
/// Errors: `NotFound`, `Conflict` when the status does not allow it, `Invalid` without formats, `OverQuota`.
pub fn step(tx: &mut Tx, id: Id<Image>, step: &Step) -> Result<Arc<Image>> {
    let mut image = Image::clone(tx.get::<Image>(&id).ok_or_else(|| missing(id))?);
    let now = image.status.word();
    image.status = next(image.status, step)
        .ok_or_else(|| Error::conflict(format!("Image status transition from {now} is not allowed.")))?;
    if matches!(step, Step::Save)
        && (image.fields.disk_format.is_none() || image.fields.container_format.is_none())
    {
        return Err(Error::invalid(
            "Properties disk_format, container_format must be set prior to saving data.",
        ));
    }
    if let Step::Saved(content) = step {
        limit::claim(tx, image.owner, &SIZE, mib(content.size))?;
        image.content = Some(content.clone());
    }
    touch(tx, image)
}

/// Bytes that an image of `owner` may still have.
pub fn room(state: &State, owner: ProjectId) -> u64 {
    match limit::of(state, owner, &SIZE) {
        -1 => u64::MAX,
        limit => ((limit - limit::used(state, owner, &SIZE)).max(0) as u64) << 20,
    }
}
