//! The front door of a cloud that is up, as clients see it.

#![allow(clippy::unwrap_used)]

mod kept;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod upgrade;
mod upload;
