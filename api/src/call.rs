//! One request as a handler sees it: who, which version, path parameters, query, body.

use crate::policy::{Policy, Target};
use crate::reply::ByteStream;
use crate::version::Version;
use base::{Context, Error, Result, Secret};
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use store::{Cause, Cell, Tx};

/// A request that has passed token, version and rule.
pub struct Call {
    pub cx: Context,
    pub method: Method,
    /// The path under the service's prefix, decoded.
    pub path: String,
    pub params: Vec<(&'static str, String)>,
    pub query: Query,
    pub headers: HeaderMap,
    pub version: Version,
    /// `http://host:port`, as the client reaches us.
    pub origin: String,
    /// `origin` and the service's prefix: what hrefs start with.
    pub base: String,
    /// The rule of the route, for errors and for the target of finer rules.
    pub rule: &'static str,
    pub(crate) policy: Arc<Policy>,
    pub(crate) body: Bytes,
    pub(crate) stream: Mutex<Option<ByteStream>>,
}

impl Call {
    /// A path parameter. Routes and handlers are one table, so a missing one is a slip of ours.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()).unwrap_or_else(|| {
            debug_assert!(false, "the route has no parameter {name}");
            ""
        })
    }

    /// A path parameter as an id; what is not one is `NotFound` in the sentence that a missing `what` gets.
    pub fn id<K: base::IdKind>(&self, name: &str, what: &str) -> Result<base::Id<K>> {
        let text = self.param(name);
        text.parse()
            .map_err(|_| Error::not_found(format!("{what} {} could not be found.", text.escape_default())))
    }

    pub fn bytes(&self) -> &Bytes {
        &self.body
    }

    /// The body of a route declared with `streamed`.
    pub fn take_stream(&self) -> Option<ByteStream> {
        self.stream.lock().expect("no holder panics").take()
    }

    /// The whole body as `T`.
    ///
    /// Errors: `Invalid`, naming the field.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        parse(&self.body)
    }

    /// The value under the body's one key: `{"server": {...}}`.
    pub fn json_in<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let mut body: serde_json::Map<String, Value> = self.json()?;
        let inner = body.remove(key).ok_or_else(|| {
            Error::invalid(format!("Invalid input for field/attribute {key}. '{key}' is a required property"))
        })?;
        if let Some(other) = body.keys().next() {
            return Err(Error::invalid(format!(
                "Additional properties are not allowed ('{}' was unexpected)",
                other.escape_default()
            )));
        }
        from_value(inner, key)
    }

    /// Why a transaction of this request runs, for the log.
    pub fn cause(&self) -> Cause {
        Cause {
            id: self.cx.request.to_string(),
            who: format!("{} {}", self.cx.user(), self.cx.project()),
            address: self.address(),
            route: format!("{} {}", self.method, self.path),
            version: self.version.to_string(),
            mutation: String::new(),
            body: (!self.body.is_empty()).then(|| Secret::new(String::from_utf8_lossy(&self.body))),
        }
    }

    /// The client's address, which the front door alone says; empty for what comes by a socket of this machine.
    fn address(&self) -> String {
        let said = self.headers.get("x-forwarded-for").and_then(|address| address.to_str().ok());
        said.and_then(|said| said.parse::<IpAddr>().ok())
            .map(|address| address.to_string())
            .unwrap_or_default()
    }

    /// Runs a transaction on behalf of this request.
    pub async fn write<T, F>(&self, cell: &Cell, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx) -> Result<T> + Send + 'static,
    {
        cell.write(self.cause(), f).await
    }

    /// Whether a finer rule than the route's passes.
    pub fn may(&self, rule: &str, target: &Target) -> bool {
        self.policy.allows(rule, &self.cx.who, target)
    }

    /// Errors: `Forbidden` when the rule does not pass.
    pub fn require(&self, rule: &str, target: &Target) -> Result<()> {
        match self.may(rule, target) {
            true => Ok(()),
            false => Err(crate::policy::denied(rule)),
        }
    }
}

/// Reads JSON, naming the field that is wrong.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value =
        serde_path_to_error::deserialize(&mut reader).map_err(|e| wrong(&e.path().to_string(), e.inner()))?;
    reader.end().map_err(|e| wrong(".", &e))?;
    Ok(value)
}

/// Reads a JSON value that stands at `at`, naming the field that is wrong.
pub fn from_value<T: DeserializeOwned>(value: Value, at: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let path = if path == "." { at.to_string() } else { format!("{at}.{path}") };
        wrong(&path, e.inner())
    })
}

fn wrong(path: &str, error: &serde_json::Error) -> Error {
    let error = error.to_string();
    match path {
        "." | "" => Error::invalid(format!("The request body is malformed: {error}")),
        path => {
            Error::invalid(format!("Invalid input for field/attribute {}. {error}", path.escape_default()))
        }
    }
}

/// The query string, in its order.
#[derive(Clone, Debug, Default)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The last value given for `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A flag as OpenStack reads one: `1`, `true`, `yes`, `on` and an empty value mean yes.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "" | "1" | "t" | "true" | "y" | "yes" | "on" => Ok(Some(true)),
            "0" | "f" | "false" | "n" | "no" | "off" => Ok(Some(false)),
            _ => Err(Error::invalid(format!("'{}' is not a boolean for {name}.", text.escape_default()))),
        }
    }
}
