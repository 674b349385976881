//! The log: what changed, when, and by whose request.

use crate::record::{Image, Record, Schema};
use base::{Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// The number of a transaction; one more than the one before it.
pub type Revision = u64;

/// Why a transaction ran: the request, report or loop step itself, so that another version can try it again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cause {
    /// The request id, or the name of the loop.
    pub id: String,
    /// User and project ids, or empty.
    pub who: String,
    /// Method and path as they came, or the step.
    pub route: String,
    /// The microversion that was negotiated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The body, sealed with the cell's key: it may hold passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<base::Secret>,
}

impl Cause {
    /// The cause of a step that a loop or the first start takes.
    pub fn step(name: &str) -> Cause {
        Cause { id: name.into(), route: name.into(), ..Cause::default() }
    }
}

/// One record before and after a transaction.
#[derive(Clone)]
pub struct Change {
    pub(crate) slot: usize,
    pub kind: &'static str,
    pub key: Box<str>,
    pub(crate) before: Option<Image>,
    pub(crate) after: Option<Image>,
}

impl Change {
    /// The record before and after, if it is an `R`.
    pub fn of<R: Record>(&self) -> Option<(Option<&R>, Option<&R>)> {
        (self.kind == R::KIND).then(|| {
            (
                self.before.as_deref().and_then(|i| i.downcast_ref()),
                self.after.as_deref().and_then(|i| i.downcast_ref()),
            )
        })
    }
}

/// One transaction, as watchers see it.
pub struct Entry {
    pub revision: Revision,
    pub epoch: u64,
    pub time: Timestamp,
    pub seed: u128,
    pub cause: Cause,
    pub changes: Vec<Change>,
}

/// An entry as it stands in the engine.
#[derive(Serialize, Deserialize)]
pub struct Written {
    pub time: i64,
    pub seed: String,
    pub cause: Cause,
    pub changes: Vec<(String, String, Option<Value>)>,
}

impl Entry {
    /// The after-images, with the unknown fields that a newer version wrote.
    pub(crate) fn written(
        &self,
        schema: &Schema,
        unknown: impl Fn(usize, &str) -> Option<Arc<Value>>,
    ) -> Result<Written> {
        let mut changes = Vec::with_capacity(self.changes.len());
        for change in &self.changes {
            let mut image =
                change.after.as_ref().map(|i| (schema.kinds[change.slot].encode)(&**i)).transpose()?;
            if let (Some(image), Some(rest)) = (&mut image, unknown(change.slot, &change.key)) {
                crate::state::rejoin(image, &rest);
            }
            changes.push((change.kind.to_string(), change.key.to_string(), image));
        }
        let seed = format!("{:032x}", self.seed);
        Ok(Written { time: self.time.0, seed, cause: self.cause.clone(), changes })
    }
}

impl Written {
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal("a log entry cannot be written").because(e))
    }
}
