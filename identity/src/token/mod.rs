//! Tokens: issued by `login`, checked here in this process from memory, ended by what the state says.
//!
//! A token is sealed, not stored. Checking one reads no engine and asks nobody: its payload names user, place and the
//! revision it was issued on; whether they still stand, and which roles it gives, is worked out from the state and kept
//! in a memo for as long as none of the tables that it came from has changed. A revoked token is a record by audit id,
//! looked up every time, and gone after the token's own end.
//!
//! Limits: `MEMO_MAX` tokens remembered.

pub mod fernet;
pub mod login;
pub mod payload;
pub mod rest;

use crate::app_credential::{self, AppCredential};
use crate::assignment::{self, Grant};
use crate::domain::Domain;
use crate::group::Membership;
use crate::project::Project;
use crate::role::{self, Inference, Role};
use crate::trust::{self, Trust};
use crate::user::User;
use base::context::{Scope, Who};
use base::pass::{Next, Pass};
use base::{DomainId, Error, ProjectId, Result, RoleId, Secret, Timestamp, UserId};
use payload::{AuditId, Place, Token};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use store::{Cell, Record, Revision, State, Tx};

/// Tokens remembered; beyond, those longest unused are forgotten and worked out again when they come.
pub const MEMO_MAX: usize = 1 << 17;
const SHARDS: usize = 16;
/// Ended revocations that one transaction forgets.
const FORGET_MAX: usize = 500;

/// A key that seals tokens. The newest seals; all open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SigningKey {
    pub number: u64,
    pub key: Secret,
    pub created: Timestamp,
}

impl Record for SigningKey {
    const KIND: &'static str = "signing_key";
    type Key = u64;

    fn key(&self) -> u64 {
        self.number
    }
}

/// Keys kept: those before sealed nothing that is still good.
const KEYS_MAX: usize = 3;

/// A new key from the machine's randomness. It is made outside of a transaction: the log tells a transaction's seed.
pub fn new_key() -> Secret {
    use base64::Engine;
    let mut bytes = [0; 32];
    fill(&mut bytes);
    Secret::new(base64::engine::general_purpose::URL_SAFE.encode(bytes))
}

pub(crate) fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel has random numbers once it has started");
}

/// Makes `key` the one that seals from now on.
pub fn rotate(tx: &mut Tx, key: Secret) -> Result<()> {
    let numbers: Vec<u64> = tx.all::<SigningKey>().map(|k| k.number).collect();
    let number = numbers.last().map_or(1, |n| n + 1);
    let (old, created) = ((numbers.len() + 1).saturating_sub(KEYS_MAX), tx.now());
    numbers.iter().take(old).for_each(|n| drop(tx.delete::<SigningKey>(n)));
    tx.put(SigningKey { number, key, created })?;
    Ok(())
}

/// A token that was ended before its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revocation {
    pub audit: AuditId,
    pub expires: Timestamp,
}

impl Record for Revocation {
    const KIND: &'static str = "revocation";
    type Key = AuditId;

    fn key(&self) -> AuditId {
        self.audit
    }
}

pub fn revoke(tx: &mut Tx, token: &Token) -> Result<()> {
    tx.put(Revocation { audit: token.audit, expires: token.expires })?;
    Ok(())
}

/// Keeps true: revocations of tokens that ended by themselves are forgotten.
pub struct EndedRevocationsForgotten {
    pub cell: Cell,
    /// How long an ended token may still be asked about.
    pub grace_s: i64,
}

impl Pass for EndedRevocationsForgotten {
    const NAME: &'static str = "ended_revocations_forgotten";
    const EVERY: Duration = Duration::from_secs(60);

    async fn pass(&mut self) -> Result<Next> {
        let before = Timestamp::wall().plus_secs(-self.grace_s);
        let state = self.cell.read();
        let ended: Vec<AuditId> = state
            .all::<Revocation>()
            .filter(|r| r.expires < before)
            .map(|r| r.audit)
            .take(FORGET_MAX)
            .collect();
        if ended.is_empty() {
            return Ok(Next::Usual);
        }
        let forget = move |tx: &mut Tx| {
            ended.iter().for_each(|audit| drop(tx.delete::<Revocation>(audit)));
            Ok(())
        };
        self.cell.write(store::Cause::step(Self::NAME), forget).await?;
        Ok(Next::Again)
    }
}

