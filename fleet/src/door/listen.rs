//! The clients' connections: accepted, by TLS where there is a certificate, and ended without a request lost.
//!
//! ```text
//! serving --stop--> draining: nothing is accepted, each answer says `Connection: close`
//!         --quiet for IDLE_MAX--> connections without a request are closed
//!         --DRAIN limit--> what still runs is cut off
//! ```
//!
//! Of several ways to drain the one that ends first counts. HTTP/1.1 alone, which is what OpenStack's clients speak; as
//! everywhere with it, a request that is sent while a quiet connection is being closed is not answered.
//!
//! Limits: `CONNECTIONS_MAX`, or what the process's files allow at `FILES_EACH`; `HANDSHAKE_MAX`, `HEAD_MAX`. One
//! connection more waits in the kernel.

use super::tls::Certificates;
use super::{Door, proxy};
use api::{HEADERS_MAX, Listen};
use base::{Error, Result};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// Clients' connections at once; fewer where the process may not have the files for them.
pub const CONNECTIONS_MAX: usize = 8_000;
/// Files that a client's connection may take: its own, one to a plane, one that is kept to the plane before, a large body's.
const FILES_EACH: u64 = 4;
/// Files for everything else.
const FILES_OTHER: u64 = 256;
/// Each of the two listeners has a place ready for the next client.
const PLACES_MIN: u64 = 2;
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
    /// to come again by a new one: so only who was quiet until then may send into a closing connection.
    pub idle: Duration,
    /// What still runs then is cut off.
    pub limit: Duration,
}

/// Serving until there is a way to end.
pub type Stop = watch::Receiver<Option<Drain>>;

/// Of all clients of a door.
pub(super) struct Places {
    free: Arc<Semaphore>,
    pub max: usize,
}

impl Default for Places {
    fn default() -> Places {
        let max = connections_max(getrlimit(Resource::Nofile).current);
        Places { free: Arc::new(Semaphore::new(max)), max }
    }
}

/// `files`: how many a process may have open; none for no limit.
fn connections_max(files: Option<u64>) -> usize {
    let allowed = files.unwrap_or(u64::MAX).saturating_sub(FILES_OTHER) / FILES_EACH;
    allowed.clamp(PLACES_MIN, CONNECTIONS_MAX as u64) as usize
}

impl Door {
    /// Serves clients until `stop` has a way to end, and ends so.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<Certificates>>, stop: Stop) {
        let (door, stopping) = (self.clone(), stop.clone());
        accept(listener, &self.inner.places.free, stop, move |socket, peer| {
            let (door, tls, stop) = (door.clone(), tls.clone(), stopping.clone());
            async move { door.connection(socket, peer, tls, stop).await }
        })
        .await;
    }

    /// Serves this machine's own commands, who are answered as clients are that came by `https` or not.
    pub async fn serve_near(&self, listener: UnixListener, https: bool, stop: Stop) {
        let (door, stopping) = (self.clone(), stop.clone());
        accept(listener, &self.inner.places.free, stop, move |socket, peer| {
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

    async fn http<S>(&self, stream: S, way: Way, stop: Stop) -> Result<()>
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
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = over(stop, |drain| drain.idle) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        ended.map_err(|e| Error::unavailable("HTTP failed").because(e))
    }
}

/// Until the time has passed that a drain gives, from when it was said. One that is said later counts when it ends sooner.
async fn over(mut stop: Stop, given: impl Fn(Drain) -> Duration) {
    let mut end: Option<Instant> = None;
    loop {
        if let Some(drain) = *stop.borrow_and_update() {
            let this = Instant::now() + given(drain);
            end = Some(end.map_or(this, |end| end.min(this)));
        }
        let ended = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => return,
            changed = stop.changed() => if changed.is_err() {
                // Nobody says another one.
                return tokio::time::sleep_until(end.unwrap_or_else(Instant::now)).await;
            }
        }
    }
}

async fn accept<L, F>(
    listener: L,
    places: &Arc<Semaphore>,
    mut stop: Stop,
    connection: impl Fn(L::Stream, Option<IpAddr>) -> F,
) where
    L: Listen,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
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
    let ended = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => return,
        () = over(stop, |drain| drain.limit) => {}
    }
    tracing::warn!("{} connections are cut off: their time is over", connections.len());
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const LONG: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn connections_are_as_many_as_the_files_allow() {
        let check = |files, expect| assert_eq!(connections_max(files), expect, "{files:?}");
        check(Some(0), 2);
        check(Some(256 + 11), 2);
        check(Some(1_024), 192);
        check(Some(20_000), 4_936);
        check(Some(32_256), 8_000);
        check(Some(1 << 20), 8_000);
        check(None, 8_000);
    }

    /// Cuts off a request that never ends, and closes a connection that never asks.
    #[tokio::test]
    async fn a_shorter_drain_counts_for_who_drains_already() {
        let (door, listener) = (Door::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let (drain, stop) = watch::channel(None);
        let serves = door.clone();
        let serving = tokio::spawn(async move { serves.serve(listener, None, stop).await });
        let mut asks = TcpStream::connect(address).await.unwrap();
        asks.write_all(b"PUT /large HTTP/1.1\r\nhost: here\r\ncontent-length: 9\r\n\r\nfirst").await.unwrap();
        let quiet = TcpStream::connect(address).await.unwrap();
        let (places, listening) = (&door.inner.places, 1);
        while places.free.available_permits() + 2 + listening > places.max {
            tokio::task::yield_now().await;
        }
        drain.send_replace(Some(Drain { idle: LONG, limit: LONG }));
        // Nothing is accepted any more: it drains.
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!serving.is_finished());
        drain.send_replace(Some(Drain { idle: Duration::ZERO, limit: Duration::from_millis(100) }));
        tokio::time::timeout(SOON, serving).await.expect("the second drain counts").unwrap();
        drop((asks, quiet));
    }

    #[tokio::test]
    async fn a_longer_drain_does_not_give_more_time() {
        let (drain, stop) = watch::channel(Some(Drain::default()));
        let mut waiting = std::pin::pin!(over(stop, |drain| drain.limit + Duration::from_millis(100)));
        tokio::select! { biased; () = &mut waiting => panic!("it is too soon"), () = std::future::ready(()) => {} }
        drain.send_replace(Some(Drain { idle: LONG, limit: LONG }));
        tokio::time::timeout(SOON, waiting).await.expect("the first drain counts");
    }
}
