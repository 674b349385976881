//! A plane as the door and its keeper reach it: HTTP over a socket in the file system.

use base::{Error, Kind, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::UnixStream;
use tower_service::Service;

/// Bytes of a plane's word about itself.
const WORD_BYTES_MAX: usize = 1 << 20;

pub(super) type Sent = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Where requests for one plane go. Connections are kept.
#[derive(Clone)]
pub struct Upstream {
    pub name: Arc<str>,
    pub(super) socket: Arc<Path>,
    /// Of the process behind it, among all that its keeper started.
    pub(super) number: u64,
    client: Client<Connector, Sent>,
}

impl Upstream {
    pub fn new(name: &str, socket: &Path) -> Upstream {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        Upstream::numbered(name, socket, STARTED.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn numbered(name: &str, socket: &Path, number: u64) -> Upstream {
        let client = Client::builder(TokioExecutor::new()).build(Connector(socket.into()));
        Upstream { name: name.into(), socket: socket.into(), number, client }
    }

    /// Sends one request; the answer's body is still to come.
    pub(super) async fn send(
        &self,
        request: Request<Sent>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        self.client.request(request).await
    }
}

/// Asks a plane about itself, or tells it what to be: JSON both ways.
///
/// Errors: `Unavailable` when it does not answer within `limit`; what it says.
pub async fn ask(socket: &Path, method: Method, path: &str, body: &Value, limit: Duration) -> Result<Value> {
    let away = |e: &dyn std::fmt::Display| {
        Error::unavailable(format!("the plane at {} is away: {e}", socket.display()))
    };
    let asking = async {
        let stream = UnixStream::connect(socket).await.map_err(|e| away(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| away(&e))?;
        tokio::spawn(async move { drop(connection.await) });
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "plane")
            .body(Full::new(body))
            .map_err(|e| Error::internal(format!("{path} is no path")).because(e))?;
        let answer = sender.send_request(request).await.map_err(|e| away(&e))?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), WORD_BYTES_MAX).collect().await.map_err(|e| away(&e))?;
        let value: Value = serde_json::from_slice(&bytes.to_bytes()).unwrap_or_default();
        match status.is_success() {
            true => Ok(value),
            false => {
                let said = value["error"]["message"].as_str().unwrap_or("it says no more").to_string();
                let kind = if status.is_server_error() { Kind::Unavailable } else { Kind::Conflict };
                Err(Error::new(kind, said))
            }
        }
    };
    tokio::time::timeout(limit, asking).await.map_err(|e| away(&e))?
}

#[derive(Clone)]
struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}
