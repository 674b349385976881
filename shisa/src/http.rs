//! A small client of the cloud's own APIs: JSON over one connection a request.
//!
//! It comes in by the door's socket in the state directory, which only the cloud's user opens: whatever certificate
//! clients are shown, and whatever names it has, are nothing to it.
//!
//! Limits: `CALL_MAX` for a call, `ANSWER_MAX` bytes of an answer. Deliberately absent: HTTPS, redirects, retries.

use crate::clouds::Auth;
use crate::state::Directory;
use base::{Error, Kind, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// What links in its answers start with.
pub const ORIGIN: &str = "http://localhost";

const CALL_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: usize = 16 << 20;
/// Bytes of a file that are sent at a time.
const CHUNK: usize = 256 << 10;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A user of the cloud.
pub struct Client {
    /// The door's.
    socket: PathBuf,
    token: String,
    /// The project that the token is for; empty where it is for none.
    pub project: String,
    pub user: String,
}

impl Client {
    /// Logs in by password.
    pub async fn login(directory: &Directory, auth: &Auth) -> Result<Client> {
        let socket = directory.door().join("api");
        let mut client = Client { socket, token: String::new(), project: String::new(), user: String::new() };
        let user = json!({
            "name": auth.username, "password": auth.password, "domain": {"name": auth.user_domain_name},
        });
        let project = json!({"name": auth.project_name, "domain": {"name": auth.project_domain_name}});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}}, "scope": {"project": project},
        }});
        let (token, answer) = client
            .send(Method::POST, "/identity/v3/auth/tokens", json_body(&body), "application/json")
            .await?;
        client.token = token;
        client.project = text(&answer["token"]["project"]["id"]);
        client.user = text(&answer["token"]["user"]["id"]);
        Ok(client)
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.call(Method::POST, path, &body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Result<Value> {
        self.call(Method::PUT, path, &body).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, &Value::Null).await
    }

    /// A body of null is none; so is an answer without one.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { empty() } else { json_body(body) };
        Ok(self.send(method, path, body, "application/json").await?.1)
    }

    /// The status, whatever it is, and the answer.
    pub async fn status(&self, method: Method, path: &str, body: &Value) -> Result<(u16, Value)> {
        let body = if body.is_null() { empty() } else { json_body(body) };
        let about = format!("{method} {path}");
        let call = self.exchange(method, path, body, "application/json");
        let late = |e| Error::unavailable(format!("{about} was not answered in time")).because(e);
        let (status, _, value) = tokio::time::timeout(CALL_MAX, call).await.map_err(late)??;
        Ok((status.as_u16(), value))
    }

    /// The answer, which must have this status.
    ///
    /// Errors: `Conflict` when it has another.
    pub async fn expect(&self, method: Method, path: &str, body: &Value, status: u16) -> Result<Value> {
        let about = format!("{method} {path}");
        match self.status(method, path, body).await? {
            (is, value) if is == status => Ok(value),
            (is, value) => {
                Err(Error::conflict(format!("{about} was answered {is}, not {status}: {}", fault(&value))))
            }
        }
    }

    pub async fn upload_bytes(&self, path: &str, bytes: &'static [u8]) -> Result<()> {
        let body = Full::new(Bytes::from_static(bytes)).map_err(|never| match never {}).boxed_unsync();
        self.send(Method::PUT, path, body, "application/octet-stream").await.map(drop)
    }

    /// Sends a file's bytes as they are read.
    pub async fn upload(&self, path: &str, file: &Path) -> Result<()> {
        let file = tokio::fs::File::open(file).await?;
        let chunks = futures_util::stream::unfold(file, |mut file| async move {
            let mut chunk = vec![0; CHUNK];
            match file.read(&mut chunk).await {
                Ok(0) => None,
                Ok(n) => {
                    chunk.truncate(n);
                    Some((Ok(Frame::data(Bytes::from(chunk))), file))
                }
                Err(e) => Some((Err(e), file)),
            }
        });
        let body = StreamBody::new(chunks).boxed_unsync();
        self.send(Method::PUT, path, body, "application/octet-stream").await.map(drop)
    }

    /// The token in the answer's header, if there is one, and the answer.
    async fn send(&self, method: Method, path: &str, body: Body, kind: &str) -> Result<(String, Value)> {
        let about = format!("{method} {path}");
        let call = self.exchange(method, path, body, kind);
        let late = |e| Error::unavailable(format!("{about} was not answered in time")).because(e);
        let (status, token, value) = tokio::time::timeout(CALL_MAX, call).await.map_err(late)??;
        match status.is_success() {
            true => Ok((token, value)),
            false => {
                Err(Error::new(kind_of(status), format!("{about} was answered {status}: {}", fault(&value))))
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Body,
        kind: &str,
    ) -> Result<(StatusCode, String, Value)> {
        let away = |e| Error::unavailable(format!("nothing answers at {}", self.socket.display())).because(e);
        let socket = UnixStream::connect(&self.socket).await.map_err(away)?;
        let cut = |e: hyper::Error| Error::unavailable("the cloud's door broke off").because(e);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(cut)?;
        // It ends with the sender; what goes wrong comes out of the request, too.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", kind)
            .header("accept", "application/json")
            .header("x-auth-token", &self.token)
            .body(body)
            .map_err(|e| Error::internal(format!("{path} is no path")).because(e))?;
        let answer = sender.send_request(request).await.map_err(cut)?;
        let (head, body) = answer.into_parts();
        let early = |e| Error::unavailable("an answer ended early").because(e);
        let bytes = Limited::new(body, ANSWER_MAX).collect().await.map_err(early)?;
        let token = head.headers.get("x-subject-token").and_then(|t| t.to_str().ok()).unwrap_or_default();
        let bytes = bytes.to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok((head.status, token.to_string(), value))
    }
}

fn kind_of(status: StatusCode) -> Kind {
    match status.as_u16() {
        401 => Kind::Unauthorized,
        403 => Kind::Forbidden,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        400..=499 => Kind::Invalid,
        _ => Kind::Unavailable,
    }
}

/// The sentence in any service's fault.
fn fault(answer: &Value) -> String {
    let inner = answer.as_object().and_then(|o| o.values().find_map(|v| v["message"].as_str()));
    inner.map_or_else(|| text(answer).chars().take(200).collect(), str::to_string)
}

/// A string's content; anything else as JSON, null as nothing.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

fn json_body(body: &Value) -> Body {
    Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync()
}
