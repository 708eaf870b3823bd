//! The head of a request as bytes: what is wrong with it (RFC 9112).
//!
//! The HTTP library decides whether a head is a request. This module only says why not, and finds
//! the two faults that the library accepts: a missing or impossible `Host`, and a body that is
//! framed twice.

use axum::body::HttpBody;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};

use crate::header_rules::check_transfer_encoding;
use crate::problem::{Code, Problem, bad_header};

/// Largest head of a request in bytes: a URL, consistency tokens and a bearer token fit with room
/// to spare.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header lines of a request.
pub(crate) const HEADERS_MAX: usize = 100;

/// What was received of a head, from its first byte.
pub(crate) struct Head<'a>(pub(crate) &'a [u8]);

/// The problem of a head that is not complete: the client ended it, or it took too long.
pub(crate) fn early_end(head: &Head<'_>, is_ended: bool) -> Problem {
    let wrong_line = || head.request_line().and_then(Head::wrong_line);
    if let Some(problem) = head.not_ours().or_else(wrong_line) {
        return problem;
    }
    if is_ended {
        Problem::new(Code::BadRequest, "the request ended before its head was complete")
    } else {
        Problem::new(Code::RequestTimeout, "the head of the request did not arrive in time")
    }
}

impl Head<'_> {
    /// Where a complete head ends, behind its blank line; `None`: it is not complete.
    pub(crate) fn end(bytes: &[u8]) -> Option<usize> {
        // Blank lines may stand before a request line.
        let begin = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
        memchr::memchr_iter(b'\n', &bytes[begin..]).map(|at| begin + at + 1).find_map(|line_end| {
            match &bytes[line_end..] {
                [b'\n', ..] => Some(line_end + 1),
                [b'\r', b'\n', ..] => Some(line_end + 2),
                _ => None,
            }
        })
    }

    /// Whether there is no byte of a head, but for blank lines.
    pub(crate) fn is_blank(&self) -> bool {
        self.0.iter().all(|b| matches!(b, b'\r' | b'\n'))
    }

    /// What the library accepted and may not be: it is refused before anything else is looked at.
    pub(crate) fn fault<B: HttpBody>(&self, request: &Request<B>) -> Option<Problem> {
        let headers = request.headers();
        if headers.contains_key(header::TRANSFER_ENCODING)
            && self.lines().any(|line| name_is(line, b"content-length"))
        {
            let reason =
                "it comes with Transfer-Encoding, so that the end of the body is uncertain";
            let close = HeaderValue::from_static("close");
            let problem = bad_header(&header::CONTENT_LENGTH, reason);
            return Some(problem.header(header::CONNECTION, close));
        }
        match headers.get(header::HOST) {
            None if request.version() == Version::HTTP_11 => {
                Some(bad_header(&header::HOST, "an HTTP/1.1 request must have one"))
            }
            Some(host) if !is_host(host) => {
                Some(bad_header(&header::HOST, "it must be a name or address, with a port or none"))
            }
            Some(_) | None => None,
        }
    }

    /// The problem of a head that the library refused with this status.
    pub(crate) fn problem(&self, status: StatusCode) -> Problem {
        let (target_bytes, line_is_whole) = self.target();
        if status == StatusCode::URI_TOO_LONG || (status.as_u16() == 431 && !line_is_whole) {
            let detail = "the request line is longer than a whole head may be";
            let problem = Problem::new(Code::UrlTooLong, detail);
            return problem.limit("head_bytes", HEAD_BYTES_MAX as u64, target_bytes as u64);
        }
        if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
            let given = self.lines().count();
            if given > HEADERS_MAX {
                let detail = format!("the request has more than {HEADERS_MAX} headers");
                let problem = Problem::new(Code::HeadTooLarge, detail);
                return problem.limit("headers", HEADERS_MAX as u64, given as u64);
            }
            let detail = format!("the head of the request has more than {HEAD_BYTES_MAX} bytes");
            let allowed = HEAD_BYTES_MAX as u64;
            let given = (self.0.len() as u64).max(allowed + 1);
            return Problem::new(Code::HeadTooLarge, detail).limit("head_bytes", allowed, given);
        }
        self.not_ours().unwrap_or_else(|| self.malformed())
    }

    /// The problem of something that is a different protocol, or a different version of this one.
    fn not_ours(&self) -> Option<Problem> {
        // A record of a TLS handshake.
        if let [0x16, 0x03, ..] = self.0 {
            let detail = "this is TLS, and the port speaks HTTP without it";
            return Some(Problem::new(Code::BadRequest, detail));
        }
        // The library may refuse a line before its end has arrived.
        let (line, is_whole) = match self.request_line() {
            Some(line) => (line.trim_ascii_end(), true),
            None => (self.0, false),
        };
        let version = line.rsplit(|b| *b == b' ').next()?.strip_prefix(b"HTTP/")?;
        let is_version = match version {
            [major] => major.is_ascii_digit(),
            [major, b'.', minor] => major.is_ascii_digit() && minor.is_ascii_digit(),
            [major, b'.'] => major.is_ascii_digit() && !is_whole,
            _ => false,
        };
        let is_known = matches!(version, b"1.0" | b"1.1")
            || (!is_whole && (version == b"1" || version == b"1."));
        (is_version && !is_known).then(|| {
            let detail = "the service speaks HTTP/1.1 and HTTP/1.0 only";
            Problem::new(Code::HttpVersion, detail)
        })
    }

    /// The problem of a head that is not HTTP/1.1.
    fn malformed(&self) -> Problem {
        let bad = |detail: String| Problem::new(Code::BadRequest, detail);
        if let Some(problem) = Self::wrong_line(self.request_line().unwrap_or(self.0)) {
            return problem;
        }
        let mut headers = HeaderMap::new();
        for (n, line) in self.lines().enumerate() {
            let parsed = line.iter().position(|b| *b == b':').and_then(|colon| {
                let name = HeaderName::from_bytes(&line[..colon]).ok()?;
                let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
                Some((name, value))
            });
            let Some((name, value)) = parsed else {
                return bad(format!("header line {} is malformed", n + 1));
            };
            headers.append(name, value);
        }
        let is_length = |v: &HeaderValue| {
            !v.is_empty() && v.as_bytes().iter().all(u8::is_ascii_digit) && v.len() < 20
        };
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        let first = lengths.next();
        if first.is_some_and(|v| !is_length(v)) || lengths.any(|v| Some(v) != first) {
            return bad_header(&header::CONTENT_LENGTH, "it must be one whole number of bytes");
        }
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return match check_transfer_encoding(&headers) {
                Err(problem) => problem,
                Ok(()) => bad_header(&header::TRANSFER_ENCODING, "it needs HTTP/1.1"),
            };
        }
        bad("the method, the target or a header is malformed".to_owned())
    }

    /// The problem of a first line that is no request line.
    fn wrong_line(line: &[u8]) -> Option<Problem> {
        let parts: Vec<&[u8]> = line.trim_ascii_end().split(|b| *b == b' ').collect();
        let is_right = matches!(parts.as_slice(), [_, _, b"HTTP/1.0" | b"HTTP/1.1"]);
        let detail = "the first line is not a method, a target and HTTP/1.1";
        (!is_right).then(|| Problem::new(Code::BadRequest, detail))
    }

    /// The bytes of the first line without its end; `None`: it is not whole.
    fn request_line(&self) -> Option<&[u8]> {
        let begin = self.0.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
        let line = &self.0[begin..];
        Some(&line[..memchr::memchr(b'\n', line)?])
    }

    /// How long the request's target is, in bytes, and whether the whole first line is there.
    fn target(&self) -> (usize, bool) {
        let whole = self.request_line();
        let line = whole.unwrap_or(self.0);
        let target = line.split(|b| *b == b' ').nth(1).map_or(line.len(), <[u8]>::len);
        (target, whole.is_some())
    }

    /// The lines behind the first one, up to the blank line.
    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let bytes = &self.0[..Self::end(self.0).unwrap_or(self.0.len())];
        let lines = bytes.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
        lines.skip_while(|line| line.is_empty()).skip(1).take_while(|line| !line.is_empty())
    }
}

fn name_is(line: &[u8], name: &[u8]) -> bool {
    line.split_at_checked(name.len())
        .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(name) && rest.starts_with(b":"))
}

/// `host [":" port]`, or empty for a target without one.
fn is_host(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    text.is_empty() || (!text.contains('@') && text.parse::<Authority>().is_ok())
}
