//! The format of a cell's records: what every version that may still become its owner can read.
//!
//! ```text
//! format N --a rollout to a version that writes N + 1 is finalised--> format N + 1
//! ```
//!
//! A version only adds to the format. Fields that it adds have defaults and are not written while they have them, so
//! that the version before, which keeps what it does not know, has the same records. New kinds and new values of an enum
//! are used only where `State::format` has come to the version that brings them: until then it emulates the one before,
//! and going back is possible. A version refuses a cell whose format is above what it writes (it could not read the
//! records), or below what it emulates.

use crate::record::{Record, Schema};
use crate::state::State;
use crate::tx::Tx;
use base::{Error, Result};
use serde::{Deserialize, Serialize};

/// The format of cells that say none.
pub const FIRST: u32 = 1;

/// The one record of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    pub number: u32,
}

impl Record for Format {
    const KIND: &'static str = "format";
    type Key = String;

    fn key(&self) -> String {
        "cell".into()
    }
}

/// What a version can be: it emulates formats from the first on, and writes the second once that is finalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Formats {
    pub emulates: u32,
    pub writes: u32,
}

impl Formats {
    /// Errors: `Conflict` when this version may not touch records of a format.
    pub fn check(self, number: u32) -> Result<()> {
        if number > self.writes {
            return Err(Error::conflict(format!(
                "the records are of format {number}, and this version writes format {} at most: \
                 start the version that finalised them, or a newer one",
                self.writes
            )));
        }
        if number < self.emulates {
            return Err(Error::conflict(format!(
                "the records are of format {number}, and this version emulates format {} at least: \
                 finalise a rollout to a version between them first",
                self.emulates
            )));
        }
        Ok(())
    }
}

impl Schema {
    /// Declares which formats this version emulates, and which one it writes once a rollout to it is finalised.
    pub fn formats(mut self, emulates: u32, writes: u32) -> Schema {
        self.formats = Some(Formats { emulates, writes });
        self.record::<Format>()
    }

    /// Errors: `Conflict` when this version may not touch records of a format.
    pub(crate) fn check_format(&self, number: u32) -> Result<()> {
        self.formats.map_or(Ok(()), |formats| formats.check(number))
    }
}

impl State {
    /// The format that records are written in: what came later is not used yet.
    pub fn format(&self) -> u32 {
        let known = self.schema.slot_named(Format::KIND).is_some();
        let format = known.then(|| self.get::<Format>(&"cell".to_string())).flatten();
        format.map_or(FIRST, |format| format.number)
    }
}

/// Raises the cell's format to what this version writes: no version that does not know it may come back. The format
/// before and after.
pub fn finalise(tx: &mut Tx) -> Result<(u32, u32)> {
    let (before, writes) = (tx.format(), tx.schema.formats.map_or(FIRST, |formats| formats.writes));
    if writes > before {
        tx.put(Format { number: writes })?;
    }
    Ok((before, before.max(writes)))
}
