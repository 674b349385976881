//! Bytes that outlive servers: images.
//!
//! An image is a record in the store and a file in the state directory; a record that is active has its file, whole.
//!
//! Limits: `IMAGE_BYTES_MAX` for an image unless the settings say less, `TAGS_MAX`, `PROPERTIES_MAX`, `MEMBERS_MAX`.

pub mod image;
pub mod metadef;

use api::Mounted;
use std::path::PathBuf;
use std::sync::Arc;
use store::{Cell, Schema};

#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory of this service under the state directory; it is made when it is not there.
    pub dir: PathBuf,
    pub image_bytes_max: u64,
}

/// Bytes of one image.
pub const IMAGE_BYTES_MAX: u64 = 1 << 40;

impl Settings {
    pub fn new(dir: impl Into<PathBuf>) -> Settings {
        Settings { dir: dir.into(), image_bytes_max: IMAGE_BYTES_MAX }
    }
}

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    pub cell: Cell,
    pub settings: Arc<Settings>,
    /// The uploads that this process is busy with.
    pub uploads: image::files::Busy,
}

impl App {
    pub fn new(cell: Cell, settings: Settings) -> App {
        App { cell, settings: Arc::new(settings), uploads: image::files::Busy::default() }
    }
}

/// The kinds of records that this service keeps.
pub fn records(schema: Schema) -> Schema {
    image::records(schema).record::<metadef::Namespace>()
}

/// Images under `/image`.
pub fn service(app: App) -> Mounted {
    image::service().mount(app)
}
