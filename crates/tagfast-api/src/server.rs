//! The accept loop: HTTP/1.1 on a listener, with the protections that `axum::serve` lacks.
//!
//! A client that does not send the head of a request within `header_timeout` is answered 408 if it
//! has begun one, and disconnected; so is one that accepts nothing of its answer within
//! `write_timeout`. The number of connections is bounded; further ones wait in the kernel's queue.
//! On shutdown the listener closes first, idle connections at once, busy ones after their answer,
//! then the tasks that outlive their requests end; what still runs after `drain_timeout` is
//! dropped.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tagfast_resilience::{ErrorChain, OutageLog, TaskGroup, counter, gauge};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::byte_budget::ByteBudget;
use crate::connection::wire;
use crate::connection_io::ConnectionIo;
use crate::head::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::metric::{HTTP_ACCEPT_FAILURES, HTTP_CONNECTIONS};
use crate::services::ApiLimits;

/// Pause after a failed accept, so that a lasting failure does not spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Serves until `shutdown` completes, then finishes the requests in flight and stops `tasks`, which
/// is [`ApiServices::tasks`](crate::ApiServices::tasks); `budget` is
/// [`ApiServices::byte_budget`](crate::ApiServices::byte_budget). Returns at most `drain_timeout`
/// after `shutdown`; no connection and no task of the API runs then.
///
/// # Errors
///
/// Never for a single connection; only when the loop itself can no longer run.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ApiLimits,
    tasks: &TaskGroup,
    budget: &ByteBudget,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(true);
    let graceful = GracefulShutdown::new();
    let connections = TaskGroup::new("http connection");
    let permits = Arc::new(Semaphore::new(limits.connections.max(1)));
    let open = gauge!(HTTP_CONNECTIONS);
    let accept_log = OutageLog::new("accepting connections");
    let mut shutdown = pin!(shutdown);

    loop {
        let next = async {
            // Without a permit nothing is accepted: connections wait in the kernel's queue.
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, permit))
        };
        let (stream, permit) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = next => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or the connection broke before it was accepted:
                    // neither ends the service.
                    counter!(HTTP_ACCEPT_FAILURES).increment(1);
                    accept_log.failed(&error);
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            },
        };
        accept_log.recovered();
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(
                error = %ErrorChain(&error),
                "TCP_NODELAY cannot be set on a connection"
            );
        }
        let (stream, service) = wire(stream, router.clone());
        let io = ConnectionIo::new(TokioIo::new(stream), limits.write_timeout, budget.clone());
        let connection = graceful.watch(http.serve_connection(io, service));
        open.increment(1.0);
        let open = open.clone();
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %ErrorChain(&error), "a connection ended early");
            }
            open.decrement(1.0);
            drop(permit);
        });
    }

    drop(listener);
    let deadline = Instant::now() + limits.drain_timeout;
    let busy = graceful.count();
    tracing::info!(connections = busy, "the listener is closed; finishing the requests in flight");
    if tokio::time::timeout_at(deadline, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not finish within the drain timeout");
    }
    connections.stop(deadline.saturating_duration_since(Instant::now())).await;
    tasks.stop(deadline.saturating_duration_since(Instant::now())).await;
    Ok(())
}
