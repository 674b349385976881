//! Availability zones: those that nodes are in.

use crate::App;
use api::{Call, Reply};
use base::{Error, Result};
use fleet::Node;
use fleet::node::ZONE;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use store::State;

/// Each zone, and whether a node in it takes new servers. The first zone is there without a node.
fn all(state: &State) -> BTreeMap<&str, bool> {
    let mut zones: BTreeMap<&str, bool> = BTreeMap::new();
    for node in state.all::<Node>() {
        *zones.entry(&node.zone).or_default() |= node.enabled && !node.forced_down;
    }
    if zones.is_empty() {
        zones.insert(ZONE, true);
    }
    zones
}

/// The zones as resources show where they are: a network or router is wherever its ports are.
pub fn names(state: &State) -> Vec<String> {
    all(state).into_keys().map(str::to_string).collect()
}

/// Errors: `NotFound` for a hint at a zone that is not there.
pub fn check(state: &State, hints: &[String]) -> Result<()> {
    let zones = all(state);
    match hints.iter().find(|h| !zones.contains_key(h.as_str())) {
        None => Ok(()),
        Some(absent) => {
            let text = format!("AvailabilityZone {} could not be found.", absent.escape_default());
            Err(Error::not_found(text).named("AvailabilityZoneNotFound"))
        }
    }
}

/// GET /availability_zones
pub async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let mut views: Vec<Map<String, Value>> = Vec::new();
    for (name, available) in all(&state) {
        for resource in ["network", "router"] {
            let state = if available { "available" } else { "unavailable" };
            let view = json!({"name": name, "resource": resource, "state": state});
            views.extend(view.as_object().cloned());
        }
    }
    crate::resource::answer(&call, "availability_zones", views)
}
