//! Policies: text that services used to fetch from here. It is kept and given back; nothing reads it.

use crate::App;
use crate::plain::{self, plain};
use crate::wire::Map;
use api::Route;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyFields {
    #[serde(rename = "type")]
    pub kind: String,
    pub blob: Value,
    #[serde(flatten)]
    pub extra: Map,
}

plain!(Policy(PolicyFields): "policy", "policy", "policies", "policies", &["type"]);

pub fn routes() -> Vec<Route<App>> {
    vec![
        api::get("/v3/policies", "identity:list_policies", plain::list::<Policy>),
        api::post("/v3/policies", "identity:create_policy", plain::post::<Policy>),
        api::get("/v3/policies/{id}", "identity:get_policy", plain::show::<Policy>),
        api::patch("/v3/policies/{id}", "identity:update_policy", plain::change::<Policy>),
        api::delete("/v3/policies/{id}", "identity:delete_policy", plain::remove::<Policy>),
    ]
}
