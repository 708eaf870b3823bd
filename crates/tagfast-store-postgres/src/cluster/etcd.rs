//! etcd over its JSON gateway: the leader key, its lease, the members, our epoch keys.
//!
//! An etcd that asks for a user gets a token with each call. A token is valid for minutes, and ends
//! when a user or role changes; a call that is refused for its token gets a new one and is sent
//! again, once. Nothing else is cached. The age of a lease counts from before the first
//! attempt, so that a renewal never makes a proof look newer than it is.
//!
//! How it fails: every call has a timeout; after a failure the next URL is tried. The URL that
//! answered last is tried first: a member that hangs, or has lost the others, costs one timeout. A
//! password that etcd refuses is offered every two seconds at most, because each offer costs etcd
//! much.

pub(crate) mod cluster_state;
pub(crate) mod repair_keys;
mod stored_epoch;
mod version;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};
use tagfast_domain::EpochOrdinal;
use tagfast_failover::{EpochRecord, MintCondition};
use tagfast_resilience::{Address, CredentialVersion, Secret};
use tokio::time::Instant;

use crate::cluster::roster::Roster;
use crate::options::{EtcdLogin, limit};

pub(crate) use stored_epoch::parse_id;
use stored_epoch::{from_json, to_json};

/// What etcd says to a call without a token, with one that has expired, and with one from before a
/// change of users or roles.
const NO_USER: [&str; 3] =
    ["user name is empty", "invalid auth token", "revision of auth store is old"];
/// The server's name where it refuses a password.
const SERVER: &str = "etcd";
/// What etcd says to a wrong user or password.
const WRONG_PASSWORD: &str = "invalid user ID or password";
/// What etcd says when the user's role lacks a right.
const DENIED: &str = "permission denied";
/// Longest message of etcd that is repeated, in characters.
const REFUSAL_CHARS_MAX: usize = 300;

/// Why a request to etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No URL answered.
    #[error("etcd at {url} does not answer")]
    Unreachable {
        /// The URL that was tried last.
        url: Address,
        /// The client's error.
        #[source]
        source: reqwest::Error,
    },
    /// The client cannot be built, or an answer ended early.
    #[error("the HTTP client of etcd failed")]
    Client(#[source] reqwest::Error),
    /// etcd answered with an error.
    #[error("etcd refused: {0}")]
    Refused(String),
    /// The call carried no valid token.
    #[error(
        "authentication: etcd asks for a user ({0}); set store.etcd_user and \
         store.etcd_password_file"
    )]
    NoUser(String),
    /// etcd does not know this user with this password.
    #[error(
        "authentication: etcd refuses user and password; look at store.etcd_user and \
         store.etcd_password_file"
    )]
    WrongPassword,
    /// The user's role lacks a right.
    #[error(
        "etcd denies it to this user ({0}); the role needs `read` on the prefix /service/ and \
         `readwrite` on the prefix /tagfast/v1/"
    )]
    Denied(String),
    /// The answer is not what the protocol says.
    #[error("etcd's answer cannot be read: {0}")]
    Unreadable(&'static str),
    /// `store.etcd` is empty.
    #[error("no etcd URL is configured")]
    NoUrl,
}

impl From<reqwest::Error> for EtcdError {
    fn from(error: reqwest::Error) -> Self {
        // The URL may hold a password.
        Self::Client(error.without_url())
    }
}

/// What etcd said when it refused a request: its own words only, because a different server may
/// repeat the request with its password.
fn refusal(status: reqwest::StatusCode, body: &str) -> EtcdError {
    let body: Value = tagfast_json::from_str(body).unwrap_or_default();
    let words = body["error"].as_str().or_else(|| body["message"].as_str());
    let words = words.map(|words| words.chars().take(REFUSAL_CHARS_MAX).collect::<String>());
    match words {
        Some(words) if NO_USER.iter().any(|known| words.contains(known)) => {
            EtcdError::NoUser(words)
        }
        Some(words) if words.contains(WRONG_PASSWORD) => EtcdError::WrongPassword,
        Some(words) if words.contains(DENIED) => EtcdError::Denied(words),
        Some(words) => EtcdError::Refused(words),
        None => EtcdError::Refused(format!("it answered {status}")),
    }
}

