//! An answer before it becomes HTTP.

use crate::view::{self, View};
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use std::pin::Pin;
use std::task::{Context, Poll};

pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// The bytes of an answer: known at once, or streamed.
pub enum Body {
    Full(Option<Bytes>),
    /// `left`: how many bytes are still to come, where that is known.
    Stream {
        stream: ByteStream,
        left: Option<u64>,
    },
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match &mut *self {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Body::Stream { stream, left } => stream.as_mut().poll_next(cx).map(|next| {
                next.map(|chunk| {
                    chunk.map(|bytes| {
                        *left = left.map(|left| left.saturating_sub(bytes.len() as u64));
                        Frame::data(bytes)
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Body::Stream { left: None, .. } => SizeHint::default(),
        }
    }
}

/// Status, headers and body of an answer.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Reply {
    pub fn new(status: StatusCode) -> Reply {
        Reply { status, headers: HeaderMap::new(), body: Body::Full(None) }
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }

    /// 200 with JSON.
    pub fn ok(value: &impl Serialize) -> Reply {
        Reply::json(StatusCode::OK, value)
    }

    /// 201 with JSON.
    pub fn created(value: &impl Serialize) -> Reply {
        Reply::json(StatusCode::CREATED, value)
    }

    /// 202 with JSON.
    pub fn accepted(value: &impl Serialize) -> Reply {
        Reply::json(StatusCode::ACCEPTED, value)
    }

    /// 202 without a body.
    pub fn accepted_empty() -> Reply {
        Reply::new(StatusCode::ACCEPTED)
    }

    /// 204.
    pub fn no_content() -> Reply {
        Reply::new(StatusCode::NO_CONTENT)
    }

    /// JSON whose fields are written straight into the body.
    pub fn written(status: StatusCode, write: impl FnOnce(&mut View)) -> Reply {
        let mut bytes = Vec::new();
        view::object(&mut bytes, &[], write);
        Reply::new(status).header("content-type", "application/json").body(bytes)
    }

    pub fn json(status: StatusCode, value: &impl Serialize) -> Reply {
        let bytes = serde_json::to_vec(value).expect("views are plain data without secrets");
        Reply::new(status).header("content-type", "application/json").body(bytes)
    }

    pub fn body(mut self, bytes: impl Into<Bytes>) -> Reply {
        self.body = Body::Full(Some(bytes.into()));
        self
    }

    pub fn stream(mut self, stream: ByteStream, length: u64) -> Reply {
        self.body = Body::Stream { stream, left: Some(length) };
        self
    }

    /// Bytes that come until the stream ends; one that fails breaks the answer off.
    pub fn open(mut self, stream: ByteStream) -> Reply {
        self.body = Body::Stream { stream, left: None };
        self
    }

    /// Sets a header; a value that cannot stand in one is left out.
    pub fn header(mut self, name: &'static str, value: impl AsRef<str>) -> Reply {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }
}
