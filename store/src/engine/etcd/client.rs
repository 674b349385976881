//! gRPC over HTTP/2 to whichever member answers: unary calls, one connection at a time.
//!
//! A call that one member does not answer in its part of the time goes to the next: so whatever is asked here must be
//! safe to be asked twice. Reads are linearizable: a member that is cut off from the others does not answer.

use super::message::{Authenticate, Authenticated};
use crate::engine::wire::{self, CALL_MAX};
use base::{Error, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

/// Of the time of a call: a member that does not answer by then is not waited for, while there are others.
const TRY_PART: f64 = 0.4;
/// What may be on its way to us: a page of images.
const WINDOW_BYTES: u32 = 8 << 20;

const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

/// How a call failed.
#[derive(Clone, Debug)]
pub enum Failed {
    /// Nobody knows whether it was carried out.
    Unknown(String),
    /// gRPC's code, and what the server said.
    Refused(u32, String),
}

impl Failed {
    pub fn text(&self) -> String {
        match self {
            Failed::Unknown(text) => text.clone(),
            Failed::Refused(_, text) => text.clone(),
        }
    }

    /// The quota is used up: until an operator makes room, etcd takes nothing but reads and deletes.
    pub fn no_room(&self) -> bool {
        matches!(self, Failed::Refused(_, text) if text.contains("space exceeded"))
    }

    /// Whether trying again cannot help: a wrong request, no permission, lost or damaged data.
    pub fn cannot_go_on(&self) -> bool {
        const INVALID: u32 = 3;
        const PERMISSION: u32 = 7;
        const UNIMPLEMENTED: u32 = 12;
        const DATA_LOSS: u32 = 15;
        let codes = [INVALID, PERMISSION, UNIMPLEMENTED, DATA_LOSS];
        matches!(self, Failed::Refused(code, _) if codes.contains(code))
    }
}

/// Members, and who we are to them.
#[derive(Clone)]
pub struct Cluster {
    pub members: Vec<String>,
    pub user: Option<(String, String)>,
}

pub struct Client {
    io: Handle,
    cluster: Cluster,
    /// The member that is asked first.
    at: usize,
    connection: Option<Connection>,
}

struct Connection {
    requests: SendRequest<Full<Bytes>>,
    task: AbortHandle,
    token: Option<String>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub fn new(cluster: Cluster) -> Result<Client> {
        Ok(Client { io: wire::io()?, cluster, at: 0, connection: None })
    }

    pub fn name(&self) -> String {
        format!("etcd {}", self.cluster.members.join(","))
    }

    pub fn told(&self, failed: Failed) -> Error {
        Error::unavailable(format!("{} failed.", self.name())).because(failed.text())
    }

    pub fn call<A: Message + Default>(&mut self, path: &str, question: &impl Message) -> Result<A, Failed> {
        self.call_within(CALL_MAX, path, question)
    }

    /// Asks one member after the other, until one answers or the time is over.
    pub fn call_within<A: Message + Default>(
        &mut self,
        max: Duration,
        path: &str,
        question: &impl Message,
    ) -> Result<A, Failed> {
        let until = Instant::now() + max;
        let frame = frame(question);
        let single = self.cluster.members.len() == 1;
        let mut failed = Failed::Unknown(wire::late(&self.name()).message().into());
        for _ in 0..=self.cluster.members.len() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let patience = if single { left } else { left.min(max.mul_f64(TRY_PART)) };
            let io = self.io.clone();
            let tried = wire::wait(&io, patience, self.ask(path, frame.clone()));
            match tried.unwrap_or_else(|| Err(Failed::Unknown(format!("{} is late", self.member())))) {
                Ok(body) => {
                    return A::decode(body).map_err(|e| Failed::Unknown(format!("no answer of etcd: {e}")));
                }
                Err(Failed::Refused(code, text)) if code != UNAVAILABLE && code != UNAUTHENTICATED => {
                    return Err(Failed::Refused(code, text));
                }
                Err(other) => failed = other,
            }
            self.connection = None;
            self.at += 1;
        }
        Err(failed)
    }

    fn member(&self) -> &str {
        &self.cluster.members[self.at % self.cluster.members.len()]
    }

    async fn ask(&mut self, path: &str, frame: Bytes) -> Result<Bytes, Failed> {
        if self.connection.as_ref().is_none_or(|c| c.requests.is_closed()) {
            let member = self.member().to_string();
            self.connection = Some(connect(&member, self.cluster.user.clone()).await?);
        }
        let member = self.member().to_string();
        let connection = self.connection.as_mut().expect("just made");
        unary(&mut connection.requests, &member, connection.token.as_deref(), path, frame).await
    }
}

async fn connect(member: &str, user: Option<(String, String)>) -> Result<Connection, Failed> {
    let cut = |e: &dyn std::fmt::Display| Failed::Unknown(format!("no connection to {member}: {e}"));
    let stream = TcpStream::connect(member).await.map_err(|e| cut(&e))?;
    stream.set_nodelay(true).map_err(|e| cut(&e))?;
    let mut builder = Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let (requests, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|e| cut(&e))?;
    let task = tokio::spawn(async move {
        // What went wrong is told to whoever waits for an answer.
        let _ = connection.await;
    });
    let mut connection = Connection { requests, task: task.abort_handle(), token: None };
    if let Some((name, password)) = user {
        let path = "/etcdserverpb.Auth/Authenticate";
        let question = frame(&Authenticate { name, password });
        let answer = unary(&mut connection.requests, member, None, path, question).await?;
        let answer = Authenticated::decode(answer).map_err(|e| cut(&e))?;
        connection.token = Some(answer.token);
    }
    Ok(connection)
}

/// A message as gRPC sends it: not compressed, its length before it.
fn frame(message: &impl Message) -> Bytes {
    let size = message.encoded_len();
    let mut frame = BytesMut::with_capacity(size + 5);
    frame.put_u8(0);
    frame.put_u32(size as u32);
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

async fn unary(
    requests: &mut SendRequest<Full<Bytes>>,
    member: &str,
    token: Option<&str>,
    path: &str,
    frame: Bytes,
) -> Result<Bytes, Failed> {
    let cut = |e: &dyn std::fmt::Display| Failed::Unknown(format!("{member} was cut off: {e}"));
    let mut request = http::Request::post(format!("http://{member}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(token) = token {
        request = request.header("token", token);
    }
    let request = request.body(Full::new(frame)).map_err(|e| cut(&e))?;
    requests.ready().await.map_err(|e| cut(&e))?;
    let answer = requests.send_request(request).await.map_err(|e| cut(&e))?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|e| cut(&e))?;
    let said = |name: &str| {
        let trailer = body.trailers().and_then(|t| t.get(name));
        trailer.or(head.headers.get(name)).and_then(|v| v.to_str().ok()).map(str::to_string)
    };
    let status = said("grpc-status").and_then(|s| s.parse::<u32>().ok());
    match status {
        Some(0) => {}
        Some(code) => {
            let text = said("grpc-message").unwrap_or_default();
            return Err(Failed::Refused(code, format!("{member}: {text} (code {code})")));
        }
        None => return Err(cut(&"the answer has no status")),
    }
    let mut message = body.to_bytes();
    if message.len() < 5 {
        return Err(cut(&"the answer is too short"));
    }
    Ok(message.split_off(5))
}
