//! A plane in another process: the four questions of a `Link` over one HTTP/2 connection, and the plane's questions
//! answered. To another machine it is TLS 1.3, with the node's own certificate kept fresh; on the same machine a socket
//! that only the plane's user opens.
//!
//! A connection that is lost is made again with the next question; `agent` spaces those out. The plane is held to the
//! certificate of its cell's authority and to nothing else: neither its address nor a public authority counts.
//!
//! Limits: `CONNECT_MAX` for a connection, `PING_MAX` without a sign of life on it, `DOCUMENT_BYTES_MAX` of a
//! patch.

mod credentials;
mod patches;
mod tls;

pub use credentials::Credentials;

use crate::{ImageBytes, Link, Node, Patches};
use base::join::{
    ANSWERS, Answer, Ask, Certificate, DOCUMENT, FOLLOW, HELLO, IMAGES, JOIN, Join, Joined, NODE, Outcome,
    PROGRAMS, QUESTIONS, Question, RENEW, REPORT, Renew, Token,
};
use base::node::{DOCUMENT_WAIT_MAX, Known};
use base::pass::{self, Next, Pass};
use base::{Error, Kind, Result, Timestamp};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_util::io::StreamReader;
use uuid::Uuid;

/// Between two tries to connect to a plane of this machine that has too many to accept.
const FULL_AGAIN: Duration = Duration::from_millis(20);
const CONNECT_MAX: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_MAX: Duration = Duration::from_secs(5);
/// An answer that is not a long poll's comes in this time.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const DOCUMENT_BYTES_MAX: usize = 256 << 20;
/// Of what is no document.
const ANSWER_BYTES_MAX: usize = 1 << 20;

type Sender = SendRequest<Full<Bytes>>;

/// The plane of a node. Clones are the same.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    way: Way,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

#[derive(Clone)]
struct Connection {
    sender: Sender,
    /// The socket that it was made to, of a plane on this machine.
    socket: Option<PathBuf>,
}

/// Where the active plane of this machine listens for its nodes, while there is one.
type Near = Box<dyn Fn() -> Option<PathBuf> + Send + Sync>;

enum Way {
    /// On another machine, at `HOST:PORT`.
    Far { authority: String, credentials: Mutex<Credentials> },
    /// On this one; it is told the node's name.
    Near { socket: Near, name: String },
}

/// What a node knows when it has joined.
pub struct Arrival {
    pub joined: Joined,
    /// Where this machine reaches the plane from.
    pub from: IpAddr,
}

/// Joins with a token, under the key of `credentials`, which then have the certificate and are written.
///
/// Errors: what the plane says of the token or the name; `Unavailable` when it is not there; `Unauthorized` when it is
/// not the plane that the token is from.
pub async fn join(token: &Token, name: &str, credentials: &mut Credentials, state: &Path) -> Result<Arrival> {
    let config = tls::with_fingerprint(&token.fingerprint)?;
    let seen = config.seen.clone();
    let (mut sender, from) = connect(&token.authority, config.client).await?;
    let join = Join {
        secret: token.secret.clone(),
        name: name.into(),
        id: credentials.id,
        request: credentials.request()?,
    };
    let answer =
        send(&mut sender, &token.authority, None, Method::POST, JOIN, json(&join)?, ANSWER_MAX).await?;
    let joined: Joined = read(answer, ANSWER_BYTES_MAX).await?;
    let unseen = || Error::internal("the plane showed no certificate of its authority");
    credentials.authority = Some(seen.lock().expect("no holder panics").clone().ok_or_else(unseen)?);
    credentials.certificate = Some(joined.certificate.clone());
    credentials.write(state)?;
    Ok(Arrival { joined, from: from.ip() })
}

impl Remote {
    /// The plane at `authority`, for a node that has joined.
    pub fn new(authority: &str, credentials: Credentials) -> Remote {
        Remote::by(Way::Far { authority: authority.into(), credentials: Mutex::new(credentials) })
    }

