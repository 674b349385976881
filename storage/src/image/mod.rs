use base::{Context, Error, Id, IdKind, ProjectId, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Record, State};
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub id: Id<Image>,
    pub owner: ProjectId,
    pub min_ram: u64,
    pub min_disk: u64,
}
impl IdKind for Image {}
impl Record for Image {
    const KIND: &'static str = "image";
    type Key = Id<Image>;
    fn key(&self) -> Id<Image> {
        self.id
    }
}
impl Image {
    pub fn is_active(&self) -> bool {
        true
    }
    pub fn size_needed(&self) -> u64 {
        0
    }
    pub fn section(&self) -> base::node::Image {
        base::node::Image { id: self.id.uuid(), format: String::new(), size: 0, sha512: String::new() }
    }
}
pub fn get(state: &State, _: &Context, id: Id<Image>) -> Result<Arc<Image>> {
    state.get::<Image>(&id).cloned().ok_or_else(|| Error::not_found("no image"))
}
