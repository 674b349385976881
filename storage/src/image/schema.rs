//! JSON schemas of what the API shows: `/v2/schemas/image` and its like.

use crate::App;
use api::{Reply, Route};
use base::Result;
use serde_json::{Value, json};

pub fn routes() -> Vec<Route<App>> {
    vec![
        api::get("/v2/schemas/image", "get_images", |_, _| shown(image())),
        api::get("/v2/schemas/images", "get_images", |_, _| shown(list("images", image()))),
        api::get("/v2/schemas/member", "get_images", |_, _| shown(member())),
        api::get("/v2/schemas/members", "get_images", |_, _| shown(list("members", member()))),
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
