//! State is memory behind one writer, with a log on disk.
//!
//! Every resource is a typed [`Record`] in a table of the [`State`]; a [`Cell`] has one writer, the lane, that runs
//! transactions one after the other, makes what they changed durable through an [`Engine`], and only then publishes and
//! answers. Everything else watches the log. Reads never touch the engine.
//!
//! Limits: `TX_RECORDS_MAX` and `TX_BYTES_MAX` for a transaction, `BATCH_MAX` transactions in one append,
//! `QUEUE_MAX` waiting callers, `RING_MAX` entries that a watcher may be behind before it gets a snapshot.
//!
//! Deliberately absent: SQL outside of `engine`, and any knowledge of what the records mean.

mod again;
mod cell;
pub mod cipher;
pub mod copy;
mod drive;
pub mod engine;
mod follow;
pub mod format;
mod index;
mod lane;
pub mod lease;
mod load;
mod log;
mod record;
mod state;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod trail;
mod trial;
mod tx;
mod watch;

pub use again::carried;
pub use cell::{CURRENT_MAX, Cell, Options};
pub use drive::{Role, Steps};
pub use engine::Engine;
pub use index::{Index, IndexKey, IndexPart};
pub use log::{Asked, Cause, Change, Entry, Revision, Written};
pub use record::{Derived, Key, Record, Schema};
pub use state::{Digest, Form, State};
pub use trial::{Drawn, Trials, Tried};
pub use tx::{Broken, Tx};
pub use watch::{News, Watch};

/// Records that one transaction may change; larger work is a phase of a loop.
pub const TX_RECORDS_MAX: usize = 1_000;
/// Encoded size of what one transaction may change.
pub const TX_BYTES_MAX: usize = 1 << 20;
/// Transactions in one append.
pub const BATCH_MAX: usize = 1_024;
/// Encoded size of one append, unless the engine takes less.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Callers that may wait for the lane; one more is told to try again (503).
pub const QUEUE_MAX: usize = 20_000;
/// Log entries kept in memory for watchers.
pub const RING_MAX: usize = 20_000;
