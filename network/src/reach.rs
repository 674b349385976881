//! Which routers a packet may pass one after the other.
//!
//! A router passes on to another by an extra route whose next hop is the other one's interface on a network that both
//! are on. Distributed routers work where the packet starts, so its node needs all that it may pass; a central one is
//! reached by the tunnel, as any member of its networks.
//!
//! Limits: `HOPS_MAX` routers after the first.

use crate::network::Network;
use crate::port::{self, Port, ROUTER_INTERFACE};
use crate::router::{self, Router};
use base::Id;
use std::collections::BTreeSet;
use std::sync::Arc;
use store::State;

const HOPS_MAX: usize = 8;

/// The routers with an interface on a network.
pub(crate) fn routers_of(state: &State, network: Id<Network>) -> BTreeSet<Id<Router>> {
    state.by(&port::BY_LEGS, (network, false)).filter_map(|p| p.device.parse().ok()).collect()
}

/// The distributed ones of them.
pub(crate) fn distributed_of(state: &State, network: Id<Network>) -> BTreeSet<Id<Router>> {
    routers_of(state, network).into_iter().filter(|r| is_distributed(state, *r)).collect()
}

/// These routers, and the distributed ones that packets through them may pass next, and so on.
pub(crate) fn onward(state: &State, first: BTreeSet<Id<Router>>) -> BTreeSet<Id<Router>> {
    close(first, |router| nexts(state, router))
}

/// A router and those that pass packets on to it, directly or by others.
pub(crate) fn before(state: &State, router: Id<Router>) -> BTreeSet<Id<Router>> {
    close([router].into(), |router| {
        let networks: BTreeSet<_> = router::interfaces(state, router).map(|p| p.network).collect();
        let beside: BTreeSet<_> = networks.iter().flat_map(|n| routers_of(state, *n)).collect();
        beside.into_iter().filter(|other| nexts(state, *other).contains(&router)).collect()
    })
}

fn is_distributed(state: &State, router: Id<Router>) -> bool {
    state.get::<Router>(&router).is_some_and(|r| r.distributed)
}

/// The distributed routers whose interfaces are next hops of a router's extra routes.
fn nexts(state: &State, id: Id<Router>) -> BTreeSet<Id<Router>> {
    let Some(router) = state.get::<Router>(&id).filter(|r| !r.routes.is_empty()) else {
        return BTreeSet::new();
    };
    let networks: BTreeSet<_> = router::interfaces(state, id).map(|p| p.network).collect();
    let holder = |network, via| port::with_address(state, network, via);
    let next = |p: &Arc<Port>| p.device.parse().ok().filter(|_| p.owner.0 == ROUTER_INTERFACE);
    let hops: BTreeSet<_> = router.routes.iter().map(|route| route.nexthop).collect();
    let found = hops.iter().flat_map(|via| networks.iter().filter_map(|n| next(holder(*n, *via)?)));
    found.filter(|next| *next != id && is_distributed(state, *next)).collect()
}

fn close(
    first: BTreeSet<Id<Router>>,
    next: impl Fn(Id<Router>) -> BTreeSet<Id<Router>>,
) -> BTreeSet<Id<Router>> {
    let (mut all, mut last) = (first.clone(), first);
    for _ in 0..HOPS_MAX {
        last = last.iter().flat_map(|router| next(*router)).filter(|router| !all.contains(router)).collect();
        if last.is_empty() {
            break;
        }
        all.extend(&last);
    }
    all
}
