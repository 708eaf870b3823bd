//! The few calls that are made, each with a deadline.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Connecting.
const CONNECT: Duration = Duration::from_secs(2);
/// A search.
const SEARCH: Duration = Duration::from_secs(5);
/// A batch of documents, a refresh, a change of the index.
const CHANGE: Duration = Duration::from_secs(30);

/// How the server is reached.
#[derive(Debug, Clone)]
pub struct OpenSearchOptions {
    /// For example `http://127.0.0.1:9200`; a user and password in it are used.
    pub url: String,
    /// The alias that is read and written; the indices behind it are named after it.
    pub alias: String,
    /// Shards of an index that is made. Too few: one server holds too much; too many: every search
    /// asks all of them.
    pub shards: u32,
}

/// Why a call was not answered as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nothing came, or not in time.
    #[error("OpenSearch does not answer: {0}")]
    Silent(String),
    /// The server says no.
    #[error("OpenSearch answers {status}: {reason}")]
    Refused { status: StatusCode, reason: String },
    /// An answer that cannot be used.
    #[error("OpenSearch's answer cannot be used: {0}")]
    Odd(String),
}

impl Failure {
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Silent(_) | Self::Odd(_) => None,
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        // The chain names what really happened; the outermost says only which request it was.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = cause.to_string();
            source = cause.source();
        }
        Self::Silent(if error.is_timeout() { "no answer in time".to_owned() } else { text })
    }
}

pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    pub(super) options: OpenSearchOptions,
}

impl Client {
    pub(super) fn new(options: OpenSearchOptions) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .no_proxy()
            .build()?;
        Ok(Self { http, url: options.url.trim_end_matches('/').to_owned(), options })
    }

    /// The alias of an index that is being filled.
    pub(super) fn next_alias(&self) -> String {
        format!("{}-next", self.options.alias)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
        limit: Duration,
    ) -> Result<Value, Failure> {
        let mut request = self.http.request(method, format!("{}/{path}", self.url)).timeout(limit);
        if let Some((kind, bytes)) = body {
            request = request.header("content-type", kind).body(bytes);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        if !status.is_success() {
            let reason: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let error = &reason["error"];
            let text = |v: &Value| v.as_str().map(str::to_owned);
            let known = text(&error["reason"]).or_else(|| text(error));
            let reason = known
                .unwrap_or_else(|| String::from_utf8_lossy(&bytes).chars().take(300).collect());
            let kind = text(&error["type"]).map(|kind| format!("{kind}: ")).unwrap_or_default();
            return Err(Failure::Refused { status, reason: format!("{kind}{reason}") });
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|e| Failure::Odd(e.to_string()))
    }

    /// Asks for something.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None, SEARCH).await
    }

    /// Asks for something that a slow answer does not make worthless.
    pub(super) async fn get_patiently(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None, CHANGE).await
    }

    /// Changes something.
    pub(super) async fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.send(method, path, body, CHANGE).await
    }

    /// Writes documents to what an alias leads to.
    pub(super) async fn bulk(&self, alias: &str, lines: Vec<u8>) -> Result<Value, Failure> {
        let path =
            format!("{alias}/_bulk?require_alias=true&filter_path=items.*.status,items.*.error");
        self.send(Method::POST, &path, Some(("application/x-ndjson", lines)), CHANGE).await
    }

    /// Removes documents, so that the next search does not find them.
    pub(super) async fn remove(&self, lines: Vec<u8>) -> Result<Value, Failure> {
        let path = "_bulk?refresh=true&filter_path=items.*.status,items.*.error";
        self.send(Method::POST, path, Some(("application/x-ndjson", lines)), CHANGE).await
    }

    /// Searches; an answer that lacks a shard or ran out of time is a failure.
    pub(super) async fn search(&self, body: &Value) -> Result<Value, Failure> {
        let path = format!("{}/_search?allow_partial_search_results=false", self.options.alias);
        let body = Some(("application/json", body.to_string().into_bytes()));
        let answer = self.send(Method::POST, &path, body, SEARCH).await?;
        if answer["timed_out"] == json!(true) || answer["_shards"]["failed"].as_u64() != Some(0) {
            return Err(Failure::Odd(format!("not all shards answered: {}", answer["_shards"])));
        }
        Ok(answer)
    }

    /// Contents with tags.
    pub(super) async fn count(&self) -> Result<u64, Failure> {
        let body = json!({"query": {"term": {"gone": false}}});
        let path = format!("{}/_count", self.options.alias);
        let body = Some(("application/json", body.to_string().into_bytes()));
        let answer = self.send(Method::POST, &path, body, SEARCH).await?;
        answer["count"].as_u64().ok_or_else(|| Failure::Odd("a count without a number".to_owned()))
    }
}
