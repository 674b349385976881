//! What a plane answers to nodes: the routes of the second listener. A node reads and tells only of itself: who it is
//! comes from its certificate, and no path or query has a name.
//!
//! Limits: `JOIN_BYTES_MAX`, `REPORT_BYTES_MAX`, `ANSWER_BYTES_MAX` of a body.

use crate::listener::{self, Tls};
use crate::{Fleet, join};
use api::reply::{Body, ByteStream};
use api::{Faults, Listen, Query, Reply};
use base::join::{
    ANSWERS, Answer, DOCUMENT, FOLLOW, HELLO, IMAGES, JOIN, Join, Joined, NODE, PROGRAMS, QUESTIONS, RENEW,
    REPORT, Renew, Token,
};
use base::node::{DOCUMENT_WAIT_MAX, Generation, Hello, Known, Report, SectionKey};
use base::{Error, Result, Timestamp};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use store::Cause;
use tokio::sync::OnceCell;
use uuid::Uuid;

const JOIN_BYTES_MAX: usize = 64 << 10;
const REPORT_BYTES_MAX: usize = 32 << 20;
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// A node's certificate is good for this long; it asks for the next one when half of it is over.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// An image's bytes and how many they are.
pub type Bytes = (ByteStream, u64);
type Reading = Pin<Box<dyn Future<Output = Result<Bytes>> + Send>>;

/// What a plane is to nodes on other machines.
pub struct Plane {
    fleet: Fleet,
    /// Made when the first needs it: a plane that only follows makes no authority.
    tls: OnceCell<Tls>,
    settings: Settings,
}

/// Who asks.
enum Peer<'a> {
    Certificate(Option<&'a CertificateDer<'static>>),
    /// A node of this machine.
    Named(&'a str),
}

pub struct Settings {
    /// Short id of the cloud.
    pub cloud: u32,
    /// Errors: `NotFound` where an image has no bytes.
    pub image: Box<dyn Fn(Uuid) -> Reading + Send + Sync>,
    /// The program of a digest. Errors: `NotFound` where it is not kept.
    pub program: Box<dyn Fn(&str) -> Reading + Send + Sync>,
    pub certificate_life: Duration,
}

impl Plane {
    pub fn new(fleet: Fleet, settings: Settings) -> Arc<Plane> {
        Arc::new(Plane { fleet, tls: OnceCell::new(), settings })
    }

    pub(crate) async fn tls(&self) -> Result<&Tls> {
        self.tls.get_or_try_init(|| Tls::of(self.fleet.cell())).await
    }

    /// Serves nodes of other machines until it is dropped.
    pub async fn serve<L: Listen>(self: Arc<Plane>, listener: L) {
        listener::serve(listener, self).await;
    }

    /// Serves nodes of this machine until it is dropped. Whoever opens the socket is believed.
    pub async fn serve_near<L: Listen>(self: Arc<Plane>, listener: L) {
        listener::serve_near(listener, self).await;
    }

    /// A token for machines that reach this plane at `authority`. Only its hash is kept.
    pub async fn token(
        &self,
        cause: Cause,
        authority: &str,
        uses: u32,
        ttl_secs: i64,
    ) -> Result<(Token, Timestamp)> {
        let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let hash = join::hash(&secret);
        let kept = self.fleet.cell().write(cause, move |tx| join::issue(tx, &hash, uses, ttl_secs)).await?;
        let fingerprint = self.tls().await?.authority().fingerprint();
        Ok((Token { authority: authority.into(), fingerprint, secret }, kept.expires))
    }

    /// Answers one request; every error has become a fault.
    pub(crate) async fn answer(
        &self,
        peer: Option<&CertificateDer<'static>>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        self.reply(Peer::Certificate(peer), request).await
    }

    /// The same, for a node that names itself.
    pub(crate) async fn answer_near(&self, request: Request<Incoming>) -> Response<Body> {
        let name = request.headers().get(NODE).and_then(|name| name.to_str().ok()).unwrap_or_default();
        let name = name.to_string();
        self.reply(Peer::Named(&name), request).await
    }

    async fn reply(&self, peer: Peer<'_>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_string();
        let reply =
            self.route(peer, request).await.unwrap_or_else(|error| Faults::Identity.reply(&error, &path));
        reply.into_response()
    }

