//! The accept loop: HTTP/1.1 on a listener, with the protections that `axum::serve` leaves out.
//!
//! A client that sends its head slowly, or nothing, is closed after `header_timeout`; connections
//! are bounded, waiting ones stay in the kernel's queue. On shutdown the listener closes first,
//! idle connections at once, busy ones after their answer, and all of them after `drain_timeout`.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::parts::ApiLimits;

/// Heads are at most this large: a URL, a consistency token and a bearer token fit with room to
/// spare.
const HEAD_BYTES: usize = 64 * 1024;

/// Serves until `shutdown` is done, then finishes what is in flight.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ApiLimits,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(true);
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(limits.connections.max(1)));
    let open = metrics::gauge!("tagfast_http_connections");
    let mut shutdown = pin!(shutdown);

    loop {
        let next = async {
            // Without a permit nothing is accepted: the kernel's queue is the waiting room.
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, permit))
        };
        let (stream, permit) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = next => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors or a connection that broke before it was taken: neither ends the service.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection takes no TCP_NODELAY");
        }
        let connection = graceful.watch(
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone())),
        );
        open.increment(1.0);
        let open = open.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            open.decrement(1.0);
            drop(permit);
        });
    }

    drop(listener);
    let busy = graceful.count();
    tracing::info!(connections = busy, "no new connections; finishing what is in flight");
    if tokio::time::timeout(limits.drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not finish within the drain timeout");
    }
    Ok(())
}
