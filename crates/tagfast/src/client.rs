//! The HTTP client of the commands: one call in, JSON or a failure that says what to do out.
//!
//! It fails with [`ClientError`], which knows whether trying again can help; the commands turn it
//! into a [`Failure`].

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::cli::ClientArgs;
use crate::failure::Failure;

/// What stays as it is in a path segment or a query value: the unreserved characters of RFC 3986.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One path segment or query value, encoded.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A problem document.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable word; empty if the answer was no problem document.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// Of a query: where it breaks, in characters.
    pub position: Option<usize>,
    /// Of a query: what was expected there.
    pub expected: Option<String>,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// Names the request in the server's log.
    pub trace_id: Option<String>,
}

impl Problem {
    /// Reads a problem from an answer or a batch's item.
    pub fn from_json(status: u16, body: &Value) -> Self {
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let number = |name: &str| body.get(name).and_then(Value::as_u64);
        Self {
            status: number("status").and_then(|s| u16::try_from(s).ok()).unwrap_or(status),
            code: text("code").unwrap_or_default(),
            detail: text("detail").or_else(|| text("title")).unwrap_or_default(),
            position: number("position").and_then(|p| usize::try_from(p).ok()),
            expected: text("expected"),
            retry_after: number("retry_after_ms").map(Duration::from_millis),
            trace_id: text("trace_id"),
        }
    }

    /// Whether the same request can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.status, 408 | 429 | 503 | 507)
    }
}

/// Why a call failed.
#[derive(Debug)]
pub enum ClientError {
    /// No connection.
    Connect {
        /// The server.
        url: String,
        /// The system's words.
        detail: String,
    },
    /// No answer in time, or a connection that ended early: the request may have been done.
    Interrupted(String),
    /// The server answered with a problem.
    Problem(Box<Problem>),
    /// The answer is not what this client understands.
    Strange(String),
}

impl ClientError {
    /// Whether the same request can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Interrupted(_) => true,
            Self::Problem(problem) => problem.is_retryable(),
            Self::Strange(_) => false,
        }
    }

    /// When the server wants us back.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem(problem) => problem.retry_after,
            Self::Connect { .. } | Self::Interrupted(_) | Self::Strange(_) => None,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Connect { url, detail } => Failure::new(format!("cannot reach {url}: {detail}"))
                .hint("is the server running? start it with: tagfast serve (another address: --url or TAGFAST_URL)"),
            ClientError::Interrupted(detail) => Failure::new(format!("no answer: {detail}"))
                .hint("the request may have been done; repeating it is safe"),
            ClientError::Strange(detail) => Failure::new(detail).hint("is --url the address of a tagfast server?"),
            ClientError::Problem(problem) => {
                let code = if problem.code.is_empty() { String::new() } else { format!(" ({})", problem.code) };
                let mut message = format!("{}{code}", problem.detail);
                if let Some(trace) = problem.trace_id.as_ref().filter(|_| problem.status >= 500) {
                    message.push_str(&format!(", trace {trace}"));
                }
                let action = tagfast_api::PROBLEM_CODES.iter().find(|c| c.code == problem.code).map(|c| c.action);
                let failure = Failure::new(message);
                match problem.status {
                    401 => {
                        failure.hint("give a token with --token or TAGFAST_TOKEN; make one with: tagfast token issue")
                    }
                    _ => match action {
                        Some(action) => failure.hint(action),
                        None => failure,
                    },
                }
            }
        }
    }
}

