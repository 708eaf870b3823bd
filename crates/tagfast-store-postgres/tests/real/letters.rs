//! The promises of every book of dead letters, kept by the one of clusters; and how its topics'
//! letters come in.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_events::conformance::letters::LetterHarness;
use tagfast_events::{DeadLetter, Group, LetterBook, Partition};
use tagfast_resilience::SystemClock;
use tagfast_store_postgres::{PostgresLetters, PostgresStore};

use crate::kit::{self, Recording};

struct Harness(Arc<PostgresStore>);

impl Harness {
    async fn new() -> Self {
        let options = kit::options(Arc::new(SystemClock)).await;
        Self(kit::open(options, Arc::new(Recording::default())).await)
    }
}

#[async_trait]
impl LetterHarness for Harness {
    async fn book(&self) -> Arc<dyn LetterBook> {
        Arc::new(PostgresLetters::new(Arc::clone(&self.0)))
    }

    async fn park(&self, letters: &[DeadLetter]) {
        let book = PostgresLetters::new(Arc::clone(&self.0));
        for group in Group::ALL {
            let of_group: Vec<DeadLetter> =
                letters.iter().filter(|letter| letter.group == group).cloned().collect();
            book.take_in(group, &of_group, &BTreeMap::new()).await.expect("taken in");
        }
    }
}

tagfast_events::letters_suite! { Harness::new().await }

/// How far a topic was read is kept, and one process leads at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_positions_stay() {
    let Harness(store) = Harness::new().await;
    let (one, other) =
        (PostgresLetters::new(Arc::clone(&store)), PostgresLetters::new(Arc::clone(&store)));
    let read_to = BTreeMap::from([(Partition(0), 7), (Partition(63), 1 << 40)]);
    one.take_in(Group::INDEXER, &[], &BTreeMap::from([(Partition(0), 5)])).await.expect("kept");
    one.take_in(Group::INDEXER, &[], &read_to).await.expect("kept");
    assert_eq!(other.read_to(Group::INDEXER).await.expect("known"), read_to);
    assert_eq!(other.read_to(Group::ANALYTICS).await.expect("known"), BTreeMap::new());
    for _ in 0..3 {
        assert!(one.leads().await.expect("an answer"));
        assert!(!other.leads().await.expect("an answer"));
    }
    drop(one);
    let led = || async {
        if other.leads().await.map_err(|e| e.to_string())? { Ok(()) } else { Err("no".to_owned()) }
    };
    tagfast_testkit::wait_for_condition_async(
        "the other leads",
        std::time::Duration::from_secs(10),
        led,
    )
    .await;
}
