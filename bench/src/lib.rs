//! What load runs share: a client that costs little, the cloud under load, and what its processes use.

pub mod cloud;
pub mod http;
pub mod load;
pub mod peer;
pub mod process;

pub use cloud::Cloud;
pub use http::{Connection, Request};
pub use load::{Run, Target};
pub use process::Processes;

use serde_json::{Value, json};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The identity of `admin` by password, for a sign-in.
pub fn password(password: &str) -> Value {
    let user = json!({"name": "admin", "domain": {"id": "default"}, "password": password});
    json!({"methods": ["password"], "password": {"user": user}})
}

/// A sign-in to the project `admin`.
pub fn sign_in(identity: Value) -> Value {
    let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
    json!({"auth": {"identity": identity, "scope": scope}})
}

/// The id in an answer about one resource of this kind.
pub fn id(answer: &Value, kind: &str) -> Result<String> {
    Ok(answer[kind]["id"].as_str().ok_or_else(|| format!("no {kind} in {answer}"))?.to_string())
}
