//! The HTTP client of the commands: one call in, JSON or a typed error out.
//!
//! It fails with [`ClientError`], which says whether a retry can help; the commands turn it into a
//! [`CliError`].

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tagfast_resilience::Secret;
use tagfast_resilience::secret::redacted;

use crate::advice::in_words_of_the_command;
use crate::args::ClientArgs;
use crate::error::CliError;
use crate::proxy::Via;
use crate::terminal::width;

/// Characters that a path segment or a query value may hold: the unreserved ones of RFC 3986.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Longest wait for a connection.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// Percent-encodes one path segment or query value.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// A problem document.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Problem code; empty if the answer was no problem document.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// Offset of a syntax error in the query, in characters; `None` = not a syntax error.
    pub position: Option<usize>,
    /// What the query's parser expected at `position`; `None` = not a syntax error.
    pub expected: Option<String>,
    /// How long to wait before a retry; `None` = the server did not say.
    pub retry_after: Option<Duration>,
    /// Id of the request in the server's log; `None` = the server did not say.
    pub trace_id: Option<String>,
    /// The proxy that may have answered in the server's place; `None` = the server answered.
    pub(crate) via: Option<Via>,
}

impl Problem {
    /// Reads the problem of an answer or of a batch item; `status` is the fallback if the document
    /// has none.
    pub fn from_json(status: u16, body: &Value) -> Self {
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let number = |name: &str| body.get(name).and_then(Value::as_u64);
        Self {
            status: number("status").and_then(|s| u16::try_from(s).ok()).unwrap_or(status),
            code: text("code").unwrap_or_default(),
            detail: text("detail")
                .or_else(|| text("title"))
                .map(|detail| in_words_of_the_command(&detail))
                .unwrap_or_default(),
            position: number("position").and_then(|p| usize::try_from(p).ok()),
            expected: text("expected"),
            retry_after: number("retry_after_ms").map(Duration::from_millis),
            trace_id: text("trace_id"),
            via: None,
        }
    }

    /// Whether the same request can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.status, 408 | 429 | 503 | 507)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        if !self.code.is_empty() {
            write!(f, " ({})", self.code)?;
        }
        match &self.trace_id {
            Some(trace) if self.status >= 500 => write!(f, ", trace {trace}"),
            Some(_) | None => Ok(()),
        }
    }
}

/// Why a connection failed. Prints the deepest cause alone: the layers above it only repeat that a
/// connection failed.
#[derive(Debug)]
pub struct ConnectError(reqwest::Error);

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut deepest: &dyn std::error::Error = &self.0;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        std::fmt::Display::fmt(deepest, f)
    }
}

impl std::error::Error for ConnectError {}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot reach {url}{}", .via.as_ref().map(|v| format!(" {v}")).unwrap_or_default())]
    Connect {
        /// The server.
        url: String,
        /// The proxy in between; `None` = none.
        via: Option<Via>,
        /// The cause.
        #[source]
        source: ConnectError,
    },
    /// The connection ended early: the server may have executed the request.
    #[error("no answer")]
    Interrupted(#[source] reqwest::Error),
    /// No answer in time: the server may have executed the request.
    #[error("no answer: the server did not answer in time (see --timeout)")]
    Timeout,
    /// The answer ended in the middle.
    #[error("no answer: the last line is not whole")]
    Truncated,
    /// The server refused the request.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The request cannot be built.
    #[error("the request cannot be built")]
    InvalidRequest(#[source] reqwest::Error),
    /// The answer is not JSON, or not the expected JSON.
    #[error("{context}")]
    NotJson {
        /// Which answer.
        context: &'static str,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// The answer lacks something that this client needs.
    #[error("{0}")]
    UnexpectedAnswer(&'static str),
}

impl ClientError {
    /// Whether the same request can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Interrupted(_) | Self::Timeout | Self::Truncated => true,
            Self::Problem(problem) => problem.is_retryable(),
            Self::InvalidRequest(_) | Self::NotJson { .. } | Self::UnexpectedAnswer(_) => false,
        }
    }

    /// How long the server asks to wait before a retry; `None` = it did not say.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem(problem) => problem.retry_after,
            Self::Connect { .. }
            | Self::Interrupted(_)
            | Self::Timeout
            | Self::Truncated
            | Self::InvalidRequest(_)
            | Self::NotJson { .. }
            | Self::UnexpectedAnswer(_) => None,
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let failure = Self::new(error.to_string());
        match error {
            ClientError::Connect { source, via, .. } => {
                let hint = via.map_or_else(|| NOT_RUNNING.to_owned(), |via| via.hint());
                failure.with_source(source).with_code("unreachable").hint(hint)
            }
            ClientError::Interrupted(source) => {
                failure.with_source(source).with_code("no_answer").hint(MAY_BE_DONE)
            }
            ClientError::Timeout | ClientError::Truncated => {
                failure.with_code("no_answer").hint(MAY_BE_DONE)
            }
            ClientError::InvalidRequest(source) => failure.with_source(source).hint(WRONG_SERVER),
            ClientError::NotJson { source, .. } => {
                failure.with_source(source).with_code("not_tagfast").hint(WRONG_SERVER)
            }
            ClientError::UnexpectedAnswer(_) => failure.with_code("not_tagfast").hint(WRONG_SERVER),
            ClientError::Problem(problem) if problem.code.is_empty() => {
                let hint = problem.via.map_or_else(|| WRONG_SERVER.to_owned(), |via| via.hint());
                failure.with_code("not_tagfast").hint(hint)
            }
            ClientError::Problem(problem) => failure.with_code(problem.code),
        }
    }
}

