//! A connection's socket, watched for a peer that accepts nothing.
//!
//! A peer that stops reading its answer would keep the answer in memory for as long as it likes.
//! Here a write that waits must move at least [`WRITE_PROGRESS_BYTES_MIN`], or all that is left,
//! within `write_timeout`; within [`SCARCE_TIMEOUT`] while the budget of bytes in flight is scarce.
//! The connection is closed otherwise. What a peer has accepted is what the kernel took from us: a
//! client that reads one byte a second does not count as one that reads.
//!
//! How it fails: as an error of the socket, which ends the connection and drops its answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tagfast_resilience::counter;
use tokio::time::{Instant, Sleep};

use crate::byte_budget::ByteBudget;
use crate::metric::{HTTP_STALLED, Stall};

/// What a waiting write must move within its timeout, in bytes, unless less is left.
const WRITE_PROGRESS_BYTES_MIN: usize = 16 * 1024;
/// The timeout of a peer that makes no progress while the budget of bytes in flight is scarce.
pub(crate) const SCARCE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a waiting write looks at the budget.
pub(crate) const SCARCE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// A socket whose waiting writes have a timeout.
pub(crate) struct ConnectionIo<T> {
    io: T,
    write_timeout: Duration,
    budget: ByteBudget,
    /// `None`: no write waits.
    waiting: Option<WaitingWrite>,
}

struct WaitingWrite {
    /// When it began to wait, or last moved enough.
    since: Instant,
    /// Bytes moved since then.
    moved: usize,
    timer: Pin<Box<Sleep>>,
}

impl<T> ConnectionIo<T> {
    pub(crate) fn new(io: T, write_timeout: Duration, budget: ByteBudget) -> Self {
        Self { io, write_timeout, budget, waiting: None }
    }

    /// Notes the result of a write.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending => self.wait(cx).map(Err),
            Poll::Ready(Ok(bytes)) => {
                if let Some(waiting) = &mut self.waiting {
                    waiting.moved += bytes;
                    if waiting.moved >= WRITE_PROGRESS_BYTES_MIN {
                        (waiting.moved, waiting.since) = (0, Instant::now());
                    }
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Ready when the write has waited for too long.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let now = Instant::now();
        let waiting = self.waiting.get_or_insert_with(|| WaitingWrite {
            since: now,
            moved: 0,
            timer: Box::pin(tokio::time::sleep(SCARCE_CHECK_INTERVAL.min(self.write_timeout))),
        });
        loop {
            let waited = waiting.since.elapsed();
            let scarce = waited >= SCARCE_TIMEOUT && self.budget.is_scarce();
            if scarce || waited >= self.write_timeout {
                counter!(HTTP_STALLED, "what" => Stall::Answer).increment(1);
                return Poll::Ready(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client accepted nothing of its answer within the write timeout",
                ));
            }
            if waiting.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let left = self.write_timeout.saturating_sub(waited);
            let next = Instant::now() + SCARCE_CHECK_INTERVAL.min(left);
            waiting.timer.as_mut().reset(next);
        }
    }
}

impl<T: Read + Unpin> Read for ConnectionIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: Write + Unpin> Write for ConnectionIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The caller flushes when it has nothing more to write.
        self.waiting = None;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::*;
    use crate::metric::Held;

    const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

    /// A connection whose pipe holds 64 KiB, and the peer's end.
    fn pipe(budget: &ByteBudget) -> (ConnectionIo<TokioIo<DuplexStream>>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        (ConnectionIo::new(TokioIo::new(ours), WRITE_TIMEOUT, budget.clone()), theirs)
    }

    /// Writes until an error; the time until then.
    async fn write_until_error(io: &mut ConnectionIo<TokioIo<DuplexStream>>) -> Duration {
        let began = Instant::now();
        while poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, &[0; 8192])).await.is_ok() {}
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_is_given_up_after_the_timeout() {
        let (mut io, _peer) = pipe(&ByteBudget::new(1000));
        assert_eq!(write_until_error(&mut io).await, WRITE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_too_little_is_one_that_reads_nothing() {
        for (bytes, given_up) in [(1, true), (700, true), (900, false), (60_000, false)] {
            let (mut io, mut peer) = pipe(&ByteBudget::new(1000));
            let read = async {
                for _ in 0..60 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = peer.read_exact(&mut vec![0; bytes]).await;
                }
            };
            let ended = tokio::select! {
                () = read => false,
                _ = write_until_error(&mut io) => true,
            };
            assert_eq!(ended, given_up, "{bytes} bytes a second");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_is_short_while_bytes_are_scarce() {
        let budget = ByteBudget::new(1000);
        let mut held = budget.holder(Held::Answer);
        held.grow(501).unwrap();
        let (mut io, _peer) = pipe(&budget);
        assert_eq!(write_until_error(&mut io).await, SCARCE_TIMEOUT);
        let (mut io, _peer) = pipe(&budget);
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(held);
            std::future::pending::<()>().await;
        };
        let waited = tokio::select! {
            waited = write_until_error(&mut io) => waited,
            () = later => unreachable!("it never ends"),
        };
        assert_eq!(waited, WRITE_TIMEOUT, "not any more when there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_between_two_answers_is_no_stall() {
        let (mut io, mut peer) = pipe(&ByteBudget::new(1000));
        for _ in 0..3 {
            let mut left = 100_000;
            let write = async {
                while left > 0 {
                    let bytes = vec![0; left.min(8192)];
                    left -=
                        poll_fn(|cx| Pin::new(&mut io).poll_write(cx, &bytes)).await.expect("room");
                }
                poll_fn(|cx| Pin::new(&mut io).poll_flush(cx)).await.expect("a flush");
            };
            let mut read = vec![0; 100_000];
            let (_, read) = tokio::join!(write, peer.read_exact(&mut read));
            read.expect("the answer");
            tokio::time::sleep(2 * WRITE_TIMEOUT).await;
        }
    }
}
