//! One connection between the socket and the HTTP library: problem documents for requests that the
//! library refuses before a request exists, and the rules of RFC 9112 that only the bytes can show.
//!
//! The library answers a head that it cannot parse with a bare status, and cannot be told
//! otherwise. [`Connection`] recognises exactly these answers at the end of what the library
//! writes, which costs a look at the last bytes of each write, and puts a problem document in their
//! place. What the client sent of the present head is kept, so that the problem says what is wrong
//! with it. A head that does not arrive in time, or ends early, is answered when the library gives
//! the connection up.
//!
//! How it fails: towards the library's own behaviour. An answer that is not recognised leaves as it
//! is; a head whose beginning is not known (right behind a chunked body) gets a general detail.

use std::convert::Infallible;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::head::{HEAD_BYTES_MAX, Head, early_end};
use crate::header_rules::WireFault;
use crate::refusal::{bare_refusal, refusal};

/// How long a refused client may go on sending before the connection is closed: closing at once
/// would make its kernel drop the answer.
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
/// How much it may send meanwhile, in bytes.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Memory that an idle connection keeps for its next head, in bytes.
const IDLE_HEAD_BYTES_MAX: usize = 2048;

/// The stream of one connection and the service of its requests, which know of each other.
pub(crate) fn wire<S>(stream: S, router: Router) -> (Connection<S>, ConnectionService)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let received = Arc::new(Mutex::new(Received::default()));
    let service = TowerToHyperService::new(router);
    let connection = Connection {
        stream,
        received: Arc::clone(&received),
        answer: None,
        is_refused: false,
        is_blocked: false,
        is_ended: false,
        is_shut_down: false,
        linger: None,
    };
    (connection, ConnectionService { service, received })
}

/// What was received of the head that comes next.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    /// Bytes of a body that come before it.
    body_bytes: u64,
    /// Whether it is not known where the next head begins: behind a chunked body, until that
    /// request is answered.
    is_lost: bool,
    /// Whether a request was begun whose answer is not handed over yet.
    is_answering: bool,
}

impl Received {
    fn add(&mut self, chunk: &[u8]) {
        let of_body = usize::try_from(self.body_bytes).unwrap_or(usize::MAX).min(chunk.len());
        self.body_bytes -= of_body as u64;
        if !self.is_lost {
            let room = HEAD_BYTES_MAX.saturating_sub(self.bytes.len());
            let head = &chunk[of_body..];
            self.bytes.extend_from_slice(&head[..head.len().min(room)]);
        }
    }

    /// The library has parsed a head: judges it, and goes on to what follows it.
    fn begin<B: HttpBody>(&mut self, request: &Request<B>) -> Option<WireFault> {
        let end = Head::end(&self.bytes).unwrap_or(self.bytes.len());
        let fault = Head(&self.bytes[..end]).fault(request).map(WireFault);
        self.is_answering = true;
        self.bytes.drain(..end);
        match request.body().size_hint().exact() {
            Some(0) => {}
            Some(bytes) => {
                let behind = std::mem::take(&mut self.bytes);
                self.body_bytes = bytes;
                self.add(&behind);
            }
            None => {
                self.bytes.clear();
                self.is_lost = true;
            }
        }
        fault
    }

    /// The library has taken the whole answer.
    fn finish(&mut self) {
        (self.is_lost, self.is_answering) = (false, false);
        if self.bytes.is_empty() && self.bytes.capacity() > IDLE_HEAD_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }
}

/// The service of one connection.
pub(crate) struct ConnectionService {
    service: TowerToHyperService<Router>,
    received: Arc<Mutex<Received>>,
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let fault = self.received.lock().begin(&request);
        if let Some(fault) = fault {
            // The middleware answers it like every other problem.
            request.extensions_mut().insert(fault);
        }
        let answer = self.service.call(request);
        let received = Arc::clone(&self.received);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| AnswerBody { body, is_at_end: false, received }))
        })
    }
}

