//! Users of etcd: turned on for a stack whose servers ask for passwords, turned on and off while
//! etcd runs, and given other passwords.
//!
//! Patroni knows the administrator's password from its start, so that only the service meets a
//! refusal.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::auth::AuthInfo;
use super::change::Change;
use super::info::StackInfo;
use crate::http::Client;

/// etcd's administrator, who is Patroni too; the first user must have this name.
const ROOT: &str = "root";
/// The administrator's password in a stack that was started without authentication.
const ROOT_PASSWORD: &str = "stack-password";
const TIMEOUT: Duration = Duration::from_secs(10);

/// Patroni's login. While etcd has no users it does not ask for it.
pub(super) fn patroni_login(auth: Option<&AuthInfo>) -> (&'static str, &str) {
    (ROOT, auth.map_or(ROOT_PASSWORD, |auth| &auth.etcd_root))
}

struct Etcd {
    client: Client,
    /// Proves who asks; empty while no one must.
    token: String,
}

impl Etcd {
    fn new(address: SocketAddr) -> Self {
        Self { client: Client::new(address).with_timeout(TIMEOUT), token: String::new() }
    }

    fn call(&mut self, path: &str, body: &Value) -> Result<Value> {
        let headers = [("authorization", self.token.as_str())];
        let headers = if self.token.is_empty() { &[][..] } else { &headers[..] };
        let answer = self.client.request("POST", path, headers, Some(&body.to_string()))?;
        ensure!(
            answer.status == 200,
            "etcd answered {} to {path}: {}",
            answer.status,
            answer.text()
        );
        Ok(answer.json())
    }

    fn log_in(&mut self, password: &str) -> Result<()> {
        let root = json!({"name": ROOT, "password": password});
        let answer = self.call("/v3/auth/authenticate", &root)?;
        self.token = answer["token"].as_str().context("etcd gave no token")?.to_owned();
        Ok(())
    }

    fn add_root(&mut self, password: &str) -> Result<()> {
        self.call("/v3/auth/user/add", &json!({"name": ROOT, "password": password}))?;
        self.call("/v3/auth/role/add", &json!({"name": ROOT}))?;
        self.call("/v3/auth/user/grant", &json!({"user": ROOT, "role": ROOT})).map(drop)
    }

    fn enable(&mut self) -> Result<()> {
        self.call("/v3/auth/enable", &json!({})).map(drop)
    }
}

/// Makes etcd ask for users: its administrator, and `user`, the service, which may read what
/// Patroni writes and write its own keys.
pub(super) fn enable_with_service(etcd: SocketAddr, auth: &AuthInfo, user: &str) -> Result<()> {
    let mut etcd = Etcd::new(etcd);
    etcd.add_root(&auth.etcd_root)?;
    etcd.call("/v3/auth/user/add", &json!({"name": user, "password": auth.service}))?;
    etcd.call("/v3/auth/role/add", &json!({"name": user}))?;
    for (kind, prefix) in [("READ", "/service/"), ("READWRITE", "/tagfast/v1/")] {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let (key, range_end) = (STANDARD.encode(prefix), STANDARD.encode(end));
        let perm = json!({"permType": kind, "key": key, "range_end": range_end});
        etcd.call("/v3/auth/role/grant", &json!({"name": user, "perm": perm}))?;
    }
    etcd.call("/v3/auth/user/grant", &json!({"user": user, "role": user}))?;
    etcd.enable()
}

/// Gives a user a new password.
pub(super) fn change_password(
    etcd: SocketAddr,
    auth: &AuthInfo,
    user: &str,
    new: &str,
) -> Result<()> {
    let mut etcd = Etcd::new(etcd);
    etcd.log_in(&auth.etcd_root)?;
    etcd.call("/v3/auth/user/changepw", &json!({"name": user, "password": new})).map(drop)
}

/// Turns authentication on or off in a stack that was started without it.
pub(super) fn change(info: &StackInfo, change: Change) -> Result<()> {
    let server = info.etcd.first().context("etcd is not part of this stack")?;
    let mut etcd = Etcd::new(server.direct);
    match change {
        Change::Begin => {
            etcd.add_root(ROOT_PASSWORD)?;
            etcd.enable()
        }
        Change::End => {
            etcd.log_in(ROOT_PASSWORD)?;
            etcd.call("/v3/auth/disable", &json!({}))?;
            etcd.token.clear();
            etcd.call("/v3/auth/user/delete", &json!({"name": ROOT}))?;
            etcd.call("/v3/auth/role/delete", &json!({"role": ROOT})).map(drop)
        }
    }
}