/// A token that stands, and what it gives.
#[derive(Debug)]
pub struct Held {
    pub token: Token,
    pub who: Arc<Who>,
    pub roles: Vec<(RoleId, String)>,
    /// Nothing that this was worked out from has changed since then.
    stamp: Revision,
}

type Shard = RwLock<Generations>;

/// What was used since the last turn, and what was before it.
#[derive(Default)]
struct Generations {
    young: HashMap<Box<str>, Arc<Held>>,
    old: HashMap<Box<str>, Arc<Held>>,
}

/// The check of tokens: `api::Identity`.
pub struct Tokens {
    cell: Cell,
    memo: Vec<Shard>,
    hasher: RandomState,
}

/// The error of everything that is not let in, whatever the reason.
pub fn refused() -> Error {
    Error::unauthorized("The request you have made requires authentication.")
}

impl api::Identity for Tokens {
    fn who(&self, token: &str) -> Result<Arc<Who>> {
        Ok(self.held(token)?.who.clone())
    }
}

impl Tokens {
    pub fn new(cell: Cell) -> Tokens {
        let memo = (0..SHARDS).map(|_| Shard::default()).collect();
        Tokens { cell, memo, hasher: RandomState::new() }
    }

    /// What a token gives now.
    ///
    /// Errors: `Unauthorized`, whatever the reason.
    pub fn held(&self, text: &str) -> Result<Arc<Held>> {
        self.held_until(text, 0)
    }

    /// As `held`, also for tokens that ended at most `grace_s` ago.
    pub fn held_until(&self, text: &str, grace_s: i64) -> Result<Arc<Held>> {
        let state = self.cell.read();
        let stamp = stamp(&state);
        let known = self.recall(text);
        let held = match known {
            Some(held) if held.stamp == stamp => held,
            Some(held) => self.remember(text, work_out(&state, held.token.clone(), stamp)?),
            None => self.remember(text, work_out(&state, open(&state, text).ok_or_else(refused)?, stamp)?),
        };
        if held.token.expires.plus_secs(grace_s) <= Timestamp::wall() || is_revoked(&state, &held.token) {
            return Err(refused());
        }
        Ok(held)
    }

    fn shard(&self, text: &str) -> &Shard {
        &self.memo[self.hasher.hash_one(text) as usize % SHARDS]
    }

    fn recall(&self, text: &str) -> Option<Arc<Held>> {
        let shard = self.shard(text);
        let found = {
            let generations = shard.read().expect("no holder panics");
            match generations.young.get(text) {
                Some(held) => return Some(held.clone()),
                None => generations.old.get(text).cloned()?,
            }
        };
        Some(self.remember(text, found))
    }

