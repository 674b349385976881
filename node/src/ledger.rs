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

    /// Applies patches one after the other, up to one that does not fit, and keeps what comes of them. If that is nothing,
    /// the document is the same allocation.
    pub async fn patch(&mut self, patches: Vec<Patch>) -> Result<Patched> {
        let mut next = Document::clone(&self.document);
        // One of the same generation has nothing new in it.
        let mut patched = Patched::Taken;
        for patch in patches {
            if patch.generation == next.generation && !patch.whole {
                continue;
            }
            patched = next.patch(patch);
            if patched != Patched::Taken {
                break;
            }
        }
        if next == *self.document {
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
        Ok(patched)
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
        assert_eq!(ledger.patch(vec![patch(5, 1)]).await.unwrap(), Patched::Taken);
        assert_eq!(ledger.patch(vec![patch(4, 2)]).await.unwrap(), Patched::Older);
        let before = ledger.document().clone();
        assert_eq!(ledger.patch(vec![patch(5, 2)]).await.unwrap(), Patched::Taken, "it says nothing new");
        assert!(Arc::ptr_eq(&before, ledger.document()));
        let whole = Patch { whole: true, ..patch(3, 2) };
        assert_eq!(ledger.patch(vec![whole]).await.unwrap(), Patched::Older);
        let again = Ledger::open(path.clone()).unwrap();
        assert_eq!(again.document(), ledger.document());
        assert_eq!(again.document().sections.len(), 1);
        // Several are kept at once, up to one that does not fit.
        let several = vec![patch(6, 3), patch(6, 9), patch(8, 4), patch(7, 5), patch(9, 6)];
        assert_eq!(ledger.patch(several).await.unwrap(), Patched::Older);
        let groups = [1, 3, 4].map(|n| SectionKey::Group(Uuid::from_u128(n)));
        assert!(ledger.document().sections.keys().eq(&groups));
        assert_eq!(ledger.document().generation.revision, 8);
        assert_eq!(Ledger::open(path.clone()).unwrap().document(), ledger.document());
        std::fs::write(&path, "{").unwrap();
        assert!(Ledger::open(path).is_err());
    }
}
