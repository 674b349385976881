//! Who is who, and who may use how much: domains, projects, users, groups, roles, tokens, catalogue, limits.
//!
//! A token is checked in this process from memory (`token`); what it may do is computed from the grants (`assignment`).
//! Passwords are hashed on threads of their own (`user::password`).
//!
//! Limits: `LIST_MAX` entries of a list, `WAITING_MAX` logins waiting, `MEMO_MAX` tokens remembered.
//!
//! Deliberately absent: federation, and identity from outside (LDAP).

pub mod access_rule;
mod aim;
pub mod app_credential;
pub mod assignment;
mod bootstrap;
pub mod catalog;
pub mod credential;
mod discovery;
pub mod domain;
pub mod endpoint_filter;
pub mod group;
pub mod limit;
pub mod oauth;
mod plain;
pub mod policy;
pub mod project;
pub mod role;
pub mod rules;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;
pub mod token;
pub mod trust;
pub mod unified_limit;
pub mod user;
pub mod wire;

pub use bootstrap::{Bootstrap, bootstrap};
pub use settings::Settings;

use api::{Faults, Mounted, Route, Service};
use std::sync::Arc;
use store::{Cell, Schema};
use token::Tokens;
use user::password::Hasher;

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    pub cell: Cell,
    pub settings: Arc<Settings>,
    pub hasher: Hasher,
    pub tokens: Arc<Tokens>,
    /// The paths of the table of routes, for JSON-home.
    paths: Arc<[&'static str]>,
}

impl App {
    pub fn new(cell: Cell, settings: Settings) -> App {
        let hasher = Hasher::new(settings.bcrypt_cost, settings.hash_threads);
        let tokens = Arc::new(Tokens::new(cell.clone()));
        let paths = routes().iter().map(|r| r.path).collect();
        App { cell, settings: Arc::new(settings), hasher, tokens, paths }
    }
}

/// The kinds of records that this service keeps.
pub fn records(schema: Schema) -> Schema {
    #[cfg(feature = "next-format")]
    let schema = schema.record::<catalog::next::Seen>();
    schema
        .record::<limit::Limit>()
        .record::<domain::Domain>()
        .record::<project::Project>()
        .record::<user::User>()
        .record::<group::Group>()
        .record::<group::Membership>()
        .record::<role::Role>()
        .record::<role::Inference>()
        .record::<assignment::Grant>()
        .record::<token::SigningKey>()
        .record::<token::Revocation>()
        .record::<catalog::Region>()
        .record::<catalog::Service>()
        .record::<catalog::Endpoint>()
        .record::<credential::Credential>()
        .record::<trust::Trust>()
        .record::<app_credential::AppCredential>()
        .record::<access_rule::AccessRule>()
        .record::<domain::config::DomainConfig>()
        .record::<policy::Policy>()
        .record::<oauth::Consumer>()
        .record::<oauth::ConsumerSecret>()
        .record::<endpoint_filter::EndpointGroup>()
        .record::<endpoint_filter::Told>()
        .record::<unified_limit::RegisteredLimit>()
        .record::<unified_limit::UnifiedLimit>()
}

fn routes() -> Vec<Route<App>> {
    [
        discovery::routes(),
        token::rest::routes(),
        domain::rest::routes(),
        project::rest::routes(),
        project::tags::routes(),
        user::rest::routes(),
        group::rest::routes(),
        role::rest::routes(),
        assignment::rest::routes(),
        assignment::list::routes(),
        catalog::rest::routes(),
        domain::config::routes(),
        credential::rest::routes(),
        trust::rest::routes(),
        app_credential::rest::routes(),
        access_rule::routes(),
        policy::routes(),
        oauth::routes(),
        endpoint_filter::routes(),
        unified_limit::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Identity under `/identity`.
pub fn service(app: App) -> Mounted {
    let service = Service {
        name: "identity",
        prefix: "/identity",
        faults: Faults::Identity,
        microversions: None,
        project_in_path: false,
        request_id_header: None,
        rules: &[
            rules::BASE,
            rules::TOKENS,
            rules::PEOPLE,
            rules::ROLES,
            rules::CATALOG,
            rules::SECRETS,
            rules::EXTENSIONS,
        ],
        routes: routes(),
    };
    service.mount(app)
}
