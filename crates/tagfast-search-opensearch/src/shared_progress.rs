//! Progress of the indexers of all processes, from which each process derives how old the whole
//! index is.
//!
//! Once a second each indexer writes the visible commit time of its partitions into a document of
//! its own, and each process reads all documents. The newest time of a partition counts: the
//! partition's previous owner was no further.
//!
//! How it fails: while the server is away, searches fail as well. Times that are not written make
//! the index look older than it is, never newer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tagfast_domain::UnixMillis;
use tagfast_events::{Partition, VisibleThrough};
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{ErrorChain, OutageLog};
use tokio::time::MissedTickBehavior;

use crate::bulk;
use crate::client::Client;
use crate::error::RequestError;

/// Interval between two exchanges of progress.
const SHARE_INTERVAL: Duration = Duration::from_secs(1);
/// Age in ms above which a partition of the index is named.
const PARTITION_AGE_MAX_MS: i64 = 5000;
/// Age in ms after which the document of a process is removed.
const PROCESS_TTL_MS: i64 = 86_400_000;
/// Maximum number of processes whose documents are read.
const PROCESSES_MAX: usize = 1000;

/// Visible commit times of all partitions, as far as this process knows them.
#[derive(Debug, Default)]
pub(crate) struct ProgressTable {
    /// Number of the bus's partitions; 0 if only this process indexes.
    partitions: u16,
    own: VisibleThrough,
    others: BTreeMap<Partition, UnixMillis>,
    /// What the last exchange found; `None` if nothing is wrong.
    problem: Option<String>,
}

impl ProgressTable {
    /// Stores the progress of this process.
    pub(crate) fn set_own(&mut self, visible: &VisibleThrough) {
        self.own = visible.clone();
    }

    /// Every write committed before this time (Unix ms) is visible in the whole index; `None` while
    /// the time of a partition is unknown.
    pub(crate) fn oldest(&self) -> Option<UnixMillis> {
        if self.partitions == 0 {
            return self.own.oldest();
        }
        self.oldest_partition().1
    }

    /// The partition with the oldest time, and that time; `None` if it is unknown.
    fn oldest_partition(&self) -> (Partition, Option<UnixMillis>) {
        let visible_through = |n: u16| {
            let partition = Partition(n);
            let (own, other) = (self.own.partitions.get(&partition), self.others.get(&partition));
            (partition, own.max(other).copied())
        };
        let all = (0..self.partitions).map(visible_through);
        all.min_by_key(|(_, at)| *at).unwrap_or((Partition(0), None))
    }

    /// Names the partition that holds the age of the whole index back, if it is old.
    fn judge(&self, now: UnixMillis) -> Option<String> {
        if self.partitions == 0 {
            return None;
        }
        match self.oldest_partition() {
            (Partition(n), None) => Some(format!(
                "nothing is known about partition {n} of the index: no process with the role \
                 indexer has it"
            )),
            (Partition(n), Some(at)) if now - at > PARTITION_AGE_MAX_MS => Some(format!(
                "partition {n} of the index is as of {} s ago: look at the process with the role \
                 indexer that has it, or at its feed",
                (now - at) / 1000
            )),
            (_, Some(_)) => None,
        }
    }
}

/// The running exchange of progress; dropping it ends the exchange.
pub struct SharedProgress {
    task: BackgroundTask,
    table: Arc<Mutex<ProgressTable>>,
}

impl SharedProgress {
    pub(crate) fn spawn(
        client: Arc<Client>,
        table: Arc<Mutex<ProgressTable>>,
        owner: String,
        partitions: u16,
        now: impl Fn() -> UnixMillis + Send + 'static,
        seen: impl Fn(UnixMillis) + Send + 'static,
    ) -> Self {
        table.lock().partitions = partitions;
        let shared = Arc::clone(&table);
        let task = BackgroundTask::spawn("search progress", async move |stop: StopSignal| {
            let outage = OutageLog::new("sharing the progress of the search index");
            let mut index_exists = false;
            let mut due = tokio::time::interval(SHARE_INTERVAL);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    _ = due.tick() => {}
                }
                let exchanged = exchange(&client, &table, &owner, now(), &mut index_exists);
                let Some(exchanged) = stop.run_until_cancelled(exchanged).await else { return };
                let failure = match exchanged {
                    Ok(()) => {
                        outage.recovered();
                        None
                    }
                    Err(error) => {
                        index_exists = false;
                        outage.failed(&error);
                        let error = ErrorChain(&error);
                        Some(format!("the age of the index cannot be read: {error}"))
                    }
                };
                let oldest = {
                    let mut table = table.lock();
                    table.problem = failure.or_else(|| table.judge(now()));
                    table.oldest()
                };
                if let Some(oldest) = oldest {
                    seen(oldest);
                }
            }
        });
        Self { task, table: shared }
    }

    /// Why the age of the whole index does not go on; `None` while it does.
    pub fn problem(&self) -> Option<String> {
        self.table.lock().problem.clone()
    }

    /// Ends the exchange and waits for its task.
    pub async fn stop(&self) {
        // The task logs its own panic.
        let _ = self.task.stop().await;
    }
}

