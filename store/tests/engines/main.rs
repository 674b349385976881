//! One suite for all engines, against the real servers: SQLite, PostgreSQL, etcd.
//!
//! Each test starts its own server in its own directory and ends it; `make deps-test` installs them.

#![allow(clippy::unwrap_used, reason = "a test")]

mod calm;
mod proxy;
mod servers;
mod world;

use servers::{Server, Which};

#[tokio::test]
async fn sqlite_keeps_what_an_engine_owes() {
    calm::all(&Server::start(Which::Sqlite)).await;
}

#[tokio::test]
async fn postgres_keeps_what_an_engine_owes() {
    calm::all(&Server::start(Which::Postgres)).await;
}
