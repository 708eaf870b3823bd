//! The dead-letter store conformance suite on PostgreSQL; ingest offsets and leader election.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_events::conformance::dead_letters::DeadLetterStoreHarness;
use tagfast_events::{ConsumerGroup, DeadLetter, DeadLetterStore, Partition};
use tagfast_resilience::SystemClock;
use tagfast_store_postgres::testing::RecordingSink;
use tagfast_store_postgres::{PostgresDeadLetters, PostgresStore};

use crate::support;

struct Harness(Arc<PostgresStore>);

impl Harness {
    async fn new() -> Self {
        let options = support::options(Arc::new(SystemClock)).await;
        Self(support::open(options, Arc::new(RecordingSink::default())).await)
    }
}

#[async_trait]
impl DeadLetterStoreHarness for Harness {
    async fn store(&self) -> Arc<dyn DeadLetterStore> {
        Arc::new(PostgresDeadLetters::new(Arc::clone(&self.0)))
    }

    async fn park(&self, dead_letters: &[DeadLetter]) {
        let store = PostgresDeadLetters::new(Arc::clone(&self.0));
        for group in ConsumerGroup::ALL {
            let of_group: Vec<DeadLetter> = dead_letters
                .iter()
                .filter(|dead_letter| dead_letter.group == group)
                .cloned()
                .collect();
            store.ingest(group, &of_group, &BTreeMap::new()).await.expect("ingested");
        }
    }
}

tagfast_events::dead_letter_store_suite! { Harness::new().await }

/// Ingest offsets are kept, and one process leads at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_offsets_are_kept() {
    let Harness(store) = Harness::new().await;
    let (one, other) = (
        PostgresDeadLetters::new(Arc::clone(&store)),
        PostgresDeadLetters::new(Arc::clone(&store)),
    );
    let offsets = BTreeMap::from([(Partition(0), 7), (Partition(63), 1 << 40)]);
    one.ingest(ConsumerGroup::INDEXER, &[], &BTreeMap::from([(Partition(0), 5)]))
        .await
        .expect("kept");
    one.ingest(ConsumerGroup::INDEXER, &[], &offsets).await.expect("kept");
    assert_eq!(other.ingested_through(ConsumerGroup::INDEXER).await.expect("known"), offsets);
    assert_eq!(
        other.ingested_through(ConsumerGroup::ANALYTICS).await.expect("known"),
        BTreeMap::new()
    );
    for _ in 0..3 {
        assert!(one.try_lead().await.expect("an answer"));
        assert!(!other.try_lead().await.expect("an answer"));
    }
    drop(one);
    let led = || async {
        if other.try_lead().await.map_err(|e| e.to_string())? {
            Ok(())
        } else {
            Err("no".to_owned())
        }
    };
    tagfast_testkit::wait_for_condition_async(
        "the other leads",
        std::time::Duration::from_secs(10),
        led,
    )
    .await;
}
