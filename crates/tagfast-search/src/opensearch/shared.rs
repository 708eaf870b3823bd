//! How far the indexers of all processes are, so that each process knows how old the whole index
//! is.
//!
//! Each indexer writes the moments of its partitions into a document of its own, each process reads
//! all of them; both once a second. Of a partition the newest moment counts: whoever had it before
//! was no further. How it fails: while the server is away nothing is searched either; moments that
//! are not written make the index look older than it is, never newer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tagfast_domain::UnixMillis;
use tagfast_events::{Partition, Visible};
use tokio::task::JoinHandle;

use super::bulk;
use super::client::{Client, Failure};

const EVERY: Duration = Duration::from_secs(1);
/// Documents of processes that were not heard of for longer are removed.
const FORGET_MS: i64 = 86_400_000;
/// Processes that are read at most.
const PROCESSES: usize = 1000;

/// The moments of all partitions, as far as they are known here.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Partitions that the bus has; 0: nobody but this process indexes.
    total: u16,
    own: Visible,
    others: BTreeMap<Partition, UnixMillis>,
}

impl Shared {
    pub(super) fn see(&mut self, visible: &Visible) {
        self.own = visible.clone();
    }

    /// Everything committed before this is visible in the whole index; none while some partition is
    /// unknown.
    pub(super) fn oldest(&self) -> Option<UnixMillis> {
        if self.total == 0 {
            return self.own.oldest();
        }
        let moment = |n: u16| {
            let (own, other) =
                (self.own.partitions.get(&Partition(n)), self.others.get(&Partition(n)));
            own.max(other).copied()
        };
        (0..self.total).map(moment).collect::<Option<Vec<_>>>()?.into_iter().min()
    }
}

/// Writes and reads moments until it is dropped.
pub struct SharedProgress(JoinHandle<()>);

impl Drop for SharedProgress {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn spawn(
    client: Arc<Client>,
    shared: Arc<Mutex<Shared>>,
    owner: String,
    partitions: u16,
    now: impl Fn() -> UnixMillis + Send + 'static,
    seen: impl Fn(UnixMillis) + Send + 'static,
) -> SharedProgress {
    lock(&shared).total = partitions;
    SharedProgress(tokio::spawn(async move {
        let (mut made, mut failing, mut due) = (false, false, tokio::time::interval(EVERY));
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            match round(&client, &shared, &owner, now(), &mut made).await {
                Ok(()) => failing = false,
                Err(error) => {
                    made = false;
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "how far the indexers of other processes are is not known for now");
                    }
                }
            }
            if let Some(oldest) = lock(&shared).oldest() {
                seen(oldest);
            }
        }
    }))
}

async fn round(
    client: &Client,
    shared: &Mutex<Shared>,
    owner: &str,
    now: UnixMillis,
    made: &mut bool,
) -> Result<(), Failure> {
    let index = format!("{}-progress", client.options.alias);
    if !*made {
        let definition = json!({
            "settings": {"number_of_shards": 1, "refresh_interval": "500ms"},
            "mappings": {"dynamic": "strict", "properties": {
                "at": {"type": "long"}, "visible": {"type": "object", "enabled": false},
            }},
        });
        match client.change(Method::PUT, &index, Some(&definition)).await {
            Ok(_) => {}
            // It is there.
            Err(failure) if failure.status() == Some(reqwest::StatusCode::BAD_REQUEST) => {}
            Err(failure) => return Err(failure),
        }
        bulk::remove(client, &index, &json!({"range": {"at": {"lt": now - FORGET_MS}}})).await?;
        *made = true;
    }
    let own = lock(shared).own.partitions.clone();
    if !own.is_empty() {
        let visible: BTreeMap<String, UnixMillis> =
            own.iter().map(|(p, at)| (p.0.to_string(), *at)).collect();
        let document = json!({"at": now, "visible": visible});
        client.change(Method::PUT, &format!("{index}/_doc/{owner}"), Some(&document)).await?;
    }
    let all = json!({"size": PROCESSES, "sort": [{"at": "desc"}]});
    let answer = client.change(Method::POST, &format!("{index}/_search"), Some(&all)).await?;
    let mut others = BTreeMap::new();
    for hit in answer["hits"]["hits"].as_array().into_iter().flatten() {
        for (partition, at) in hit["_source"]["visible"].as_object().into_iter().flatten() {
            let (Ok(partition), Some(at)) = (partition.parse(), Value::as_i64(at)) else {
                continue;
            };
            let known = others.entry(Partition(partition)).or_insert(at);
            *known = at.max(*known);
        }
    }
    lock(shared).others = others;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(all: &[(u16, UnixMillis)]) -> BTreeMap<Partition, UnixMillis> {
        all.iter().map(|(p, at)| (Partition(*p), *at)).collect()
    }

    #[test]
    fn the_whole_index_is_as_old_as_its_oldest_partition() {
        let mut shared = Shared { total: 3, ..Shared::default() };
        shared.see(&Visible { partitions: moments(&[(0, 9)]), complete: true });
        shared.others = moments(&[(0, 5), (1, 7)]);
        assert_eq!(shared.oldest(), None, "of partition 2 nothing is known");
        shared.others = moments(&[(0, 5), (1, 7), (2, 8)]);
        assert_eq!(shared.oldest(), Some(7));
        let alone = Shared {
            own: Visible { partitions: moments(&[(4, 9)]), complete: true },
            ..Shared::default()
        };
        assert_eq!(alone.oldest(), Some(9), "who shares with nobody knows its own");
    }
}
