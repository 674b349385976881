//! Images through the real router: bytes, who sees what, what is refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::pass::Pass;
use http::HeaderMap;
use identity::testing::{Cloud, Person};
use serde_json::{Value, json};
use std::sync::OnceLock;
use storage::{App, Settings};

/// The cloud, and the app behind its images.
struct Images {
    cloud: Cloud,
    app: App,
}

const OCTETS: [(&str, &str); 1] = [("content-type", "application/octet-stream")];
const PATCH: [(&str, &str); 1] = [("content-type", "application/openstack-images-v2.1-json-patch")];

impl Images {
    async fn new() -> Images {
        Images::with(1 << 20).await
    }

    async fn with(image_bytes_max: u64) -> Images {
        let made: OnceLock<App> = OnceLock::new();
        let cloud = Cloud::with(storage::records, |cell, dir| {
            let settings = Settings { image_bytes_max, ..Settings::new(dir.join("image")) };
            let app = made.get_or_init(|| App::new(cell.clone(), settings));
            vec![storage::service(app.clone())]
        })
        .await;
        Images { cloud, app: made.into_inner().unwrap() }
    }

    async fn ask(&self, who: &Person, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, _, answer) = self.cloud.call(method, &format!("/image{path}"), &who.token, body).await;
        (status.as_u16(), answer)
    }

    async fn make(&self, who: &Person, more: Value) -> String {
        let mut body = json!({"name": "i", "disk_format": "raw", "container_format": "bare"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, image) = self.ask(who, "POST", "/v2/images", body).await;
        assert_eq!(status, 201, "{image}");
        image["id"].as_str().unwrap().to_string()
    }

    async fn put(&self, who: &Person, id: &str, bytes: impl Into<Vec<u8>>) -> u16 {
        let path = format!("/image/v2/images/{id}/file");
        self.cloud.send("PUT", &path, &who.token, &OCTETS, bytes.into()).await.0.as_u16()
    }

    async fn get(&self, who: &Person, id: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Vec<u8>) {
        let path = format!("/image/v2/images/{id}/file");
        let (status, headers, bytes) = self.cloud.bytes("GET", &path, &who.token, headers, "").await;
        (status.as_u16(), headers, bytes.to_vec())
    }

    async fn patch(&self, who: &Person, id: &str, changes: Value) -> (u16, Value) {
        let path = format!("/image/v2/images/{id}");
        let (status, _, answer) =
            self.cloud.send("PATCH", &path, &who.token, &PATCH, changes.to_string()).await;
        (status.as_u16(), answer)
    }

    async fn show(&self, who: &Person, id: &str) -> Value {
        self.ask(who, "GET", &format!("/v2/images/{id}"), Value::Null).await.1
    }

    async fn ids(&self, who: &Person, query: &str) -> Vec<String> {
        let (status, list) = self.ask(who, "GET", &format!("/v2/images{query}"), Value::Null).await;
        assert_eq!(status, 200, "{query}: {list}");
        list["images"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_string()).collect()
    }
}

