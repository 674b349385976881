//! What is here: `GET /` (300), `GET /v3`, and both as JSON-home. Without a token.

use crate::App;
use api::route::OPEN;
use api::{Call, Reply, Route};
use base::Result;
use http::StatusCode;
use serde_json::{Map, Value, json};

pub fn routes() -> Vec<Route<App>> {
    vec![api::get("/", OPEN, versions), api::get("/v3", OPEN, version)]
}

/// The version of the API, and when it last changed.
const VERSION: &str = "v3.14";
const UPDATED: &str = "2020-04-07T00:00:00Z";

fn described(call: &Call) -> Value {
    json!({
        "id": VERSION,
        "status": "stable",
        "updated": UPDATED,
        "links": [{"rel": "self", "href": format!("{}/v3/", call.base)}],
        "media-types": [
            {"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"},
        ],
    })
}

async fn versions(app: App, call: Call) -> Result<Reply> {
    if wants_home(&call) {
        return Ok(home(&app, "/v3"));
    }
    let body = json!({"versions": {"values": [described(&call)]}});
    let here = format!("{}/v3/", call.base);
    Ok(Reply::json(StatusCode::MULTIPLE_CHOICES, &body)
        .header("location", here)
        .header("vary", "X-Auth-Token"))
}

async fn version(app: App, call: Call) -> Result<Reply> {
    if wants_home(&call) {
        return Ok(home(&app, ""));
    }
    Ok(Reply::ok(&json!({"version": described(&call)})).header("vary", "X-Auth-Token"))
}

fn wants_home(call: &Call) -> bool {
    let accept = call.headers.get("accept").and_then(|a| a.to_str().ok()).unwrap_or("");
    accept.split(',').next().is_some_and(|first| first.trim().starts_with("application/json-home"))
}

/// The resources and where they are, read from the table of routes.
fn home(app: &App, prefix: &str) -> Reply {
    let mut resources = Map::new();
    for path in app.paths.iter().filter_map(|p| p.strip_prefix("/v3/")) {
        let (relation, template) = (relation(path), format!("{prefix}/{path}"));
        let entry = match path.contains('{') {
            false => json!({"href": template}),
            true => json!({"href-template": template, "href-vars": vars(path)}),
        };
        resources.insert(relation, entry);
    }
    Reply::new(StatusCode::OK)
        .header("content-type", "application/json-home")
        .body(json!({"resources": resources}).to_string().into_bytes())
}

const RELATIONS: &str = "https://docs.openstack.org/api/openstack-identity/3/rel";
const PARAMETERS: &str = "https://docs.openstack.org/api/openstack-identity/3/param";

/// `users/{user_id}/groups` is `user_groups`: the last thing of a path, one of it where an id follows.
fn relation(path: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for segment in path.split('/') {
        match segment.starts_with('{') {
            false => words.push(segment.replace('-', "_").to_lowercase()),
            true => {
                if let Some(last) = words.last_mut() {
                    *last = singular(last);
                }
            }
        }
    }
    format!("{RELATIONS}/{}", words.join("_"))
}

fn singular(word: &str) -> String {
    match word.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => word.strip_suffix('s').unwrap_or(word).to_string(),
    }
}

fn vars(path: &str) -> Value {
    let names = path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| (name.to_string(), Value::from(format!("{PARAMETERS}/{name}")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expect: &str) {
        assert_eq!(relation(path), format!("{RELATIONS}/{expect}"));
    }

    #[test]
    fn relations_are_named_after_paths() {
        check("users", "users");
        check("users/{user_id}", "user");
        check("users/{user_id}/groups", "user_groups");
        check("auth/tokens", "auth_tokens");
        check("policies/{policy_id}", "policy");
    }
}
