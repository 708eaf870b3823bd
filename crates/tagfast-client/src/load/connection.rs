//! The load generator's own HTTP/1.1 client: one connection, one request at a time, little parsing.
//!
//! A full client would use more of a small machine than the server that it measures.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Upper limit of an answer's head in bytes; a longer one is an error.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A connection that opens at the first request.
pub struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

/// What the server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Bytes of head and body.
    pub bytes: usize,
    /// The answer is stale or lacks a part (`Cache-Control: no-store`).
    pub degraded: bool,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(usize),
    Chunked,
    UntilClose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    status: u16,
    length: usize,
    body: Body,
    close: bool,
    degraded: bool,
}

impl Connection {
    /// A connection to this address; opens nothing yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, buffer: Vec::with_capacity(16 * 1024) }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// The connection failed or the answer is no HTTP; the next call opens a new connection.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        self.buffer.clear();
        stream.write_all(request).await?;
        let (answer, close) = read_answer(&mut stream, &mut self.buffer).await?;
        if !close {
            self.stream = Some(stream);
        }
        Ok(answer)
    }

    /// Closes the connection, because a late answer may still arrive on it.
    pub fn abandon(&mut self) {
        self.stream = None;
    }
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    if stream.read_buf(buffer).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<(Answer, bool)> {
    let head = loop {
        if let Some(head) = parse_head(buffer)? {
            break head;
        }
        if buffer.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head is too long"));
        }
        read_more(stream, buffer).await?;
    };
    let bytes = match head.body {
        Body::Length(length) => {
            let mut have = buffer.len();
            while have < head.length + length {
                buffer.clear();
                read_more(stream, buffer).await?;
                have += buffer.len();
            }
            head.length + length
        }
        Body::Chunked => {
            let mut at = head.length;
            loop {
                match next_chunk(&buffer[at..])? {
                    Chunk::Last(length) => break at + length,
                    Chunk::Data(length) => {
                        while buffer.len() < at + length {
                            read_more(stream, buffer).await?;
                        }
                        at += length;
                    }
                    Chunk::Unknown => read_more(stream, buffer).await?,
                }
            }
        }
        Body::UntilClose => {
            while stream.read_buf(buffer).await? > 0 {}
            buffer.len()
        }
    };
    let answer = Answer { status: head.status, bytes, degraded: head.degraded };
    Ok((answer, head.close || head.body == Body::UntilClose))
}

/// Parses the head; `None` = its end has not arrived yet.
fn parse_head(buffer: &[u8]) -> io::Result<Option<Head>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is not an HTTP answer");
    if buffer.len() >= 5 && !buffer.starts_with(b"HTTP/") {
        return Err(bad());
    }
    let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let mut lines = buffer[..end].split(|b| *b == b'\n');
    let first = lines.next().unwrap_or_default();
    let digits = first.get(9..12).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(bad)?;
    let status: u16 = digits.parse().map_err(|_| bad())?;
    let bodiless = matches!(status, 100..=199 | 204 | 304);
    let mut body = if bodiless { Body::Length(0) } else { Body::UntilClose };
    let (mut close, mut no_store) = (false, false);
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") && !bodiless {
            let text = std::str::from_utf8(value).map_err(|_| bad())?;
            body = Body::Length(text.parse().map_err(|_| bad())?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding")
            && value.eq_ignore_ascii_case(b"chunked")
        {
            body = Body::Chunked;
        } else if name.eq_ignore_ascii_case(b"connection") {
            close = value.eq_ignore_ascii_case(b"close");
        } else if name.eq_ignore_ascii_case(b"cache-control") {
            no_store = value.eq_ignore_ascii_case(b"no-store");
        }
    }
    Ok(Some(Head { status, length: end + 4, body, close, degraded: no_store && status == 200 }))
}

#[derive(Debug, PartialEq, Eq)]
enum Chunk {
    /// The chunk's size line has not arrived yet.
    Unknown,
    /// Length in bytes of a chunk with its size line and line end.
    Data(usize),
    /// Length in bytes of the end of the body (trailers are not expected).
    Last(usize),
}

fn next_chunk(buffer: &[u8]) -> io::Result<Chunk> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the chunk cannot be read");
    let Some(end) = buffer.windows(2).position(|w| w == b"\r\n") else {
        return if buffer.len() > 64 { Err(bad()) } else { Ok(Chunk::Unknown) };
    };
    let digits = buffer[..end].split(|b| *b == b';').next().unwrap_or_default();
    let text = std::str::from_utf8(digits).map_err(|_| bad())?;
    let size = usize::from_str_radix(text.trim(), 16).map_err(|_| bad())?;
    if size == 0 {
        return Ok(if buffer.len() >= end + 4 { Chunk::Last(end + 4) } else { Chunk::Unknown });
    }
    size.checked_add(end + 4).map(Chunk::Data).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use tagfast_resilience::task::TaskTracker;
    use tokio::net::TcpListener;

    use super::*;

    /// Exchanges with a server that sends each of `answers` in small pieces, then closes.
    async fn exchange(answers: &'static [&'static str]) -> Vec<io::Result<Answer>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = TaskTracker::new().spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in answers {
                let mut request = [0; 64];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                for piece in answer.as_bytes().chunks(7) {
                    // A client that has seen enough closes.
                    if stream.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut connection = Connection::new(address);
        let mut got = Vec::new();
        for _ in answers {
            got.push(connection.exchange(b"GET / HTTP/1.1\r\n\r\n").await);
        }
        server.await.unwrap();
        got
    }

    #[tokio::test]
    async fn bodies_end_where_they_say() {
        let got = exchange(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 404 Not Found\r\ntransfer-encoding: \
                chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        ])
        .await;
        let statuses: Vec<u16> = got.iter().map(|a| a.as_ref().unwrap().status).collect();
        assert_eq!(statuses, [200, 404, 204, 503, 200]);
        assert_eq!(got[0].as_ref().unwrap().bytes, 43);
    }

    #[tokio::test]
    async fn nonsense_and_cut_answers_are_errors() {
        assert!(exchange(&["SSH-2.0-OpenSSH\r\n"]).await[0].is_err());
        assert!(
            exchange(&["HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort"]).await[0].is_err()
        );
        assert!(
            exchange(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n"]).await[0]
                .is_err()
        );
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        assert_eq!(next_chunk(b"1f;x=y\r\n").unwrap(), Chunk::Data(31 + 6 + 4));
        assert_eq!(next_chunk(b"0\r\n").unwrap(), Chunk::Unknown);
        assert_eq!(next_chunk(b"0\r\n\r\n").unwrap(), Chunk::Last(5));
        assert!(next_chunk(b"ffffffffffffffff\r\n").is_err());
    }
}
