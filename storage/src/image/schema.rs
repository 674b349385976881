//! JSON schemas of what the API shows: `/v2/schemas/image` and its like.

use crate::App;
use api::{Call, Reply, Route};
use base::{Error, Result};
use serde_json::{Value, json};

pub fn routes() -> Vec<Route<App>> {
    vec![
        api::get("/v2/schemas/image", "get_images", |_, _| shown(image())),
        api::get("/v2/schemas/images", "get_images", |_, _| shown(list("images", image()))),
        api::get("/v2/schemas/member", "get_images", |_, _| shown(member())),
        api::get("/v2/schemas/members", "get_images", |_, _| shown(list("members", member()))),
        api::get("/v2/schemas/metadefs/{kind}", "get_images", metadef),
    ]
}

async fn shown(schema: Value) -> Result<Reply> {
    Ok(Reply::ok(&schema))
}

fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

fn optional(about: &str) -> Value {
    json!({"type": ["null", "string"], "description": about})
}

fn ours(mut attribute: Value) -> Value {
    attribute["readOnly"] = true.into();
    attribute
}

fn number(about: &str) -> Value {
    json!({"type": ["null", "integer"], "description": about, "readOnly": true})
}

fn image() -> Value {
    let disk = ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"];
    let container = ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"];
    let one_of = |words: &[&str]| json!({"type": ["null", "string"], "enum": words.iter().map(|w| json!(w)).chain([Value::Null]).collect::<Vec<_>>()});
    json!({
        "name": "image",
        "properties": {
            "id": text("An identifier for the image"),
            "name": json!({"type": ["null", "string"], "maxLength": 255, "description": "Descriptive name for the image"}),
            "status": ours(json!({"type": "string", "enum": ["queued", "saving", "active", "killed", "deleted", "uploading", "importing", "pending_delete", "deactivated"]})),
            "visibility": json!({"type": "string", "enum": ["community", "public", "private", "shared"]}),
            "protected": json!({"type": "boolean", "description": "If true, image will not be deletable."}),
            "os_hidden": json!({"type": "boolean", "description": "If true, image will not appear in default image list response."}),
            "checksum": ours(optional("md5 hash of image contents.")),
            "os_hash_algo": ours(optional("Algorithm to calculate the os_hash_value")),
            "os_hash_value": ours(optional("Hexdigest of the image contents using the algorithm specified by the os_hash_algo")),
            "owner": optional("Owner of the image"),
            "size": number("Size of image file in bytes"),
            "virtual_size": number("Virtual size of image in bytes"),
            "container_format": one_of(&container),
            "disk_format": one_of(&disk),
            "created_at": ours(text("Date and time of image registration")),
            "updated_at": ours(text("Date and time of the last image modification")),
            "tags": json!({"type": "array", "items": {"type": "string", "maxLength": 255}}),
            "min_ram": json!({"type": "integer", "maximum": 2147483647, "description": "Amount of ram (in MB) required to boot image."}),
            "min_disk": json!({"type": "integer", "maximum": 2147483647, "description": "Amount of disk space (in GB) required to boot image."}),
            "stores": ours(text("Store in which image data resides.")),
            "self": ours(text("An image self url")),
            "file": ours(text("An image file url")),
            "schema": ours(text("An image schema url")),
        },
        "additionalProperties": {"type": "string"},
        "links": [
            {"href": "{self}", "rel": "self"},
            {"href": "{file}", "rel": "enclosure"},
            {"href": "{schema}", "rel": "describedby"},
        ],
    })
}

fn member() -> Value {
    json!({
        "name": "member",
        "properties": {
            "created_at": text("Date and time of image member creation"),
            "updated_at": text("Date and time of last modification of image member"),
            "image_id": text("An identifier for the image"),
            "member_id": text("An identifier for the image member (tenantId)"),
            "status": json!({"type": "string", "enum": ["pending", "accepted", "rejected"]}),
            "schema": text(""),
        },
    })
}

/// The schemas of metadata definitions: one of a kind, or the list of them.
async fn metadef(_: App, call: Call) -> Result<Reply> {
    let (name, one) = match call.param("kind") {
        "namespace" | "namespaces" => ("namespaces", namespace()),
        "object" | "objects" => ("objects", object()),
        "property" | "properties" => ("properties", property()),
        "tag" | "tags" => ("tags", tag()),
        "resource_type" | "resource_types" => ("resource_type_associations", resource_type()),
        other => return Err(Error::not_found(format!("There is no schema of {}.", other.escape_default()))),
    };
    let many = call.param("kind").ends_with('s');
    shown(if many { list(name, one) } else { one }).await
}

fn namespace() -> Value {
    json!({"name": "namespace", "required": ["namespace"], "properties": {
        "namespace": {"type": "string", "maxLength": 80},
        "display_name": {"type": "string", "maxLength": 80},
        "description": text("Provides a user friendly description of the namespace."),
        "visibility": {"type": "string", "enum": ["public", "private"]},
        "protected": {"type": "boolean"},
        "owner": text("Owner of the namespace."),
        "created_at": ours(text("Date and time of namespace creation")),
        "updated_at": ours(text("Date and time of the last namespace modification")),
        "self": text(""),
        "schema": text(""),
        "properties": {"type": "object"},
        "objects": {"type": "array", "items": object()},
        "tags": {"type": "array", "items": tag()},
        "resource_type_associations": {"type": "array", "items": resource_type()},
    }})
}

fn object() -> Value {
    json!({"name": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "maxLength": 80},
        "description": text(""),
        "required": {"type": "array", "items": {"type": "string"}},
        "properties": {"type": "object"},
        "self": text(""),
        "schema": text(""),
        "created_at": ours(text("Date and time of object creation")),
        "updated_at": ours(text("Date and time of the last object modification")),
    }})
}

fn property() -> Value {
    json!({"name": "property", "required": ["type", "title", "name"], "additionalProperties": false, "properties": {
        "name": {"type": "string", "maxLength": 80},
        "title": text(""),
        "description": text(""),
        "type": {"type": "string", "enum": ["array", "boolean", "integer", "number", "object", "string", null]},
        "operators": {"type": "array", "items": {"type": "string"}},
        "enum": {"type": "array"},
        "default": {},
        "minimum": {"type": "number"},
        "maximum": {"type": "number"},
        "minLength": {"type": "integer"},
        "maxLength": {"type": "integer"},
        "pattern": {"type": "string", "format": "regex"},
        "items": {"type": "object"},
        "readonly": {"type": "boolean"},
    }})
}

fn tag() -> Value {
    json!({"name": "tag", "required": ["name"], "properties": {
        "name": {"type": "string", "maxLength": 80},
        "created_at": ours(text("Date and time of tag creation")),
        "updated_at": ours(text("Date and time of the last tag modification")),
    }})
}

fn resource_type() -> Value {
    json!({"name": "resource_type_association", "required": ["name"], "properties": {
        "name": {"type": "string", "maxLength": 80},
        "prefix": {"type": "string", "maxLength": 80},
        "properties_target": {"type": "string", "maxLength": 80},
        "created_at": ours(text("Date and time of resource type association")),
        "updated_at": ours(text("Date and time of the last resource type association modification")),
    }})
}

fn list(name: &str, one: Value) -> Value {
    json!({
        "name": name,
        "properties": {
            name: {"type": "array", "items": one},
            "first": text(""),
            "next": text(""),
            "schema": text(""),
        },
        "links": [
            {"href": "{first}", "rel": "first"},
            {"href": "{next}", "rel": "next"},
            {"href": "{schema}", "rel": "describedby"},
        ],
    })
}
