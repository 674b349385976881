//! The way of a request: route, token, version, rule, body, handler, fault.

use crate::call::{Call, Query};
use crate::fault::Faults;
use crate::policy::{Policy, Target, denied};
use crate::reply;
use crate::reply::{Body, Reply};
use crate::route::{Mounted, OPEN, Row};
use crate::version::Version;
use base::context::{Context, Who};
use base::{Error, Kind, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use std::sync::Arc;
use store::Cause;

/// What `identity` answers: who holds this token.
pub trait Identity: Send + Sync {
    /// Errors: `Unauthorized`, whatever the reason.
    fn who(&self, token: &str) -> Result<Arc<Who>>;
}

/// All services behind one listener.
pub struct Api {
    services: Vec<Mounted>,
    policy: Arc<Policy>,
    identity: Arc<dyn Identity>,
    /// `--public-url`: what hrefs start with instead of the request's own host.
    public_url: Option<String>,
}

impl Api {
    /// Errors: `Invalid` when a rule cannot be read; a route without its rule is a slip of ours and panics.
    pub fn new(
        services: Vec<Mounted>,
        identity: Arc<dyn Identity>,
        overrides: &std::collections::BTreeMap<String, String>,
        public_url: Option<String>,
    ) -> Result<Arc<Api>> {
        let policy = Policy::new(services.iter().flat_map(|s| s.rules.iter().copied().flatten()), overrides)?;
        for row in services.iter().flat_map(|s| &s.rows) {
            assert!(
                row.rule == OPEN || policy.knows(row.rule),
                "{} {} has no rule {}",
                row.method,
                row.path,
                row.rule
            );
        }
        Ok(Arc::new(Api {
            services,
            policy,
            identity,
            public_url: public_url.map(|u| u.trim_end_matches('/').into()),
        }))
    }

    pub fn services(&self) -> &[Mounted] {
        &self.services
    }

    /// Answers one request; never fails, every error has become a fault.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        self.respond(parts, body).await
    }

    /// As `answer`, over any body: tests come in here.
    pub async fn respond<B>(&self, mut parts: http::request::Parts, body: B) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let known = parts.extensions.get::<Known>().cloned();
        let request_id: Arc<str> = match &known {
            Some(known) => known.request.clone(),
            None => format!("req-{}", uuid::Uuid::new_v4()).into(),
        };
        strip_identity(&mut parts.headers);
        let origin = self.origin(&parts);
        let path = percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
        let Some(service) = self.services.iter().find(|s| under(&path, s.prefix)) else {
            let reply = match path == "/" {
                true => self.index(&origin),
                false => {
                    Faults::Identity.reply(&Error::not_found(format!("Nothing is at {path}.")), &request_id)
                }
            };
            return finish(reply, None, &request_id, None);
        };
        let mut version = None;
        let outcome =
            Box::pin(self.run(service, &request_id, origin.clone(), &path, parts, body, &mut version)).await;
        let reply = outcome.unwrap_or_else(|error| match error.kind() {
            Kind::Unauthorized => unauthorized(&error, &origin, &request_id),
            _ => service.faults.reply(&error, &request_id),
        });
        finish(reply, Some(service), &request_id, version)
    }

    /// Answers a request of the log as if it came now, on behalf of whom it came from then: within a trial, where
    /// nothing that it changes counts.
    ///
    /// Errors: `Invalid` with the reason when the log does not keep enough of it.
    pub async fn again(&self, cause: &Cause) -> Result<Response<Body>> {
        let (parts, body) = kept(cause)?;
        Ok(self.respond(parts, Full::new(body)).await)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one request, taken apart once")]
    async fn run<B>(
        &self,
        service: &Mounted,
        request_id: &Arc<str>,
        origin: String,
        path: &str,
        parts: http::request::Parts,
        body: B,
        stamped: &mut Option<Version>,
    ) -> Result<Reply>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let local = &path[service.prefix.len()..];
        let mut segments: Vec<&str> = local.split('/').filter(|s| !s.is_empty()).collect();
        if service.project_in_path && segments.len() > 1 && is_project(segments[1]) {
            segments.remove(1);
        }
        let version = match &service.microversions {
            Some(offered) => match parts.extensions.get::<Known>() {
                Some(known) => known.version,
                None => offered.negotiate(&parts.headers)?,
            },
            None => Version::default(),
        };
        *stamped = Some(version);
        let mut rows = service.find(&segments);
        rows.retain(|row| !(row.exact && local.ends_with('/')));
        if rows.is_empty() {
            return Err(Error::not_found("The resource could not be found."));
        }
        let mut rows: Vec<&Row> =
            of_method(&rows, &parts.method).map_err(|e| match local.ends_with('/') {
                // An id that a client left empty.
                true => Error::not_found("The resource could not be found."),
                false => e,
            })?;
        rows.retain(|row| row.since <= version && version <= row.until);
        let first = *rows.first().ok_or_else(|| Error::not_found("The resource could not be found."))?;
        let who = match parts.extensions.get::<Known>() {
            Some(known) => known.who.clone(),
            None => self.who(first, &parts.headers)?,
        };
        let (bytes, stream) = read_body(first, body).await?;
        let row = pick(&rows, &bytes)?;
        let cx = Context { who, request: request_id.clone(), everywhere: false };
        let mut call = Call {
            cx,
            method: parts.method,
            path: format!("/{}", segments.join("/")),
            params: row.params(&segments),
            query: Query::parse(parts.uri.query().unwrap_or("")),
            uri: parts.uri.path_and_query().map_or("/", |uri| uri.as_str()).into(),
            streamed: row.streamed,
            headers: parts.headers,
            version,
            base: format!("{origin}{}", service.prefix),
            origin,
            rule: row.rule,
            policy: self.policy.clone(),
            body: bytes,
            stream: std::sync::Mutex::new(stream),
        };
        if row.rule != OPEN {
            self.check(row, &mut call)?;
        }
        (row.run)(call).await
    }

    fn who(&self, row: &Row, headers: &HeaderMap) -> Result<Arc<Who>> {
        if row.rule == OPEN {
            return Ok(Arc::default());
        }
        let token = headers.get("x-auth-token").or_else(|| headers.get("x-storage-token"));
        let token = token.and_then(|t| t.to_str().ok()).ok_or_else(|| Error::unauthorized(NEEDS_TOKEN))?;
        self.identity.who(token).map_err(|e| match e.kind() {
            Kind::Unauthorized => Error::unauthorized(NEEDS_TOKEN),
            _ => e,
        })
    }

    /// Applies the route's rule: first to the caller's own things, then to another project's.
    fn check(&self, row: &Row, call: &mut Call) -> Result<()> {
        let mut target: Target = call.params.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
        if let Some(aim) = &row.aim {
            aim(call, &mut target);
        }
        target.entry("project_id".into()).or_insert_with(|| call.cx.project().to_string());
        target.entry("user_id".into()).or_insert_with(|| call.cx.user().to_string());
        if !self.policy.allows(row.rule, &call.cx.who, &target) {
            return Err(denied(row.rule));
        }
        for foreign in ["project_id", "tenant_id", "user_id"] {
            target.insert(foreign.into(), "-".into());
        }
        // A rule that anybody passes says nothing of what this caller may see.
        let anybody = self.policy.allows(row.rule, &Who::default(), &target);
        call.cx.everywhere = !anybody && self.policy.allows(row.rule, &call.cx.who, &target);
        Ok(())
    }

    fn origin(&self, parts: &http::request::Parts) -> String {
        if let Some(url) = &self.public_url {
            return url.clone();
        }
        let header = |name: &str| {
            let value = parts.headers.get(name)?.to_str().ok()?.split(',').next()?.trim();
            (!value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_[]".contains(&b)))
                .then(|| value.to_string())
        };
        let scheme = header("x-forwarded-proto").filter(|s| s == "https").unwrap_or_else(|| "http".into());
        let host = header("x-forwarded-host").or_else(|| header("host"));
        format!("{scheme}://{}", host.unwrap_or_else(|| "localhost".into()))
    }

    /// What a browser sees at `/`: where the services are.
    fn index(&self, origin: &str) -> Reply {
        let services: serde_json::Map<_, _> = self
            .services
            .iter()
            .map(|s| (s.name.to_string(), format!("{origin}{}/", s.prefix).into()))
            .collect();
        Reply::ok(&serde_json::json!({"shisa": env!("CARGO_PKG_VERSION"), "services": services}))
    }
}

