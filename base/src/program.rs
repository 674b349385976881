//! Which program a node runs, and which one it is ordered to.
//!
//! An order is a field of the node's record; it comes to the node beside its document, and only to one that says which
//! order it has (`Known::order`): older ones know of none. A node carries an order out once, whatever comes of it, and its
//! hello then says so. What an operator starts there later is not touched by an order of before.

use crate::Timestamp;
use serde::{Deserialize, Serialize};

/// A file with a build of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub version: String,
    /// In hex.
    pub sha256: String,
    pub size: u64,
}

impl Program {
    /// `0.1.0 (0123456789ab)`
    pub fn shown(&self) -> String {
        format!("{} ({})", self.version, self.sha256.get(..12).unwrap_or(&self.sha256))
    }
}

/// A node is to run another program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// When it was given: no two orders of a node have the same.
    pub at: Timestamp,
    pub program: Program,
}

/// What a node says of its program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    pub program: Program,
    /// The last order that it has carried out or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Timestamp>,
    /// Why that was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Done,
    Failed(String),
}

impl Order {
    /// As the node says.
    pub fn outcome(&self, runs: &Runs) -> Outcome {
        match &runs.failed {
            _ if runs.order != Some(self.at) => Outcome::Pending,
            Some(why) => Outcome::Failed(why.clone()),
            None => Outcome::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_done_when_the_node_says_so_of_this_one() {
        let order = Order { at: Timestamp(7), program: Program::default() };
        let runs = |at, failed: Option<&str>| Runs {
            order: Some(Timestamp(at)),
            failed: failed.map(String::from),
            ..Runs::default()
        };
        assert_eq!(order.outcome(&Runs::default()), Outcome::Pending);
        assert_eq!(order.outcome(&runs(6, None)), Outcome::Pending);
        assert_eq!(order.outcome(&runs(6, Some("the one before"))), Outcome::Pending);
        assert_eq!(order.outcome(&runs(7, Some("no room"))), Outcome::Failed("no room".into()));
        assert_eq!(order.outcome(&runs(7, None)), Outcome::Done);
    }
}
