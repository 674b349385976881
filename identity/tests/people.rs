//! Domains, projects, users, groups and roles through the real router.

#![allow(clippy::unwrap_used, reason = "a test")]

use identity::testing::{Cloud, PASSWORD, settings};
use serde_json::{Value, json};

async fn call(cloud: &Cloud, method: &str, path: &str, body: Value) -> (u16, Value) {
    let path = format!("/identity/v3{path}");
    let (status, _, answer) = cloud.call(method, &path, &cloud.admin.token, body).await;
    (status.as_u16(), answer)
}

async fn made(cloud: &Cloud, kind: &str, path: &str, body: Value) -> String {
    let (status, answer) = call(cloud, "POST", path, json!({kind: body})).await;
    assert_eq!(status, 201, "{answer}");
    answer[kind]["id"].as_str().unwrap().to_string()
}

#[tokio::test]
async fn attributes_that_nobody_declared_are_kept_and_ids_are_hex() {
    let cloud = Cloud::identity().await;
    let id = made(&cloud, "project", "/projects", json!({"name": "p", "colour": "green", "size": 3})).await;
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    let path = format!("/projects/{id}");
    call(&cloud, "PATCH", &path, json!({"project": {"colour": "blue", "description": "d"}})).await;
    let (_, shown) = call(&cloud, "GET", &path, Value::Null).await;
    let project = &shown["project"];
    assert_eq!((&project["colour"], &project["size"]), (&json!("blue"), &json!(3)));
    assert_eq!((&project["parent_id"], &project["domain_id"]), (&json!("default"), &json!("default")));
    assert_eq!(project["links"]["self"], format!("http://cloud.test:5000/identity/v3{path}"));
}

#[tokio::test]
async fn names_are_unique_in_their_domain_and_references_are_kept() {
    let cloud = Cloud::identity().await;
    let d = made(&cloud, "domain", "/domains", json!({"name": "d"})).await;
    for (kind, path) in [("project", "/projects"), ("user", "/users"), ("group", "/groups")] {
        made(&cloud, kind, path, json!({"name": "x"})).await;
        made(&cloud, kind, path, json!({"name": "x", "domain_id": d})).await;
        let (status, answer) = call(&cloud, "POST", path, json!({kind: {"name": "x"}})).await;
        assert_eq!(status, 409, "{answer}");
        assert_eq!(answer["error"]["title"], "Conflict");
    }
    assert_eq!(call(&cloud, "DELETE", &format!("/domains/{d}"), Value::Null).await.0, 403);
    call(&cloud, "PATCH", &format!("/domains/{d}"), json!({"domain": {"enabled": false}})).await;
    assert_eq!(call(&cloud, "DELETE", &format!("/domains/{d}"), Value::Null).await.0, 204);
    let (_, users) = call(&cloud, "GET", "/users?name=x", Value::Null).await;
    assert_eq!(users["users"].as_array().unwrap().len(), 1);
    let nowhere = json!({"user": {"name": "y", "domain_id": d}});
    assert_eq!(call(&cloud, "POST", "/users", nowhere).await.0, 404);
}

