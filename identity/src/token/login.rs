//! Proving who one is: password, token, application credential; then the scope that is asked for.
//!
//! Whoever is not let in gets one and the same answer, after the same work: an unknown user's password is compared with a
//! decoy's. A token rescoped from another ends when that one does and keeps its first audit id.

use super::payload::{METHODS, Place, Token};
use super::{new_audit, refused};
use crate::app_credential::{self, AppCredential};
use crate::project::{self, Project};
use crate::trust::{self, Trust};
use crate::user::{self, User};
use crate::{App, domain};
use base::{DomainId, Error, Id, ProjectId, Result, Timestamp, UserId};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use store::State;

/// The body under `auth`.
#[derive(Deserialize)]
pub struct Auth {
    identity: Identity,
    #[serde(default)]
    scope: Option<Value>,
}

#[derive(Deserialize)]
struct Identity {
    methods: Vec<String>,
    #[serde(default)]
    password: Option<PasswordProof>,
    #[serde(default)]
    token: Option<TokenProof>,
    #[serde(default)]
    application_credential: Option<AppProof>,
}

#[derive(Deserialize)]
struct PasswordProof {
    user: UserRef,
}

#[derive(Deserialize)]
struct TokenProof {
    id: String,
}

#[derive(Deserialize)]
struct AppProof {
    id: Option<String>,
    name: Option<String>,
    user: Option<UserRef>,
    secret: String,
}

#[derive(Deserialize)]
struct UserRef {
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainRef>,
    #[serde(default)]
    password: String,
}

#[derive(Deserialize)]
struct DomainRef {
    id: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct ProjectRef {
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainRef>,
}

/// What the methods proved.
#[derive(Default)]
struct Proven {
    user: Option<UserId>,
    methods: u8,
    /// The token that this one is rescoped from.
    parent: Option<Token>,
    app: Option<Id<AppCredential>>,
}

impl Proven {
    /// Errors: `Unauthorized` when two methods prove different users.
    fn is(&mut self, user: UserId) -> Result<()> {
        match self.user.replace(user) {
            Some(before) if before != user => Err(refused()),
            Some(_) | None => Ok(()),
        }
    }
}

fn find_domain(state: &State, asked: &Option<DomainRef>) -> Option<DomainId> {
    let asked = asked.as_ref()?;
    match (&asked.id, &asked.name) {
        (Some(id), _) => id.parse().ok(),
        (None, Some(name)) => state.one(&domain::BY_NAME, name.as_str()).map(|d| d.id),
        (None, None) => None,
    }
}

fn find_user<'a>(state: &'a State, asked: &UserRef) -> Option<&'a Arc<User>> {
    match (&asked.id, &asked.name) {
        (Some(id), _) => user::get(state, id.parse().ok()?).ok(),
        (None, Some(name)) => user::named(state, find_domain(state, &asked.domain)?, name),
        (None, None) => None,
    }
}

/// The token that a body asks for.
///
/// Errors: `Unauthorized`; `NotFound` when the token to rescope is none; `Forbidden` when a delegation would mint more;
/// `Invalid` for a body that says two things.
pub async fn login(app: &App, state: &State, auth: Auth) -> Result<Token> {
    let proven = prove(app, state, &auth.identity).await?;
    let user = proven.user.ok_or_else(refused)?;
    let (place, trust) = scope(state, &auth, &proven, user)?;
    if let Some(trust) = trust {
        trust::use_once(app, trust).await?;
    }
    let (issued, parent) = (Timestamp::wall().floor(), proven.parent);
    let mut expires = issued.plus_secs(app.settings.token_expires_s);
    if let Some(parent) = &parent {
        expires = expires.min(parent.expires);
    }
    if let Some(end) = proven.app.and_then(|id| state.get::<AppCredential>(&id)?.expires_at) {
        expires = expires.min(end.floor());
    }
    if let Some(end) = trust.and_then(|id| state.get::<Trust>(&id)?.expires_at) {
        expires = expires.min(end.floor());
    }
    Ok(Token {
        user,
        methods: proven.methods,
        place,
        issued,
        expires,
        revision: state.revision(),
        audit: new_audit(),
        chain: parent.map(|p| p.chain.unwrap_or(p.audit)),
        trust,
        app_credential: proven.app,
    })
}

/// Each method once, however often it is named. Source: OSSA-2014-013.
async fn prove(app: &App, state: &State, identity: &Identity) -> Result<Proven> {
    let mut proven = Proven::default();
    if identity.methods.iter().any(|m| !METHODS.contains(&m.as_str())) || identity.methods.is_empty() {
        return Err(refused());
    }
    let has = |method: &str| identity.methods.iter().any(|m| m == method);
    if has("token") {
        by_token(app, &mut proven, identity.token.as_ref().ok_or_else(|| lacks("token"))?)?;
    }
    if has("password") {
        let asked = &identity.password.as_ref().ok_or_else(|| lacks("password"))?.user;
        let user = self::proven(app, state, find_user(state, asked), &asked.password).await?;
        not_expired(&user)?;
        proven.is(user.id)?;
        proven.methods |= 1;
    }
    if has("application_credential") {
        let asked = identity.application_credential.as_ref();
        by_app(app, state, &mut proven, asked.ok_or_else(|| lacks("application_credential"))?).await?;
    }
    if has("totp") {
        return Err(refused());
    }
    Ok(proven)
}

fn lacks(method: &str) -> Error {
    Error::invalid(format!("Expecting to find {method} in identity."))
}

fn not_expired(user: &User) -> Result<()> {
    let ended = user.password().and_then(|p| p.expires).is_some_and(|at| at <= Timestamp::wall());
    match ended && !user.option("ignore_password_expiry") {
        true => Err(Error::unauthorized(
            "The password is expired and needs to be changed by a self-service call.",
        )),
        false => Ok(()),
    }
}