    /// The plane of this machine, at the socket that `socket` gives: another one after each switch.
    pub fn near(name: &str, socket: impl Fn() -> Option<PathBuf> + Send + Sync + 'static) -> Remote {
        Remote::by(Way::Near { socket: Box::new(socket), name: name.into() })
    }

    fn by(way: Way) -> Remote {
        Remote { inner: Arc::new(Inner { way, connection: tokio::sync::Mutex::default() }) }
    }

    /// The four questions, asked over this connection.
    pub fn link(&self) -> Link {
        let (greeting, telling, reporting, fetching) =
            (self.clone(), self.clone(), self.clone(), self.clone());
        Link::new(
            move |hello| {
                let plane = greeting.clone();
                async move { plane.tell(HELLO, &hello).await }
            },
            move |known, wait| {
                let plane = telling.clone();
                async move { plane.document(known, wait).await }
            },
            move |report| {
                let plane = reporting.clone();
                async move { plane.tell(REPORT, &report).await }
            },
            move |id| {
                let plane = fetching.clone();
                async move { plane.image(id).await }
            },
        )
    }

    /// Renews the certificate and answers the plane's questions, for ever. `state` has the credentials.
    pub async fn keep(&self, node: &Node, state: &Path) {
        let renewed = CertificateRenewed { plane: self.clone(), state: state.into() };
        let never = Notify::new();
        tokio::join!(pass::run(renewed, &never), self.answer(node));
    }

    /// Answers the plane's questions, for ever.
    pub async fn answer(&self, node: &Node) {
        pass::run(QuestionsAnswered { plane: self.clone(), node: node.clone() }, &Notify::new()).await;
    }

    async fn document(&self, known: Known, wait: Duration) -> Result<Patches> {
        let (after, sum) =
            (known.generation, known.sum.map(|sum| format!("&sum={sum:x}")).unwrap_or_default());
        let order = known.order.map(|at| format!("&order={}", at.0)).unwrap_or_default();
        let wait_ms = wait.as_millis();
        let path = format!(
            "{DOCUMENT}?after={}.{}&wait_ms={wait_ms}{sum}{order}&{FOLLOW}=1",
            after.epoch, after.revision
        );
        let answer = self.ask(Method::GET, &path, Bytes::new(), wait + ANSWER_MAX).await?;
        Ok(patches::of(answer.into_body(), DOCUMENT_BYTES_MAX))
    }

    async fn image(&self, id: Uuid) -> Result<ImageBytes> {
        self.bytes(&format!("{IMAGES}{id}")).await
    }

    /// The bytes of a program that the node is ordered to run.
    pub(crate) async fn program(&self, sha256: &str) -> Result<ImageBytes> {
        self.bytes(&format!("{PROGRAMS}{sha256}")).await
    }

    async fn bytes(&self, path: &str) -> Result<ImageBytes> {
        let answer = self.ask(Method::GET, path, Bytes::new(), ANSWER_MAX).await?;
        let chunks = answer.into_body().map_err(std::io::Error::other).into_data_stream();
        Ok(Box::pin(StreamReader::new(chunks)))
    }