/// The client.
#[derive(Clone)]
pub(crate) struct Etcd {
    http: reqwest::Client,
    urls: Vec<Address>,
    /// The place of the URL that answered last.
    preferred: Arc<AtomicUsize>,
    /// `None`: calls carry no token.
    session: Option<Arc<Session>>,
}

/// Who this process is in etcd, and its token. All clusters share it.
struct Session {
    login: EtcdLogin,
    /// Held while a token is asked for because there is none.
    state: tokio::sync::Mutex<SessionState>,
    /// Held while a changed password is offered.
    following: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct SessionState {
    /// `None`: none was asked for, or etcd refuses to give one.
    token: Option<Token>,
    /// Tokens so far.
    tokens: u64,
    /// When etcd refused the newest password, and its version; `None`: it did not.
    refused: Option<(Instant, u64)>,
}

impl SessionState {
    /// Takes a token that was given for this version of the password.
    fn put(&mut self, text: Secret, version: u64) -> Token {
        self.tokens += 1;
        let token = Token { number: self.tokens, version, text };
        self.token = Some(token.clone());
        token
    }

    /// Whether etcd refused this version a moment ago.
    fn was_refused(&self, number: u64) -> bool {
        self.refused.is_some_and(|(at, refused)| {
            refused == number && at.elapsed() < limit::ETCD_LOGIN_RETRY_INTERVAL
        })
    }
}

/// A token; a new one has a new number.
#[derive(Clone)]
struct Token {
    number: u64,
    /// Of the password that it was given for.
    version: u64,
    text: Secret,
}

fn epoch_key(scope: &str) -> String {
    format!("/tagfast/v1/{scope}/epoch")
}

fn history_key(scope: &str, ordinal: EpochOrdinal) -> String {
    format!("/tagfast/v1/{scope}/epochs/{:016}", ordinal.0)
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_u64()).unwrap_or(0)
}

/// A key and its value in a range answer.
struct KeyValue {
    key: String,
    value: Vec<u8>,
    create_revision: u64,
    mod_revision: u64,
    lease: u64,
}

