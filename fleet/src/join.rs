//! Who may be a node: tokens that let machines join, and the keys of those that have.
//!
//! A token is used up by machines, not by requests: one that has joined and lost the answer asks again. A node is
//! known by its key; when its record goes, so does its access, whatever certificate it still has.
//!
//! Limits: `USES_MAX`, `TTL_MAX_SECS`.

use crate::node;
use base::join::{Join, hex};
use base::{Error, Result, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};
use uuid::Uuid;

pub const USES_MAX: u32 = 10_000;
pub const TTL_MAX_SECS: i64 = 30 * 24 * 3600;

/// A token, as far as the plane keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinToken {
    /// SHA-256 of the secret, in hex.
    pub hash: String,
    /// How many more machines it lets in.
    pub uses: u32,
    pub created: Timestamp,
    pub expires: Timestamp,
}

impl Record for JoinToken {
    const KIND: &'static str = "join_token";
    type Key = String;

    fn key(&self) -> String {
        self.hash.clone()
    }
}

/// A machine that has joined: the key that it is known by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Of the node.
    pub name: String,
    pub id: Uuid,
    /// SHA-256 of its public key, in hex.
    pub key: String,
    /// Hash of the token that it joined by.
    pub token: String,
    pub joined: Timestamp,
}

const BY_KEY: Index<Member> = Index::unique("key", |m, keys| keys.push(m.key.key()));

impl Record for Member {
    const KIND: &'static str = "member";
    type Key = String;
    const INDEXES: &'static [Index<Member>] = &[BY_KEY];

    fn key(&self) -> String {
        self.name.clone()
    }
}

pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

/// Keeps a token, and forgets those that are over.
///
/// Errors: `Invalid` beyond the limits.
pub fn issue(tx: &mut Tx, hash: &str, uses: u32, ttl_secs: i64) -> Result<Arc<JoinToken>> {
    if !(1..=USES_MAX).contains(&uses) {
        return Err(Error::invalid(format!("A join token is for 1 to {USES_MAX} machines.")));
    }
    if !(1..=TTL_MAX_SECS).contains(&ttl_secs) {
        return Err(Error::invalid(format!("A join token is good for 1 to {TTL_MAX_SECS} seconds.")));
    }
    let now = tx.now();
    let over: Vec<String> =
        tx.all::<JoinToken>().filter(|t| t.expires < now).map(|t| t.hash.clone()).take(100).collect();
    over.iter().for_each(|hash| drop(tx.delete::<JoinToken>(hash)));
    let expires = now.plus_secs(ttl_secs);
    Ok(tx.put(JoinToken { hash: hash.into(), uses, created: now, expires })?)
}

/// Whether a token is one, before any work is done for it.
///
/// Errors: `Unauthorized` when it is unknown or over.
pub fn check(state: &State, secret: &str, now: Timestamp) -> Result<Arc<JoinToken>> {
    let unknown = || Error::unauthorized("The join token is not one of this cell's.");
    let token = state.get::<JoinToken>(&hash(secret)).ok_or_else(unknown)?;
    match token.expires < now {
        true => Err(Error::unauthorized("The join token is over; `shisa node token` prints another.")),
        false => Ok(token.clone()),
    }
}

/// Lets a machine in that has the key `key`.
///
/// Errors: `Unauthorized` for the token; `Forbidden` when it is used up; `Conflict` when another node has the name.
pub fn admit(tx: &mut Tx, join: &Join, key: &str) -> Result<()> {
    let token = check(tx, &join.secret, tx.now())?;
    if !name_is_good(&join.name) {
        return Err(Error::invalid("A node's name is 1 to 63 letters, digits, '-' and '.'."));
    }
    let same = tx.get::<Member>(&join.name).filter(|m| m.id == join.id && m.key == key).cloned();
    let named = node::named(tx, &join.name).is_some() || tx.get::<Member>(&join.name).is_some();
    match same {
        Some(member) if member.token == token.hash => return Ok(()),
        // Its certificate was over.
        Some(_) => {}
        None if named || node::of_id(tx, join.id).is_some() => {
            return Err(Error::conflict(format!(
                "There is a node {} already; give this one another --name, or remove the old one first.",
                join.name
            )));
        }
        None => {}
    }
    if token.uses == 0 {
        return Err(Error::forbidden("The join token is used up; `shisa node token` prints another."));
    }
    tx.update::<JoinToken>(&token.hash, |t| t.uses -= 1)?;
    let joined = tx.now();
    tx.put(Member {
        name: join.name.clone(),
        id: join.id,
        key: key.into(),
        token: token.hash.clone(),
        joined,
    })?;
    Ok(())
}

/// The node that has a key.
///
/// Errors: `Forbidden` when no node has.
pub fn by_key<'a>(state: &'a State, key: &str) -> Result<&'a Arc<Member>> {
    let gone = || Error::forbidden("This node was removed from the cell; it joins again with a new token.");
    state.one(&BY_KEY, key).ok_or_else(gone)
}

/// As a host's name, and as one folder.
fn name_is_good(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (1..=63).contains(&name.len())
        && name.chars().all(good)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_those_of_hosts() {
        for good in ["a", "node-1", "rack2.example.org"] {
            assert!(super::name_is_good(good), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", &"a".repeat(64)] {
            assert!(!super::name_is_good(bad), "{bad}");
        }
    }
}