/// What the log says of a request that is tried again. No client can say it: it is no header.
#[derive(Clone)]
struct Known {
    request: Arc<str>,
    version: Version,
    who: Arc<Who>,
}

/// A request out of the log.
fn kept(cause: &Cause) -> Result<(http::request::Parts, Bytes)> {
    let bad = |what: &str| Error::invalid(format!("its {what} is not kept as it was"));
    let asked = cause.asked.as_ref().ok_or_else(|| bad("way"))?;
    if asked.streamed {
        return Err(Error::invalid("its body was a stream, which the log does not keep"));
    }
    let known = Known {
        request: cause.id.as_str().into(),
        version: cause.version.parse().map_err(|_| bad("version"))?,
        who: Arc::new(asked.holder.clone()),
    };
    let method = cause.route.split(' ').next().unwrap_or_default();
    let body = cause.body.as_ref().map(|body| Bytes::from(body.expose().to_string())).unwrap_or_default();
    let mut request = Request::builder().method(method).uri(asked.uri.as_str()).extension(known);
    request = request.header("host", "plane");
    for (name, value) in &asked.headers {
        request = request.header(name, value.expose());
    }
    let request = request.body(()).map_err(|e| bad("way").because(e))?;
    Ok((request.into_parts().0, body))
}

const NEEDS_TOKEN: &str = "The request you have made requires authentication.";

