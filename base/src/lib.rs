//! What every crate shares: ids, errors, time, the caller's context, loops, the contract between plane and node (`node`),
//! how the two meet (`join`), and what nodes run (`program`).
//!
//! Deliberately absent: anything that knows a service, a wire format or the store.

pub mod context;
pub mod error;
pub mod fnv;
pub mod id;
pub mod join;
pub mod node;
pub mod pass;
pub mod program;
pub mod secret;
pub mod time;
pub mod units;

pub use context::{Context, Scope};
pub use error::{Error, Kind, Result};
pub use id::{DomainId, GroupId, Id, IdKind, ProjectId, RoleId, UserId};
pub use secret::Secret;
pub use time::Timestamp;
