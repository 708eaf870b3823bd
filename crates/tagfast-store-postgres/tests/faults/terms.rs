//! The leader terms of a cluster, polled from etcd beside the load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support;

type Seen = Arc<Mutex<Vec<(u64, Duration)>>>;

/// Polls the leader key of a cluster.
pub(crate) struct Terms {
    scope: &'static str,
    seen: Seen,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Terms {
    /// Polls every 20 ms; `began` is time 0 of the history.
    pub(crate) fn watch(scope: &'static str, began: Instant) -> Self {
        let (seen, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                // etcd may be frozen; the next poll finds what this one missed.
                if let Some(found) = range(&format!("/service/{scope}/leader"), false).await
                    && let Some(term) =
                        found["kvs"][0]["create_revision"].as_str().and_then(|r| r.parse().ok())
                {
                    let mut noted = noted.lock();
                    if noted.last().is_none_or(|(known, _)| *known != term) {
                        noted.push((term, began.elapsed()));
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { scope, seen, stop, task }
    }

    /// When a term was first seen after `since`.
    pub(crate) fn seen_after(&self, since: Duration) -> Option<Duration> {
        self.seen.lock().iter().map(|(_, at)| *at).find(|at| *at > since)
    }

    /// The terms in their order, by the ids of their epochs, and the ordinals of all epochs. A term
    /// in which no epoch was minted has the id 0.
    pub(crate) async fn end(self) -> (Vec<(u128, Duration)>, BTreeMap<u128, u64>) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("no panic");
        let found = range(&format!("/tagfast/v1/{}/epochs/", self.scope), true)
            .await
            .expect("etcd answers in the end");
        let (mut by_term, mut ordinals) = (BTreeMap::new(), BTreeMap::new());
        for kv in found["kvs"].as_array().into_iter().flatten() {
            let bytes = STANDARD.decode(kv["value"].as_str().expect("a value")).expect("base64");
            let epoch: Value = serde_json::from_slice(&bytes).expect("an epoch");
            let id = u128::from_str_radix(epoch["id"].as_str().expect("an id"), 16)
                .expect("hexadecimal");
            by_term.insert(epoch["term"].as_u64().expect("a revision"), id);
            ordinals.insert(id, epoch["ordinal"].as_u64().expect("an ordinal"));
        }
        let seen = std::mem::take(&mut *self.seen.lock());
        (
            seen.into_iter()
                .map(|(term, at)| (by_term.get(&term).copied().unwrap_or(0), at))
                .collect(),
            ordinals,
        )
    }
}

/// Whether no one holds a cluster's leader key. False, too, when etcd does not answer.
#[cfg(feature = "full")]
pub(crate) async fn is_leaderless(scope: &str) -> bool {
    let found = range(&format!("/service/{scope}/leader"), false).await;
    found.is_some_and(|found| found["header"].is_object() && found["kvs"].is_null())
}

/// What Patroni has written of a cluster's timelines; empty: nothing yet.
#[cfg(feature = "full")]
pub(crate) async fn patroni_history(scope: &str) -> String {
    let found = range(&format!("/service/{scope}/history"), false).await;
    let value = found.and_then(|found| found["kvs"][0]["value"].as_str().map(str::to_owned));
    value.unwrap_or_default()
}

async fn range(key: &str, prefix: bool) -> Option<Value> {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut()? += 1;
    let end = if prefix { STANDARD.encode(end) } else { String::new() };
    let body = json!({"key": STANDARD.encode(key), "range_end": end});
    let request =
        reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(500)).build().ok()?;
    request
        .post(format!("{}/v3/kv/range", support::etcd()))
        .json(&body)
        .send()
        .await
        .ok()?
        .json()
        .await
        .ok()
}
