//! What operators ask of the fleet, under `/fleet`: tokens that let machines join.
//!
//! Not OpenStack's: it has no word for this. The nodes themselves are Compute's services and hypervisors, and removed as
//! such.

use crate::plane::Plane;
use api::{Call, Faults, Mounted, Reply, Rule, Service};
use base::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// What the handlers share: the plane and where nodes reach it, when it listens for them.
#[derive(Clone, Default)]
pub struct App {
    pub plane: Option<(Arc<Plane>, String)>,
}

const RULES: &[Rule] =
    &[Rule { name: "fleet:create_join_token", check: "role:admin", about: "Let machines join as nodes" }];

/// The service under `/fleet`.
pub fn service(app: App) -> Mounted {
    let service = Service {
        name: "fleet",
        prefix: "/fleet",
        faults: Faults::Identity,
        microversions: None,
        project_in_path: false,
        request_id_header: None,
        rules: &[RULES],
        routes: vec![api::post("/v1/join_tokens", "fleet:create_join_token", create_token)],
    };
    service.mount(app)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    uses: u32,
    ttl_secs: i64,
}

/// POST /v1/join_tokens
async fn create_token(app: App, call: Call) -> Result<Reply> {
    let new: NewToken = call.json_in("join_token")?;
    let deaf = || Error::conflict("This plane does not listen for nodes: start it with --node-listen.");
    let (plane, authority) = app.plane.as_ref().ok_or_else(deaf)?;
    let (token, expires) = plane.token(call.cause(), authority, new.uses, new.ttl_secs).await?;
    let (token, expires) = (token.to_string(), expires.zulu());
    Ok(Reply::created(&json!({"join_token": {"token": token, "uses": new.uses, "expires_at": expires}})))
}
