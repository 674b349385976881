//! One suite for all engines, against the real servers: SQLite, PostgreSQL, etcd.
//!
//! Each test starts its own server in its own directory and ends it; `make deps-test` installs them. That SQLite
//! survives a kill is `kill.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod calm;
mod hard;
mod proxy;
mod servers;
mod world;

use servers::{Server, Which};

/// Room for a new database, and little more.
const POSTGRES_MIB: u64 = 64;
const SQLITE_MIB: u64 = 8;
const ETCD_MIB: u64 = 16;

#[tokio::test]
async fn sqlite_keeps_what_an_engine_owes() {
    calm::all(&Server::start(Which::Sqlite)).await;
}

#[tokio::test]
async fn postgres_keeps_what_an_engine_owes() {
    calm::all(&Server::start(Which::Postgres)).await;
}

#[tokio::test]
async fn etcd_keeps_what_an_engine_owes() {
    calm::all(&Server::start(Which::Etcd)).await;
}

#[tokio::test]
async fn sqlite_is_loaded_as_of_one_revision() {
    hard::loaded_meanwhile(Server::start(Which::Sqlite)).await;
}

#[tokio::test]
async fn postgres_is_loaded_as_of_one_revision() {
    hard::loaded_meanwhile(Server::start(Which::Postgres)).await;
}

#[tokio::test]
async fn etcd_is_loaded_as_of_one_revision() {
    hard::loaded_meanwhile(Server::start(Which::Etcd)).await;
}

#[tokio::test]
async fn etcd_refuses_when_its_quota_is_used_up_and_goes_on_when_it_is_raised() {
    hard::quota_used_up(ETCD_MIB).await;
}

#[tokio::test]
async fn etcd_loses_a_member_under_load_and_nothing_else() {
    const MEMBERS: usize = 3;
    hard::a_member_is_lost(Server::with(Which::Etcd, MEMBERS, None, &[]), MEMBERS).await;
}

#[tokio::test]
async fn etcd_loses_nothing_answered_when_it_is_killed() {
    hard::killed(Server::start(Which::Etcd)).await;
}

#[tokio::test]
async fn etcd_carries_a_batch_out_once_when_the_connection_is_cut() {
    hard::cut(Server::start(Which::Etcd)).await;
}

#[tokio::test]
async fn etcd_refuses_an_owner_that_slept_past_its_lease() {
    hard::asleep(Server::start(Which::Etcd)).await;
}

#[tokio::test]
async fn postgres_loses_nothing_answered_when_it_is_killed() {
    hard::killed(Server::start(Which::Postgres)).await;
}

#[tokio::test]
async fn postgres_carries_a_batch_out_once_when_the_connection_is_cut() {
    hard::cut(Server::start(Which::Postgres)).await;
}

#[tokio::test]
async fn sqlite_refuses_when_the_disk_is_full_and_goes_on_when_it_is_not() {
    hard::full(Which::Sqlite, SQLITE_MIB).await;
}

#[tokio::test]
async fn postgres_refuses_when_the_disk_is_full_and_goes_on_when_it_is_not() {
    hard::full(Which::Postgres, POSTGRES_MIB).await;
}

#[tokio::test]
async fn sqlite_refuses_an_owner_that_slept_past_its_lease() {
    hard::asleep(Server::start(Which::Sqlite)).await;
}

#[tokio::test]
async fn postgres_refuses_an_owner_that_slept_past_its_lease() {
    hard::asleep(Server::start(Which::Postgres)).await;
}

/// Not a test: the process that is stopped, when the environment says so.
#[tokio::test]
async fn the_sleeper() {
    let Ok(url) = std::env::var("SLEEPER_URL") else { return };
    hard::sleep(&url).await;
}
