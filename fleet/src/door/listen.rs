//! The clients' connections: accepted, by TLS where there is a certificate, and ended without a request lost.
//!
//! ```text
//! serving --stop--> draining: nothing is accepted, each answer says `Connection: close`
//!         --quiet for IDLE_MAX--> connections without a request are closed
//!         --DRAIN limit--> what still runs is cut off
//! ```
//!
//! HTTP/1.1 alone, which is what OpenStack's clients speak. Limits: `CONNECTIONS_MAX`, `HANDSHAKE_MAX`, `HEAD_MAX`; one
//! connection more waits in the kernel.

use super::tls::Certificates;
use super::{Door, proxy};
use api::{HEADERS_MAX, Listen};
use base::{Error, Result};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Clients' connections at once: each may take another one to a plane, and a process has 20,000 files.
pub const CONNECTIONS_MAX: usize = 8_000;
/// A client has this long to begin and to finish its handshake.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A client has this long to send a request's head.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// Between two tries where accepting fails: often because files are short.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// The first byte of a TLS client.
const TLS_HANDSHAKE: u8 = 22;

/// How a listener ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// Connections on which nothing is asked are closed after this. A client that asks meanwhile is answered, and told
    /// to come again by a new one: so none sends into a closing connection.
    pub idle: Duration,
    /// What still runs then is cut off.
    pub limit: Duration,
}

/// Serving until there is a way to end.
pub type Stop = watch::Receiver<Option<Drain>>;

impl Door {
    /// Serves clients until `stop` has a way to end, and ends so.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<Certificates>>, stop: Stop) {
        let (door, stopping) = (self.clone(), stop.clone());
        accept(listener, stop, move |socket, peer| {
            let (door, tls, stop) = (door.clone(), tls.clone(), stopping.clone());
            async move { door.connection(socket, peer, tls, stop).await }
        })
        .await;
    }

    /// Serves this machine's own commands, who are answered as clients are that came by `https` or not.
    pub async fn serve_near(&self, listener: UnixListener, https: bool, stop: Stop) {
        let (door, stopping) = (self.clone(), stop.clone());
        accept(listener, stop, move |socket, peer| {
            let (door, stop) = (door.clone(), stopping.clone());
            async move { door.http(socket, Way { peer, https }, stop).await }
        })
        .await;
    }

    async fn connection(
        &self,
        socket: TcpStream,
        peer: Option<IpAddr>,
        tls: Option<Arc<Certificates>>,
        stop: Stop,
    ) -> Result<()> {
        let Some(tls) = tls else { return self.http(socket, Way { peer, https: false }, stop).await };
        let late = |e| Error::unavailable("the handshake took too long").because(e);
        let broken = |e| Error::unavailable("TLS failed").because(e);
        let mut first = [0];
        let peeked = tokio::time::timeout(HANDSHAKE_MAX, socket.peek(&mut first)).await.map_err(late)?;
        match peeked.map_err(broken)? {
            0 => return Ok(()),
            _ if first[0] != TLS_HANDSHAKE => return plain(socket).await,
            _ => {}
        }
        let handshake = TlsAcceptor::from(tls.config()).accept(socket);
        let stream = tokio::time::timeout(HANDSHAKE_MAX, handshake).await.map_err(late)?.map_err(broken)?;
        self.http(stream, Way { peer, https: true }, stop).await
    }

    async fn http<S>(&self, stream: S, way: Way, mut stop: Stop) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (door, stopping) = (self.clone(), stop.clone());
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (door, stopping) = (door.clone(), stopping.clone());
            async move {
                let mut answer = door.answer(request, way.peer, way.https).await;
                if stopping.borrow().is_some() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let mut connection = std::pin::pin!(builder().serve_connection(TokioIo::new(stream), service));
        let quiet = async {
            let idle =
                stop.wait_for(Option::is_some).await.ok().and_then(|drain| *drain).unwrap_or_default().idle;
            tokio::time::sleep(idle).await;
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = quiet => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        ended.map_err(|e| Error::unavailable("HTTP failed").because(e))
    }
}

async fn accept<L, F>(listener: L, mut stop: Stop, connection: impl Fn(L::Stream, Option<IpAddr>) -> F)
where
    L: Listen,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (places, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), JoinSet::new());
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let place = places.clone().acquire_owned().await.expect("it is never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            _ = stop.wait_for(Option::is_some) => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let connection = connection(socket, peer);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {}", error.chain());
            }
            drop(place);
        });
    }
    drop(listener);
    let limit = stop.borrow().unwrap_or_default().limit;
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limit, ended).await.is_err() {
        tracing::warn!("{} connections are cut off after {limit:?}", connections.len());
    }
}

/// What is known of a connection.
#[derive(Clone, Copy)]
struct Way {
    peer: Option<IpAddr>,
    https: bool,
}

fn builder() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(HEADERS_MAX);
    builder
}

/// Tells a client that speaks plain HTTP where TLS is awaited.
async fn plain(socket: TcpStream) -> Result<()> {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        let host =
            request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or("this address");
        let sentence = format!("This is https://{host}: plain HTTP is not answered here.");
        let mut answer = proxy::fault(StatusCode::BAD_REQUEST, &sentence);
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        Ok::<_, Infallible>(answer)
    });
    let ended = builder().serve_connection(TokioIo::new(socket), service).await;
    ended.map_err(|e| Error::unavailable("HTTP failed").because(e))
}