fn under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_project(segment: &str) -> bool {
    segment.len() == 32 && segment.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The rows of the request's method; HEAD is answered by GET where it has no row of its own.
fn of_method<'a>(rows: &[&'a Row], method: &Method) -> Result<Vec<&'a Row>> {
    let of = |m: &Method| rows.iter().copied().filter(|r| r.method == *m).collect::<Vec<_>>();
    let mut found = of(method);
    if found.is_empty() && method == Method::HEAD {
        found = of(&Method::GET);
    }
    match found.is_empty() {
        true => Err(Error::new(Kind::Method, "The method is not allowed for this resource.")),
        false => Ok(found),
    }
}

/// Among rows of one path, the one whose action the body names.
fn pick<'a>(rows: &[&'a Row], body: &[u8]) -> Result<&'a Row> {
    let first = *rows.first().ok_or_else(|| Error::not_found("The resource could not be found."))?;
    if first.action.is_none() {
        return Ok(first);
    }
    let keys: serde_json::Map<String, serde_json::Value> = crate::call::parse(body)?;
    let mut keys = keys.keys();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(Error::invalid("The request body must have exactly one key: the action."));
    };
    let named = rows.iter().copied().find(|r| r.action == Some(key.as_str()));
    named.ok_or_else(|| Error::invalid(format!("There is no such action: {}", key.escape_default())))
}

async fn read_body<B>(row: &Row, body: B) -> Result<(Bytes, Option<reply::ByteStream>)>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if row.streamed {
        let frames = body.into_data_stream().map(|chunk| chunk.map_err(|e| std::io::Error::other(e.into())));
        return Ok((Bytes::new(), Some(Box::pin(frames))));
    }
    if body.is_end_stream() {
        return Ok((Bytes::new(), None));
    }
    let too_large = || Error::too_large(format!("The request body is larger than {} bytes.", row.body_max));
    if body.size_hint().lower() > row.body_max as u64 {
        return Err(too_large());
    }
    match Limited::new(body, row.body_max).collect().await {
        Ok(collected) => Ok((collected.to_bytes(), None)),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Err(e) => Err(Error::invalid("The request body ended early.").because(e)),
    }
}

/// Removes what only a token layer may set. Source: OSSA-2026-001.
fn strip_identity(headers: &mut HeaderMap) {
    const STEMS: [&str; 9] = [
        "x-user",
        "x-project",
        "x-tenant",
        "x-domain",
        "x-role",
        "x-identity",
        "x-service-catalog",
        "x-system-scope",
        "x-is-admin",
    ];
    let forged: Vec<_> =
        headers.keys().filter(|n| STEMS.iter().any(|s| n.as_str().starts_with(s))).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

fn unauthorized(error: &Error, origin: &str, request: &str) -> Reply {
    Faults::Identity
        .reply(error, request)
        .header("www-authenticate", format!("Keystone uri=\"{origin}/identity\""))
}

fn finish(
    reply: Reply,
    service: Option<&Mounted>,
    request: &str,
    version: Option<Version>,
) -> Response<Body> {
    let mut reply = reply.header("x-openstack-request-id", request);
    if let Some(service) = service {
        if let (Some(offered), Some(version)) = (&service.microversions, version) {
            offered.stamp(version, &mut reply.headers);
        }
        if let Some(name) = service.request_id_header {
            reply = reply.header(name, request);
        }
    }
    reply.into_response()
}
