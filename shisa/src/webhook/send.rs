//! One POST to a webhook: resolved once, connected to the address that was looked at, and no redirect followed.
//!
//! Limits: `POST_MAX` for all of it, `HEAD_MAX` bytes of the answer's head; its body is not read.

use super::reach::Reach;
use super::url::Url;
use base::{Error, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Name, connection, TLS and answer together.
const POST_MAX: Duration = Duration::from_secs(10);
const HEAD_MAX: usize = 16 << 10;
/// By which a machine's programs are told whom to trust.
const ROOTS_VARIABLE: &str = "SSL_CERT_FILE";
/// Where it is not said: Debian and Alpine, Red Hat, SUSE.
const ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// This machine's authorities.
///
/// Errors: `Unavailable` when it has none.
fn machines() -> Result<PathBuf> {
    let said = std::env::var_os(ROOTS_VARIABLE).map(PathBuf::from);
    let file = said.into_iter().chain(ROOTS.iter().map(PathBuf::from)).find(|file| file.exists());
    let none = || {
        let what =
            format!("this machine has no authorities for HTTPS; {ROOTS_VARIABLE} names a file of them");
        Error::unavailable(what)
    };
    file.ok_or_else(none)
}

/// Whom a receiver's certificate may come from.
fn trusted(file: &Path) -> Result<Arc<ClientConfig>> {
    let cannot = |e| Error::unavailable(format!("{} cannot be read", file.display())).because(e);
    let mut roots = RootCertStore::empty();
    // A bundle may have one that cannot be used; the others can.
    for certificate in CertificateDer::pem_file_iter(file).map_err(cannot)?.flatten() {
        let _ = roots.add(certificate);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("TLS cannot be set up").because(e))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Sends JSON. `reach`: where it may lead; none: anywhere. `roots`: a file of authorities; none: this machine's.
///
/// Errors: why it was not answered with 2xx.
pub async fn post(
    url: &Url,
    body: Bytes,
    signature: Option<&str>,
    reach: Option<&Reach>,
    roots: Option<&Path>,
) -> Result<()> {
    let late = |e| Error::unavailable(format!("no answer in {POST_MAX:?}")).because(e);
    tokio::time::timeout(POST_MAX, sent(url, body, signature, reach, roots)).await.map_err(late)?
}

async fn sent(
    url: &Url,
    body: Bytes,
    signature: Option<&str>,
    reach: Option<&Reach>,
    roots: Option<&Path>,
) -> Result<()> {
    let address = resolved(url, reach).await?;
    let away = |e| Error::unavailable("no connection").because(e);
    let socket = TcpStream::connect(address).await.map_err(away)?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&url.path)
        .header("host", &url.authority)
        .header("user-agent", concat!("shisa/", env!("CARGO_PKG_VERSION")))
        .header("content-type", "application/json")
        .header("connection", "close");
    if let Some(signature) = signature {
        request = request.header("x-hub-signature-256", signature);
    }
    let request = request
        .body(Full::new(body))
        .map_err(|e| Error::invalid("a webhook's URL has a wrong path").because(e))?;
    let answer = match url.tls {
        false => exchanged(TokioIo::new(socket), request).await?,
        true => {
            let name = ServerName::try_from(url.host.clone());
            let name = name.map_err(|e| Error::invalid("a webhook's host is no name").because(e))?;
            let roots = roots.map_or_else(machines, |file| Ok(file.to_path_buf()))?;
            let socket = TlsConnector::from(trusted(&roots)?).connect(name, socket).await;
            let wrong = |e| Error::unavailable("no TLS").because(e);
            exchanged(TokioIo::new(socket.map_err(wrong)?), request).await?
        }
    };
    match answer.status().is_success() {
        true => Ok(()),
        false => Err(Error::unavailable(format!("answered {}", answer.status()))),
    }
}

async fn exchanged<S>(socket: S, request: Request<Full<Bytes>>) -> Result<Response<()>>
where
    S: Read + Write + Send + Unpin + 'static,
{
    let cut = |e: hyper::Error| Error::unavailable("the connection broke off").because(e);
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_MAX).handshake(socket).await.map_err(cut)?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // Both end here: what follows the head is not read.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may have brought the answer before it ended.
        _ = connection => answer.await,
    };
    Ok(answer.map_err(cut)?.map(drop))
}

/// The address that is connected to: a name is asked once, so that what is looked at is what is used.
async fn resolved(url: &Url, reach: Option<&Reach>) -> Result<SocketAddr> {
    let unknown = |e| Error::unavailable("its host cannot be found").because(e);
    let addresses = tokio::net::lookup_host((url.host.as_str(), url.port)).await.map_err(unknown)?;
    let mut fitting = addresses.filter(|at| reach.is_none_or(|reach| reach.allows(at.ip())));
    fitting.next().ok_or_else(|| Error::forbidden("its host has no address that may be reached"))
}
