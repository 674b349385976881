//! What a record format after this one may bring, each in one piece: a field, a kind, a value of an enum. For
//! `make formats-test` alone; a product has none of it.

use super::{EndpointFields, Interface, RegionFields};
use base::{Error, Result};
use serde::{Deserialize, Serialize};
use store::{Record, Tx};

/// The format that brings the kind and the value.
const FORMAT: u32 = 3;

/// A new field, with a level below it: how a region began. Written at once, because the version before keeps it, and
/// derived from nothing that the version before may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    pub length: usize,
}

pub fn noted(fields: &RegionFields) -> Option<Noted> {
    let length = fields.description.len();
    (length > 0).then_some(Noted { length })
}

/// A new kind: which regions were written in the new format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub region: String,
}

impl Record for Seen {
    const KIND: &'static str = "next_format_seen";
    type Key = String;

    fn key(&self) -> String {
        self.region.clone()
    }
}

pub fn seen(tx: &mut Tx, region: &str) -> Result<()> {
    if tx.format() >= FORMAT {
        tx.put(Seen { region: region.into() })?;
    }
    Ok(())
}

/// Errors: `Invalid`, as the version before says, while that one may come back.
pub fn may(tx: &Tx, endpoint: &EndpointFields) -> Result<()> {
    match endpoint.interface {
        Interface::Next if tx.format() < FORMAT => Err(Error::invalid("next is no interface.")),
        Interface::Next | Interface::Public | Interface::Internal | Interface::Admin => Ok(()),
    }
}
