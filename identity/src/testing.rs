//! A whole cloud in one process, for the tests of every service: a store in a temporary directory, the first start done,
//! the real router, requests without a socket.

use crate::assignment::{self, Actor, Grant, Reach, Target};
use crate::project::{NewProject, ProjectFields};
use crate::user::{Password, UserFields};
use crate::wire::{Map, Name};
use crate::{App, Bootstrap, Settings, bootstrap, project, role, user};
use api::{Api, Mounted};
use base::{Context, DomainId, ProjectId, Result, Secret, Timestamp, UserId};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::sync::Arc;
use store::engine::sqlite::Sqlite;
use store::{Cause, Cell, Options, Schema};

/// The administrator's password, and every other's.
pub const PASSWORD: &str = "hush";

/// Settings that tests can wait for.
pub fn settings() -> Settings {
    Settings { bcrypt_cost: 4, hash_threads: 2, ..Settings::default() }
}

/// A cell in `dir` with Identity's records, those of `more`, and the first start done.
pub async fn cell(dir: &std::path::Path, more: impl FnOnce(Schema) -> Schema) -> Cell {
    let engine = Sqlite::open(&dir.join("state.db")).expect("a temporary directory is writable");
    let schema = more(crate::records(Schema::default()));
    let cipher = store::cipher::CellKey::cipher([7; 32]);
    let cell =
        Cell::open(Box::new(engine), schema, cipher, Options::default()).expect("an empty store opens");
    let hash = user::password::hash_now(PASSWORD, 4).expect("a short password hashes");
    let new = Bootstrap::new(hash);
    cell.write(Cause::step("bootstrap"), move |tx| bootstrap(tx, &new)).await.expect("the first start");
    cell
}

/// Who asks in a test.
#[derive(Clone, Debug)]
pub struct Person {
    pub user: UserId,
    pub project: ProjectId,
    pub token: String,
}

pub struct Cloud {
    pub api: Arc<Api>,
    pub app: App,
    pub cell: Cell,
    /// The administrator, scoped to the project `admin`.
    pub admin: Person,
    /// The directory of the store; files of services may go there too.
    pub dir: tempfile::TempDir,
}

impl Cloud {
    /// Identity alone.
    pub async fn identity() -> Cloud {
        Cloud::open(settings(), |schema| schema, |_, _| Vec::new()).await
    }

    /// Identity, and what `services` mounts on the cell and directory; `records` adds their records.
    pub async fn with(
        records: impl FnOnce(Schema) -> Schema,
        services: impl FnOnce(&Cell, &std::path::Path) -> Vec<Mounted>,
    ) -> Cloud {
        Cloud::open(settings(), records, services).await
    }

    pub async fn open(
        settings: Settings,
        records: impl FnOnce(Schema) -> Schema,
        services: impl FnOnce(&Cell, &std::path::Path) -> Vec<Mounted>,
    ) -> Cloud {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cell = cell(dir.path(), records).await;
        let app = App::new(cell.clone(), settings);
        let mut mounted = vec![crate::service(app.clone())];
        mounted.extend(services(&cell, dir.path()));
        let api =
            Api::new(mounted, app.tokens.clone(), &Default::default(), None).expect("the rules are right");
        let state = cell.read();
        let user = user::named(&state, DomainId::ZERO, "admin").expect("the first start made it").id;
        let project = project::named(&state, DomainId::ZERO, "admin").expect("the first start made it").id;
        let admin = Person { user, project, token: String::new() };
        let mut cloud = Cloud { api, app, cell, admin, dir };
        cloud.admin.token = cloud.login(user, Some(project)).await;
        cloud
    }

    /// A request as a client would send it; a body of null is none. An answer that is not JSON is its text.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Value,
    ) -> (StatusCode, HeaderMap, Value) {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, token, &[("content-type", "application/json")], bytes).await
    }

    /// As `call`, with any headers and bytes.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        token: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (StatusCode, HeaderMap, Value) {
        let (status, headers, bytes) = self.bytes(method, path, token, headers, body).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let value = serde_json::from_slice(&bytes).unwrap_or(if text.is_empty() {
            Value::Null
        } else {
            Value::String(text)
        });
        (status, headers, value)
    }

    /// As `send`, with the answer's bytes as they are.
    pub async fn bytes(
        &self,
        method: &str,
        path: &str,
        token: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::builder().method(method).uri(path).header("host", "cloud.test:5000");
        if !token.is_empty() {
            request = request.header("x-auth-token", token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a test's request is well formed").into_parts();
        let (parts, body) = self.api.respond(parts, Full::new(body.into())).await.into_parts();
        let bytes = body.collect().await.expect("an answer's body ends").to_bytes();
        (parts.status, parts.headers, bytes)
    }

    /// A token by password; without a project, unscoped.
    pub async fn login(&self, user: UserId, project: Option<ProjectId>) -> String {
        let scope = project.map_or(json!("unscoped"), |id| json!({"project": {"id": id}}));
        self.login_as(user, PASSWORD, scope).await.expect("the password is right")
    }

    /// A token by password for any scope, or the status of the refusal.
    pub async fn login_as(&self, user: UserId, password: &str, scope: Value) -> Result<String, StatusCode> {
        let identity =
            json!({"methods": ["password"], "password": {"user": {"id": user, "password": password}}});
        let mut auth = json!({"identity": identity});
        if !scope.is_null() {
            auth["scope"] = scope;
        }
        self.auth(auth).await
    }

    /// A token for whatever stands under `auth`.
    pub async fn auth(&self, auth: Value) -> Result<String, StatusCode> {
        let (status, headers, _) =
            self.call("POST", "/identity/v3/auth/tokens", "", json!({"auth": auth})).await;
        let token = headers.get("x-subject-token").and_then(|t| t.to_str().ok()).map(str::to_string);
        token.ok_or(status)
    }

    /// A new user in a new project, both called `name`, with one role there.
    pub async fn person(&self, name: &str, role: &str) -> Person {
        let hash = user::password::hash_now(PASSWORD, 4).expect("a short password hashes");
        let (name, role) = (name.to_string(), role.to_string());
        let made = self.cell.write(Cause::step("test"), move |tx| make(tx, &name, &role, &hash));
        let (user, project) = made.await.expect("the name is free");
        Person { user, project, token: self.login(user, Some(project)).await }
    }

    /// A member of a new project.
    pub async fn member(&self, name: &str) -> Person {
        self.person(name, "member").await
    }
}

fn make(tx: &mut store::Tx, name: &str, role: &str, hash: &Secret) -> Result<(UserId, ProjectId)> {
    let cx = Context::system("test");
    let fields = ProjectFields {
        name: Name::parse(name)?,
        description: String::new(),
        enabled: true,
        tags: Vec::new(),
        options: Map::new(),
        extra: Map::new(),
    };
    let new = NewProject { domain: DomainId::ZERO, parent: None, fields };
    let project = project::create(tx, &cx, new)?.id;
    let (name, options, extra) = (Name::parse(name)?, Map::new(), Map::new());
    let fields = UserFields { name, enabled: true, default_project_id: None, options, extra };
    let password = Password { hash: hash.clone(), created: Timestamp(0), expires: None, by_admin: true };
    let user = user::create(tx, &cx, DomainId::ZERO, fields, Some(password))?.id;
    let role = role::named(tx, role).map(|r| r.id).ok_or_else(|| crate::wire::missing("role", role))?;
    let grant =
        Grant { actor: Actor::User(user), target: Target::Project(project), role, reach: Reach::Here };
    assignment::create(tx, &cx, grant)?;
    Ok((user, project))
}
