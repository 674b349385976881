//! The way of nodes on other machines to the active plane.

use crate::planes::Planes;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections of nodes on other machines.
const FAR_MAX: usize = 8_000;
/// Between two tries where accepting fails.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Carries nodes of other machines to the active plane, byte by byte: their TLS ends there. Until it is dropped.
pub async fn carry_far(listener: TcpListener, planes: Planes) {
    let places = Arc::new(Semaphore::new(FAR_MAX));
    let mut carried = JoinSet::new();
    loop {
        while carried.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let mut socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!("cannot accept a node's connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true);
        // Without an active plane the node finds its connection closed and comes again.
        let Some((_, far)) = planes.node_sockets() else { continue };
        carried.spawn(async move {
            if let Ok(mut plane) = UnixStream::connect(far).await {
                let _ = tokio::io::copy_bidirectional(&mut socket, &mut plane).await;
            }
            drop(place);
        });
    }
}