const NOT_RUNNING: &str = "is the server running? start it with: tagfast serve \
                           (another address: --url or TAGFAST_URL)";
const MAY_BE_DONE: &str = "the request may have been done; repeating it is safe";
const WRONG_SERVER: &str = "is --url the address of a tagfast server?";

/// The parts of a request beside method and path.
#[derive(Debug, Clone, Default)]
pub struct RequestOptions<'a> {
    /// JSON body; `None` = no body.
    pub body: Option<Vec<u8>>,
    /// Additional headers.
    pub headers: Vec<(&'a str, String)>,
    /// Timeout of this request; `None` = the client's.
    pub timeout: Option<Duration>,
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Secret,
    /// The server's URL without its user and password.
    shown: String,
    token: Option<Secret>,
}

impl Client {
    /// A client of the server in `args`; connects at the first call.
    ///
    /// # Errors
    /// The URL is not usable, or the HTTP library cannot be set up.
    pub fn new(args: &ClientArgs) -> Result<Self, CliError> {
        let base = args.url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(CliError::usage(format!("{:?} is not a URL", redacted(&base)))
                .hint("write it with http:// or https://, for example http://127.0.0.1:7070"));
        }
        let timeout = Duration::from_secs(args.timeout);
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(CONNECT_TIMEOUT_MAX))
            .tcp_nodelay(true)
            .user_agent(concat!("tagfast/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| CliError::new("cannot make an HTTP client").with_source(e))?;
        let token = args.token.clone().filter(|token| !token.is_empty()).map(Secret::new);
        Ok(Self { http, shown: redacted(&base), base: Secret::new(base), token })
    }

    /// The server's URL as it may be shown and kept: without a slash at its end, and without a
    /// user and password.
    pub fn base(&self) -> &str {
        &self.shown
    }

    /// The tenant in the token, or the server's default without a token; `None` if the token cannot
    /// be read.
    pub fn tenant(&self) -> Option<String> {
        let Some(token) = &self.token else { return Some("default".to_owned()) };
        tenant_of(token.expose())
    }

    /// Sends a request and returns the answer whatever its status.
    ///
    /// # Errors
    /// Only a missing answer is an error.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        options: RequestOptions<'_>,
    ) -> Result<reqwest::Response, ClientError> {
        // The server demands JSON of every POST, also without a body.
        let is_post = method == Method::POST;
        let mut request = self.http.request(method, format!("{}{path}", self.base.expose()));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        for (name, value) in options.headers {
            request = request.header(name, value);
        }
        if options.body.is_some() || is_post {
            request = request.header("content-type", "application/json");
        }
        if let Some(body) = options.body {
            request = request.body(body);
        }
        if let Some(timeout) = options.timeout {
            request = request.timeout(timeout);
        }
        request.send().await.map_err(|e| self.classify(e))
    }

    /// Sends a request and parses the JSON answer.
    ///
    /// # Errors
    /// No answer, a problem document, or an answer that is not JSON.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        options: RequestOptions<'_>,
    ) -> Result<Value, ClientError> {
        let response = self.send(method, path, options).await?;
        if !response.status().is_success() {
            return Err(problem_of(response).await);
        }
        let body = response.bytes().await.map_err(|e| self.classify(e))?;
        tagfast_json::from_slice(&body)
            .map_err(|source| ClientError::NotJson { context: "the answer is not JSON", source })
    }

    /// `GET` of a path.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, RequestOptions::default()).await
    }

    /// `POST` of a JSON body; `timeout` = `None` keeps the client's.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn post(
        &self,
        path: &str,
        body: &Value,
        timeout: Option<Duration>,
    ) -> Result<Value, ClientError> {
        let body = Some(body.to_string().into_bytes());
        self.call(Method::POST, path, RequestOptions { body, timeout, ..RequestOptions::default() })
            .await
    }

    /// Classifies an error of the HTTP library.
    pub(crate) fn classify(&self, error: reqwest::Error) -> ClientError {
        if error.is_connect() {
            let via = Via::of(self.base.expose());
            ClientError::Connect { url: self.shown.clone(), via, source: ConnectError(error) }
        } else if error.is_timeout() {
            ClientError::Timeout
        } else if error.is_builder() {
            ClientError::InvalidRequest(error.without_url())
        } else {
            ClientError::Interrupted(error.without_url())
        }
    }
}

