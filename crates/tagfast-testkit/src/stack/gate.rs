//! A gate in front of a server: passes requests with the right user and password on, and answers
//! 401 to others.
//!
//! How it fails: an error of a connection ends it, and its client sees that.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;

use super::auth::USER;
use crate::http::Client;

/// The path on which the gate takes a new password.
const PASSWORD_PATH: &str = "/_gate/password";

/// Changes the password that a gate wants.
pub(super) fn change_password(gate: SocketAddr, new: &str) -> Result<()> {
    let answer = Client::new(gate).request("POST", PASSWORD_PATH, &[], Some(new))?;
    if answer.status == 200 { Ok(()) } else { bail!("the gate: {}", answer.text()) }
}

/// Starts the gate: passes requests with the right user and password on to a server.
pub(super) fn start_gate(listen: SocketAddr, to: SocketAddr, password: &str) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    let password = Arc::new(Mutex::new(password.to_owned()));
    std::thread::Builder::new().name("gate".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let password = Arc::clone(&password);
            // An error of a connection ends it; the client sees that.
            let _ = std::thread::Builder::new()
                .name("gate connection".to_owned())
                .spawn(move || drop(serve_one(stream, to, &password)));
        }
    })?;
    Ok(())
}

/// Answers the one request of a connection.
fn serve_one(mut stream: TcpStream, to: SocketAddr, password: &Mutex<String>) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head: Vec<String> = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let header = |name: &str| {
        let of = |line: &String| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        head.iter().skip(1).find_map(of)
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let first = head.first().context("no request")?;
    if first.split(' ').nth(1) == Some(PASSWORD_PATH) {
        *password.lock() = String::from_utf8(body)?;
        return Ok(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?);
    }
    let wanted = STANDARD.encode(format!("{USER}:{}", password.lock()));
    if header("authorization") != Some(format!("Basic {wanted}")) {
        let answer = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"gate\"\r\n\
                      content-length: 12\r\nconnection: close\r\n\r\nUnauthorized";
        return Ok(stream.write_all(answer.as_bytes())?);
    }
    let mut upstream = TcpStream::connect(to)?;
    let kept = |line: &&String| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        !["connection", "authorization"].contains(&name.as_str())
    };
    let mut request = head.iter().filter(kept).cloned().collect::<Vec<_>>().join("\r\n");
    request.push_str("\r\nconnection: close\r\n\r\n");
    upstream.write_all(request.as_bytes())?;
    upstream.write_all(&body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    // The client must not send a second request on this connection.
    let line = answer.iter().position(|b| *b == b'\n').context("no answer")? + 1;
    let (status, rest) = answer.split_at(line);
    stream.write_all(status)?;
    stream.write_all(b"connection: close\r\n")?;
    Ok(stream.write_all(rest)?)
}
