//! Tokens through the real router: what lets in, what ends them, what never gets more than it had.
//!
//! The numbers of advisories (OSSA) name what each test keeps from happening here.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::{ProjectId, UserId};
use http::StatusCode;
use identity::testing::{Cloud, PASSWORD, Person, settings};
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

/// A request of the administrator; what it answers.
async fn admin(cloud: &Cloud, method: &str, path: &str, body: Value) -> Value {
    let path = format!("/identity/v3{path}");
    let (status, _, answer) = cloud.call(method, &path, &cloud.admin.token, body).await;
    assert!(status.is_success(), "{method} {path}: {status} {answer}");
    answer
}

async fn role_id(cloud: &Cloud, name: &str) -> String {
    let roles = admin(cloud, "GET", &format!("/roles?name={name}"), Value::Null).await;
    roles["roles"][0]["id"].as_str().unwrap().to_string()
}

fn by_token(token: &str) -> Value {
    json!({"methods": ["token"], "token": {"id": token}})
}

async fn rescoped(cloud: &Cloud, token: &str, project: ProjectId) -> Result<String, StatusCode> {
    cloud.auth(json!({"identity": by_token(token), "scope": {"project": {"id": project}}})).await
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

#[tokio::test]
async fn scopes() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let login = |scope: Value| cloud.login_as(cloud.admin.user, PASSWORD, scope);
    let system = login(json!({"system": {"all": true}})).await.unwrap();
    assert_eq!(body(&cloud, &system).await["system"], json!({"all": true}));
    let domain = login(json!({"domain": {"name": "Default"}})).await.unwrap();
    assert_eq!(body(&cloud, &domain).await["domain"]["id"], "default");
    let named = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
    let project = login(named).await.unwrap();
    assert_eq!(body(&cloud, &project).await["is_domain"], false);
    let unscoped = login(Value::Null).await.unwrap();
    let unscoped = body(&cloud, &unscoped).await;
    assert!(unscoped.get("roles").is_none() && unscoped.get("catalog").is_none());
    for (scope, expect) in [
        (json!({"project": {"id": one.project}}), 401),
        (json!({"project": {"id": UserId::ZERO}}), 401),
        (json!({"domain": {"name": "Other"}}), 401),
        (json!({"system": {"all": false}}), 400),
        (json!({"system": {"all": true}, "domain": {"id": "default"}}), 400),
    ] {
        assert_eq!(login(scope.clone()).await.unwrap_err().as_u16(), expect, "{scope}");
    }
    let own = json!({"user": {"default_project_id": one.project}});
    admin(&cloud, "PATCH", &format!("/users/{}", one.user), own).await;
    let token = cloud.login_as(one.user, PASSWORD, Value::Null).await.unwrap();
    assert_eq!(body(&cloud, &token).await["project"]["id"], one.project.to_string());
}

#[tokio::test]
async fn ossa_2021_003_unknown_wrong_locked_and_disabled_get_one_answer() {
    let mut strict = settings();
    strict.lockout_failure_attempts = 2;
    let cloud = Cloud::open(strict, |s| s, |_, _| Vec::new()).await;
    let (locked, disabled) = (cloud.member("locked").await, cloud.member("disabled").await);
    admin(&cloud, "PATCH", &format!("/users/{}", disabled.user), json!({"user": {"enabled": false}})).await;
    for _ in 0..2 {
        assert!(cloud.login_as(locked.user, "wrong", Value::Null).await.is_err());
    }
    let mut answers = Vec::new();
    for (user, password) in [
        (json!({"id": locked.user}), PASSWORD),
        (json!({"id": disabled.user}), PASSWORD),
        (json!({"id": cloud.admin.user}), "wrong"),
        (json!({"id": UserId::ZERO}), PASSWORD),
        (json!({"id": "no id at all"}), PASSWORD),
        (json!({"name": "nobody", "domain": {"id": "default"}}), PASSWORD),
        (json!({"name": "admin", "domain": {"name": "nowhere"}}), PASSWORD),
    ] {
        let mut user = user;
        user["password"] = password.into();
        let auth = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}});
        let (status, headers, body) = cloud.call("POST", TOKENS, "", auth).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Keystone uri="));
        answers.push(body);
    }
    assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
}

/// What an administrator does to end a token of somebody.
async fn ended_by(method: &str, path: impl Fn(&Person) -> String, body: Value, advisory: &str) {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    assert_eq!(status(&cloud, &one.token).await, 200);
    admin(&cloud, method, &path(&one), body).await;
    assert_eq!(status(&cloud, &one.token).await, 401, "{advisory}");
    assert_eq!(rescoped(&cloud, &one.token, one.project).await.unwrap_err().as_u16(), 404, "{advisory}");
    assert_eq!(status(&cloud, &cloud.admin.token).await, 200);
}

