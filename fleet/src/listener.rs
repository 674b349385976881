//! The second listener: for nodes only, TLS 1.3 with certificates of the cell's own authority, HTTP/2.
//!
//! Any certificate passes the handshake, which proves that the peer has its key; whether it is a node's is asked at
//! each request, so that a machine that is refused reads why, and one that is removed is out at once. Without a
//! certificate there is one route: to join.
//!
//! Limits: `CONNECTIONS_MAX`, `STREAMS_MAX` requests at once on a connection, `HANDSHAKE_MAX`. A peer that does not
//! answer a ping in `PING_MAX` is gone.

use crate::authority::{self, Authority, key_of};
use crate::{join, plane};
use api::Listen;
use api::reply::Body;
use base::{Error, Result, Timestamp};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{Cell, State};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const CONNECTIONS_MAX: usize = 20_000;
const STREAMS_MAX: u32 = 64;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_MAX: Duration = Duration::from_secs(5);
/// The listener's own certificate; it gets another when half of this is over.
const PLANE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the listener is by.
pub(crate) struct Tls {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
    clients: Arc<dyn ClientCertVerifier>,
    /// The listener's own side, and when it was made.
    own: Mutex<(Timestamp, Arc<ServerConfig>)>,
}

impl Tls {
    pub async fn of(cell: &Cell) -> Result<Tls> {
        let authority = authority::of(cell).await?;
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate()).map_err(cannot)?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let clients =
            clients.build().map_err(|e| Error::internal("no certificate can be checked").because(e))?;
        let own = Mutex::new((Timestamp::wall(), own(&authority, &provider)?));
        Ok(Tls { authority, provider, clients, own })
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    fn config(&self) -> Result<Arc<ServerConfig>> {
        let mut own = self.own.lock().expect("no holder panics");
        let now = Timestamp::wall();
        if own.0.plus_secs(PLANE_LIFE.as_secs() as i64 / 2) < now {
            *own = (now, self::own(&self.authority, &self.provider)?);
        }
        Ok(own.1.clone())
    }

    /// The node that a certificate is of.
    ///
    /// Errors: `Unauthorized` without one, or with one that is over or not of this cell; `Forbidden` when its node was
    /// removed.
    pub fn who(&self, state: &State, peer: Option<&CertificateDer>) -> Result<Arc<join::Member>> {
        let none = || Error::unauthorized("Only nodes are answered here, and they show their certificate.");
        let peer = peer.ok_or_else(none)?;
        self.clients.verify_client_cert(peer, &[], UnixTime::now()).map_err(|e| {
            let over = matches!(
                e,
                rustls::Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. }
                )
            );
            let why = match over {
                true => "The certificate has expired; the node joins again with a new token.",
                false => "The certificate is not one of this cell's.",
            };
            Error::unauthorized(why).because(e)
        })?;
        join::by_key(state, &key_of(peer)?).cloned()
    }
}

fn own(authority: &Authority, provider: &Arc<CryptoProvider>) -> Result<Arc<ServerConfig>> {
    let keyed = authority.plane(PLANE_LIFE)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(keyed.key));
    let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(cannot)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![keyed.certificate, authority.certificate()], key)
        .map_err(cannot)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn cannot(error: rustls::Error) -> Error {
    Error::internal("the listener for nodes cannot be set up").because(error)
}

/// Only asks that the peer has the key of the certificate that it shows; `Tls::who` asks the rest.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Serves nodes of other machines until it is dropped.
pub(crate) async fn serve<L: Listen>(listener: L, plane: Arc<plane::Plane>) {
    accept(listener, move |socket| connection(socket, plane.clone())).await;
}

/// Serves nodes of this machine until it is dropped: whoever may open the socket is believed its name.
pub(crate) async fn serve_near<L: Listen>(listener: L, plane: Arc<plane::Plane>) {
    accept(listener, move |socket| {
        let plane = plane.clone();
        let service = hyper::service::service_fn(move |request| {
            let plane = plane.clone();
            async move { Ok::<_, Infallible>(plane.answer_near(request).await) }
        });
        http2(socket, service)
    })
    .await;
}

async fn accept<L, F>(listener: L, connection: impl Fn(L::Stream) -> F)
where
    L: Listen,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!("cannot accept a node's connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection = connection(socket);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a node's connection ended: {}", error.chain());
            }
            drop(place);
        });
    }
}

async fn connection<S>(socket: S, plane: Arc<plane::Plane>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |e| Error::unavailable("TLS failed").because(e);
    let handshake = TlsAcceptor::from(plane.tls().await?.config()?).accept(socket);
    let late = |e| Error::unavailable("the handshake took too long").because(e);
    let stream = tokio::time::timeout(HANDSHAKE_MAX, handshake).await.map_err(late)?.map_err(broken)?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer: Option<Arc<CertificateDer<'static>>> = shown.map(|c| Arc::new(c.clone().into_owned()));
    let service = hyper::service::service_fn(move |request| {
        let (plane, peer) = (plane.clone(), peer.clone());
        async move { Ok::<_, Infallible>(plane.answer(peer.as_deref(), request).await) }
    });
    http2(stream, service).await
}

async fn http2<T, S, F>(stream: T, service: S) -> Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = F>,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|e| Error::unavailable("HTTP failed").because(e))
}