#[tokio::test]
async fn trees_inherit_and_lists_tell_what_works_out() {
    let cloud = Cloud::identity().await;
    let top = made(&cloud, "project", "/projects", json!({"name": "top"})).await;
    let child = made(&cloud, "project", "/projects", json!({"name": "child", "parent_id": top})).await;
    let one = cloud.member("one").await;
    let (_, roles) = call(&cloud, "GET", "/roles?name=reader", Value::Null).await;
    let reader = roles["roles"][0]["id"].as_str().unwrap().to_string();
    let grant = format!("/OS-INHERIT/projects/{top}/users/{}/roles/{reader}/inherited_to_projects", one.user);
    assert_eq!(call(&cloud, "PUT", &grant, Value::Null).await.0, 204);
    assert_eq!(call(&cloud, "HEAD", &grant, Value::Null).await.0, 204);
    let scope = |id: &str| json!({"project": {"id": id}});
    assert!(cloud.login_as(one.user, PASSWORD, scope(&child)).await.is_ok());
    assert!(cloud.login_as(one.user, PASSWORD, scope(&top)).await.is_err());
    let query =
        format!("/role_assignments?effective&include_names=1&user.id={}&scope.project.id={child}", one.user);
    let (_, list) = call(&cloud, "GET", &query, Value::Null).await;
    let line = &list["role_assignments"][0];
    assert_eq!(line["role"]["name"], "reader");
    assert_eq!(line["scope"]["project"]["name"], "child");
    assert_eq!(line["user"]["domain"]["name"], "Default");
    let (_, shown) = call(&cloud, "GET", &format!("/projects/{top}?subtree_as_ids"), Value::Null).await;
    assert_eq!(shown["project"]["subtree"], json!({child.as_str(): null}));
    assert_eq!(call(&cloud, "DELETE", &format!("/projects/{top}"), Value::Null).await.0, 403);
    assert_eq!(call(&cloud, "DELETE", &format!("/projects/{child}"), Value::Null).await.0, 204);
    assert_eq!(call(&cloud, "DELETE", &format!("/projects/{top}"), Value::Null).await.0, 204);
}

#[tokio::test]
async fn a_manager_of_a_domain_manages_it_and_nothing_else() {
    let cloud = Cloud::identity().await;
    let d = made(&cloud, "domain", "/domains", json!({"name": "d"})).await;
    let boss = json!({"name": "boss", "domain_id": d, "password": PASSWORD});
    let boss = made(&cloud, "user", "/users", boss).await;
    let role = |name: &'static str| {
        let state = cloud.cell.read();
        identity::role::named(&state, name).unwrap().id
    };
    call(&cloud, "PUT", &format!("/domains/{d}/users/{boss}/roles/{}", role("manager")), Value::Null).await;
    let token = cloud.login_as(boss.parse().unwrap(), PASSWORD, json!({"domain": {"id": d}})).await.unwrap();
    let ask = async |method: &str, path: &str, body: Value| {
        let (status, _, answer) = cloud.call(method, &format!("/identity/v3{path}"), &token, body).await;
        (status.as_u16(), answer)
    };
    let (status, user) = ask("POST", "/users", json!({"user": {"name": "u"}})).await;
    assert_eq!((status, &user["user"]["domain_id"]), (201, &json!(d)), "{user}");
    let user = user["user"]["id"].as_str().unwrap().to_string();
    let (status, project) = ask("POST", "/projects", json!({"project": {"name": "p"}})).await;
    assert_eq!(status, 201, "{project}");
    let project = project["project"]["id"].as_str().unwrap().to_string();
    let grant = |role: base::RoleId| format!("/projects/{project}/users/{user}/roles/{role}");
    assert_eq!(ask("PUT", &grant(role("member")), Value::Null).await.0, 204);
    assert_eq!(ask("PUT", &grant(role("admin")), Value::Null).await.0, 403);
    let (_, users) = ask("GET", "/users", Value::Null).await;
    assert_eq!(users["users"].as_array().unwrap().len(), 2);
    let foreign = cloud.member("foreign").await;
    for (method, path, body) in [
        ("GET", format!("/users/{}", foreign.user), Value::Null),
        ("DELETE", format!("/users/{}", foreign.user), Value::Null),
        ("POST", "/users".into(), json!({"user": {"name": "z", "domain_id": "default"}})),
        ("POST", "/projects".into(), json!({"project": {"name": "z", "parent_id": foreign.project}})),
        ("PUT", format!("/projects/{}/users/{user}/roles/{}", foreign.project, role("member")), Value::Null),
        ("POST", "/domains".into(), json!({"domain": {"name": "z"}})),
        ("POST", "/roles".into(), json!({"role": {"name": "z"}})),
    ] {
        assert_eq!(ask(method, &path, body).await.0, 403, "{method} {path}");
    }
}

