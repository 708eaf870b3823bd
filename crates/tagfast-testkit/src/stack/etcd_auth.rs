//! Authentication of etcd, turned on and off while it runs. Patroni knows the password from its
//! start, so that only the service meets the refusal.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::change::Change;
use super::info::StackInfo;
use crate::http::Client;

/// etcd's user; the first one must have this name.
pub(super) const USER: &str = "root";
/// The user's password.
pub(super) const PASSWORD: &str = "stack-password";

struct Etcd {
    client: Client,
    /// Proves who asks; empty while no one must.
    token: String,
}

impl Etcd {
    fn call(&mut self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let headers = [("authorization", self.token.as_str())];
        let headers = if self.token.is_empty() { &[][..] } else { &headers[..] };
        let answer = self.client.request("POST", path, headers, Some(&body.to_string()))?;
        Ok((answer.status, answer.json()))
    }

    fn expect(&mut self, path: &str, body: &Value) -> Result<Value> {
        let (status, answer) = self.call(path, body)?;
        ensure!(status == 200, "etcd answered {status} to {path}: {answer}");
        Ok(answer)
    }
}

/// Turns authentication on or off.
pub(super) fn change(info: &StackInfo, change: Change) -> Result<()> {
    let server = info.etcd.first().context("etcd is not part of this stack")?;
    let client = Client::new(server.direct).with_timeout(Duration::from_secs(10));
    let etcd = &mut Etcd { client, token: String::new() };
    let root = json!({"name": USER, "password": PASSWORD});
    match change {
        Change::Begin => {
            etcd.expect("/v3/auth/user/add", &root)?;
            etcd.expect("/v3/auth/role/add", &json!({"name": "root"}))?;
            etcd.expect("/v3/auth/user/grant", &json!({"user": "root", "role": "root"}))?;
            etcd.expect("/v3/auth/enable", &json!({})).map(drop)
        }
        Change::End => {
            let answer = etcd.expect("/v3/auth/authenticate", &root)?;
            etcd.token = answer["token"].as_str().context("etcd gave no token")?.to_owned();
            etcd.expect("/v3/auth/disable", &json!({}))?;
            etcd.token.clear();
            etcd.expect("/v3/auth/user/delete", &json!({"name": "root"}))?;
            etcd.expect("/v3/auth/role/delete", &json!({"role": "root"})).map(drop)
        }
    }
}