fn key_values(answer: &Value) -> Result<Vec<KeyValue>, EtcdError> {
    let bytes = |value: &Value| {
        STANDARD
            .decode(value.as_str().unwrap_or_default())
            .map_err(|_| EtcdError::Unreadable("base64"))
    };
    answer["kvs"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .map(|kv| {
            Ok(KeyValue {
                key: String::from_utf8_lossy(&bytes(&kv["key"])?).into_owned(),
                value: bytes(&kv["value"])?,
                create_revision: number(&kv["create_revision"]),
                mod_revision: number(&kv["mod_revision"]),
                lease: number(&kv["lease"]),
            })
        })
        .collect()
}

/// The end of the range of keys that begin with a prefix.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The HTTP client for etcd and Patroni.
pub(crate) fn http_client() -> Result<reqwest::Client, EtcdError> {
    Ok(reqwest::Client::builder().timeout(limit::ETCD_TIMEOUT).no_proxy().build()?)
}

impl Etcd {
    pub(crate) fn new(urls: &[Address], login: Option<EtcdLogin>) -> Result<Self, EtcdError> {
        let urls = urls.iter().map(|u| Address::new(u.expose().trim_end_matches('/'))).collect();
        let session = login.map(|login| {
            Arc::new(Session {
                login,
                state: tokio::sync::Mutex::default(),
                following: tokio::sync::Mutex::default(),
            })
        });
        Ok(Self { http: http_client()?, urls, preferred: Arc::default(), session })
    }

    /// Makes a call; with a new token if etcd wants one.
    async fn call(&self, path: &str, body: &Value) -> Result<Value, EtcdError> {
        let Some(session) = &self.session else { return self.send(path, body, None).await };
        let token = session.state.lock().await.token.clone();
        match self.send(path, body, token.as_ref()).await {
            Err(EtcdError::NoUser(_)) => {
                let token =
                    self.renew_token(session, token.map_or(0, |token| token.number)).await?;
                self.send(path, body, Some(&token)).await
            }
            answered => answered,
        }
    }

    /// A newer token than number `old`: the one that another call got meanwhile, or a new one.
    async fn renew_token(&self, session: &Session, old: u64) -> Result<Token, EtcdError> {
        let mut state = session.state.lock().await;
        if let Some(token) = state.token.as_ref().filter(|token| token.number > old) {
            return Ok(token.clone());
        }
        // A token that is not valid any more is not used again.
        state.token = None;
        let password = &session.login.password;
        if state.was_refused(password.number()) {
            return Err(EtcdError::WrongPassword);
        }
        for version in password.to_try() {
            match self.log_in(&session.login, &version).await {
                Err(EtcdError::WrongPassword) => {}
                Ok(text) => return Ok(state.put(text, version.number)),
                Err(error) => return Err(error),
            }
        }
        state.refused = Some((Instant::now(), password.number()));
        Err(EtcdError::WrongPassword)
    }

    /// Offers a password that has changed while the token of the former one is still valid, so that
    /// a wrong one is known before it is needed. No call waits for it.
    pub(crate) async fn follow_password(&self) {
        let Some(session) = &self.session else { return };
        let password = &session.login.password;
        let known = session.state.lock().await.token.as_ref().map(|token| token.version);
        let Some(known) = known.filter(|version| *version != password.number()) else { return };
        // One of the clusters' tasks is enough.
        let Ok(_only) = session.following.try_lock() else { return };
        let newest = password.newest();
        match self.log_in(&session.login, &newest).await {
            Ok(text) => drop(session.state.lock().await.put(text, newest.number)),
            Err(EtcdError::WrongPassword) => password.accepted(SERVER, known),
            Err(error) => {
                let error = tagfast_resilience::ErrorChain(&error);
                tracing::debug!(%error, "etcd does not say whether it accepts the password");
            }
        }
    }

    /// The text of a token for this password.
    async fn log_in(
        &self,
        login: &EtcdLogin,
        version: &CredentialVersion<Secret>,
    ) -> Result<Secret, EtcdError> {
        let body = json!({"name": login.user, "password": version.value.expose()});
        let timeout = limit::ETCD_LOGIN_TIMEOUT;
        match self.send_within("/v3/auth/authenticate", &body, None, timeout).await {
            Ok(answer) => {
                let text = answer["token"].as_str().ok_or(EtcdError::Unreadable("a token"))?;
                login.password.accepted(SERVER, version.number);
                Ok(Secret::new(text.to_owned()))
            }
            Err(error) => {
                if matches!(error, EtcdError::WrongPassword) {
                    login.password.refused(SERVER, version.number);
                }
                Err(error)
            }
        }
    }

    async fn send(
        &self,
        path: &str,
        body: &Value,
        token: Option<&Token>,
    ) -> Result<Value, EtcdError> {
        self.send_within(path, body, token, limit::ETCD_TIMEOUT).await
    }

    /// Sends a request to the first URL that answers, beginning with the one that answered last.
    async fn send_within(
        &self,
        path: &str,
        body: &Value,
        token: Option<&Token>,
        timeout: Duration,
    ) -> Result<Value, EtcdError> {
        let mut failure = EtcdError::NoUrl;
        let first = self.preferred.load(Ordering::Relaxed);
        for place in (0..self.urls.len()).map(|n| (first + n) % self.urls.len()) {
            let url = &self.urls[place];
            let request = self.http.post(format!("{}{path}", url.expose()));
            let mut request = request.timeout(timeout).json(body);
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, token.text.expose());
            }
            match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    self.preferred.store(place, Ordering::Relaxed);
                    let bytes = answer.bytes().await?;
                    return tagfast_json::from_slice(&bytes)
                        .map_err(|_| EtcdError::Unreadable("an answer"));
                }
                Ok(answer) => {
                    let status = answer.status();
                    failure = refusal(status, &answer.text().await.unwrap_or_default());
                }
                // What another member said says more than the silence of this one.
                Err(error)
                    if matches!(failure, EtcdError::NoUrl | EtcdError::Unreachable { .. }) =>
                {
                    let source = error.without_url();
                    failure = EtcdError::Unreachable { url: url.clone(), source };
                }
                Err(_) => {}
            }
        }
        Err(failure)
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<KeyValue>, EtcdError> {
        let end = STANDARD.encode(prefix_end(prefix));
        let body = json!({"key": STANDARD.encode(prefix), "range_end": end});
        key_values(&self.call("/v3/kv/range", &body).await?)
    }

    /// The epochs of a cluster, oldest first.
    pub(crate) async fn history(&self, scope: &str) -> Result<Vec<EpochRecord>, EtcdError> {
        let entries = self.prefix(&format!("/tagfast/v1/{scope}/epochs/")).await?;
        entries.iter().map(|e| from_json(&e.value).map_err(EtcdError::Unreadable)).collect()
    }

    /// Replaces the roster if no other process has done so since it was read. False: one has.
    pub(crate) async fn put_roster(&self, scope: &str, roster: &Roster) -> Result<bool, EtcdError> {
        let key = STANDARD.encode(Roster::key(scope));
        let body = json!({
            "compare": [{"target": "MOD", "result": "EQUAL", "key": key,
                         "mod_revision": roster.mod_revision.to_string()}],
            "success": [{"request_put": {
                "key": key, "value": STANDARD.encode(json!(roster.names).to_string())}}],
        });
        Ok(self.call("/v3/kv/txn", &body).await?["succeeded"].as_bool().unwrap_or(false))
    }

    /// Puts a new epoch if the condition holds. False: a different node was faster, or the leader
    /// term has ended.
    pub(crate) async fn mint(
        &self,
        scope: &str,
        epoch: &EpochRecord,
        condition: &MintCondition,
    ) -> Result<bool, EtcdError> {
        let leader = STANDARD.encode(format!("/service/{scope}/leader"));
        let member = STANDARD.encode(&condition.leader_member);
        let value = STANDARD.encode(to_json(epoch));
        let key = STANDARD.encode(epoch_key(scope));
        let history = STANDARD.encode(history_key(scope, epoch.ordinal));
        let body = json!({
            "compare": [
                {"target": "CREATE", "result": "EQUAL", "key": leader,
                 "create_revision": condition.leader_create_revision.to_string()},
                {"target": "VALUE", "result": "EQUAL", "key": leader, "value": member},
                {"target": "MOD", "result": "EQUAL", "key": key,
                 "mod_revision": condition.epoch_mod_revision.to_string()},
            ],
            "success": [
                {"request_put": {"key": key, "value": value}},
                {"request_put": {"key": history, "value": value}},
            ],
        });
        Ok(self.call("/v3/kv/txn", &body).await?["succeeded"].as_bool().unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcd_says_about_users_is_told_apart() {
        let of = |words: &str| {
            let body = json!({"error": words, "code": 3, "message": words}).to_string();
            refusal(reqwest::StatusCode::BAD_REQUEST, &body)
        };
        for words in [
            "etcdserver: user name is empty",
            "etcdserver: invalid auth token",
            "etcdserver: revision of auth store is old",
        ] {
            let error = of(words);
            assert!(matches!(error, EtcdError::NoUser(_)), "{error}");
            assert!(error.to_string().contains("store.etcd_user"), "{error}");
        }
        let error = of("etcdserver: authentication failed, invalid user ID or password");
        assert!(matches!(error, EtcdError::WrongPassword), "{error}");
        let error = of("etcdserver: permission denied");
        assert!(error.to_string().contains("/tagfast/v1/"), "{error}");
        assert!(matches!(of("etcdserver: no leader"), EtcdError::Refused(_)));
    }
}