/// The problem in an answer that is no success.
pub(crate) async fn problem_of(response: reqwest::Response) -> ClientError {
    let status = response.status();
    let header = response
        .headers()
        .get("retry-after")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse().ok());
    let via = Via::of(response.url().as_str());
    let body = response.bytes().await.unwrap_or_default();
    let mut problem = match tagfast_json::from_slice::<Value>(&body) {
        Ok(value) => Problem::from_json(status.as_u16(), &value),
        Err(_) => Problem { status: status.as_u16(), ..Problem::default() },
    };
    if problem.code.is_empty() {
        problem.via = via;
    }
    if problem.detail.is_empty() {
        problem.detail = match &problem.via {
            Some(via) => format!("{status} was answered {via}"),
            None => describe(status),
        };
    }
    problem.retry_after = problem.retry_after.or(header.map(Duration::from_secs));
    ClientError::Problem(Box::new(problem))
}

fn describe(status: StatusCode) -> String {
    format!("the server answered {status}")
}

/// The `tenant` claim of a JWT, unverified: only to report early that an import line belongs to
/// another tenant.
fn tenant_of(token: &str) -> Option<String> {
    use base64::Engine as _;
    let payload = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = tagfast_json::from_slice(&bytes).ok()?;
    claims.get("tenant")?.as_str().map(str::to_owned)
}

/// A query with a caret below its character `position`, where a terminal shows it.
pub(crate) fn caret(query: &str, position: usize) -> String {
    let shown: String = query.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let before: String = shown.chars().take(position).collect();
    format!("  {shown}\n  {}^", " ".repeat(width(&before)))
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
        assert_eq!(caret("日本 AND", 6), "  日本 AND\n          ^");
        assert_eq!(caret("e\u{301} AND", 6), "  e\u{301} AND\n       ^");
        assert_eq!(caret("👩‍👩‍👧‍👦 (", 8), "  👩‍👩‍👧‍👦 (\n     ^");
        assert_eq!(caret("a", 99), "  a\n   ^");
    }

    #[test]
    fn problems_say_what_to_do() {
        let body = serde_json::json!({
            "status": 501, "code": "not_in_this_mode", "detail": "failovers are not here",
        });
        let error = CliError::from(ClientError::Problem(Box::new(Problem::from_json(501, &body))));
        assert_eq!(error.exit, crate::error::Exit::Failed);
        assert!(error.message.contains("failovers are not here (not_in_this_mode)"));
        assert_eq!(error.code(), "not_in_this_mode");
        let foreign = Problem { status: 502, ..Problem::default() };
        let error = CliError::from(ClientError::Problem(Box::new(foreign)));
        assert_eq!((error.code(), error.hint.as_deref()), ("not_tagfast", Some(WRONG_SERVER)));
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