#[tokio::test]
async fn tokens_end_at_once_with_what_they_stand_on() {
    let off = |key: &str| json!({key: {"enabled": false}});
    ended_by("DELETE", |p| format!("/users/{}", p.user), Value::Null, "OSSA-2013-011").await;
    ended_by("PATCH", |p| format!("/users/{}", p.user), off("user"), "OSSA-2012-019").await;
    let password = json!({"user": {"password": "another"}});
    ended_by("PATCH", |p| format!("/users/{}", p.user), password, "OSSA-2012-014").await;
    ended_by("PATCH", |p| format!("/projects/{}", p.project), off("project"), "OSSA-2012-016").await;
    ended_by("DELETE", |p| format!("/projects/{}", p.project), Value::Null, "OSSA-2012-016").await;
}

#[tokio::test]
async fn ossa_2014_006_a_role_taken_away_is_gone_from_tokens_that_were_made_with_it() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let (member, service) = (role_id(&cloud, "member").await, role_id(&cloud, "service").await);
    let grant = |role: &str| format!("/projects/{}/users/{}/roles/{role}", one.project, one.user);
    admin(&cloud, "PUT", &grant(&service), Value::Null).await;
    let names = |token: Value| token["roles"].as_array().unwrap().len();
    assert_eq!(names(body(&cloud, &one.token).await), 3);
    admin(&cloud, "DELETE", &grant(&service), Value::Null).await;
    assert_eq!(names(body(&cloud, &one.token).await), 2);
    admin(&cloud, "DELETE", &grant(&member), Value::Null).await;
    assert_eq!(status(&cloud, &one.token).await, 401);
}

#[tokio::test]
async fn leaving_a_group_takes_its_roles_at_once() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let group = admin(&cloud, "POST", "/groups", json!({"group": {"name": "g"}})).await;
    let group = group["group"]["id"].as_str().unwrap().to_string();
    let (two, role) = (cloud.member("two").await, role_id(&cloud, "reader").await);
    admin(&cloud, "PUT", &format!("/projects/{}/groups/{group}/roles/{role}", two.project), Value::Null)
        .await;
    admin(&cloud, "PUT", &format!("/groups/{group}/users/{}", one.user), Value::Null).await;
    let token = cloud.login(one.user, Some(two.project)).await;
    assert_eq!(status(&cloud, &token).await, 200);
    admin(&cloud, "DELETE", &format!("/groups/{group}/users/{}", one.user), Value::Null).await;
    assert_eq!(status(&cloud, &token).await, 401);
    assert_eq!(status(&cloud, &one.token).await, 200);
}

#[tokio::test]
async fn ossa_2014_026_a_disabled_domain_ends_its_tokens_for_good() {
    let cloud = Cloud::identity().await;
    let domain = admin(&cloud, "POST", "/domains", json!({"domain": {"name": "d"}})).await;
    let domain = domain["domain"]["id"].as_str().unwrap().to_string();
    let user = json!({"user": {"name": "u", "domain_id": domain, "password": PASSWORD}});
    let user = admin(&cloud, "POST", "/users", user).await;
    let user: UserId = user["user"]["id"].as_str().unwrap().parse().unwrap();
    let role = role_id(&cloud, "manager").await;
    admin(&cloud, "PUT", &format!("/domains/{domain}/users/{user}/roles/{role}"), Value::Null).await;
    let scope = json!({"domain": {"id": domain}});
    let token = cloud.login_as(user, PASSWORD, scope.clone()).await.unwrap();
    for enabled in [false, true] {
        let change = json!({"domain": {"enabled": enabled}});
        admin(&cloud, "PATCH", &format!("/domains/{domain}"), change).await;
        assert_eq!(status(&cloud, &token).await, 401);
    }
    assert!(cloud.login_as(user, PASSWORD, scope).await.is_ok());
}

#[tokio::test]
async fn a_deleted_token_is_gone_and_its_parent_is_not() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let child = rescoped(&cloud, &one.token, one.project).await.unwrap();
    let subject = [("x-subject-token", child.as_str())];
    assert_eq!(cloud.send("DELETE", TOKENS, &one.token, &subject, "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(status(&cloud, &child).await, 401);
    for method in ["GET", "HEAD", "DELETE"] {
        let answer = cloud.send(method, TOKENS, &cloud.admin.token, &subject, "").await;
        assert_eq!(answer.0, StatusCode::NOT_FOUND, "{method}");
    }
    assert_eq!(status(&cloud, &one.token).await, 200);
}

#[tokio::test]
async fn ossa_2016_008_rescoping_keeps_the_chain_and_never_lives_longer() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let first = body(&cloud, &one.token).await;
    let mut token = one.token.clone();
    for _ in 0..3 {
        token = rescoped(&cloud, &token, one.project).await.unwrap();
        let next = body(&cloud, &token).await;
        assert_eq!(next["expires_at"], first["expires_at"]);
        assert_eq!(next["audit_ids"][1], first["audit_ids"][0]);
        assert_ne!(next["audit_ids"][0], first["audit_ids"][0]);
        assert_eq!(next["methods"], json!(["password", "token"]));
    }
}