    async fn tell(&self, path: &str, what: &impl Serialize) -> Result<()> {
        self.ask(Method::POST, path, json(what)?, ANSWER_MAX).await.map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Response<Incoming>> {
        let mut sender = self.sender().await?;
        let (at, name) = match &self.inner.way {
            Way::Far { authority, .. } => (authority.as_str(), None),
            Way::Near { name, .. } => ("plane", Some(name.as_str())),
        };
        send(&mut sender, at, name, method, path, body, limit).await
    }

    /// The connection that is there, or another.
    async fn sender(&self) -> Result<Sender> {
        let mut connection = self.inner.connection.lock().await;
        let socket = match &self.inner.way {
            Way::Far { .. } => None,
            Way::Near { socket, .. } => {
                Some(socket().ok_or_else(|| Error::unavailable("no plane is active"))?)
            }
        };
        if let Some(there) = connection.as_ref().filter(|c| !c.sender.is_closed() && c.socket == socket) {
            return Ok(there.sender.clone());
        }
        let sender = match (&self.inner.way, &socket) {
            (Way::Near { .. }, Some(socket)) => connect_near(socket).await?,
            (Way::Near { .. }, None) => return Err(Error::unavailable("no plane is active")),
            (Way::Far { authority, credentials }, _) => {
                let config = tls::with_certificate(&credentials.lock().expect("no holder panics"))?;
                connect(authority, config).await?.0
            }
        };
        *connection = Some(Connection { sender: sender.clone(), socket });
        Ok(sender)
    }

    /// A plane on this machine asks for none.
    fn credentials(&self) -> Option<MutexGuard<'_, Credentials>> {
        match &self.inner.way {
            Way::Far { credentials, .. } => Some(credentials.lock().expect("no holder panics")),
            Way::Near { .. } => None,
        }
    }

    async fn renew(&self, state: &Path) -> Result<Certificate> {
        let none = || Error::internal("a node of this machine has no certificate");
        let request = self.credentials().ok_or_else(none)?.request()?;
        let answer = self.ask(Method::POST, RENEW, json(&Renew { request })?, ANSWER_MAX).await?;
        let certificate: Certificate = read(answer, ANSWER_BYTES_MAX).await?;
        {
            let mut credentials = self.credentials().ok_or_else(none)?;
            credentials.certificate = Some(certificate.clone());
            credentials.write(state)?;
        }
        // The next question goes over a connection with the new one; those under way end on the old.
        *self.inner.connection.lock().await = None;
        Ok(certificate)
    }
}

struct CertificateRenewed {
    plane: Remote,
    state: std::path::PathBuf,
}

impl Pass for CertificateRenewed {
    const NAME: &'static str = "certificate_renewed";
    const EVERY: Duration = Duration::from_secs(3600);

    async fn pass(&mut self) -> Result<Next> {
        let certificate = self.plane.credentials().and_then(|c| c.certificate.clone());
        let Some(mut certificate) = certificate else { return Ok(Next::Usual) };
        if certificate.renew <= Timestamp::wall().secs() {
            certificate = self.plane.renew(&self.state).await?;
        }
        let due = certificate.renew - Timestamp::wall().secs();
        Ok(Next::After(Duration::from_secs(due.clamp(1, 3600) as u64)))
    }
}

struct QuestionsAnswered {
    plane: Remote,
    node: Node,
}

impl Pass for QuestionsAnswered {
    const NAME: &'static str = "questions_answered";
    const EVERY: Duration = Duration::from_secs(1);

    async fn pass(&mut self) -> Result<Next> {
        let path = format!("{QUESTIONS}?wait_ms={}", DOCUMENT_WAIT_MAX.as_millis());
        let asked = self.plane.ask(Method::GET, &path, Bytes::new(), DOCUMENT_WAIT_MAX + ANSWER_MAX).await;
        let asked = match asked {
            // That a plane is away is said by the agent.
            Err(error) if error.kind() == Kind::Unavailable => return Ok(Next::Usual),
            asked => asked?,
        };
        let questions: Vec<Question> = read(asked, ANSWER_BYTES_MAX).await?;
        for question in questions {
            let answer = answer(&self.node, question).await;
            self.plane.tell(ANSWERS, &answer).await?;
        }
        Ok(Next::Again)
    }
}

async fn answer(node: &Node, question: Question) -> Answer {
    let (id, node) = (question.id, node.clone());
    let Ask::Console { vm, lines } = question.ask;
    let read = tokio::task::spawn_blocking(move || node.console(vm, lines)).await;
    let outcome = match read {
        Ok(Ok(text)) => Outcome::Text(text),
        Ok(Err(error)) if error.kind() == Kind::NotFound => Outcome::Absent(error.message().into()),
        Ok(Err(error)) => Outcome::Failed(error.message().into()),
        Err(_) => Outcome::Failed("the console could not be read".into()),
    };
    Answer { id, outcome }
}

