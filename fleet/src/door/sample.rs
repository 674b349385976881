//! Reads that clients asked lately, to be asked again of two planes and compared.
//!
//! They are in memory only and are never logged: they hold tokens. Limits: `SAMPLE_MAX` reads, one for each path and
//! microversion with the newest token that it was asked with; answers up to `KEPT_BYTES_MAX`.

use super::proxy::{DoorBody, empty};
use super::upstream::Upstream;
use super::{KEPT_BYTES_MAX, MIRROR, MIRROR_MEMORY, REVISION};
use base::{Error, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Reads that are remembered.
pub const SAMPLE_MAX: usize = 200;
/// Headers that an answer may depend on: by whom, in what version, by what name.
const ASKED_WITH: [&str; 10] = [
    "host",
    "accept",
    "x-auth-token",
    "x-subject-token",
    "openstack-api-version",
    "x-openstack-nova-api-version",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
];
/// Of those, the ones that make another read of the same path.
const VERSIONS: [&str; 2] = ["openstack-api-version", "x-openstack-nova-api-version"];

/// A read, as it was asked. Its headers are nobody's to print.
#[derive(Clone)]
pub struct Sampled {
    key: u64,
    /// With its query.
    pub path: String,
    headers: HeaderMap,
    /// Nobody was told of it as it is now.
    fresh: bool,
}

/// A read on its way from the door to whoever compares it.
#[derive(Serialize, Deserialize)]
pub(super) struct Told {
    path: String,
    headers: Vec<(String, String)>,
}

impl Sampled {
    /// A read that anyone may ask.
    pub fn open(path: &str) -> Sampled {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("plane"));
        Sampled { key: 0, path: path.into(), headers, fresh: false }
    }
}

/// What a plane answered.
pub struct Mirrored {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Of the records that it was answered from; none when they changed meanwhile.
    pub revision: Option<u64>,
    pub took: Duration,
}

#[derive(Default)]
pub(super) struct Sample {
    reads: Mutex<VecDeque<Sampled>>,
}

impl Sample {
    /// Remembers a read that was answered.
    pub fn note(&self, head: &http::request::Parts, answer: &Response<DoorBody>) {
        let small = answer.body().size_hint().upper().is_some_and(|size| size <= KEPT_BYTES_MAX as u64);
        if !small || answer.status().is_server_error() {
            return;
        }
        let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
        let key = key(path, &head.headers);
        self.put(key, path, &head.headers);
    }

    fn put(&self, key: u64, path: &str, asked: &HeaderMap) {
        let mut reads = self.reads.lock().expect("no holder panics");
        if let Some(known) = reads.iter_mut().find(|read| read.key == key) {
            if let Some(token) = asked.get("x-auth-token") {
                known.fresh |= known.headers.get("x-auth-token") != Some(token);
                known.headers.insert("x-auth-token", token.clone());
            }
            return;
        }
        if reads.len() >= SAMPLE_MAX {
            reads.pop_front();
        }
        let headers = ASKED_WITH
            .iter()
            .filter_map(|name| Some((name.parse().ok()?, asked.get(*name)?.clone())))
            .collect();
        reads.push_back(Sampled { key, path: path.into(), headers, fresh: true });
    }

    /// Reads that are new, or have a new token, since they were taken last.
    pub fn take(&self) -> Vec<Told> {
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_string(), value.to_str().ok()?.to_string()))
        };
        let mut reads = self.reads.lock().expect("no holder panics");
        let fresh = reads.iter_mut().filter_map(|read| std::mem::take(&mut read.fresh).then_some(&*read));
        fresh
            .map(|r| Told { path: r.path.clone(), headers: r.headers.iter().filter_map(text).collect() })
            .collect()
    }

    /// Remembers what another one has taken.
    pub fn add(&self, told: Vec<Told>) {
        for read in told {
            let header = |(name, value): &(String, String)| -> Option<(HeaderName, HeaderValue)> {
                Some((name.parse().ok()?, value.parse().ok()?))
            };
            let headers: HeaderMap = read.headers.iter().filter_map(header).collect();
            self.put(key(&read.path, &headers), &read.path, &headers);
        }
    }

    pub fn reads(&self) -> Vec<Sampled> {
        self.reads.lock().expect("no holder panics").iter().cloned().collect()
    }
}

fn key(path: &str, headers: &HeaderMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    VERSIONS.iter().for_each(|name| headers.get(*name).map(HeaderValue::as_bytes).hash(&mut hasher));
    hasher.finish()
}

impl Upstream {
    /// Asks a plane what a client asked, past the door.
    ///
    /// Errors: `Unavailable` when it does not answer within `limit`.
    pub async fn mirror(&self, read: &Sampled, limit: Duration) -> Result<Mirrored> {
        self.mirrored(read, "1", limit).await
    }

    /// The same from what it has in memory: one that follows does not ask the store first, as one that is active does
    /// not, so that their times can be compared.
    pub async fn mirror_memory(&self, read: &Sampled, limit: Duration) -> Result<Mirrored> {
        self.mirrored(read, MIRROR_MEMORY, limit).await
    }

    async fn mirrored(&self, read: &Sampled, way: &'static str, limit: Duration) -> Result<Mirrored> {
        let begin = Instant::now();
        let away =
            |e: &dyn std::fmt::Display| Error::unavailable(format!("{} does not answer: {e}", self.name));
        let mut request = Request::new(empty());
        *request.uri_mut() = format!("http://plane{}", read.path).parse::<Uri>().map_err(|e| away(&e))?;
        *request.headers_mut() = read.headers.clone();
        request.headers_mut().insert(MIRROR, HeaderValue::from_static(way));
        let asking = async {
            let (head, body) = self.send(request).await.map_err(|e| away(&e))?.into_parts();
            let body = Limited::new(body, KEPT_BYTES_MAX).collect().await.map_err(|e| away(&e))?.to_bytes();
            let revision = head.headers.get(REVISION).and_then(|r| r.to_str().ok()?.parse().ok());
            let took = begin.elapsed();
            Ok(Mirrored { status: head.status, headers: head.headers, body, revision, took })
        };
        tokio::time::timeout(limit, asking).await.map_err(|e| away(&e))?
    }
}
