//! The one place where a kind of error becomes an HTTP status and a service's own fault shape.

use crate::reply::Reply;
use base::{Error, Kind};
use http::StatusCode;
use serde_json::{Value, json};

/// How a service words its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// `{"error": {code, message, title}}`
    Identity,
    /// `{"badRequest": {code, message}}`
    Compute,
    /// `{"NeutronError": {type, message, detail}}`
    Network,
    /// An HTML page.
    Image,
    /// `{"errors": [{status, title, detail, code, request_id}]}`
    Placement,
}

impl Faults {
    pub fn status(self, kind: Kind) -> StatusCode {
        match kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
            Kind::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Precondition => StatusCode::PRECONDITION_FAILED,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Range => StatusCode::RANGE_NOT_SATISFIABLE,
            Kind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Kind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::OverQuota => match self {
                Faults::Network => StatusCode::CONFLICT,
                Faults::Image => StatusCode::PAYLOAD_TOO_LARGE,
                Faults::Identity | Faults::Compute | Faults::Placement => StatusCode::FORBIDDEN,
            },
        }
    }

    /// The answer that says `error`. An internal one is logged here, once, and its detail kept from the caller.
    pub fn reply(self, error: &Error, request: &str) -> Reply {
        let status = self.status(error.kind());
        let hidden = error.kind() == Kind::Internal;
        if hidden {
            tracing::error!(request, "{}", error.chain());
        }
        let message = match hidden {
            true => format!("An unexpected error happened; the operator finds it in the log as {request}."),
            false => error.message().to_string(),
        };
        let title = status.canonical_reason().unwrap_or("Error");
        let code = status.as_u16();
        match self {
            Faults::Identity => {
                Reply::json(status, &json!({"error": {"code": code, "message": message, "title": title}}))
            }
            Faults::Compute => Reply::json(status, &compute(status, &message)),
            Faults::Network => {
                let name = error.name().unwrap_or(neutron_type(error.kind()));
                Reply::json(
                    status,
                    &json!({"NeutronError": {"type": name, "message": message, "detail": ""}}),
                )
            }
            Faults::Image => html(status, title, &message),
            Faults::Placement => {
                let name = error.name().unwrap_or("placement.undefined_code");
                let one = json!({"status": code, "title": title, "detail": message, "code": name, "request_id": request});
                Reply::json(status, &json!({"errors": [one]}))
            }
        }
    }
}

fn compute(status: StatusCode, message: &str) -> Value {
    let name = match status.as_u16() {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 | 429 => "overLimit",
        415 => "badMediaType",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    };
    json!({name: {"code": status.as_u16(), "message": message}})
}

/// The word of an error that did not bring its own. Source: neutron's `HTTPNotFound` and the like from WebOb.
fn neutron_type(kind: Kind) -> &'static str {
    match kind {
        Kind::NotFound => "HTTPNotFound",
        Kind::Forbidden => "PolicyNotAuthorized",
        Kind::OverQuota => "OverQuota",
        Kind::Conflict => "Conflict",
        Kind::Precondition => "RevisionNumberConstraintFailed",
        Kind::TooLarge => "RequestEntityTooLarge",
        Kind::Unavailable => "ServiceUnavailable",
        Kind::Internal => "HTTPInternalServerError",
        Kind::Method => "HTTPMethodNotAllowed",
        Kind::Invalid
        | Kind::Unauthorized
        | Kind::NotAcceptable
        | Kind::MediaType
        | Kind::Range
        | Kind::TooMany
        | Kind::NotImplemented => "HTTPBadRequest",
    }
}

fn html(status: StatusCode, title: &str, message: &str) -> Reply {
    let message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let head = format!("{} {title}", status.as_u16());
    let page = format!(
        "<html>\n <head>\n  <title>{head}</title>\n </head>\n <body>\n  <h1>{head}</h1>\n  {message}<br /><br />\n\n\n </body>\n</html>"
    );
    Reply::new(status).header("content-type", "text/html; charset=UTF-8").body(page.into_bytes())
}
