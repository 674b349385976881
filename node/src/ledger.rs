//! What the plane wants of this node, kept over a restart.
//!
//! One file, replaced as a whole with each patch. A simulated machine keeps it in memory only. A file that cannot be
//! read stops the node: with an empty document it would end all its guests.

use crate::file;
use base::node::{Document, Patch, Patched};
use base::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

pub struct Ledger {
    path: Option<PathBuf>,
    document: Arc<Document>,
}

impl Ledger {
    pub fn in_memory() -> Ledger {
        Ledger { path: None, document: Arc::default() }
    }

    pub fn open(path: PathBuf) -> Result<Ledger> {
        let document = file::read_json(&path)?.unwrap_or_default();
        Ok(Ledger { path: Some(path), document: Arc::new(document) })
    }

    pub fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// Applies and keeps a patch. One that changes nothing leaves the document the same allocation.
    pub async fn patch(&mut self, patch: Patch) -> Result<Patched> {
        if patch.generation <= self.document.generation && !patch.whole {
            return Ok(Patched::Older);
        }
        let mut next = Document::clone(&self.document);
        let patched = next.patch(patch);
        if patched != Patched::Taken || next == *self.document {
            return Ok(patched);
        }
        let next = Arc::new(next);
        if let Some(path) = self.path.clone() {
            let copy = next.clone();
            let write = move || file::write_json(&path, &*copy);
            tokio::task::spawn_blocking(write)
                .await
                .map_err(|e| Error::internal("the ledger's writer died").because(e))??;
        }
        self.document = next;
        Ok(Patched::Taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::node::{Generation, Group, Section, SectionKey};
    use uuid::Uuid;

    fn patch(revision: u64, group: u128) -> Patch {
        let id = Uuid::from_u128(group);
        let section = Section::Group(Group { id, ..Group::default() });
        Patch {
            generation: Generation { epoch: 1, revision },
            changed: [(SectionKey::Group(id), section)].into(),
            ..Patch::default()
        }
    }

    #[tokio::test]
    async fn keeps_the_newest_document_over_a_restart_and_refuses_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.json");
        let mut ledger = Ledger::open(path.clone()).unwrap();
        assert_eq!(ledger.patch(patch(5, 1)).await.unwrap(), Patched::Taken);
        assert_eq!(ledger.patch(patch(4, 2)).await.unwrap(), Patched::Older);
        assert_eq!(ledger.patch(patch(5, 2)).await.unwrap(), Patched::Older);
        assert_eq!(ledger.patch(Patch { whole: true, ..patch(3, 2) }).await.unwrap(), Patched::Older);
        let again = Ledger::open(path.clone()).unwrap();
        assert_eq!(again.document(), ledger.document());
        assert_eq!(again.document().sections.len(), 1);
        std::fs::write(&path, "{").unwrap();
        assert!(Ledger::open(path).is_err());
    }
}