    async fn route(&self, peer: Peer<'_>, request: Request<Incoming>) -> Result<Reply> {
        let (head, body) = request.into_parts();
        let (method, path) = (head.method, head.uri.path());
        if (&method, path) == (&Method::POST, JOIN) {
            return self.join(read(body, JOIN_BYTES_MAX).await?).await;
        }
        let member = match peer {
            Peer::Certificate(shown) => Some(self.tls().await?.who(&self.fleet.cell().read(), shown)?),
            Peer::Named(_) => None,
        };
        let (fleet, node) = match (&member, peer) {
            (Some(member), _) => (&self.fleet, member.name.as_str()),
            (None, Peer::Named(name)) if !name.is_empty() => (&self.fleet, name),
            (None, _) => return Err(Error::unauthorized("A node says its name.")),
        };
        let query = Query::parse(head.uri.query().unwrap_or_default());
        match (method, path) {
            (Method::POST, HELLO) => {
                let hello: Hello = read(body, JOIN_BYTES_MAX).await?;
                if hello.name != node || member.as_ref().is_some_and(|member| hello.id != member.id) {
                    return Err(Error::forbidden(format!("The certificate is that of the node {node}.")));
                }
                fleet.hello(hello).await?;
                Ok(Reply::no_content())
            }
            (Method::GET, DOCUMENT) if query.get(FOLLOW).is_some() => {
                let patches = fleet.follows(node, known(&query)?, wait(&query)?).await?;
                Ok(Reply::ok(&json!({})).open(Box::pin(patches)))
            }
            // A node of an older build takes one patch and asks again.
            (Method::GET, DOCUMENT) => {
                Ok(Reply::ok(&fleet.document(node, known(&query)?, wait(&query)?).await?))
            }
            (Method::POST, REPORT) => {
                let report: Report = read(body, REPORT_BYTES_MAX).await?;
                fleet.report(node, report).await?;
                Ok(Reply::no_content())
            }
            (Method::GET, QUESTIONS) => Ok(Reply::ok(&fleet.questions(node, wait(&query)?).await)),
            (Method::POST, ANSWERS) => {
                let answer: Answer = read(body, ANSWER_BYTES_MAX).await?;
                fleet.answered(node, answer);
                Ok(Reply::no_content())
            }
            (Method::POST, RENEW) => {
                let renew: Renew = read(body, JOIN_BYTES_MAX).await?;
                let none = || Error::invalid("A node of this machine has no certificate.");
                self.renew(member.as_deref().ok_or_else(none)?, &renew).await
            }
            (Method::GET, path) if path.starts_with(IMAGES) => self.image(node, &path[IMAGES.len()..]).await,
            (Method::GET, path) if path.starts_with(PROGRAMS) => {
                self.program(node, &path[PROGRAMS.len()..]).await
            }
            _ => Err(Error::not_found("A plane has no such route for nodes.")),
        }
    }

    async fn join(&self, join: Join) -> Result<Reply> {
        join::check(&self.fleet.cell().read(), &join.secret, Timestamp::wall())?;
        let life = self.settings.certificate_life;
        let certificate = self.tls().await?.authority().sign(&join.name, &join.request, life)?;
        let key = crate::authority::key_of(&CertificateDer::from(certificate.der.0.as_slice()))?;
        let name = join.name.clone();
        self.fleet.cell().write(Cause::step("join"), move |tx| join::admit(tx, &join, &key)).await?;
        tracing::info!(node = name, "joined");
        Ok(Reply::ok(&Joined { cloud: self.settings.cloud, certificate }))
    }

    /// For the key that the node is known by, and no other.
    async fn renew(&self, member: &join::Member, renew: &Renew) -> Result<Reply> {
        let life = self.settings.certificate_life;
        let certificate = self.tls().await?.authority().sign(&member.name, &renew.request, life)?;
        match crate::authority::key_of(&CertificateDer::from(certificate.der.0.as_slice()))? == member.key {
            true => Ok(Reply::ok(&certificate)),
            false => Err(Error::forbidden("A node renews its certificate for the key that it joined with.")),
        }
    }

    async fn image(&self, node: &str, id: &str) -> Result<Reply> {
        let absent = || Error::not_found("No server of this node starts from such an image.");
        let id = Uuid::try_parse(id).map_err(|e| absent().because(e))?;
        if !self.fleet.needs(node, &SectionKey::Image(id)) {
            return Err(absent());
        }
        Ok(stream((self.settings.image)(id).await?))
    }

    async fn program(&self, node: &str, sha256: &str) -> Result<Reply> {
        let known = sha256.bytes().all(|b| b.is_ascii_hexdigit()) && self.fleet.is_ordered(node, sha256);
        match known {
            true => Ok(stream((self.settings.program)(sha256).await?)),
            false => Err(Error::not_found("This node is to run no such program.")),
        }
    }
}

fn stream((bytes, size): Bytes) -> Reply {
    Reply::ok(&json!({})).header("content-type", "application/octet-stream").stream(bytes, size)
}

async fn read<T: DeserializeOwned>(body: Incoming, max: usize) -> Result<T> {
    let bytes = Limited::new(body, max).collect().await.map_err(|e| match e.is::<LengthLimitError>() {
        true => Error::too_large(format!("The body is larger than {max} bytes.")),
        false => Error::invalid("The body ended early.").because(e),
    })?;
    api::call::parse(&bytes.to_bytes())
}

fn wait(query: &Query) -> Result<Duration> {
    let wrong = || Error::invalid("`wait_ms` is a number of milliseconds.");
    let ms = query.get("wait_ms").unwrap_or("0").parse().map_err(|_| wrong())?;
    Ok(Duration::from_millis(ms).min(DOCUMENT_WAIT_MAX))
}

/// `after`: `EPOCH.REVISION`; `sum`, where it is told: hexadecimal; `order`: microseconds.
fn known(query: &Query) -> Result<Known> {
    let wrong = || Error::invalid("`after` is a generation: EPOCH.REVISION.");
    let (epoch, revision) = query.get("after").and_then(|text| text.split_once('.')).ok_or_else(wrong)?;
    let number = |text: &str| text.parse().map_err(|_| wrong());
    let generation = Generation { epoch: number(epoch)?, revision: number(revision)? };
    let sum = query.get("sum").map(|text| u64::from_str_radix(text, 16));
    let sum = sum.transpose().map_err(|_| Error::invalid("`sum` is a hexadecimal number."))?;
    let order = query.get("order").map(|text| number(text).map(|at: u64| Timestamp(at as i64)));
    Ok(Known { generation, sum, order: order.transpose()? })
}
