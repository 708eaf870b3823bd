//! The requests of this engine, each with a timeout.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tagfast_resilience::Address;

use crate::error::RequestError;

/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a search.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a batch of documents, a refresh or a change of the index.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest reason of a rejection that is repeated, in characters.
const REASON_CHARS_MAX: usize = 300;

/// Address and layout of the index.
#[derive(Debug, Clone)]
pub struct OpenSearchOptions {
    /// URL of the server, for example `http://127.0.0.1:9200`; may contain a user and password.
    pub url: Address,
    /// Alias through which the index is read and written; indices are named after it.
    pub alias: String,
    /// Number of shards of a new index. Too few: one server holds too much. Too many: every search
    /// visits all of them.
    pub shards: u32,
}

/// HTTP client of one OpenSearch server.
pub(crate) struct Client {
    http: reqwest::Client,
    url: Address,
    pub(crate) options: OpenSearchOptions,
}

impl Client {
    pub(crate) fn new(options: OpenSearchOptions) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .no_proxy()
            .build()?;
        Ok(Self { http, url: Address::new(options.url.expose().trim_end_matches('/')), options })
    }

    /// Alias of the index that a rebuild fills.
    pub(crate) fn next_alias(&self) -> String {
        format!("{}-next", self.options.alias)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
        timeout: Duration,
    ) -> Result<Value, RequestError> {
        let mut request =
            self.http.request(method, format!("{}/{path}", self.url.expose())).timeout(timeout);
        if let Some((kind, bytes)) = body {
            request = request.header("content-type", kind).body(bytes);
        }
        let response = request.send().await?;
        let status = response.status();
        let bytes = response.bytes().await?;
        if !status.is_success() {
            let reason: Value = tagfast_json::from_slice(&bytes).unwrap_or_default();
            let error = &reason["error"];
            let text = |v: &Value| v.as_str().map(str::to_owned);
            let known = text(&error["reason"]).or_else(|| text(error));
            // Of a different server nothing is repeated: it may echo the request's password.
            let reason = known.unwrap_or_else(|| "the answer is not OpenSearch's".to_owned());
            let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
            let kind = text(&error["type"]).map(|kind| format!("{kind}: ")).unwrap_or_default();
            return Err(RequestError::Rejected { status, reason: format!("{kind}{reason}") });
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        tagfast_json::from_slice(&bytes).map_err(|e| RequestError::BadResponse(e.to_string()))
    }

    /// Reads with the timeout of searches.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, RequestError> {
        self.send(Method::GET, path, None, SEARCH_TIMEOUT).await
    }

    /// Reads with the timeout of writes: a late response is still useful.
    pub(crate) async fn get_slow(&self, path: &str) -> Result<Value, RequestError> {
        self.send(Method::GET, path, None, WRITE_TIMEOUT).await
    }

    /// Sends a request that changes something, with an optional JSON body.
    pub(crate) async fn write(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, RequestError> {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.send(method, path, body, WRITE_TIMEOUT).await
    }

    /// Writes documents to the index behind an alias.
    pub(crate) async fn bulk(&self, alias: &str, lines: Vec<u8>) -> Result<Value, RequestError> {
        let path =
            format!("{alias}/_bulk?require_alias=true&filter_path=items.*.status,items.*.error");
        self.send(Method::POST, &path, Some(("application/x-ndjson", lines)), WRITE_TIMEOUT).await
    }

    /// Removes documents and refreshes, so that the next search does not find them.
    pub(crate) async fn remove(&self, lines: Vec<u8>) -> Result<Value, RequestError> {
        let path = "_bulk?refresh=true&filter_path=items.*.status,items.*.error";
        self.send(Method::POST, path, Some(("application/x-ndjson", lines)), WRITE_TIMEOUT).await
    }

    /// Searches; a response that lacks a shard or timed out is an error.
    pub(crate) async fn search(&self, body: &Value) -> Result<Value, RequestError> {
        let path = format!("{}/_search?allow_partial_search_results=false", self.options.alias);
        let body = Some(("application/json", body.to_string().into_bytes()));
        let response = self.send(Method::POST, &path, body, SEARCH_TIMEOUT).await?;
        let shards = &response["_shards"];
        if response["timed_out"] == json!(true) || shards["failed"].as_u64() != Some(0) {
            return Err(RequestError::BadResponse(format!("not all shards answered: {shards}")));
        }
        Ok(response)
    }

    /// Counts the contents with tags.
    pub(crate) async fn count(&self) -> Result<u64, RequestError> {
        let body = json!({"query": {"term": {"gone": false}}});
        let path = format!("{}/_count", self.options.alias);
        let body = Some(("application/json", body.to_string().into_bytes()));
        let response = self.send(Method::POST, &path, body, SEARCH_TIMEOUT).await?;
        response["count"]
            .as_u64()
            .ok_or_else(|| RequestError::BadResponse("a count without a number".to_owned()))
    }
}
