//! Where routers are: which node answers for a gateway, which block of source ports each node has, which node a
//! central router is on.
//!
//! Decided in the transaction that makes the need: a port is bound, an interface or gateway comes. A node keeps its
//! block while it has a port behind the router, so no running connection changes its source. `lost_routers_moved`
//! gives what a lost node held to another.
//!
//! Limits: `SNAT_BLOCKS` nodes share one gateway address; the guests of one more reach the outside only by floating
//! addresses, until a node has no port behind the router any more.

use crate::port::{self, Port};
use crate::reach;
use crate::router::{self, Gateway, Router};
use base::node::SNAT_BLOCKS;
use base::{Id, Result};
use fleet::Node;
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{State, Tx};

/// Brings a router's places in line with its interfaces, its gateway and the ports behind it, and those of the routers
/// that it passes on to.
pub(crate) fn settle(tx: &mut Tx, id: Id<Router>) -> Result<Arc<Router>> {
    let onward = reach::onward(tx, [id].into());
    onward.into_iter().filter(|next| *next != id).try_for_each(|next| settle_one(tx, next).map(drop))?;
    settle_one(tx, id)
}

fn settle_one(tx: &mut Tx, id: Id<Router>) -> Result<Arc<Router>> {
    let old = tx
        .get::<Router>(&id)
        .cloned()
        .ok_or_else(|| crate::resource::not_found::<Router>(&id.to_string()))?;
    let mut router = Router::clone(&old);
    place(tx, &mut router, &|_| true);
    let nodes = nodes_behind(tx, &router);
    if let Some(gateway) = &mut router.gateway {
        share(gateway, &nodes);
    }
    keep(tx, &old, router)
}

/// A port has come to a node: the routers of its network need a place there.
pub(crate) fn port_bound(tx: &mut Tx, bound: &Port) -> Result<()> {
    if bound.host.is_empty() || !bound.owner.is_compute() {
        return Ok(());
    }
    for id in reach::onward(tx, reach::routers_of(tx, bound.network)) {
        let Some(router) = tx.get::<Router>(&id) else { continue };
        let shared = router.gateway.as_ref().is_none_or(|g| g.blocks.contains_key(&bound.host));
        let placed = router.distributed || router.host.is_some();
        if !(shared && placed) {
            settle_one(tx, id)?;
        }
    }
    Ok(())
}

/// Gives what nodes hold that are not `alive` to others that are, and frees the blocks of nodes without a port behind
/// the router. Returns whether anything moved.
pub fn move_from_lost(tx: &mut Tx, alive: &dyn Fn(&str) -> bool) -> Result<bool> {
    let all: Vec<Arc<Router>> = tx.all::<Router>().cloned().collect();
    let mut moved = false;
    for old in all {
        let mut router = Router::clone(&old);
        place(tx, &mut router, alive);
        let nodes = nodes_behind(tx, &router);
        if let Some(gateway) = &mut router.gateway {
            share(gateway, &nodes);
            if gateway.owner.as_deref().is_some_and(|owner| !alive(owner)) {
                let next = nodes.iter().find(|node| alive(node) && gateway.blocks.contains_key(*node));
                gateway.owner = next.cloned().or(gateway.owner.take());
            }
        }
        moved |= !Arc::ptr_eq(&keep(tx, &old, router)?, &old);
    }
    Ok(moved)
}

fn keep(tx: &mut Tx, old: &Arc<Router>, router: Router) -> Result<Arc<Router>> {
    // To other nodes the interfaces of a central router are members of their networks.
    let host = router.host.clone().unwrap_or_default();
    let astray = router::interfaces(tx, router.id).filter(|p| p.host != host);
    let astray: Vec<Id<Port>> = astray.map(|p| p.id).collect();
    for port in astray {
        port::change(tx, port, |p| p.host = host.clone())?;
    }
    match router == **old {
        true => Ok(old.clone()),
        false => Ok(tx.put(router)?),
    }
}

/// A central router has one node that is enabled and alive: the one with fewest others. It stays where it is.
fn place(tx: &Tx, router: &mut Router, alive: &dyn Fn(&str) -> bool) {
    if router.distributed {
        router.host = None;
        return;
    }
    let stays =
        router.host.as_deref().is_some_and(|host| fleet::node::named(tx, host).is_some() && alive(host));
    if !stays {
        let candidates = tx.all::<Node>().filter(|n| n.is_open() && alive(&n.hello.name));
        let name = |n: &Arc<Node>| n.hello.name.clone();
        let best =
            candidates.map(name).min_by_key(|n| (tx.by(&router::BY_HOST, n.as_str()).count(), n.clone()));
        router.host = best.or(router.host.take());
    }
}

/// The nodes that route for a router: its own if it is central, else those with a port behind it or behind one that
/// passes on to it.
fn nodes_behind(state: &State, router: &Router) -> BTreeSet<String> {
    if !router.distributed {
        return router.host.iter().cloned().collect();
    }
    let before = reach::before(state, router.id);
    let passing = before.iter().filter_map(|id| state.get::<Router>(id)).filter(|r| !r.distributed);
    let hosts: Vec<String> = passing.filter_map(|r| r.host.clone()).collect();
    let distributed = before.iter().filter(|id| state.get::<Router>(id).is_some_and(|r| r.distributed));
    let networks: BTreeSet<_> =
        distributed.flat_map(|id| router::interfaces(state, *id)).map(|p| p.network).collect();
    let ports = networks.iter().flat_map(|n| state.by(&port::BY_MEMBERS, *n));
    let bound = ports.filter(|p| p.owner.is_compute()).map(|p| p.host.clone());
    bound.chain(hosts).collect()
}

/// A block for each node, the lowest free one; those of nodes that are no longer behind the router are free again.
fn share(gateway: &mut Gateway, nodes: &BTreeSet<String>) {
    gateway.blocks.retain(|node, _| nodes.contains(node));
    for node in nodes {
        let taken: BTreeSet<u16> = gateway.blocks.values().copied().collect();
        if gateway.blocks.contains_key(node) {
            continue;
        }
        if let Some(free) = (0..SNAT_BLOCKS).find(|n| !taken.contains(n)) {
            gateway.blocks.insert(node.clone(), free);
        }
    }
    if !gateway.owner.as_ref().is_some_and(|owner| nodes.contains(owner)) {
        gateway.owner = nodes.first().cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> Gateway {
        Gateway {
            network: Id::default(),
            port: Id::default(),
            snat: true,
            owner: None,
            blocks: Default::default(),
        }
    }

    fn names(n: u32) -> BTreeSet<String> {
        (0..n).map(|n| format!("node-{n:02}")).collect()
    }

    #[test]
    fn a_node_keeps_its_block_while_others_come_and_go() {
        let mut gateway = gateway();
        share(&mut gateway, &names(3));
        let before = gateway.blocks["node-02"];
        share(&mut gateway, &["node-02".to_string(), "other".to_string()].into());
        assert_eq!(gateway.blocks["node-02"], before);
        assert_eq!(gateway.blocks["other"], 0, "the lowest free block");
        assert_eq!(gateway.owner.as_deref(), Some("node-02"), "the owner left");
    }

    #[test]
    fn no_block_is_given_twice_and_the_last_node_gets_none() {
        let mut gateway = gateway();
        share(&mut gateway, &names(SNAT_BLOCKS as u32 + 1));
        let given: BTreeSet<u16> = gateway.blocks.values().copied().collect();
        assert_eq!((given.len(), gateway.blocks.len()), (SNAT_BLOCKS as usize, SNAT_BLOCKS as usize));
    }
}
