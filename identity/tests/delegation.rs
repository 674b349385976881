//! Trusts, application credentials, EC2 keys: what is minted under a limit never reaches beyond it.

#![allow(clippy::unwrap_used, reason = "a test")]

use http::StatusCode;
use identity::testing::{Cloud, PASSWORD, Person};
use serde_json::{Value, json};

async fn call(cloud: &Cloud, method: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
    let (status, _, answer) = cloud.call(method, &format!("/identity/v3{path}"), token, body).await;
    (status.as_u16(), answer)
}

fn id(answer: &Value, key: &str) -> String {
    answer[key]["id"].as_str().unwrap_or_else(|| panic!("no {key}: {answer}")).to_string()
}

async fn trust(cloud: &Cloud, trustor: &Person, trustee: &Person, more: Value) -> (u16, Value) {
    let mut trust = json!({"trustor_user_id": trustor.user, "trustee_user_id": trustee.user,
        "project_id": trustor.project, "impersonation": true, "roles": [{"name": "reader"}]});
    trust.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    call(cloud, "POST", "/OS-TRUST/trusts", &trustor.token, json!({"trust": trust})).await
}

async fn by_trust(cloud: &Cloud, trustee: &Person, trust: &str) -> Result<String, StatusCode> {
    cloud.login_as(trustee.user, PASSWORD, json!({"OS-TRUST:trust": {"id": trust}})).await
}

async fn role_id(cloud: &Cloud, name: &str) -> String {
    let (_, roles) =
        call(cloud, "GET", &format!("/roles?name={name}"), &cloud.admin.token, Value::Null).await;
    roles["roles"][0]["id"].as_str().unwrap().to_string()
}

