//! A listener for HTTP/1.1: what comes in on a socket is answered by one function.

use crate::HEADERS_MAX;
use hyper::body::{Body, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The client has this long to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Running requests have this long after the signal to stop.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);
/// Between two tries where accepting fails: often because files are short.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Where connections come from.
pub trait Listen: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// A connection, and the address of the peer where it has one.
    fn accept(&self) -> impl Future<Output = std::io::Result<(Self::Stream, Option<IpAddr>)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> std::io::Result<(TcpStream, Option<IpAddr>)> {
        let (socket, peer) = TcpListener::accept(self).await?;
        let _ = socket.set_nodelay(true);
        Ok((socket, Some(peer.ip())))
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> std::io::Result<(UnixStream, Option<IpAddr>)> {
        Ok((UnixListener::accept(self).await?.0, None))
    }
}

/// Serves until `stop` ends, then lets running requests finish for at most `SHUTDOWN_MAX`.
pub async fn listen<L, F, Fut, B>(listener: L, answer: F, stop: impl Future<Output = ()>)
where
    L: Listen,
    F: Fn(Request<Incoming>, Option<IpAddr>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let (graceful, answer) = (GracefulShutdown::new(), Arc::new(answer));
    tokio::pin!(stop);
    loop {
        let (socket, peer) = tokio::select! {
            _ = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            },
        };
        let answer = answer.clone();
        let service = hyper::service::service_fn(move |request| {
            let answering = answer(request, peer);
            async move { Ok::<_, Infallible>(answering.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEADERS_MAX)
            .serve_connection(TokioIo::new(socket), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(SHUTDOWN_MAX, graceful.shutdown()).await;
}
