//! Programs that nodes are ordered to run: a field of their records, told beside their documents at once.
//!
//! Only nodes on other machines have orders: those of the planes' machine are replaced by their keeper.

use crate::join::Member;
use crate::node::{self, Node};
use crate::{Fleet, NodeId};
use base::program::{Order, Program, Runs};
use base::{Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use store::{Cause, State, Tx};

/// Orders of one transaction.
pub const ORDERS_MAX: usize = 500;

/// A node on another machine, as far as its program goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Far {
    pub name: String,
    pub alive: bool,
    /// None: it is of a version that knows of no orders.
    pub runs: Option<Runs>,
    pub order: Option<Order>,
}

impl Fleet {
    /// Orders nodes to run programs.
    ///
    /// Errors: `Invalid` for more than `ORDERS_MAX`; `NotFound` for what is no node on another machine.
    pub async fn order(&self, orders: BTreeMap<String, Program>) -> Result<()> {
        if orders.len() > ORDERS_MAX {
            return Err(Error::invalid(format!("More than {ORDERS_MAX} orders at once.")));
        }
        let names: Vec<String> = orders.keys().cloned().collect();
        self.cell().write(Cause::step("order"), move |tx| give(tx, &orders)).await?;
        names.iter().for_each(|name| self.inner.documents.wake(name));
        Ok(())
    }

    /// What a node is ordered, if it does not know it yet; `known`: when what it knows was given.
    pub(crate) fn order_for(&self, node: &str, known: Option<Timestamp>) -> Option<Order> {
        let known = known?;
        let state = self.cell().read();
        node::named(&state, node)?.order.clone().filter(|order| order.at > known)
    }

    /// Whether a node is to have this file.
    pub(crate) fn is_ordered(&self, node: &str, sha256: &str) -> bool {
        let state = self.cell().read();
        let order = node::named(&state, node).and_then(|node| node.order.as_ref());
        order.is_some_and(|order| order.program.sha256 == sha256)
    }

    /// Nodes on other machines after a name, at most `most`.
    pub fn far(&self, after: &str, most: usize) -> Vec<Far> {
        let state = self.cell().read();
        let members = state.after::<Member>(&after.to_string());
        members.filter_map(|member| self.far_of(&state, &member.name)).take(most).collect()
    }

    /// One of them. None: it is not there, or on the planes' machine.
    pub fn far_one(&self, name: &str) -> Option<Far> {
        let state = self.cell().read();
        state.get::<Member>(&name.to_string())?;
        self.far_of(&state, name)
    }

    fn far_of(&self, state: &State, name: &str) -> Option<Far> {
        let node = node::named(state, name)?;
        let (runs, order) = (node.hello.runs.clone(), node.order.clone());
        Some(Far { name: name.into(), alive: self.alive(name), runs, order })
    }
}

fn give(tx: &mut Tx, orders: &BTreeMap<String, Program>) -> Result<()> {
    let at = tx.now();
    for (name, program) in orders {
        let missing = || Error::not_found(format!("There is no node {name} on another machine."));
        tx.get::<Member>(name).ok_or_else(missing)?;
        let node: Option<(NodeId, Option<Timestamp>)> =
            node::named(tx, name).map(|node| (node.id, node.order.as_ref().map(|order| order.at)));
        let (id, last) = node.ok_or_else(missing)?;
        // The clock may stand still between two transactions.
        let at = last.map_or(at, |last| at.max(Timestamp(last.0 + 1)));
        let order = Order { at, program: program.clone() };
        tx.update::<Node>(&id, |node| node.order = Some(order))?;
    }
    Ok(())
}
