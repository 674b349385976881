//! The loop that gives what lost nodes hold of routers to others.
//!
//! Who has a router's gateway address, or a central router, is needed by guests of other nodes: these nodes are watched
//! closely (`Fleet::lost_of`), and what they hold moves seconds after they are lost, long before they count as down.

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
    const EVERY: Duration = Duration::from_secs(1);

    async fn pass(&mut self) -> Result<Next> {
        let state = self.cell.read();
        let lost = self.fleet.lost_of(&holders(&state));
        let astray = state.all::<Router>().any(|r| nowhere(r) || holders_of(r).any(|h| lost.contains(h)));
        // A look without the lane: mostly there is nothing to move.
        if astray {
            let names = state.all::<Node>().map(|n| n.hello.name.clone());
            let alive: BTreeSet<String> =
                names.filter(|name| !lost.contains(name) && self.fleet.alive(name)).collect();
            if alive.is_empty() {
                return Ok(Next::Usual);
            }
            // Whether a node is heard is asked once, so that the transaction does the same when it is run again.
            let step = move |tx: &mut store::Tx| spread::move_from_lost(tx, &|name| alive.contains(name));
            self.cell.write(Cause::step(Self::NAME), step).await?;
        }
        Ok(Next::Usual)
    }
}

/// The nodes that routers are with.
fn holders(state: &State) -> BTreeSet<String> {
    state.all::<Router>().flat_map(|router| holders_of(router)).cloned().collect()
}

fn holders_of(router: &Router) -> impl Iterator<Item = &String> {
    router.host.iter().chain(router.gateway.iter().filter_map(|gateway| gateway.owner.as_ref()))
}

fn nowhere(router: &Router) -> bool {
    !router.distributed && router.host.is_none()
}