#[tokio::test]
async fn an_ended_token_is_told_only_to_those_who_ask_late() {
    let mut short = settings();
    short.token_expires_s = 0;
    let cloud = Cloud::identity().await;
    let app = identity::App::new(cloud.cell.clone(), short);
    let api = vec![identity::service(app.clone())];
    let late = api::Api::new(api, app.tokens.clone(), &Default::default(), None).unwrap();
    let late = Cloud { api: late, app, cell: cloud.cell.clone(), admin: cloud.admin.clone(), dir: cloud.dir };
    let token = late.login(late.admin.user, Some(late.admin.project)).await;
    let fresh = &late.admin.token;
    let subject = [("x-subject-token", token.as_str())];
    assert_eq!(status(&late, &token).await, 401);
    assert_eq!(late.send("GET", TOKENS, fresh, &subject, "").await.0, StatusCode::NOT_FOUND);
    let allowed = format!("{TOKENS}?allow_expired=1&nocatalog");
    let (code, _, body) = late.send("GET", &allowed, fresh, &subject, "").await;
    assert_eq!(code, StatusCode::OK);
    assert!(body["token"].get("catalog").is_none());
}

#[tokio::test]
async fn nothing_but_our_own_seal_is_a_token() {
    let cloud = Cloud::identity().await;
    let good = cloud.admin.token.clone();
    let flipped = format!("{}A", &good[..good.len() - 1]);
    let flipped = if flipped == good { format!("{}B", &good[..good.len() - 1]) } else { flipped };
    let long = "gAAAAA".repeat(10_000);
    for bad in ["", "x", "gAAAAA", &good[1..], &good[..60], &flipped, &long, "gAAAAABogus=="] {
        assert_eq!(status(&cloud, bad).await, 401, "{}", &bad[..bad.len().min(40)]);
    }
}

#[tokio::test]
async fn ossa_2026_001_identity_headers_from_outside_are_nothing() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let forged = [
        ("x-roles", "admin"),
        ("x-user-id", "0"),
        ("x-is-admin-project", "True"),
        ("x-identity-status", "Confirmed"),
    ];
    let path = "/identity/v3/users";
    assert_eq!(cloud.send("GET", path, &one.token, &forged, "").await.0, StatusCode::FORBIDDEN);
    assert_eq!(cloud.send("GET", path, "", &forged, "").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn ossa_2014_007_a_thousand_tokens_at_once_are_never_mixed_up() {
    let cloud = std::sync::Arc::new(Cloud::identity().await);
    let mut people = Vec::new();
    for n in 0..40 {
        people.push(cloud.member(&format!("person-{n}")).await);
    }
    let mut tasks = Vec::new();
    for round in 0..25 {
        for person in people.clone() {
            let cloud = cloud.clone();
            tasks.push(tokio::spawn(async move {
                let token = rescoped(&cloud, &person.token, person.project).await.unwrap();
                let who = api::Identity::who(&*cloud.app.tokens, &token).unwrap();
                assert_eq!(who.user, person.user, "round {round}");
                let path = format!("/identity/v3/users/{}", person.user);
                let (_, _, body) = cloud.call("GET", &path, &token, Value::Null).await;
                assert_eq!(body["user"]["id"], person.user.to_string());
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn ossa_2026_007_enabled_is_a_boolean_and_nothing_else() {
    let cloud = Cloud::identity().await;
    for enabled in [json!("False"), json!("true"), json!(0), json!(null), json!([])] {
        let user = json!({"user": {"name": "u", "enabled": enabled}});
        let (status, _, _) = cloud.call("POST", "/identity/v3/users", &cloud.admin.token, user).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{enabled}");
    }
}

#[tokio::test]
async fn ossa_2014_013_a_method_named_often_is_worked_once() {
    let cloud = Cloud::identity().await;
    let methods = vec!["password"; 5_000];
    let user = json!({"user": {"id": cloud.admin.user, "password": PASSWORD}});
    let started = std::time::Instant::now();
    assert!(cloud.auth(json!({"identity": {"methods": methods, "password": user}})).await.is_ok());
    assert!(started.elapsed().as_secs() < 2);
}

#[tokio::test]
async fn ossa_2013_003_bodies_are_bounded() {
    let cloud = Cloud::identity().await;
    let (status, _, _) = cloud.send("POST", TOKENS, "", &[], vec![b' '; api::BODY_MAX + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn two_methods_that_prove_two_people_prove_nobody() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let password = json!({"user": {"id": cloud.admin.user, "password": PASSWORD}});
    let mut identity = by_token(&one.token);
    identity["methods"] = json!(["token", "password"]);
    identity["password"] = password;
    assert_eq!(cloud.auth(json!({"identity": identity})).await.unwrap_err(), StatusCode::UNAUTHORIZED);
}
