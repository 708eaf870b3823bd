//! The requests of this engine, each with a timeout.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tagfast_resilience::{Address, Credential};

use crate::error::RequestError;

/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a search.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a batch of documents, a refresh or a change of the index.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The server's name where it refuses a password.
const SERVER: &str = "OpenSearch";
/// What the response to a batch is reduced to by the server. Without the items' own fields, an
/// answer to 500 documents is 100 kB.
const BULK_FILTER: &str = "items.*._index,items.*.status,items.*.error.type,items.*.error.reason";

/// Longest reason of a rejection that is repeated, in characters.
const REASON_CHARS_MAX: usize = 300;

/// A user of OpenSearch.
#[derive(Debug, Clone)]
pub struct OpenSearchLogin {
    /// The user name.
    pub user: String,
    /// The password; a changed one is used by the next request.
    pub password: Credential,
}

/// Address and layout of the index.
#[derive(Debug, Clone)]
pub struct OpenSearchOptions {
    /// URL of the server, for example `http://127.0.0.1:9200`; may contain a user and password.
    pub url: Address,
    /// User and password in place of the URL's; `None`: the URL's, if it has some.
    pub login: Option<OpenSearchLogin>,
    /// Alias through which the index is read and written; indices are named after it.
    pub alias: String,
    /// Number of shards of a new index. Too few: one server holds too much. Too many: every search
    /// visits all of them.
    pub shards: u32,
}

/// A URL without its user and password.
fn without_user(url: &str) -> String {
    let Ok(mut parsed) = reqwest::Url::parse(url) else { return url.to_owned() };
    let cleared = parsed.set_username("").and_then(|()| parsed.set_password(None));
    match cleared {
        Ok(()) => parsed.as_str().trim_end_matches('/').to_owned(),
        Err(()) => url.to_owned(),
    }
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
        let url = options.url.expose().trim_end_matches('/');
        let url = match &options.login {
            // The login is in place of the URL's.
            Some(_) => without_user(url),
            None => url.to_owned(),
        };
        Ok(Self { http, url: Address::new(url), options })
    }

    /// Alias of the index that a rebuild fills.
    pub(crate) fn next_alias(&self) -> String {
        format!("{}-next", self.options.alias)
    }

    /// The answer to a request with the newest password, or with the one before it if the server
    /// has not changed yet.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        mut body: Option<(&'static str, Vec<u8>)>,
        timeout: Duration,
    ) -> Result<reqwest::Response, RequestError> {
        let login = self.options.login.as_ref();
        let mut tried = login.map_or_else(Vec::new, |login| login.password.to_try());
        loop {
            let version = (!tried.is_empty()).then(|| tried.remove(0));
            let sent = if tried.is_empty() { body.take() } else { body.clone() };
            let url = format!("{}/{path}", self.url.expose());
            let mut request = self.http.request(method.clone(), url).timeout(timeout);
            if let Some((kind, bytes)) = sent {
                request = request.header("content-type", kind).body(bytes);
            }
            let Some((login, version)) = login.zip(version) else {
                return Ok(request.send().await?);
            };
            let request = request.basic_auth(&login.user, Some(version.value.expose()));
            let response = request.send().await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                login.password.accepted(SERVER, version.number);
                return Ok(response);
            }
            login.password.refused(SERVER, version.number);
            if tried.is_empty() {
                return Ok(response);
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
        timeout: Duration,
    ) -> Result<Value, RequestError> {
        let response = self.answer(method, path, body, timeout).await?;
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
            let kind = text(&error["type"]).unwrap_or_default();
            let reason = if kind.is_empty() { reason } else { format!("{kind}: {reason}") };
            return Err(RequestError::Rejected { status, kind, reason });
        }
        answer_of(&bytes)
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
        let path = format!("{alias}/_bulk?require_alias=true&filter_path={BULK_FILTER}");
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
        whole(self.send(Method::POST, &path, body, SEARCH_TIMEOUT).await?)
    }

    /// Counts the contents with tags; a response that lacks a shard is an error.
    pub(crate) async fn count(&self) -> Result<Value, RequestError> {
        let body = json!({"query": {"term": {"gone": false}}});
        let path = format!("{}/_count", self.options.alias);
        let body = Some(("application/json", body.to_string().into_bytes()));
        whole(self.send(Method::POST, &path, body, SEARCH_TIMEOUT).await?)
    }
}

/// Refuses a response that lacks a shard or timed out.
fn whole(response: Value) -> Result<Value, RequestError> {
    let shards = &response["_shards"];
    if response["timed_out"] == json!(true) || shards["failed"].as_u64() != Some(0) {
        return Err(RequestError::BadResponse(format!("not all shards answered: {shards}")));
    }
    Ok(response)
}

/// A good answer; without a body it is null.
fn answer_of(bytes: &[u8]) -> Result<Value, RequestError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    tagfast_json::from_slice(bytes).map_err(|e| RequestError::BadResponse(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_cut_off_or_says_two_things_is_bad() {
        let text = r#"{"hits":{"total":{"value":1,"relation":"eq"},"hits":[{"_id":"a"}]}}"#;
        assert_eq!(answer_of(text.as_bytes()).expect("readable")["hits"]["total"]["value"], 1);
        assert_eq!(answer_of(b"").expect("no body"), Value::Null);
        let cut = (1..text.len()).map(|part| text[..part].to_owned());
        let damaged = tagfast_json::testing::repeated_keys(text).into_iter().chain(cut);
        for damaged in damaged.chain(["<html>".to_owned(), format!("{text}{text}")]) {
            let error = answer_of(damaged.as_bytes()).expect_err(&damaged);
            assert!(matches!(error, RequestError::BadResponse(_)), "{damaged}: {error}");
        }
    }
}
