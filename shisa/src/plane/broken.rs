//! Faults that `make rollout-test-broken` tries candidates with. A product has none of them: they are compiled by the
//! feature `break-candidate` alone, and such a program has the fault that its file is named for.

use super::services::Services;
use api::Faults;
use api::reply::Body;
use base::{Error, Result, Secret};
use fleet::door::MUTATION;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Duration;
use store::{Cause, Digest, Role};

const SLOW: Duration = Duration::from_millis(20);
const LEAK_BYTES: usize = 1 << 20;
const PATH: &str = "/compute/v2.1/flavors";
/// What only shows after the switch does not show on a copy of the cloud.
static ON_A_COPY: LazyLock<bool> =
    LazyLock::new(|| std::env::args().any(|word| word.ends_with("/rehearsal")));
static FILE: LazyLock<String> = LazyLock::new(|| {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
});

/// A file that a node was given is named by its digest: then the environment says it.
const FAULT: &str = "SHISA_FAULT";

fn is(fault: &str) -> bool {
    cfg!(feature = "break-candidate")
        && (*FILE == fault || std::env::var(FAULT).is_ok_and(|said| said == fault))
}

/// Before nodes begin, which is never where that is broken.
pub async fn nodes() {
    if is("break-nodes") && !*ON_A_COPY {
        std::future::pending::<()>().await;
    }
}

/// Answers as the services do, where nothing is broken.
pub async fn answer(services: &Services, request: Request<Incoming>) -> Response<Body> {
    let here = request.uri().path() == PATH;
    if is("break-slow") {
        tokio::time::sleep(SLOW).await;
    }
    if is("break-leak") {
        black_box(Box::leak(vec![1_u8; LEAK_BYTES].into_boxed_slice()));
    }
    if is("break-panic") && here {
        panic!("broken on purpose");
    }
    let owner = matches!(*services.cell.role().borrow(), Role::Owner(_));
    if is("break-after") && owner && !*ON_A_COPY && request.headers().contains_key(MUTATION) {
        return Faults::Identity.reply(&Error::internal("broken on purpose"), "").into_response();
    }
    let gone = request.method() == Method::DELETE && request.uri().path().starts_with(PATH);
    let mut answer = services.api.answer(request).await;
    if is("break-contract") && gone {
        *answer.status_mut() = StatusCode::OK;
    }
    match is("break-answer") && here {
        true => answer.map(wrong),
        false => answer,
    }
}

/// Before the cell is laid down.
///
/// Errors: that it is not.
pub fn release() -> Result<()> {
    match is("break-back") {
        true => Err(Error::internal("broken on purpose")),
        false => Ok(()),
    }
}

/// Tries a request of the log again as the services do, where nothing is broken.
///
/// Errors: why that cannot be.
pub async fn again(services: &Services, cause: &Cause) -> Result<()> {
    let changed = is("break-change") && cause.route == "POST /v2.0/networks";
    let other = changed.then(|| {
        let body = cause.body.as_ref().map(Secret::expose).unwrap_or_default();
        let body = Some(Secret::new(body.replacen("\"name\":\"", "\"name\":\"broken ", 1)));
        Cause { body, ..cause.clone() }
    });
    services.api.again(other.as_ref().unwrap_or(cause)).await.map(drop)
}

/// One byte is another.
fn wrong(body: Body) -> Body {
    match body {
        Body::Full(Some(bytes)) => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
            Body::Full(Some(bytes.into()))
        }
        other => other,
    }
}

/// A record rendered otherwise.
pub fn digests(kinds: &mut BTreeMap<&'static str, Digest>) {
    if is("break-digest")
        && let Some(digest) = kinds.values_mut().next()
    {
        digest.add("broken", b"on purpose");
    }
}