/// The body of an answer; the answer is complete when the library drops it at its end.
pub(crate) struct AnswerBody {
    body: Body,
    is_at_end: bool,
    received: Arc<Mutex<Received>>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.is_at_end = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // A body that is dropped before its end broke off.
        if self.is_at_end || self.body.is_end_stream() {
            self.received.lock().finish();
        }
    }
}

/// The stream of one connection.
pub(crate) struct Connection<S: AsyncRead + AsyncWrite + Unpin> {
    stream: S,
    received: Arc<Mutex<Received>>,
    /// The problem that takes the place of a bare answer, and how much of it is written.
    answer: Option<(Vec<u8>, usize)>,
    is_refused: bool,
    /// Whether the socket did not take all of the last write.
    is_blocked: bool,
    /// Whether the client has ended its side.
    is_ended: bool,
    is_shut_down: bool,
    /// While a refused client is read from: until when, and how many bytes came.
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn poll_pass(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.is_blocked = written.is_pending();
        written
    }

    fn poll_pass_all(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.is_blocked = written.is_pending();
        written
    }

    /// Writes the whole answer in place of the library's, which has `given` bytes.
    fn poll_answer(&mut self, cx: &mut Context<'_>, given: usize) -> Poll<Result<usize>> {
        while let Some((bytes, written)) = &mut self.answer
            && let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty())
        {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(Error::from(ErrorKind::WriteZero))),
                count => *written += count,
            }
        }
        (self.answer, self.is_refused) = (None, true);
        Poll::Ready(Ok(given))
    }

    /// Reads what a refused client still sends.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = || (Box::pin(tokio::time::sleep(LINGER_TIME_MAX)), 0);
        let (timeout, count) = self.linger.get_or_insert_with(until);
        let mut scratch = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return timeout.as_mut().poll(cx),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => *count += buffer.filled().len(),
            }
            if buffer.filled().is_empty() || *count > LINGER_BYTES_MAX {
                return Poll::Ready(());
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        match &buffer.filled()[before..] {
            [] => this.is_ended = true,
            chunk => this.received.lock().add(chunk),
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        if this.answer.is_none() {
            match bare_refusal(bytes) {
                None => return this.poll_pass(cx, bytes),
                // First what is before it: the end of an earlier answer.
                Some((at, _)) if at > 0 => {
                    return this.poll_pass(cx, &bytes[..at]);
                }
                Some((_, status)) => {
                    let received = this.received.lock();
                    let head = Head(&received.bytes);
                    this.answer = Some((refusal(&head.problem(status), &head), 0));
                }
            }
        }
        this.poll_answer(cx, bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        // A bare answer is the last that the library writes, and one piece.
        let last = slices.iter().rposition(|slice| !slice.is_empty()).unwrap_or(0);
        let is_bare = slices.get(last).is_some_and(|slice| bare_refusal(slice).is_some());
        if !is_bare {
            return self.get_mut().poll_pass_all(cx, slices);
        }
        match slices[..last].iter().any(|slice| !slice.is_empty()) {
            true => self.get_mut().poll_pass_all(cx, &slices[..last]),
            false => self.poll_write(cx, &slices[last]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if !this.is_shut_down {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.is_shut_down = true;
        }
        if this.is_refused && !this.is_ended {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

/// The library gives a connection up without an answer when a head is not complete in time or ends
/// early, and when it begins HTTP/2. One without any byte of a head is idle: it is closed silently.
impl<S: AsyncRead + AsyncWrite + Unpin> Drop for Connection<S> {
    fn drop(&mut self) {
        let received = self.received.lock();
        let head = Head(&received.bytes);
        // Never into an answer that is not complete.
        let is_answering = received.is_answering || self.is_blocked;
        if self.is_shut_down || self.is_refused || is_answering || head.is_blank() {
            return;
        }
        let bytes = refusal(&early_end(&head, self.is_ended), &head);
        // What the socket does not take at once is lost with the connection.
        let mut cx = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut self.stream).poll_write(&mut cx, &bytes);
    }
}
