//! The loop that gives what lost nodes hold of routers to others.

use base::Result;
use base::pass::{Next, Pass};
use fleet::{Fleet, Node};
use network::router::Router;
use network::spread;
use std::collections::BTreeSet;
use std::time::Duration;
use store::{Cause, Cell, State};

pub struct LostRoutersMoved {
    pub cell: Cell,
    pub fleet: Fleet,
}

impl Pass for LostRoutersMoved {
    const NAME: &'static str = "lost_routers_moved";
    const EVERY: Duration = Duration::from_secs(3);

    async fn pass(&mut self) -> Result<Next> {
        let state = self.cell.read();
        let names = state.all::<Node>().map(|n| n.hello.name.as_str());
        let alive: BTreeSet<String> = names.filter(|name| self.fleet.alive(name)).map(String::from).collect();
        // A look without the lane: mostly there is nothing to move.
        if astray(&state, &alive) {
            // Whether a node is heard is asked once, so that the transaction does the same when it is run again.
            let step = move |tx: &mut store::Tx| spread::move_from_lost(tx, &|name| alive.contains(name));
            self.cell.write(Cause::step(Self::NAME), step).await?;
        }
        Ok(Next::Usual)
    }
}

/// Whether a router is nowhere, or with a node that is not alive, while there is another that is.
fn astray(state: &State, alive: &BTreeSet<String>) -> bool {
    let lost = |node: &Option<String>| node.as_ref().is_some_and(|node| !alive.contains(node));
    let nowhere = |r: &Router| !r.distributed && r.host.is_none();
    let owner = |r: &Router| r.gateway.as_ref().is_some_and(|g| lost(&g.owner));
    !alive.is_empty() && state.all::<Router>().any(|r| nowhere(r) || lost(&r.host) || owner(r))
}
