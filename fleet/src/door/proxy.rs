//! The way of one request through the door.

use super::spool::{Room, Spool, State};
use super::upstream::{Sent, Upstream};
use super::{ANSWER_MAX, Door, ELSEWHERE, KEPT_BYTES_MAX, MIRROR, MUTATION};
use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A large body is sent to planes so often for as long as each takes; then within what is left of `ANSWER_MAX`.
const SENT_MAX: usize = 8;
/// Between two tries, where the routes do not change meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type DoorBody = UnsyncBoxBody<Bytes, Failure>;

/// What a client sent: kept whole, or more than is kept so.
enum Kept {
    Whole(Bytes),
    Large(Spool),
}

impl Kept {
    fn body(&self) -> Sent {
        match self {
            Kept::Whole(bytes) => whole(bytes.clone()),
            Kept::Large(spool) => spool.body(),
        }
    }

    fn state(&self) -> State {
        match self {
            Kept::Whole(_) => State::Kept,
            Kept::Large(spool) => spool.state(),
        }
    }
}

/// What came of one try.
enum Outcome {
    Answer(Response<DoorBody>),
    /// Nobody has carried it out, or only in part, or its answer is lost: the same again, elsewhere, if it is kept.
    Broke(String),
}

impl Door {
    /// Answers one request; never fails.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Option<IpAddr>,
        https: bool,
    ) -> Response<DoorBody> {
        let begin = Instant::now();
        let (mut head, body) = request.into_parts();
        let mutation = ![Method::GET, Method::HEAD, Method::OPTIONS].contains(&head.method);
        forwarded(&mut head.headers, peer, https);
        let id = Uuid::new_v4().simple().to_string();
        if mutation && let Ok(id) = HeaderValue::from_str(&id) {
            head.headers.insert(MUTATION, id);
        }
        let answer = match keep(body, self.inner.folder.as_deref(), &self.inner.room).await {
            Ok(kept) => self.carry(&head, kept, mutation, begin + ANSWER_MAX).await,
            Err(_) => fault(StatusCode::BAD_REQUEST, "The request body ended early."),
        };
        if head.method == Method::GET {
            self.inner.sample.note(&head, &answer);
        }
        self.figures().answered(answer.status().is_server_error(), begin.elapsed());
        answer
    }

    async fn carry(
        &self,
        head: &http::request::Parts,
        kept: Kept,
        mutation: bool,
        mut deadline: Instant,
    ) -> Response<DoorBody> {
        let mut tries = 0;
        loop {
            if mutation && !self.let_through(deadline).await {
                return busy("The control plane is switching; try again in a moment.");
            }
            let Some(upstream) = self.upstream(mutation, deadline).await else {
                return busy("No control plane answers; try again in a moment.");
            };
            if tries > 0 {
                self.figures().again();
            }
            tries += 1;
            let outcome = tokio::select! {
                outcome = send(&upstream, head, kept.body()) => outcome,
                // Another plane owns the cell: what this one was asked for it carries out no more, or has, and then the
                // other one answers it.
                () = self.moved_from(&upstream), if kept.state() == State::Kept => {
                    Outcome::Broke(format!("{} is not active any more", upstream.name))
                }
            };
            let why = match outcome {
                Outcome::Answer(answer) => return answer,
                Outcome::Broke(why) => why,
            };
            match kept.state() {
                State::Kept => {}
                State::Once => {
                    tracing::warn!("{} {}: {why}", head.method, head.uri.path());
                    return busy("The outcome is unknown; look before you try again.");
                }
                State::Ended => return fault(StatusCode::BAD_REQUEST, "The request body ended early."),
            }
            // What was on its way for long may still find another plane.
            if matches!(kept, Kept::Large(_)) && tries < SENT_MAX {
                deadline = deadline.max(Instant::now() + ANSWER_MAX);
            }
            if Instant::now() >= deadline {
                return busy("No control plane answers; try again in a moment.");
            }
            let mut routes = self.routes();
            routes.mark_unchanged();
            let _ = tokio::time::timeout(AGAIN, routes.changed()).await;
        }
    }
}

async fn send(upstream: &Upstream, head: &http::request::Parts, body: Sent) -> Outcome {
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = head.headers.clone();
    *request.uri_mut() = match format!("http://plane{path}").parse() {
        Ok(uri) => uri,
        Err(_) => return Outcome::Answer(fault(StatusCode::BAD_REQUEST, "The path is none.")),
    };
    let answer = match upstream.send(request).await {
        Ok(answer) => answer,
        Err(error) => return Outcome::Broke(format!("{} broke off: {error}", upstream.name)),
    };
    if answer.headers().contains_key(ELSEWHERE) {
        return Outcome::Broke(format!("{} does not own the cell", upstream.name));
    }
    let (mut parts, body) = answer.into_parts();
    hop(&mut parts.headers);
    let small = body.size_hint().upper().is_some_and(|size| size <= KEPT_BYTES_MAX as u64);
    if !small {
        return Outcome::Answer(Response::from_parts(parts, body.map_err(Failure::from).boxed_unsync()));
    }
    match body.collect().await {
        Ok(collected) => Outcome::Answer(Response::from_parts(parts, whole(collected.to_bytes()))),
        Err(error) => Outcome::Broke(format!("{} broke off in its answer: {error}", upstream.name)),
    }
}

/// Reads a body as far as it is kept.
async fn keep(mut body: Incoming, folder: Option<&Path>, room: &Arc<Room>) -> Result<Kept, hyper::Error> {
    let mut first = BytesMut::new();
    while first.len() <= KEPT_BYTES_MAX {
        let Some(frame) = body.frame().await else { return Ok(Kept::Whole(first.freeze())) };
        if let Ok(data) = frame?.into_data() {
            first.extend_from_slice(&data);
        }
    }
    Ok(Kept::Large(Spool::new(first.freeze(), body, folder, room)))
}

/// Who asks and by what name, as the plane is to see it; what the connection to the client says of itself goes.
fn forwarded(headers: &mut HeaderMap, peer: Option<IpAddr>, https: bool) {
    hop(headers);
    for name in [MUTATION, ELSEWHERE, MIRROR, "x-forwarded-for"] {
        headers.remove(name);
    }
    if let Some(peer) = peer.and_then(|peer| HeaderValue::from_str(&peer.to_string()).ok()) {
        headers.insert("x-forwarded-for", peer);
    }
    if https {
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    }
}

/// Removes what is of one connection only.
fn hop(headers: &mut HeaderMap) {
    const HOP: [HeaderName; 6] = [
        hyper::header::CONNECTION,
        hyper::header::TRANSFER_ENCODING,
        hyper::header::UPGRADE,
        hyper::header::TE,
        hyper::header::TRAILER,
        hyper::header::EXPECT,
    ];
    for name in HOP {
        headers.remove(name);
    }
}

pub(super) fn empty() -> DoorBody {
    whole(Bytes::new())
}

fn whole(bytes: Bytes) -> DoorBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn busy(sentence: &str) -> Response<DoorBody> {
    let mut answer = fault(StatusCode::SERVICE_UNAVAILABLE, sentence);
    answer.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    answer
}

/// The shape that every OpenStack client reads a message from.
pub(super) fn fault(status: StatusCode, sentence: &str) -> Response<DoorBody> {
    let title = status.canonical_reason().unwrap_or_default();
    let body = json!({"error": {"code": status.as_u16(), "title": title, "message": sentence}}).to_string();
    let mut answer = Response::new(whole(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    answer
}
