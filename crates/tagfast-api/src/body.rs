//! Bodies as they are held in memory: requests as one buffer, answers as frames that share what
//! repeats.
//!
//! A request body costs what its bytes cost, however small the pieces are in which it comes. An
//! answer gives its bytes back to the [`ByteBudget`] when the last of them is written.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tagfast_resilience::counter;
use tokio::time::Instant;

use crate::byte_budget::{ByteBudget, HeldBytes};
use crate::connection_io::{SCARCE_CHECK_INTERVAL, SCARCE_TIMEOUT};
use crate::metric::{HTTP_STALLED, Held, Stall};
use crate::problem::{Code, Problem};

/// First size of the buffer of a request body, in bytes.
const FIRST_CAPACITY_BYTES: usize = 1024;
/// A part of an answer of at least this many bytes is shared instead of copied.
const SHARED_BYTES_MIN: usize = 2048;
/// Size of the frames of an answer that is made of small parts, in bytes.
const FRAME_BYTES: usize = 32 * 1024;

/// A request body with the bytes that it holds.
pub(crate) struct RequestBody {
    pub(crate) bytes: Vec<u8>,
    pub(crate) held: HeldBytes,
}

/// Why a body is not read.
pub(crate) enum BodyError {
    /// It has more than the allowed bytes.
    TooLarge,
    /// Reading it ended with this problem; the connection must be closed.
    Refused(Problem),
    /// The client ended it early.
    Broken,
}

/// Reads a request body of at most `allowed` bytes.
pub(crate) async fn read(
    mut body: Body,
    allowed: usize,
    deadline: Instant,
    budget: &ByteBudget,
) -> Result<RequestBody, BodyError> {
    let mut read = RequestBody { bytes: Vec::new(), held: budget.holder(Held::Request) };
    while let Some(frame) = next_frame(&mut body, deadline, budget).await? {
        let Ok(data) = frame.into_data() else { continue };
        let length = read.bytes.len() + data.len();
        if length > allowed {
            return Err(BodyError::TooLarge);
        }
        if length > read.bytes.capacity() {
            let doubled = (2 * read.bytes.capacity()).max(FIRST_CAPACITY_BYTES);
            let capacity = doubled.min(allowed).max(length);
            let more = capacity - read.bytes.capacity();
            read.held.grow(more).map_err(BodyError::Refused)?;
            read.bytes.reserve_exact(capacity - read.bytes.len());
        }
        read.bytes.extend_from_slice(&data);
    }
    Ok(read)
}

/// The next frame; `None` at the end. A client that sends nothing is given up at the deadline, and
/// earlier while bytes are scarce.
async fn next_frame(
    body: &mut Body,
    deadline: Instant,
    budget: &ByteBudget,
) -> Result<Option<Frame<Bytes>>, BodyError> {
    let began = Instant::now();
    loop {
        let look = deadline.min(Instant::now() + SCARCE_CHECK_INTERVAL);
        match tokio::time::timeout_at(look, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => return Ok(Some(frame)),
            Ok(Some(Err(_))) => return Err(BodyError::Broken),
            Err(_) => {
                let now = Instant::now();
                let waited = now.duration_since(began);
                if now >= deadline || (waited >= SCARCE_TIMEOUT && budget.is_scarce()) {
                    counter!(HTTP_STALLED, "what" => Stall::Request).increment(1);
                    let detail = "the body did not arrive in time";
                    return Err(BodyError::Refused(Problem::new(Code::RequestTimeout, detail)));
                }
            }
        }
    }
}

/// An answer made of parts, of which large ones are shared.
#[derive(Default)]
pub(crate) struct Rope {
    frames: VecDeque<Bytes>,
    /// What comes behind the frames.
    open: Vec<u8>,
    /// Bytes of all closed frames.
    length: u64,
    copied: usize,
}

impl Rope {
    /// Appends a part.
    pub(crate) fn push(&mut self, part: &Bytes) {
        if part.len() < SHARED_BYTES_MIN {
            return self.push_copy(part);
        }
        self.close();
        self.length += part.len() as u64;
        self.frames.push_back(part.clone());
    }

    /// Appends a copy.
    pub(crate) fn push_copy(&mut self, part: &[u8]) {
        self.open.extend_from_slice(part);
        self.copied += part.len();
        if self.open.len() >= FRAME_BYTES {
            self.close();
        }
    }

    /// Bytes of the parts that are not shared.
    pub(crate) fn copied_bytes(&self) -> usize {
        self.copied
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.length += self.open.len() as u64;
            self.frames.push_back(std::mem::take(&mut self.open).into());
        }
    }

    /// The body.
    pub(crate) fn into_body(mut self) -> Body {
        self.close();
        Body::new(Frames { frames: self.frames, left: self.length })
    }
}

struct Frames {
    frames: VecDeque<Bytes>,
    left: u64,
}

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.frames.pop_front();
        self.left -= next.as_ref().map_or(0, |frame| frame.len() as u64);
        Poll::Ready(next.map(|frame| Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// What an answer holds; among the extensions of an answer whose handler has taken its bytes.
#[derive(Clone)]
pub(crate) struct AnswerBytes(pub(crate) Arc<HeldBytes>);

impl AnswerBytes {
    /// Gives back all but `rest` bytes, if nothing else holds them.
    pub(crate) fn shrink_to(&mut self, rest: usize) {
        if let Some(held) = Arc::get_mut(&mut self.0) {
            held.shrink_to(rest);
        }
    }
}

/// The body with the bytes that it holds: they are given back when the last frame is written.
pub(crate) fn holding(body: Body, held: AnswerBytes) -> Body {
    Body::new(Holding { body, held })
}

struct Holding {
    body: Body,
    held: AnswerBytes,
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let held = || self.held.clone();
        let owned = |bytes| held_bytes(bytes, held());
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(owned))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes that hold `held` for as long as a part of them is referenced.
pub(crate) fn held_bytes(bytes: Bytes, held: AnswerBytes) -> Bytes {
    struct Owner {
        bytes: Bytes,
        _held: AnswerBytes,
    }
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Owner { bytes, _held: held })
}
