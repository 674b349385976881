//! The loop that writes down which nodes are silent, so that what is decided in transactions knows it.

use crate::{Fleet, Node, NodeId};
use base::Result;
use base::pass::{Next, Pass};
use std::collections::BTreeMap;
use std::time::Duration;
use store::Cause;

pub struct SilentNodesClosed {
    pub fleet: Fleet,
}

/// Nodes that one transaction writes.
const STEP_MAX: usize = 500;

impl Pass for SilentNodesClosed {
    const NAME: &'static str = "silent_nodes_closed";
    const EVERY: Duration = Duration::from_secs(1);

    async fn pass(&mut self) -> Result<Next> {
        let state = self.fleet.cell().read();
        let now = state.all::<Node>().map(|n| (n.id, n.silent, !self.fleet.alive(&n.hello.name)));
        let changed = now.filter(|(_, was, is)| was != is).map(|(id, _, is)| (id, is));
        let changed: BTreeMap<NodeId, bool> = changed.take(STEP_MAX).collect();
        if changed.is_empty() {
            return Ok(Next::Usual);
        }
        let step = move |tx: &mut store::Tx| {
            let now = tx.now();
            changed.iter().try_for_each(|(id, silent)| {
                let write = |n: &mut Node| (n.silent, n.updated) = (*silent, now);
                tx.update::<Node>(id, write).map(drop).map_err(base::Error::from)
            })
        };
        self.fleet.cell().write(Cause::step(Self::NAME), step).await?;
        Ok(Next::Again)
    }
}