async fn exchange(
    client: &Client,
    table: &Mutex<ProgressTable>,
    owner: &str,
    now: UnixMillis,
    index_exists: &mut bool,
) -> Result<(), RequestError> {
    let index = format!("{}-progress", client.options.alias);
    if !*index_exists {
        let definition = json!({
            "settings": {"number_of_shards": 1, "refresh_interval": "500ms"},
            "mappings": {"dynamic": "strict", "properties": {
                "at": {"type": "long"}, "visible": {"type": "object", "enabled": false},
            }},
        });
        match client.write(Method::PUT, &index, Some(&definition)).await {
            Ok(_) => {}
            // The index exists already.
            Err(error) if error.is(StatusCode::BAD_REQUEST) => {}
            Err(error) => return Err(error),
        }
        bulk::remove(client, &index, &json!({"range": {"at": {"lt": now - PROCESS_TTL_MS}}}))
            .await?;
        *index_exists = true;
    }
    let own = table.lock().own.partitions.clone();
    if !own.is_empty() {
        let visible: BTreeMap<String, UnixMillis> =
            own.iter().map(|(p, at)| (p.0.to_string(), *at)).collect();
        let document = json!({"at": now, "visible": visible});
        client.write(Method::PUT, &format!("{index}/_doc/{owner}"), Some(&document)).await?;
    }
    let all = json!({"size": PROCESSES_MAX, "sort": [{"at": "desc"}]});
    let response = client.write(Method::POST, &format!("{index}/_search"), Some(&all)).await?;
    let mut others = BTreeMap::new();
    for hit in response["hits"]["hits"].as_array().into_iter().flatten() {
        // Nothing can be visible beyond the time at which it was written down.
        let written_at = hit["_source"]["at"].as_i64().unwrap_or(0);
        for (partition, at) in hit["_source"]["visible"].as_object().into_iter().flatten() {
            let (Ok(partition), Some(at)) = (partition.parse(), Value::as_i64(at)) else {
                continue;
            };
            let at = at.min(written_at);
            let known = others.entry(Partition(partition)).or_insert(at);
            *known = at.max(*known);
        }
    }
    table.lock().others = others;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(all: &[(u16, UnixMillis)]) -> BTreeMap<Partition, UnixMillis> {
        all.iter().map(|(p, at)| (Partition(*p), *at)).collect()
    }

    #[test]
    fn the_whole_index_is_as_old_as_its_oldest_partition() {
        let mut table = ProgressTable { partitions: 3, ..ProgressTable::default() };
        table.set_own(&VisibleThrough { partitions: times(&[(0, 9)]), complete: true });
        table.others = times(&[(0, 5), (1, 7)]);
        assert_eq!(table.oldest(), None, "the time of partition 2 is unknown");
        table.others = times(&[(0, 5), (1, 7), (2, 8)]);
        assert_eq!(table.oldest(), Some(7));
        assert_eq!(table.judge(5000), None);
        let old = table.judge(7 + 6000).expect("partition 1 is old");
        assert!(old.contains("partition 1") && old.contains("6 s ago"), "{old}");
        table.others.remove(&Partition(2));
        assert!(table.judge(9).is_some_and(|text| text.contains("partition 2")));
        let alone = ProgressTable {
            own: VisibleThrough { partitions: times(&[(4, 9)]), complete: true },
            ..ProgressTable::default()
        };
        assert_eq!(alone.oldest(), Some(9), "a process that indexes alone uses its own times");
    }
}
