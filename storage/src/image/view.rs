//! An image as the API shows it: flat, its own properties beside the declared ones.

use super::Image;
use crate::image::import;
use serde_json::{Map, Value, json};

pub fn view(image: &Image) -> Value {
    let fields = &image.fields;
    let content = image.content.as_ref();
    let mut view = Map::new();
    for (key, value) in &fields.properties {
        view.insert(key.clone(), value.clone().into());
    }
    let declared = json!({
        "id": image.id,
        "name": fields.name,
        "status": image.status,
        "visibility": fields.visibility,
        "protected": fields.protected,
        "os_hidden": fields.hidden,
        "owner": image.owner,
        "disk_format": fields.disk_format,
        "container_format": fields.container_format,
        "min_disk": fields.min_disk_gib,
        "min_ram": fields.min_ram_mib,
        "size": content.map(|c| c.size),
        "virtual_size": content.map(|c| c.virtual_size),
        "checksum": content.map(|c| &c.md5),
        "os_hash_algo": content.map(|_| "sha512"),
        "os_hash_value": content.map(|c| &c.sha512),
        "tags": fields.tags,
        "created_at": image.created_at.zulu(),
        "updated_at": image.updated_at.zulu(),
        "self": format!("/v2/images/{}", image.id),
        "file": format!("/v2/images/{}/file", image.id),
        "schema": "/v2/schemas/image",
    });
    if let Value::Object(declared) = declared {
        view.extend(declared);
    }
    Value::Object(view)
}

/// The methods of import, as the answer to a creation names them.
pub fn import_methods() -> String {
    import::METHODS.join(",")
}
