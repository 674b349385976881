//! The way of one request through the door.

use super::upstream::{Sent, Upstream};
use super::{ANSWER_MAX, Door, ELSEWHERE, KEPT_BYTES_MAX, MIRROR, MUTATION};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Between two tries, where the routes do not change meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type DoorBody = UnsyncBoxBody<Bytes, Failure>;

/// What a client sent: kept whole, or only to be passed on once.
enum Kept {
    Whole(Bytes),
    Stream(Option<Sent>),
}

/// What came of one try.
enum Outcome {
    Answer(Response<DoorBody>),
    /// Nobody has carried it out, or only in part: the same again, elsewhere.
    Again,
    /// It may have been carried out, and cannot be sent again.
    Lost(String),
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
        let answer = match keep(body).await {
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
        mut kept: Kept,
        mutation: bool,
        deadline: Instant,
    ) -> Response<DoorBody> {
        let mut tried = false;
        loop {
            if mutation && !self.let_through(deadline).await {
                return busy("The control plane is switching; try again in a moment.");
            }
            let Some(upstream) = self.upstream(mutation, deadline).await else {
                return busy("No control plane answers; try again in a moment.");
            };
            if std::mem::replace(&mut tried, true) {
                self.figures().again();
            }
            let body = match &mut kept {
                Kept::Whole(bytes) => whole(bytes.clone()),
                Kept::Stream(stream) => match stream.take() {
                    Some(stream) => stream,
                    None => return busy("The outcome is unknown; look before you try again."),
                },
            };
            let whole = matches!(kept, Kept::Whole(_));
            let outcome = tokio::select! {
                outcome = send(&upstream, head, body, whole) => outcome,
                // Another plane owns the cell: what this one was asked for it carries out no more, or has, and then the
                // other one answers it.
                () = self.moved_from(&upstream), if whole => Outcome::Again,
            };
            match outcome {
                Outcome::Answer(answer) => return answer,
                Outcome::Lost(why) => {
                    tracing::warn!("{} {}: {why}", head.method, head.uri.path());
                    return busy("The outcome is unknown; look before you try again.");
                }
                Outcome::Again if Instant::now() >= deadline => {
                    return busy("No control plane answers; try again in a moment.");
                }
                Outcome::Again => {
                    let mut routes = self.routes();
                    routes.mark_unchanged();
                    let _ = tokio::time::timeout(AGAIN, routes.changed()).await;
                }
            }
        }
    }
}

async fn send(upstream: &Upstream, head: &http::request::Parts, body: Sent, kept: bool) -> Outcome {
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = head.headers.clone();
    *request.uri_mut() = match format!("http://plane{path}").parse() {
        Ok(uri) => uri,
        Err(_) => return Outcome::Answer(fault(StatusCode::BAD_REQUEST, "The path is none.")),
    };
    let lost = |why: String| if kept { Outcome::Again } else { Outcome::Lost(why) };
    let answer = match upstream.send(request).await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() && kept => return Outcome::Again,
        Err(error) => return lost(format!("{} broke off: {error}", upstream.name)),
    };
    if answer.headers().contains_key(ELSEWHERE) {
        return lost(format!("{} does not own the cell", upstream.name));
    }
    let (mut parts, body) = answer.into_parts();
    hop(&mut parts.headers);
    let small = body.size_hint().upper().is_some_and(|size| size <= KEPT_BYTES_MAX as u64);
    if !small {
        return Outcome::Answer(Response::from_parts(parts, body.map_err(Failure::from).boxed_unsync()));
    }
    match body.collect().await {
        Ok(collected) => Outcome::Answer(Response::from_parts(parts, whole(collected.to_bytes()))),
        Err(error) => lost(format!("{} broke off in its answer: {error}", upstream.name)),
    }
}

/// Reads a body as far as it is kept.
async fn keep(mut body: Incoming) -> Result<Kept, hyper::Error> {
    let mut first = BytesMut::new();
    while first.len() <= KEPT_BYTES_MAX {
        let Some(frame) = body.frame().await else { return Ok(Kept::Whole(first.freeze())) };
        if let Ok(data) = frame?.into_data() {
            first.extend_from_slice(&data);
        }
    }
    let first = stream::once(async move { Ok(Frame::data(first.freeze())) });
    let rest = body.into_data_stream().map_ok(Frame::data).map_err(Failure::from);
    Ok(Kept::Stream(Some(StreamBody::new(first.chain(rest)).boxed_unsync())))
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
