//! Tokens through the real router: what lets in, what ends them, what never gets more than it had.

#![allow(clippy::unwrap_used, reason = "a test")]

use http::StatusCode;
use identity::testing::{Cloud, PASSWORD};
use serde_json::{Value, json};

const TOKENS: &str = "/identity/v3/auth/tokens";

/// The status that a token gets for the list of its projects.
async fn status(cloud: &Cloud, token: &str) -> u16 {
    cloud.call("GET", "/identity/v3/auth/projects", token, Value::Null).await.0.as_u16()
}

async fn body(cloud: &Cloud, token: &str) -> Value {
    let headers = [("x-subject-token", token)];
    let (status, _, body) = cloud.send("GET", TOKENS, &cloud.admin.token, &headers, "").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["token"].clone()
}

#[tokio::test]
async fn a_token_says_who_where_until_when_and_what_is_where() {
    let cloud = Cloud::identity().await;
    let token = body(&cloud, &cloud.admin.token).await;
    assert!(cloud.admin.token.starts_with("gAAAAA") && cloud.admin.token.len() <= 250);
    assert_eq!(token["user"]["name"], "admin");
    assert_eq!(token["user"]["domain"], json!({"id": "default", "name": "Default"}));
    assert_eq!(token["project"]["name"], "admin");
    assert_eq!(token["methods"], json!(["password"]));
    let roles: Vec<&str> =
        token["roles"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(roles.len(), 4);
    assert!(["admin", "manager", "member", "reader"].iter().all(|r| roles.contains(r)));
    let compute = token["catalog"].as_array().unwrap().iter().find(|s| s["type"] == "compute").unwrap();
    assert_eq!(compute["endpoints"].as_array().unwrap().len(), 3);
    assert_eq!(compute["endpoints"][0]["url"], "http://cloud.test:5000/compute/v2.1");
    assert_eq!(compute["endpoints"][0]["region_id"], "RegionOne");
}
