//! The one error: a closed kind, a sentence for the caller, and a source for us.
//!
//! `api` alone turns a kind into an HTTP status and a service's fault shape.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as the caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is malformed or names something impossible (400).
    Invalid,
    /// No valid token (401).
    Unauthorized,
    /// The caller may not do this (403).
    Forbidden,
    /// It is not there, or not there for this caller (404).
    NotFound,
    /// The path is known, the method is not (405).
    Method,
    /// The microversion is outside what is offered (406).
    NotAcceptable,
    /// The state of the resource forbids it (409).
    Conflict,
    /// A revision or precondition of the caller does not hold (412).
    Precondition,
    /// A body, header or value beyond its limit (413).
    TooLarge,
    /// The content type is not one we read (415).
    MediaType,
    /// A byte range outside of the data (416).
    Range,
    /// A quota or limit of the project is used up (403, 409 or 413: the service decides).
    OverQuota,
    /// Too many requests at once (429).
    TooMany,
    /// Known, and not offered (501).
    NotImplemented,
    /// Cannot be answered now; try again (503).
    Unavailable,
    /// A fault of ours (500). The caller sees no detail.
    Internal,
}

/// An error with a sentence for the caller.
///
/// `name` is the service's own word for it, where clients map words to exceptions
/// (`type` in Networking, `code` in Placement).
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: Kind,
    message: String,
    name: Option<&'static str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($make:ident $kind:ident,)*) => {
        impl Error {
            $(pub fn $make(message: impl Into<String>) -> Error { Error::new(Kind::$kind, message) })*
        }
    };
}

constructors! {
    invalid Invalid, unauthorized Unauthorized, forbidden Forbidden, not_found NotFound, conflict Conflict,
    over_quota OverQuota, unavailable Unavailable, internal Internal, too_large TooLarge,
    not_implemented NotImplemented, media_type MediaType,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { inner: Box::new(Inner { kind, message: message.into(), name: None, source: None }) }
    }

    /// Adds the service's own word for this error, such as `IpAddressInUse`.
    pub fn named(mut self, name: &'static str) -> Error {
        self.inner.name = Some(name);
        self
    }

    /// Adds what caused it. The caller never sees it; the log does, once.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.inner.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    pub fn message(&self) -> &str {
        &self.inner.message
    }

    pub fn name(&self) -> Option<&'static str> {
        self.inner.name
    }

    /// The whole chain in one line, for the log.
    pub fn chain(&self) -> String {
        let mut line = self.inner.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            next = cause.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}: {}", self.inner.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Error {
        Error::internal(format!("input or output failed: {e}")).because(e)
    }
}