#[tokio::test]
async fn passwords_have_a_history_and_a_way_out_of_lockout() {
    let mut strict = settings();
    strict.unique_last_password_count = 2;
    let cloud = Cloud::open(strict, |s| s, |_, _| Vec::new()).await;
    let one = cloud.member("one").await;
    let path = format!("/users/{}/password", one.user);
    let change = async |old: &str, new: &str| {
        let body = json!({"user": {"original_password": old, "password": new}});
        let (status, _, _) = cloud.call("POST", &format!("/identity/v3{path}"), "", body).await;
        status.as_u16()
    };
    assert_eq!(change("wrong", "second").await, 401);
    assert_eq!(change(PASSWORD, "second").await, 204);
    assert_eq!(change("second", "second").await, 400);
    assert_eq!(change("second", PASSWORD).await, 400);
    assert_eq!(change("second", "third").await, 204);
    assert_eq!(change("third", PASSWORD).await, 204);
    let (_, shown) = call(&cloud, "GET", &format!("/users/{}", one.user), Value::Null).await;
    assert!(!shown.to_string().contains("hash") && !shown.to_string().contains("passwords"));
}

#[tokio::test]
async fn limits_are_a_view_of_what_is_claimed() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let (_, services) = call(&cloud, "GET", "/services?type=compute", Value::Null).await;
    let service = services["services"][0]["id"].clone();
    let registered =
        json!({"registered_limits": [{"service_id": service, "resource_name": "cores", "default_limit": 7}]});
    assert_eq!(call(&cloud, "POST", "/registered_limits", registered).await.0, 201);
    let limit = json!({"limits": [{"service_id": service, "resource_name": "cores", "project_id": one.project, "resource_limit": 3}]});
    let (status, made) = call(&cloud, "POST", "/limits", limit).await;
    assert_eq!(status, 201, "{made}");
    let cores = identity::limit::Resource { name: "compute:cores", default: 20 };
    assert_eq!(identity::limit::of(&cloud.cell.read(), one.project, &cores), 3);
    assert_eq!(identity::limit::of(&cloud.cell.read(), cloud.admin.project, &cores), 7);
    let path = format!("/limits/{}", made["limits"][0]["id"].as_str().unwrap());
    assert_eq!(call(&cloud, "DELETE", &path, Value::Null).await.0, 204);
    assert_eq!(identity::limit::of(&cloud.cell.read(), one.project, &cores), 7);
}

#[tokio::test]
async fn the_first_start_again_changes_nothing() {
    let cloud = Cloud::identity().await;
    let before = cloud.cell.read().revision();
    let new = identity::Bootstrap::new(base::Secret::new("another"));
    let again = cloud.cell.write(store::Cause::step("bootstrap"), move |tx| identity::bootstrap(tx, &new));
    again.await.unwrap();
    assert_eq!(cloud.cell.read().revision(), before);
}

#[tokio::test]
async fn what_is_immutable_stays_until_it_is_not() {
    let cloud = Cloud::identity().await;
    let lock = |on: bool| json!({"immutable": on});
    for (kind, path) in [("project", "/projects"), ("domain", "/domains"), ("role", "/roles")] {
        let id = made(&cloud, kind, path, json!({"name": "locked", "options": lock(true)})).await;
        let path = format!("{path}/{id}");
        let rename = json!({kind: {"name": "other"}});
        assert_eq!(call(&cloud, "PATCH", &path, rename.clone()).await.0, 403, "{kind}");
        assert_eq!(call(&cloud, "DELETE", &path, Value::Null).await.0, 403, "{kind}");
        let (status, shown) = call(&cloud, "PATCH", &path, json!({kind: {"options": lock(false)}})).await;
        assert_eq!((status, &shown[kind]["options"]), (200, &lock(false)));
        assert_eq!(call(&cloud, "PATCH", &path, rename).await.0, 200, "{kind}");
    }
}