    fn remember(&self, text: &str, held: impl Into<Arc<Held>>) -> Arc<Held> {
        let held = held.into();
        let mut generations = self.shard(text).write().expect("no holder panics");
        if generations.young.len() >= MEMO_MAX / SHARDS / 2 {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(text.into(), held.clone());
        held
    }

    /// Seals a token that stands on `state`, and tells what it gives.
    ///
    /// Errors: `Unauthorized` when it would not stand.
    pub fn issue(&self, state: &State, token: Token) -> Result<(String, Held)> {
        let held = work_out(state, token, stamp(state))?;
        let key = state.all::<SigningKey>().last().and_then(|k| fernet::Key::parse(&k.key));
        let key = key.ok_or_else(|| Error::internal("there is no key to seal tokens with"))?;
        let mut iv = [0; 16];
        fill(&mut iv);
        Ok((key.seal(&payload::encode(&held.token), held.token.issued.secs(), iv), held))
    }
}

/// A fresh audit id.
pub fn new_audit() -> AuditId {
    let mut bytes = [0; 16];
    fill(&mut bytes);
    AuditId::from_random(u128::from_be_bytes(bytes))
}

/// The token behind a text that one of our keys sealed.
fn open(state: &State, text: &str) -> Option<Token> {
    let bytes = fernet::bytes(text)?;
    let keys: Vec<_> = state.all::<SigningKey>().collect();
    let mut keys = keys.into_iter().rev().filter_map(|k| fernet::Key::parse(&k.key));
    payload::decode(&keys.find_map(|key| key.open(&bytes))?)
}

fn is_revoked(state: &State, token: &Token) -> bool {
    state.get::<Revocation>(&token.audit).is_some()
}

/// The last revision that changed anything that tokens are worked out from.
fn stamp(state: &State) -> Revision {
    [
        state.changed_at::<User>(),
        state.changed_at::<Project>(),
        state.changed_at::<Domain>(),
        state.changed_at::<Grant>(),
        state.changed_at::<Membership>(),
        state.changed_at::<Role>(),
        state.changed_at::<Inference>(),
        state.changed_at::<Trust>(),
        state.changed_at::<AppCredential>(),
    ]
    .into_iter()
    .max()
    .unwrap_or(0)
}

/// What `token` gives on `state`.
///
/// Errors: `Unauthorized` when user, place, grants or delegation no longer stand.
fn work_out(state: &State, token: Token, stamp: Revision) -> Result<Held> {
    let bearer = live_user(state, token.user, token.revision)?;
    let trust = token.trust.map(|id| trust::live(state, id, token.user)).transpose()?;
    let app = token.app_credential.map(|id| app_credential::live(state, id, token.user)).transpose()?;
    let acting = match &trust {
        Some(trust) => match (live_user(state, trust.trustor, token.revision)?, trust.impersonation) {
            (trustor, true) => trustor,
            (_, false) => bearer,
        },
        None => bearer,
    };
    let scope = live_scope(state, token.place, token.revision)?;
    let granter = trust.as_ref().map_or(token.user, |t| t.trustor);
    let mut roles = roles(state, granter, token.place);
    let limit = trust.as_ref().map(|t| &t.roles).or(app.as_ref().map(|a| &a.roles));
    if let Some(limit) = limit {
        roles = limited(state, &roles, limit, trust.is_some())?;
    }
    let roles: Vec<(RoleId, String)> =
        assignment::global(state, roles).iter().map(|r| (r.id, r.fields.name.to_string())).collect();
    if roles.is_empty() && token.place != Place::Unscoped {
        return Err(refused());
    }
    let mut names: Vec<String> = roles.iter().map(|(_, name)| name.to_lowercase()).collect();
    names.sort();
    let who = Who {
        user: acting.id,
        user_name: acting.fields.name.to_string(),
        user_domain: acting.domain,
        scope,
        roles: names,
        audit: payload::audit_text(token.audit),
        delegated: trust.is_some() || app.is_some_and(|a| !a.unrestricted),
    };
    Ok(Held { token, who: Arc::new(who), roles, stamp })
}

/// Those of `has` that a delegation passes on, with what they imply. A trust needs all of its own; an application
/// credential gives what is left.
fn limited(state: &State, has: &BTreeSet<RoleId>, limit: &[RoleId], all: bool) -> Result<BTreeSet<RoleId>> {
    if all && limit.iter().any(|role| !has.contains(role)) {
        return Err(refused());
    }
    let wanted = role::closure(state, limit.iter().copied());
    Ok(has.intersection(&wanted).copied().collect())
}

fn live_user(state: &State, id: UserId, issued: Revision) -> Result<&Arc<User>> {
    let user = state.get::<User>(&id).ok_or_else(refused)?;
    live_domain(state, user.domain, issued)?;
    match user.fields.enabled && user.tokens_from <= issued {
        true => Ok(user),
        false => Err(refused()),
    }
}

fn live_domain(state: &State, id: DomainId, issued: Revision) -> Result<()> {
    let domain = state.get::<Domain>(&id).ok_or_else(refused)?;
    match domain.fields.enabled && domain.tokens_from <= issued {
        true => Ok(()),
        false => Err(refused()),
    }
}

fn live_project(state: &State, id: ProjectId, issued: Revision) -> Result<DomainId> {
    let project = state.get::<Project>(&id).ok_or_else(refused)?;
    live_domain(state, project.domain, issued)?;
    match project.fields.enabled && project.tokens_from <= issued {
        true => Ok(project.domain),
        false => Err(refused()),
    }
}

fn live_scope(state: &State, place: Place, issued: Revision) -> Result<Scope> {
    Ok(match place {
        Place::Unscoped => Scope::Unscoped,
        Place::System => Scope::System,
        Place::Project(project) => Scope::Project { project, domain: live_project(state, project, issued)? },
        Place::Domain(domain) => {
            live_domain(state, domain, issued)?;
            Scope::Domain(domain)
        }
    })
}

fn roles(state: &State, user: UserId, place: Place) -> BTreeSet<RoleId> {
    match place {
        Place::Unscoped => BTreeSet::new(),
        Place::Project(id) => assignment::roles_on_project(state, user, id),
        Place::Domain(id) => assignment::roles_on_domain(state, user, id),
        Place::System => assignment::roles_on_system(state, user),
    }
}
