//! The versions of the API. Without a token.

use crate::App;
use api::route::OPEN;
use api::{Call, Reply, Route};
use base::Result;
use http::StatusCode;
use serde_json::{Value, json};

pub fn routes() -> Vec<Route<App>> {
    vec![
        api::get("/", OPEN, |_, call| choices(call, StatusCode::MULTIPLE_CHOICES)),
        api::get("/versions", OPEN, |_, call| choices(call, StatusCode::OK)),
        api::get("/v2", OPEN, |_, call| choices(call, StatusCode::MULTIPLE_CHOICES)),
    ]
}

/// The newest version; each one before it is supported too.
const NEWEST: u32 = 17;
/// Those that came with what is not offered: stores, caching.
const WITHOUT: [u32; 3] = [8, 10, 14];

async fn choices(call: Call, status: StatusCode) -> Result<Reply> {
    let version = |minor: u32| {
        let state = if minor == NEWEST { "CURRENT" } else { "SUPPORTED" };
        let links = json!([{"rel": "self", "href": format!("{}/v2/", call.base)}]);
        json!({"id": format!("v2.{minor}"), "status": state, "links": links})
    };
    let all: Vec<Value> = (0..=NEWEST).rev().filter(|n| !WITHOUT.contains(n)).map(version).collect();
    let here = format!("{}/v2/", call.base);
    Ok(Reply::json(status, &json!({"versions": all})).header("location", here))
}