#[tokio::test]
async fn a_trust_gives_its_roles_and_makes_no_other_token() {
    let cloud = Cloud::identity().await;
    let (trustor, trustee) = (cloud.member("trustor").await, cloud.member("trustee").await);
    let (_, made) = trust(&cloud, &trustor, &trustee, json!({})).await;
    let token = by_trust(&cloud, &trustee, &id(&made, "trust")).await.unwrap();
    let held = cloud.app.tokens.held(&token).unwrap();
    assert_eq!((held.who.user, held.who.delegated), (trustor.user, true));
    assert_eq!(held.who.roles, ["reader"]);
    // OSSA-2014-018, OSSA-2014-022: no token, no trust, no credential from a delegated one.
    let again = json!({"identity": {"methods": ["token"], "token": {"id": token}}});
    assert_eq!(cloud.auth(again).await.unwrap_err(), StatusCode::FORBIDDEN);
    let person = Person { token, ..trustor.clone() };
    assert_eq!(trust(&cloud, &person, &trustee, json!({})).await.0, 403);
    let path = format!("/users/{}/credentials/OS-EC2", trustor.user);
    let key = json!({"tenant_id": trustor.project});
    assert_eq!(call(&cloud, "POST", &path, &person.token, key).await.0, 403);
    assert_eq!(by_trust(&cloud, &trustor, &id(&made, "trust")).await.unwrap_err(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn ossa_2013_032_what_the_trustor_loses_the_trust_loses() {
    let cloud = Cloud::identity().await;
    let (trustor, trustee) = (cloud.member("trustor").await, cloud.member("trustee").await);
    let (_, made) = trust(&cloud, &trustor, &trustee, json!({})).await;
    let token = by_trust(&cloud, &trustee, &id(&made, "trust")).await.unwrap();
    let member = role_id(&cloud, "member").await;
    let grant = format!("/projects/{}/users/{}/roles/{member}", trustor.project, trustor.user);
    assert_eq!(call(&cloud, "DELETE", &grant, &cloud.admin.token, Value::Null).await.0, 204);
    assert!(cloud.app.tokens.held(&token).is_err());
    assert_eq!(by_trust(&cloud, &trustee, &id(&made, "trust")).await.unwrap_err(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_trust_is_of_the_trustor_only_and_within_what_it_has() {
    let cloud = Cloud::identity().await;
    let (one, two) = (cloud.member("one").await, cloud.member("two").await);
    assert_eq!(trust(&cloud, &one, &two, json!({"roles": [{"name": "admin"}]})).await.0, 403);
    assert_eq!(trust(&cloud, &one, &two, json!({"project_id": two.project})).await.0, 403);
    assert_eq!(trust(&cloud, &one, &two, json!({"trustor_user_id": two.user})).await.0, 403);
    assert_eq!(trust(&cloud, &one, &two, json!({"roles": []})).await.0, 403);
    assert_eq!(trust(&cloud, &one, &two, json!({"expires_at": "bad.123Z"})).await.0, 400);
    assert_eq!(trust(&cloud, &one, &two, json!({"expires_at": "2001-01-01T00:00:00Z"})).await.0, 400);
}

#[tokio::test]
async fn a_trust_of_two_uses_is_used_twice_and_a_deleted_one_ends_its_tokens() {
    let cloud = Cloud::identity().await;
    let (trustor, trustee) = (cloud.member("trustor").await, cloud.member("trustee").await);
    let (_, made) = trust(&cloud, &trustor, &trustee, json!({"remaining_uses": 2})).await;
    let made = id(&made, "trust");
    assert!(by_trust(&cloud, &trustee, &made).await.is_ok());
    let token = by_trust(&cloud, &trustee, &made).await.unwrap();
    assert_eq!(by_trust(&cloud, &trustee, &made).await.unwrap_err(), StatusCode::UNAUTHORIZED);
    assert!(cloud.app.tokens.held(&token).is_ok());
    let path = format!("/OS-TRUST/trusts/{made}");
    assert_eq!(call(&cloud, "GET", &path, &trustee.token, Value::Null).await.1["trust"]["remaining_uses"], 0);
    assert_eq!(call(&cloud, "DELETE", &path, &trustee.token, Value::Null).await.0, 403);
    assert_eq!(call(&cloud, "DELETE", &path, &trustor.token, Value::Null).await.0, 204);
    assert!(cloud.app.tokens.held(&token).is_err());
}

async fn app_credential(cloud: &Cloud, person: &Person, more: Value) -> (u16, Value) {
    let mut body = json!({"name": format!("app {more}")});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let path = format!("/users/{}/application_credentials", person.user);
    call(cloud, "POST", &path, &person.token, json!({"application_credential": body})).await
}

async fn by_app(cloud: &Cloud, made: &Value, scope: Value) -> Result<String, StatusCode> {
    let made = &made["application_credential"];
    let proof = json!({"id": made["id"], "secret": made["secret"]});
    let identity = json!({"methods": ["application_credential"], "application_credential": proof});
    let auth = match scope.is_null() {
        true => json!({"identity": identity}),
        false => json!({"identity": identity, "scope": scope}),
    };
    cloud.auth(auth).await
}

#[tokio::test]
async fn ossa_2026_005_an_application_credential_stays_within_its_limits() {
    let cloud = Cloud::identity().await;
    let (one, two) = (cloud.member("one").await, cloud.member("two").await);
    let (status, made) = app_credential(&cloud, &one, json!({"roles": [{"name": "reader"}]})).await;
    assert_eq!(status, 201, "{made}");
    let token = by_app(&cloud, &made, Value::Null).await.unwrap();
    let held = cloud.app.tokens.held(&token).unwrap();
    assert_eq!((held.who.roles.as_slice(), held.who.delegated), (["reader".to_string()].as_slice(), true));
    let limited = Person { token: token.clone(), ..one.clone() };
    assert_eq!(app_credential(&cloud, &limited, json!({})).await.0, 403);
    assert_eq!(trust(&cloud, &limited, &two, json!({})).await.0, 403);
    let path = format!("/users/{}/credentials/OS-EC2", one.user);
    assert_eq!(call(&cloud, "POST", &path, &token, json!({"tenant_id": one.project})).await.0, 403);
    let again = |scope: Value| {
        cloud.auth(json!({"identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}))
    };
    let rescoped = again(json!({"project": {"id": one.project}})).await.unwrap();
    assert!(cloud.app.tokens.held(&rescoped).unwrap().who.delegated);
    assert_eq!(again(json!("unscoped")).await.unwrap_err(), StatusCode::UNAUTHORIZED);
    assert_eq!(app_credential(&cloud, &one, json!({"roles": [{"name": "admin"}]})).await.0, 400);
}

#[tokio::test]
async fn an_application_credential_ends_with_its_record_and_with_the_role() {
    let cloud = Cloud::identity().await;
    let one = cloud.member("one").await;
    let (_, made) = app_credential(&cloud, &one, json!({})).await;
    let token = by_app(&cloud, &made, Value::Null).await.unwrap();
    let path = format!("/users/{}/application_credentials/{}", one.user, id(&made, "application_credential"));
    let (_, shown) = call(&cloud, "GET", &path, &one.token, Value::Null).await;
    assert!(shown["application_credential"].get("secret").is_none());
    assert_eq!(call(&cloud, "DELETE", &path, &one.token, Value::Null).await.0, 204);
    assert!(cloud.app.tokens.held(&token).is_err());
    assert_eq!(by_app(&cloud, &made, Value::Null).await.unwrap_err(), StatusCode::UNAUTHORIZED);
    let rules = json!({"access_rules": [{"service": "compute", "method": "GET", "path": "/v2.1/servers"}]});
    let (status, bound) = app_credential(&cloud, &one, rules).await;
    assert_eq!(status, 201);
    assert_eq!(by_app(&cloud, &bound, Value::Null).await.unwrap_err(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn ossa_2020_004_and_2019_006_a_credential_keeps_its_owner_and_is_seen_by_no_other() {
    let cloud = Cloud::identity().await;
    let (one, two) = (cloud.member("one").await, cloud.member("two").await);
    let body = json!({"credential": {"type": "cert", "blob": "secret of one"}});
    let (status, made) = call(&cloud, "POST", "/credentials", &one.token, body).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/credentials/{}", id(&made, "credential"));
    for change in [json!({"user_id": two.user}), json!({"project_id": two.project}), json!({"type": "ec2"})] {
        let (status, _) = call(&cloud, "PATCH", &path, &one.token, json!({"credential": change})).await;
        assert_eq!(status, 400, "{change}");
    }
    assert_eq!(call(&cloud, "GET", &path, &two.token, Value::Null).await.0, 403);
    let (_, list) = call(&cloud, "GET", "/credentials", &two.token, Value::Null).await;
    assert_eq!(list["credentials"], json!([]));
    let forged = json!({"credential": {"type": "cert", "blob": "x", "user_id": one.user}});
    assert_eq!(call(&cloud, "POST", "/credentials", &two.token, forged).await.0, 403);
    let foreign = json!({"tenant_id": two.project});
    let ec2 = format!("/users/{}/credentials/OS-EC2", one.user);
    assert_eq!(call(&cloud, "POST", &ec2, &one.token, foreign).await.0, 403);
}

#[tokio::test]
async fn ossa_2014_015_a_user_and_a_group_of_one_id_are_two() {
    use identity::assignment::{self, Actor, Grant, Reach, Target};
    let cloud = Cloud::identity().await;
    let (one, two) = (cloud.member("one").await, cloud.member("two").await);
    let same = base::GroupId::from_uuid(one.user.uuid());
    let role = identity::role::named(&cloud.cell.read(), "admin").unwrap().id;
    let target = Target::Project(two.project);
    let grant = Grant { actor: Actor::Group(same), target, role, reach: Reach::Here };
    cloud.cell.write(store::Cause::step("test"), move |tx| Ok(tx.put(grant)?)).await.unwrap();
    assert!(assignment::roles_on_project(&cloud.cell.read(), one.user, two.project).is_empty());
}
