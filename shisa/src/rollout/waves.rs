//! Nodes get the new binary when the planes have it: those of this machine, whose process is replaced.
//!
//! Guests and network go on meanwhile, and are adopted. What goes wrong takes everything back, nodes first.

use super::Run;
use base::{Error, Result};
use std::path::Path;

impl Run {
    /// Errors: why nodes are to go back; those of this machine have then done so.
    pub async fn nodes(&self) -> Result<()> {
        if self.rollout.no_nodes || self.inner.nodes.seen().is_none() {
            return Ok(());
        }
        self.step("local", "the nodes of this machine are replaced", self.local()).await
    }

    async fn local(&self) -> Result<String> {
        let before = self.inner.nodes.seen().map(|seen| seen.binary);
        let said = self.replaced_local(&self.rollout.to.binary).await?;
        self.inner.book.change(|rollout| rollout.local_before = before);
        match *self.inner.back.borrow() {
            true => Err(Error::conflict("an operator ended it")),
            false => Ok(said),
        }
    }

    async fn replaced_local(&self, binary: &Path) -> Result<String> {
        let seen = self.inner.nodes.replace(binary).await?;
        let (pid, version) = (seen.pid, &seen.version);
        Ok(format!("the nodes of this machine are process {pid} with version {version}"))
    }

    /// Takes nodes back that were rolled.
    pub async fn nodes_back(&self) -> Result<()> {
        let rolled = self.inner.book.last().and_then(|last| last.local_before);
        let Some(binary) = rolled else { return Ok(()) };
        self.step("local-back", "", self.replaced_local(&binary)).await?;
        self.inner.book.change(|rollout| rollout.local_before = None);
        Ok(())
    }
}