#[tokio::test]
async fn bytes_come_back_as_they_went_in() {
    let images = Images::new().await;
    let one = images.cloud.member("one").await;
    let id = images.make(&one, json!({"colour": "green"})).await;
    assert_eq!(images.get(&one, &id, &[]).await.0, 204);
    let bytes: Vec<u8> = (0..700_000_u32).map(|n| n as u8).collect();
    assert_eq!(images.put(&one, &id, bytes.clone()).await, 204);
    let shown = images.show(&one, &id).await;
    assert_eq!((&shown["status"], &shown["size"]), (&json!("active"), &json!(700_000)));
    assert_eq!((&shown["colour"], &shown["os_hash_algo"]), (&json!("green"), &json!("sha512")));
    let (status, headers, got) = images.get(&one, &id, &[]).await;
    assert!(status == 200 && got == bytes);
    assert_eq!(headers["content-md5"].to_str().unwrap(), shown["checksum"].as_str().unwrap());
    let (status, headers, got) = images.get(&one, &id, &[("range", "bytes=10-19")]).await;
    assert_eq!((status, got.as_slice()), (206, &bytes[10..20]));
    assert_eq!(headers["content-range"], "bytes 10-19/700000");
    assert_eq!(images.get(&one, &id, &[("range", "bytes=700000-")]).await.0, 416);
    assert_eq!(images.put(&one, &id, bytes).await, 409);
    let file = storage::image::path(&images.app.settings, id.parse().unwrap());
    assert!(file.exists());
    assert_eq!(images.ask(&one, "DELETE", &format!("/v2/images/{id}"), Value::Null).await.0, 204);
    assert!(!file.exists());
    assert_eq!(images.ask(&one, "GET", &format!("/v2/images/{id}"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn an_upload_that_is_sent_again_is_answered_again_and_its_bytes_stay() {
    let images = Images::new().await;
    let one = images.cloud.member("one").await;
    let id = images.make(&one, json!({})).await;
    // The door names it, and sends it twice when a plane ends before it has answered.
    for _ in 0..2 {
        let (status, passing) = images.app.cell.once("named", images.put(&one, &id, *b"bytes")).await;
        assert_eq!((status, passing), (204, false));
    }
    let (status, _, got) = images.get(&one, &id, &[]).await;
    assert_eq!((status, got.as_slice()), (200, b"bytes".as_slice()));
    // Another upload of it is none of that.
    assert_eq!(images.app.cell.once("other", images.put(&one, &id, *b"other")).await.0, 409);
    assert_eq!(images.get(&one, &id, &[]).await.2, b"bytes");
}

#[tokio::test]
async fn what_is_refused_leaves_a_queued_image_and_no_file() {
    let images = Images::with(1000).await;
    let one = images.cloud.member("one").await;
    let id = images.make(&one, json!({})).await;
    let left = || std::fs::read_dir(images.app.settings.dir.join("images")).map_or(0, |d| d.count());
    // OSSA-2026-002: a raw disk with the header of another format.
    let mut disguised = vec![0; 900];
    disguised[..4].copy_from_slice(b"QFI\xfb");
    assert_eq!(images.put(&one, &id, disguised).await, 415);
    assert_eq!((images.show(&one, &id).await["status"].clone(), left()), (json!("queued"), 0));
    // OSSA-2015-003: more than allowed.
    assert_eq!(images.put(&one, &id, vec![0; 1001]).await, 413);
    assert_eq!((images.show(&one, &id).await["status"].clone(), left()), (json!("queued"), 0));
    // OSSA-2015-014, OSSA-2024-001: a disk behind which there is another file.
    let qcow2 = images.make(&one, json!({"disk_format": "qcow2"})).await;
    let mut backed = vec![0; 512];
    backed[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    backed[15] = 1;
    assert_eq!(images.put(&one, &qcow2, backed).await, 415);
    let path = format!("/image/v2/images/{id}/file");
    let plain = images.cloud.call("PUT", &path, &one.token, json!({})).await;
    assert_eq!(plain.0.as_u16(), 415);
    let formless = images.ask(&one, "POST", "/v2/images", json!({"name": "x"})).await.1;
    assert_eq!(images.put(&one, formless["id"].as_str().unwrap(), "bytes").await, 400);
    assert_eq!(images.put(&one, &id, "good").await, 204);
}

#[tokio::test]
async fn quotas_hold_for_count_and_size() {
    let images = Images::with(4 << 20).await;
    let one = images.cloud.member("one").await;
    let project = one.project;
    let set = move |tx: &mut store::Tx| {
        identity::limit::set(tx, project, &storage::image::COUNT, 2)?;
        identity::limit::set(tx, project, &storage::image::SIZE, 2)
    };
    images.cloud.cell.write(store::Cause::step("test"), set).await.unwrap();
    let (a, b) = (images.make(&one, json!({})).await, images.make(&one, json!({})).await);
    assert_eq!(images.ask(&one, "POST", "/v2/images", json!({})).await.0, 413);
    assert_eq!(images.put(&one, &a, vec![1; 1 << 20]).await, 204);
    assert_eq!(images.put(&one, &b, vec![1; (1 << 20) + 1]).await, 413);
    assert_eq!(images.put(&one, &b, vec![1; 1 << 20]).await, 204);
    assert_eq!(images.ask(&one, "DELETE", &format!("/v2/images/{a}"), Value::Null).await.0, 204);
    images.make(&one, json!({})).await;
}

#[tokio::test]
async fn who_sees_and_changes_what() {
    let images = Images::new().await;
    let (one, two) = (images.cloud.member("one").await, images.cloud.member("two").await);
    let reader = images.cloud.person("reader", "reader").await;
    let admin = images.cloud.admin.clone();
    let private = images.make(&one, json!({"visibility": "private"})).await;
    let community = images.make(&one, json!({"visibility": "community"})).await;
    let public = images.make(&admin, json!({"visibility": "public"})).await;
    let hidden = images.make(&one, json!({"os_hidden": true})).await;
    let path = |id: &str| format!("/v2/images/{id}");
    for (id, seen) in [(&private, 404), (&community, 200), (&public, 200), (&hidden, 404)] {
        assert_eq!(images.ask(&two, "GET", &path(id), Value::Null).await.0, seen);
        let denied = if seen == 200 { 403 } else { 404 };
        assert_eq!(images.ask(&two, "DELETE", &path(id), Value::Null).await.0, denied);
        assert_eq!(images.patch(&two, id, json!([])).await.0, denied);
        assert_eq!(images.put(&two, id, "bytes").await, denied);
    }
    assert_eq!(images.ids(&two, "").await, [public.as_str()]);
    assert_eq!(images.ids(&two, "?visibility=community").await, [community.as_str()]);
    assert_eq!(images.ids(&one, "?os_hidden=true").await, [hidden.as_str()]);
    assert_eq!(images.ids(&admin, "").await.len(), 2);
    assert_eq!(images.ask(&one, "POST", "/v2/images", json!({"visibility": "public"})).await.0, 403);
    let publish = json!([{"op": "replace", "path": "/visibility", "value": "public"}]);
    assert_eq!(images.patch(&one, &private, publish.clone()).await.0, 403);
    assert_eq!(images.patch(&admin, &private, publish).await.0, 200);
    assert_eq!(images.ask(&reader, "POST", "/v2/images", json!({})).await.0, 403);
    let foreign = json!({"owner": two.project});
    assert_eq!(images.ask(&one, "POST", "/v2/images", foreign).await.0, 403);
    assert_eq!(images.ask(&one, "GET", "/v2/images/", Value::Null).await.0, 404);
    assert_eq!(images.ask(&one, "DELETE", "/v2/images/", Value::Null).await.0, 404);
}

#[tokio::test]
async fn sharing_takes_two() {
    let images = Images::new().await;
    let (one, two) = (images.cloud.member("one").await, images.cloud.member("two").await);
    let three = images.cloud.member("three").await;
    let id = images.make(&one, json!({})).await;
    let members = format!("/v2/images/{id}/members");
    let own = format!("{members}/{}", two.project);
    let new = json!({"member": two.project});
    assert_eq!(images.ask(&two, "POST", &members, new.clone()).await.0, 404);
    assert_eq!(images.ask(&one, "POST", &members, new.clone()).await.1["status"], "pending");
    assert_eq!(images.ask(&one, "POST", &members, new.clone()).await.0, 409);
    assert_eq!(images.ask(&two, "GET", &format!("/v2/images/{id}"), Value::Null).await.0, 200);
    assert!(images.ids(&two, "").await.is_empty());
    assert_eq!(images.ids(&two, "?visibility=shared&member_status=pending").await, [id.as_str()]);
    let yes = json!({"status": "accepted"});
    assert_eq!(images.ask(&one, "PUT", &own, yes.clone()).await.0, 403);
    assert_eq!(images.ask(&two, "PUT", &own, yes).await.1["status"], "accepted");
    assert_eq!(images.ids(&two, "").await, [id.as_str()]);
    assert_eq!(images.ask(&two, "DELETE", &own, Value::Null).await.0, 403);
    assert_eq!(images.ask(&three, "GET", &members, Value::Null).await.0, 404);
    assert_eq!(images.ask(&two, "GET", &own, Value::Null).await.1["member_id"], two.project.to_string());
    assert_eq!(images.ask(&one, "DELETE", &own, Value::Null).await.0, 204);
    assert!(images.ids(&two, "").await.is_empty());
    let private = images.make(&one, json!({"visibility": "private"})).await;
    assert_eq!(images.ask(&one, "POST", &format!("/v2/images/{private}/members"), new).await.0, 403);
}

#[tokio::test]
async fn patches() {
    let images = Images::new().await;
    let one = images.cloud.member("one").await;
    let id = images.make(&one, json!({"a": "1"})).await;
    for (change, expect) in [
        (json!({"op": "replace", "path": "/name", "value": "new"}), 200),
        (json!({"op": "add", "path": "/b~1c", "value": "2"}), 200),
        (json!({"op": "replace", "path": "/a", "value": "3"}), 200),
        (json!({"op": "replace", "path": "/nothing", "value": "3"}), 409),
        (json!({"op": "remove", "path": "/nothing"}), 409),
        (json!({"op": "add", "path": "/n", "value": 7}), 400),
        (json!({"op": "add", "path": "/tags/-", "value": "t"}), 200),
        (json!({"op": "replace", "path": "/status", "value": "active"}), 403),
        (json!({"op": "replace", "path": "/id", "value": "x"}), 403),
        (json!({"op": "add", "path": "/os_glance_foo", "value": "x"}), 403),
        (json!({"op": "remove", "path": "/name"}), 403),
        (json!({"op": "move", "path": "/name"}), 400),
        (json!({"op": "add", "path": "name", "value": "x"}), 400),
        (json!({"op": "replace", "path": "/min_ram", "value": -1}), 400),
        (json!({"op": "replace", "path": "/disk_format", "value": "wrong"}), 400),
    ] {
        assert_eq!(images.patch(&one, &id, json!([change])).await.0, expect, "{change}");
    }
    let shown = images.show(&one, &id).await;
    assert_eq!((&shown["name"], &shown["b/c"], &shown["a"]), (&json!("new"), &json!("2"), &json!("3")));
    assert_eq!(shown["tags"], json!(["t"]));
    let path = format!("/image/v2/images/{id}");
    let wrong = images.cloud.call("PATCH", &path, &one.token, json!([])).await;
    assert_eq!(wrong.0.as_u16(), 415);
    assert_eq!(wrong.1["content-type"], "text/html; charset=UTF-8");
    let old = [("content-type", "application/openstack-images-v2.0-json-patch")];
    let body = json!([{"replace": "/name", "value": "older"}]).to_string();
    assert_eq!(images.cloud.send("PATCH", &path, &one.token, &old, body).await.0.as_u16(), 200);
    // OSSA-2015-019: the format of an image that has its bytes stays.
    images.put(&one, &id, "bytes").await;
    let format = json!([{"op": "replace", "path": "/disk_format", "value": "qcow2"}]);
    assert_eq!(images.patch(&one, &id, format).await.0, 403);
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_paged() {
    let images = Images::new().await;
    let one = images.cloud.member("one").await;
    let mut ids = Vec::new();
    for (name, size) in [("a", 30), ("b", 10), ("c,d", 20)] {
        let id = images.make(&one, json!({"name": name, "tags": [name], "os": name})).await;
        images.put(&one, &id, vec![1; size]).await;
        ids.push(id);
    }
    let at = async |query: &str| -> String {
        let found = images.ids(&one, query).await;
        found.iter().map(|id| ["a", "b", "c"][ids.iter().position(|i| i == id).unwrap()]).collect()
    };
    for (query, expect) in [
        ("", "cba"),
        ("?sort=size:asc", "bca"),
        ("?sort_key=size&sort_dir=desc", "acb"),
        ("?name=a", "a"),
        ("?name=in:%22c,d%22,b", "cb"),
        ("?tag=b", "b"),
        ("?os=b", "b"),
        ("?size_min=15&size_max=25", "c"),
        ("?created_at=gt:2001-01-01T00:00:00Z", "cba"),
        ("?created_at=lt:2001-01-01T00:00:00Z", ""),
        ("?status=queued", ""),
        ("?limit=2", "cb"),
    ] {
        assert_eq!(at(query).await, expect, "{query}");
    }
    let (_, page) = images.ask(&one, "GET", "/v2/images?limit=2&sort=name:asc", Value::Null).await;
    assert_eq!(page["first"], "/v2/images?limit=2&sort=name%3Aasc");
    let next = page["next"].as_str().unwrap().strip_prefix("/v2/images").unwrap();
    assert_eq!(at(next).await, "c");
    assert_eq!(images.ask(&one, "GET", "/v2/images?marker=none", Value::Null).await.0, 400);
    assert_eq!(images.ask(&one, "GET", "/v2/images?sort=colour", Value::Null).await.0, 400);
}

#[tokio::test]
async fn protected_and_deactivated() {
    let images = Images::new().await;
    let one = images.cloud.member("one").await;
    let id = images.make(&one, json!({"protected": true})).await;
    let path = format!("/v2/images/{id}");
    assert_eq!(images.ask(&one, "DELETE", &path, Value::Null).await.0, 403);
    assert_eq!(images.ask(&one, "POST", &format!("{path}/actions/deactivate"), Value::Null).await.0, 403);
    images.put(&one, &id, "bytes").await;
    assert_eq!(images.ask(&one, "POST", &format!("{path}/actions/deactivate"), Value::Null).await.0, 204);
    assert_eq!(images.get(&one, &id, &[]).await.0, 403);
    assert_eq!(images.get(&images.cloud.admin, &id, &[]).await.0, 200);
    assert_eq!(images.ask(&one, "POST", &format!("{path}/actions/reactivate"), Value::Null).await.0, 204);
    assert_eq!(images.get(&one, &id, &[]).await.0, 200);
}

#[tokio::test]
async fn staged_bytes_are_imported_once_they_are_looked_at() {
    let images = Images::new().await;
    let one = images.cloud.member("one").await;
    let import = json!({"method": {"name": "glance-direct"}});
    for (bytes, status, task) in [(&b"good"[..], "active", "success"), (b"QED\0", "queued", "failure")] {
        let id = images.make(&one, json!({})).await;
        let path = format!("/image/v2/images/{id}/stage");
        let staged = images.cloud.send("PUT", &path, &one.token, &OCTETS, bytes).await;
        assert_eq!(staged.0.as_u16(), 204);
        assert_eq!(images.show(&one, &id).await["status"], "uploading");
        let path = format!("/v2/images/{id}/import");
        assert_eq!(images.ask(&one, "POST", &path, import.clone()).await.0, 202);
        let tasks = format!("/v2/images/{id}/tasks");
        let mut watch = images.cloud.cell.watch(0);
        loop {
            let (_, list) = images.ask(&one, "GET", &tasks, Value::Null).await;
            match list["tasks"][0]["status"].as_str().unwrap() {
                "processing" => drop(watch.next().await),
                done => break assert_eq!(done, task),
            }
        }
        assert_eq!(images.show(&one, &id).await["status"], status);
    }
    let id = images.make(&one, json!({})).await;
    let unknown = json!({"method": {"name": "web-download", "uri": "http://169.254.169.254/"}});
    assert_eq!(images.ask(&one, "POST", &format!("/v2/images/{id}/import"), unknown).await.0, 400);
}

#[tokio::test]
async fn loops_reset_lost_uploads_and_remove_unowned_files() {
    use storage::image::{LostUploadsReset, Step, UnownedFilesRemoved, step};
    let images = Images::new().await;
    let one = images.cloud.member("one").await;
    let id = images.make(&one, json!({})).await;
    let image = id.parse().unwrap();
    let save = move |tx: &mut store::Tx| {
        let mut lost = storage::image::Image::clone(&*step(tx, image, &Step::Save)?);
        lost.updated_at = base::Timestamp(0);
        tx.put(lost)?;
        Ok(())
    };
    images.cloud.cell.write(store::Cause::step("test"), save).await.unwrap();
    LostUploadsReset { app: images.app.clone() }.pass().await.unwrap();
    assert_eq!(images.show(&one, &id).await["status"], "queued");
    images.put(&one, &id, "bytes").await;
    let kept = storage::image::path(&images.app.settings, image);
    let unowned = kept.with_file_name("0a5efd1e-0b5e-4e6b-8d0a-2f2a7a1f9d11");
    std::fs::write(&unowned, "bytes").unwrap();
    UnownedFilesRemoved { app: images.app.clone() }.pass().await.unwrap();
    assert!(kept.exists() && !unowned.exists());
}

#[tokio::test]
async fn metadata_definitions_are_kept_with_their_namespace() {
    let images = Images::new().await;
    let (admin, one) = (images.cloud.admin.clone(), images.cloud.member("one").await);
    let new = json!({"namespace": "A::B", "visibility": "private", "protected": true,
        "objects": [{"name": "o", "properties": {"p": {"title": "P", "type": "string"}}}],
        "properties": {"q": {"title": "Q", "type": "integer"}},
        "resource_type_associations": [{"name": "OS::Nova::Flavor", "prefix": "hw:"}]});
    let all = "/v2/metadefs/namespaces";
    let path = "/v2/metadefs/namespaces/A::B";
    assert_eq!(images.ask(&one, "POST", all, new.clone()).await.0, 403);
    assert_eq!(images.ask(&admin, "POST", all, new.clone()).await.0, 201);
    assert_eq!(images.ask(&admin, "POST", all, new.clone()).await.0, 409);
    assert_eq!(images.ask(&one, "GET", path, Value::Null).await.0, 404);
    let (_, shown) = images.ask(&admin, "GET", path, Value::Null).await;
    assert_eq!(shown["properties"]["q"], json!({"title": "Q", "type": "integer"}));
    assert_eq!((&shown["objects"][0]["name"], &shown["protected"]), (&json!("o"), &json!(true)));
    assert_eq!(images.ask(&admin, "DELETE", path, Value::Null).await.0, 403);
    let open = json!({"namespace": "A::B", "visibility": "public", "protected": false});
    assert_eq!(images.ask(&admin, "PUT", path, open).await.0, 200);
    let (status, q) = images.ask(&one, "GET", &format!("{path}/properties/q"), Value::Null).await;
    assert_eq!((status, &q["name"]), (200, &json!("q")));
    let renamed = json!({"name": "r", "title": "R", "type": "integer"});
    assert_eq!(images.ask(&admin, "PUT", &format!("{path}/properties/q"), renamed).await.0, 200);
    assert_eq!(images.ask(&admin, "DELETE", &format!("{path}/properties/q"), Value::Null).await.0, 404);
    assert_eq!(images.ask(&admin, "DELETE", path, Value::Null).await.0, 204);
    assert_eq!(images.ask(&admin, "GET", path, Value::Null).await.0, 404);
}
