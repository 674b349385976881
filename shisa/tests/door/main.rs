//! The front door of a cloud that is up, as clients see it.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;
mod tls;