/// A connection, and where on this machine it begins.
async fn connect(authority: &str, config: Arc<ClientConfig>) -> Result<(Sender, SocketAddr)> {
    let away = || Error::unavailable(format!("nothing answers at https://{authority}"));
    let connecting = async {
        let socket = TcpStream::connect(authority).await.map_err(|e| away().because(e))?;
        let _ = socket.set_nodelay(true);
        let from = socket.local_addr()?;
        let stream = tls::handshake(config, socket, authority).await?;
        let sender = http2(stream).await.map_err(|e| away().because(e))?;
        Ok((sender, from))
    };
    tokio::time::timeout(CONNECT_MAX, connecting).await.map_err(|e| away().because(e))?
}

async fn connect_near(socket: &Path) -> Result<Sender> {
    let away = || Error::unavailable(format!("no plane answers at {}", socket.display()));
    let connecting = async {
        let stream = loop {
            match UnixStream::connect(socket).await {
                // Too many wait to be accepted: a socket of this kind does not queue.
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => tokio::time::sleep(FULL_AGAIN).await,
                connected => break connected.map_err(|e| away().because(e))?,
            }
        };
        http2(stream).await.map_err(|e| away().because(e))
    };
    tokio::time::timeout(CONNECT_MAX, connecting).await.map_err(|e| away().because(e))?
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, hyper::Error> {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await?;
    // It ends with the last sender; what goes wrong comes out of the requests, too.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// One request; an answer that is no success is an error in the plane's words.
async fn send(
    sender: &mut Sender,
    authority: &str,
    name: Option<&str>,
    method: Method,
    path: &str,
    body: Bytes,
    limit: Duration,
) -> Result<Response<Incoming>> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("https://{authority}{path}"))
        .header("content-type", "application/json");
    if let Some(name) = name {
        request = request.header(NODE, name);
    }
    let request = request
        .body(Full::new(body))
        .map_err(|e| Error::internal(format!("{path} is no path")).because(e))?;
    let late = |e| Error::unavailable("the plane does not answer").because(e);
    let cut = |e| Error::unavailable("the connection to the plane is lost").because(e);
    let answer =
        tokio::time::timeout(limit, sender.send_request(request)).await.map_err(late)?.map_err(cut)?;
    match answer.status().is_success() {
        true => Ok(answer),
        false => Err(refused(answer).await),
    }
}

async fn refused(answer: Response<Incoming>) -> Error {
    let status = answer.status();
    let fault: Value = read(answer, ANSWER_BYTES_MAX).await.unwrap_or_default();
    let said =
        fault["error"]["message"].as_str().map_or_else(|| format!("it was answered {status}"), String::from);
    let kind = match status {
        StatusCode::UNAUTHORIZED => Kind::Unauthorized,
        StatusCode::FORBIDDEN => Kind::Forbidden,
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::CONFLICT => Kind::Conflict,
        status if status.is_client_error() => Kind::Invalid,
        _ => Kind::Unavailable,
    };
    Error::new(kind, said)
}

fn json(what: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(what).map(Bytes::from).map_err(|e| Error::internal("cannot encode").because(e))
}

async fn read<T: DeserializeOwned>(answer: Response<Incoming>, max: usize) -> Result<T> {
    let bytes = Limited::new(answer.into_body(), max).collect().await.map_err(|e| match e
        .is::<LengthLimitError>()
    {
        true => Error::unavailable(format!("the plane's answer is larger than {max} bytes")),
        false => Error::unavailable("the plane's answer ended early").because(e),
    })?;
    let wrong = |e| Error::unavailable("the plane's answer is not one").because(e);
    serde_json::from_slice(&bytes.to_bytes()).map_err(wrong)
}
