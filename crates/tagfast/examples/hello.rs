//! A bare axum server that answers every path with the same bytes: the baseline of the HTTP
//! figures.
//!
//! `cargo run --release --example hello -- --listen 127.0.0.1:0 --body-bytes 300`

use std::io::Write as _;

use axum::Router;
use axum::http::header;
use clap::Parser;

/// The baseline server.
#[derive(Parser)]
struct Args {
    /// Address and port.
    #[arg(long, default_value = "127.0.0.1:7171")]
    listen: String,
    /// Size of the answer's body.
    #[arg(long, default_value_t = 300)]
    body_bytes: usize,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let body = bytes(args.body_bytes);
    let hello = move || {
        let body = body.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], body) }
    };
    let router = Router::new().fallback(hello);
    let listener = tokio::net::TcpListener::bind(&args.listen).await?;
    writeln!(std::io::stderr(), "listening on http://{}", listener.local_addr()?)?;
    // Without it the baseline would pay for Nagle's algorithm, which the service switches off.
    let listener =
        axum::serve::ListenerExt::tap_io(listener, |stream: &mut tokio::net::TcpStream| {
            let _ = stream.set_nodelay(true);
        });
    axum::serve(listener, router).await?;
    Ok(())
}

fn bytes(length: usize) -> axum::body::Bytes {
    let mut text = String::from("{\"hello\":\"");
    while text.len() + 2 < length {
        text.push('x');
    }
    text.push_str("\"}");
    text.truncate(length.max(12));
    text.into_bytes().into()
}
