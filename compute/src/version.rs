//! Version documents of Compute and Placement.

use crate::App;
use api::{Call, Reply};
use base::Result;
use serde_json::{Value, json};

/// The newest microversions offered.
pub const COMPUTE_MAX: &str = "2.104";

fn v21(call: &Call) -> Value {
    json!({
        "id": "v2.1", "status": "CURRENT", "version": COMPUTE_MAX, "min_version": "2.1",
        "updated": "2013-07-23T11:33:21Z", "links": [{"rel": "self", "href": format!("{}/v2.1/", call.base)}],
    })
}

fn v20(call: &Call) -> Value {
    json!({
        "id": "v2.0", "status": "DEPRECATED", "version": "", "min_version": "", "updated": "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{}/v2/", call.base)}],
    })
}

pub async fn root(_: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"versions": [v20(&call), v21(&call)]})))
}

pub async fn show(_: App, call: Call) -> Result<Reply> {
    Ok(described(v21(&call)))
}

/// GET /v2/: only its document is there.
pub async fn old(_: App, call: Call) -> Result<Reply> {
    Ok(described(v20(&call)))
}

fn described(mut view: Value) -> Reply {
    let described = json!({"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/api-ref/compute/"});
    if let Some(links) = view["links"].as_array_mut() {
        links.push(described);
    }
    view["media-types"] =
        json!([{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}]);
    Reply::ok(&json!({"version": view}))
}

/// GET /extensions: there have been none since microversions came.
pub async fn extensions(_: App, _: Call) -> Result<Reply> {
    Ok(Reply::ok(&json!({"extensions": []})))
}

pub async fn placement(_: App, _: Call) -> Result<Reply> {
    let links = [json!({"rel": "self", "href": ""})];
    let one = json!({"id": "v1.0", "status": "CURRENT", "min_version": "1.0", "max_version": "1.39", "links": links});
    Ok(Reply::ok(&json!({"versions": [one]})))
}