/// A request's extras.
#[derive(Debug, Clone, Default)]
pub struct Options<'a> {
    /// JSON body.
    pub body: Option<Vec<u8>>,
    /// Headers.
    pub headers: Vec<(&'a str, String)>,
    /// Wait longer than the client's default.
    pub timeout: Option<Duration>,
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    /// For the server that the flags name.
    pub fn new(args: &ClientArgs) -> Result<Self, Failure> {
        let base = args.url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(Failure::usage(format!("{base:?} is not a URL"))
                .hint("write it with http:// or https://, for example http://127.0.0.1:7070"));
        }
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(args.timeout))
            .connect_timeout(Duration::from_secs(args.timeout.min(10)))
            .tcp_nodelay(true)
            .user_agent(concat!("tagfast/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Failure::new(format!("cannot make an HTTP client: {}", chain(&e))))?;
        Ok(Self { http, base, token: args.token.clone().filter(|t| !t.is_empty()) })
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The tenant of our token, as far as we can read it; without one the server's default.
    pub fn tenant(&self) -> Option<String> {
        let Some(token) = &self.token else { return Some("default".to_owned()) };
        tenant_of(token)
    }

    /// Calls and gives back the answer whatever its status; only a missing answer is an error.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        options: Options<'_>,
    ) -> Result<reqwest::Response, ClientError> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in options.headers {
            request = request.header(name, value);
        }
        if let Some(body) = options.body {
            request = request.header("content-type", "application/json").body(body);
        }
        if let Some(timeout) = options.timeout {
            request = request.timeout(timeout);
        }
        request.send().await.map_err(|e| self.error(&e))
    }

    /// Calls and reads a JSON answer; a problem is an error.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        options: Options<'_>,
    ) -> Result<Value, ClientError> {
        let response = self.send(method, path, options).await?;
        if !response.status().is_success() {
            return Err(problem_of(response).await);
        }
        let body = response.bytes().await.map_err(|e| self.error(&e))?;
        serde_json::from_slice(&body)
            .map_err(|e| ClientError::Strange(format!("the answer is not JSON: {e}")))
    }

    /// `GET` of a path.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, Options::default()).await
    }

    /// `POST` of a JSON body.
    pub async fn post(
        &self,
        path: &str,
        body: &Value,
        timeout: Option<Duration>,
    ) -> Result<Value, ClientError> {
        let body = Some(body.to_string().into_bytes());
        self.call(Method::POST, path, Options { body, timeout, ..Options::default() }).await
    }

    /// An error of the HTTP library in our words.
    pub fn error(&self, error: &reqwest::Error) -> ClientError {
        if error.is_connect() {
            return ClientError::Connect { url: self.base.clone(), detail: root(error) };
        }
        if error.is_timeout() {
            return ClientError::Interrupted(
                "the server did not answer in time (see --timeout)".to_owned(),
            );
        }
        if error.is_builder() {
            return ClientError::Strange(chain(error));
        }
        ClientError::Interrupted(chain(error))
    }
}

/// The problem in an answer that is no success.
pub async fn problem_of(response: reqwest::Response) -> ClientError {
    let status = response.status();
    let header = response
        .headers()
        .get("retry-after")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse().ok());
    let body = response.bytes().await.unwrap_or_default();
    let mut problem = match serde_json::from_slice::<Value>(&body) {
        Ok(value) => Problem::from_json(status.as_u16(), &value),
        Err(_) => Problem { status: status.as_u16(), ..Problem::default() },
    };
    if problem.detail.is_empty() {
        problem.detail = describe(status);
    }
    problem.retry_after = problem.retry_after.or(header.map(Duration::from_secs));
    ClientError::Problem(Box::new(problem))
}

fn describe(status: StatusCode) -> String {
    format!("the server answered {status}")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(&format!(": {e}"));
        source = e.source();
    }
    text
}

fn root(error: &dyn std::error::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(e) = last.source() {
        last = e;
    }
    last.to_string()
}

/// The `tenant` claim of a JWT, unverified: only to say early that a line is for somebody else.
fn tenant_of(token: &str) -> Option<String> {
    use base64::Engine as _;
    let payload = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&bytes).ok()?;
    claims.get("tenant")?.as_str().map(str::to_owned)
}

/// A query with a caret below the place where it breaks.
pub fn caret(query: &str, position: usize) -> String {
    let shown: String = query.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("  {shown}\n  {}^", " ".repeat(position.min(shown.chars().count())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_urls() {
        assert_eq!(encode("a/b+c%d::e é"), "a%2Fb%2Bc%25d%3A%3Ae%20%C3%A9");
    }

    #[test]
    fn the_caret_points_at_the_character() {
        assert_eq!(caret("日本 AND", 6), "  日本 AND\n        ^");
        assert_eq!(caret("a", 99), "  a\n   ^");
    }

    #[test]
    fn problems_say_what_to_do() {
        let body = serde_json::json!({"status": 501, "code": "not_in_this_mode", "detail": "failovers are not here"});
        let failure = Failure::from(ClientError::Problem(Box::new(Problem::from_json(501, &body))));
        assert_eq!(failure.exit, crate::failure::Exit::Failed);
        assert!(failure.message.contains("failovers are not here (not_in_this_mode)"));
        assert!(failure.hint.is_some());
    }

    #[test]
    fn only_what_can_succeed_later_is_retried() {
        for (status, retry) in
            [(400, false), (422, false), (429, true), (500, false), (503, true), (507, true)]
        {
            let problem = Problem { status, ..Problem::default() };
            assert_eq!(ClientError::Problem(Box::new(problem)).is_retryable(), retry, "{status}");
        }
    }

    #[test]
    fn the_tenant_is_read_from_the_token() {
        // {"tenant":"acme"}
        assert_eq!(tenant_of("x.eyJ0ZW5hbnQiOiJhY21lIn0.y").as_deref(), Some("acme"));
        assert_eq!(tenant_of("x"), None);
        assert_eq!(tenant_of("x.%%%.y"), None);
    }
}
