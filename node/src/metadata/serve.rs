//! The metadata service: HTTP on listeners inside the networks' namespaces.
//!
//! A guest is known by the network that its connection comes from and by its source address, which the fabric has
//! checked at its tap; no header says anything about that. Unknown sources get 404.
//!
//! Limits: `CONNECTIONS_MAX` per listener, `CONNECTION_MAX` of time each, `HEAD_MAX` bytes of head, `PASSWORD_MAX` of
//! body.

use super::{Via, files, lookup, seed};
use crate::host;
use crate::observed::Observed;
use crate::vm::plan::Guest;
use base::node::{Document, Port, Section};
use base::{Error, Kind, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

const CONNECTIONS_MAX: usize = 64;
const CONNECTION_MAX: Duration = Duration::from_secs(30);
const HEAD_MAX: usize = 16 * 1024;
/// A password encrypted with a key of 8192 bits, in base64, in four parts as Nova keeps it.
const PASSWORD_MAX: usize = 255 * 4;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Who comes through one listener: the guests of a network.
#[derive(Clone)]
pub struct Door {
    pub network: Uuid,
    pub document: watch::Receiver<Arc<Document>>,
    pub state: PathBuf,
    /// Takes a posted password up.
    pub observed: Arc<Observed>,
}

/// Serves a listener until it is dropped.
pub async fn serve(listener: TcpListener, door: Door) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let door = door.clone();
                tokio::spawn(async move {
                    let _place = place;
                    let _ = tokio::time::timeout(CONNECTION_MAX, connection(stream, from.ip(), door)).await;
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn connection(stream: TcpStream, from: IpAddr, door: Door) {
    let service = hyper::service::service_fn(move |request| {
        let door = door.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(request, from, &door).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_MAX).max_buf_size(HEAD_MAX);
    // What breaks a guest's connection is the guest's own affair.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer<B: Body>(request: Request<B>, from: IpAddr, door: &Door) -> Response<Full<Bytes>>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_string();
    let result = match (find(door, from), request.method(), is_password(&path)) {
        (None, ..) => Err(Error::not_found("no server has this address")),
        (Some(guest), &Method::GET | &Method::HEAD, _) => read(door, &guest, &path),
        (Some(guest), &Method::POST, true) => post(door, &guest, request.into_body()).await,
        (Some(_), ..) => Err(Error::new(Kind::Method, "not with this method")),
    };
    let (status, body) = match result {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (status(&error), error.message().to_string().into_bytes()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = path.ends_with(".json") && status == StatusCode::OK;
    let kind = if json { "application/json" } else { "text/plain; charset=UTF-8" };
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
}

fn status(error: &Error) -> StatusCode {
    match error.kind() {
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn is_password(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    matches!(parts.as_slice(), ["openstack", version, "password"] if super::OPENSTACK_VERSIONS.contains(version))
}

/// The guest with a port of this address on the network behind the door.
///
/// The guest's own list says which ports are its: what a port says of itself its owner may have written.
fn find(door: &Door, from: IpAddr) -> Option<Guest> {
    let document = door.document.borrow().clone();
    let has = |port: &Port| match from {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => port.mac.link_local() == v6,
        _ => port.fixed.iter().any(|fixed| fixed.address == from.to_canonical()),
    };
    let port = document.sections.values().find_map(|section| match section {
        Section::Port(port) if port.network == door.network && has(port) => Some(port.id),
        _ => None,
    })?;
    let vm = document.sections.values().find_map(|section| match section {
        Section::Vm(vm) if vm.ports.contains(&port) => Some(vm.id),
        _ => None,
    })?;
    Guest::of(&document, vm)
}

fn read(door: &Door, guest: &Guest, path: &str) -> Result<Vec<u8>> {
    let mut files = files(guest, Via::Service, &seed()?);
    let password = crate::file::read(&host::files(&door.state, guest.vm.id).password())?;
    files.insert("openstack/latest/password".into(), password.unwrap_or_default());
    lookup(&files, path).ok_or_else(|| Error::not_found("no such metadata"))
}

/// Keeps the password that the guest posts, once.
async fn post<B: Body>(door: &Door, guest: &Guest, body: B) -> Result<Vec<u8>>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(body, PASSWORD_MAX).collect().await;
    let body = body.map_err(|_| Error::invalid("the password is too long"))?.to_bytes();
    let path = host::files(&door.state, guest.vm.id).password();
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(&body)?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::conflict("the password is set already"));
        }
        Err(e) => return Err(e.into()),
    }
    door.observed.password(guest.vm.id, String::from_utf8_lossy(&body).into_owned()).await;
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::{document, guest_id, network_id};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(door: &Door, request: &str) -> (u16, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, door.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        server.abort();
        let body = text.split_once("\r\n\r\n").unwrap().1.to_string();
        (text[9..12].parse().unwrap(), body)
    }

    async fn get(door: &Door, path: &str) -> (u16, String) {
        ask(
            door,
            &format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.9\r\nConnection: close\r\n\r\n"
            ),
        )
        .await
    }

    async fn post(door: &Door, path: &str, body: &str) -> (u16, String) {
        let n = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {n}\r\n\r\n");
        ask(door, &(head + body)).await
    }

    #[tokio::test]
    async fn a_guest_is_known_by_its_network_and_address_only() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(state.path().join("vms").join(guest_id().to_string())).unwrap();
        let (_keep, document) = watch::channel(Arc::new(document("127.0.0.1")));
        let observed = Arc::default();
        let door = Door { network: network_id(), document, state: state.path().into(), observed };
        assert_eq!(get(&door, "/latest/meta-data/hostname").await, (200, "vm-1".into()));
        assert_eq!(get(&door, "//2009-04-04/meta-data/public-keys/").await, (200, "0=laptop".into()));
        assert_eq!(get(&door, "/latest/user-data").await.0, 404);
        let (code, body) =
            ask(&door, "HEAD /openstack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert_eq!((code, body.as_str()), (200, ""));

        let password = "/openstack/latest/password";
        assert_eq!(get(&door, password).await, (200, "".into()));
        assert_eq!(post(&door, password, &"x".repeat(1021)).await.0, 400);
        assert_eq!(post(&door, password, "secret").await.0, 200);
        assert_eq!(post(&door, "/openstack/2013-10-17/password", "other").await.0, 409);
        assert_eq!(get(&door, password).await, (200, "secret".into()));
        assert_eq!(post(&door, "/openstack/latest/meta_data.json", "x").await.0, 405);

        // A port that claims to be the guest's, and is not in the guest's list. Source: OSSA-2013-033.
        let mut claimed = Document::clone(&door.document.borrow());
        for section in claimed.sections.values_mut() {
            if let Section::Vm(vm) = section {
                vm.ports.clear();
            }
        }
        let claims = Door { document: watch::channel(Arc::new(claimed)).1, ..door.clone() };
        assert_eq!(get(&claims, password).await.0, 404);
        let elsewhere = Door { network: Uuid::nil(), ..door };
        assert_eq!(get(&elsewhere, "/latest/meta-data/hostname").await.0, 404);
    }
}