/// The user, when the password is right, the user enabled and not locked out. Takes as long when not.
pub(crate) async fn proven(
    app: &App,
    state: &State,
    user: Option<&Arc<User>>,
    password: &str,
) -> Result<Arc<User>> {
    let hash = user.and_then(|u| u.password()).map(|p| &p.hash);
    let right = app.hasher.verify(password, hash).await?;
    let user = user.ok_or_else(refused)?;
    let locked = app.settings.is_locked(user, Timestamp::wall());
    if app.settings.counts_failures(user) && !locked && (!right || user.failures > 0) {
        let id = user.id;
        let note = move |tx: &mut store::Tx| user::note_attempt(tx, id, right);
        app.cell.write(store::Cause::step("login"), note).await?;
    }
    let enabled = user.fields.enabled && domain::is_enabled(state, user.domain);
    match right && enabled && !locked {
        true => Ok(user.clone()),
        false => Err(refused()),
    }
}

fn by_token(app: &App, proven: &mut Proven, asked: &TokenProof) -> Result<()> {
    let held = app.tokens.held(&asked.id);
    let held = held.map_err(|_| Error::not_found("Could not find token."))?;
    let token = held.token.clone();
    if token.trust.is_some() {
        return Err(Error::forbidden("A token of a trust cannot be exchanged for another."));
    }
    proven.is(token.user)?;
    proven.methods |= token.methods | 2;
    proven.app = token.app_credential;
    proven.parent = Some(token);
    Ok(())
}

async fn by_app(app: &App, state: &State, proven: &mut Proven, asked: &AppProof) -> Result<()> {
    let found = match (&asked.id, &asked.name, &asked.user) {
        (Some(id), _, _) => id.parse().ok().and_then(|id| state.get::<AppCredential>(&id)),
        (None, Some(name), Some(user)) => {
            find_user(state, user).and_then(|u| state.one(&app_credential::BY_NAME, (u.id, name.as_str())))
        }
        (None, _, _) => None,
    };
    let right = app.hasher.verify(&asked.secret, found.map(|a| &a.secret)).await?;
    // Requests are not matched against access rules, so what is bound to some is not let in at all.
    let found = found.filter(|a| right && a.access_rules.is_none()).ok_or_else(refused)?;
    proven.is(found.user)?;
    proven.methods |= 4;
    proven.app = Some(found.id);
    Ok(())
}

fn scope(state: &State, auth: &Auth, proven: &Proven, user: UserId) -> Result<(Place, Option<Id<Trust>>)> {
    if let Some(app) = proven.app {
        let own = state.get::<AppCredential>(&app).map(|a| Place::Project(a.project)).ok_or_else(refused)?;
        return match auth.scope.as_ref().map(|s| asked_scope(state, s)).transpose()? {
            None => Ok((own, None)),
            Some((place, None)) if place == own => Ok((own, None)),
            Some(_) => Err(refused()),
        };
    }
    let (place, trust) = match &auth.scope {
        Some(asked) => asked_scope(state, asked)?,
        None => {
            let user = state.get::<User>(&user).ok_or_else(refused)?;
            (user::default_project(state, user).map_or(Place::Unscoped, Place::Project), None)
        }
    };
    match proven.parent.as_ref().map(|p| p.place) {
        Some(Place::System) if !matches!(place, Place::System | Place::Unscoped) => Err(refused()),
        Some(_) | None => Ok((place, trust)),
    }
}

/// Reads `scope`. What is not there cannot be signed in to: `Unauthorized`.
fn asked_scope(state: &State, asked: &Value) -> Result<(Place, Option<Id<Trust>>)> {
    let (name, inner) = match asked {
        Value::String(text) if text == "unscoped" => return Ok((Place::Unscoped, None)),
        Value::Object(map) if map.len() == 1 => map.iter().next().ok_or_else(refused)?,
        _ => {
            return Err(Error::invalid(
                "The scope must name one of project, domain, system, OS-TRUST:trust.",
            ));
        }
    };
    match name.as_str() {
        "unscoped" => Ok((Place::Unscoped, None)),
        "project" => {
            let asked: ProjectRef = api::call::from_value(inner.clone(), "scope.project")?;
            Ok((Place::Project(find_project(state, &asked).ok_or_else(refused)?), None))
        }
        "domain" => {
            let asked: DomainRef = api::call::from_value(inner.clone(), "scope.domain")?;
            Ok((Place::Domain(find_domain(state, &Some(asked)).ok_or_else(refused)?), None))
        }
        "system" => match inner.get("all") {
            Some(Value::Bool(true)) => Ok((Place::System, None)),
            _ => Err(Error::invalid("The scope of the system is {\"all\": true}.")),
        },
        "OS-TRUST:trust" => {
            let id = inner.get("id").and_then(Value::as_str).and_then(|id| id.parse().ok());
            let trust = id.and_then(|id| state.get::<Trust>(&id)).ok_or_else(refused)?;
            Ok((trust.project.map_or(Place::Unscoped, Place::Project), Some(trust.id)))
        }
        _ => Err(Error::invalid("The scope must name one of project, domain, system, OS-TRUST:trust.")),
    }
}

fn find_project(state: &State, asked: &ProjectRef) -> Option<ProjectId> {
    match (&asked.id, &asked.name) {
        (Some(id), _) => state.get::<Project>(&id.parse().ok()?).map(|p| p.id),
        (None, Some(name)) => project::named(state, find_domain(state, &asked.domain)?, name).map(|p| p.id),
        (None, None) => None,
    }
}
