//! Schedules of the failover protocol in which a simpler relay leaves the bus with a state that the
//! database does not have.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{ContentKey, TaggingsEvent, UnixMillis};
use tagfast_events::{DivergedContent, EndedEpoch};
use tagfast_failover::EpochRecord;
use tagfast_resilience::{Clock, SystemClock};
use tagfast_store_postgres::testing::RecordingSink;
use tagfast_store_postgres::{OutboxBatch, OutboxSink, PublishError};
use tagfast_testkit::wait_for_condition_async;

use crate::support;
use crate::writes::{key_of, put};

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(20);

/// X16: the primary had published up to a position, and both its rows and the position are lost;
/// the new primary gives the same position to other rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_an_earlier_epoch_skips_no_row() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let (database, key) = (options.database.clone(), key_of(0, "cursor"));
    let store = support::open(options.clone(), Arc::new(RecordingSink::default())).await;
    put(&store, &key, "first").await.expect("written");
    store.drained().await;
    store.close().await;
    let ahead = "INSERT INTO relay_cursor (epoch, xid, n) VALUES ('\\x00', '4000000000', 7)
        ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, xid = excluded.xid, n = excluded.n";
    support::execute(0, &database, ahead).await;
    let sink = Arc::new(RecordingSink::default());
    let store = support::open(options, Arc::clone(&sink) as _).await;
    let second = put(&store, &key, "second").await.expect("written");
    wait_for_condition_async("the row to be published", PUBLISH_TIMEOUT, || async {
        let events = sink.events();
        let is_it = |event: &TaggingsEvent| event.key == key && event.version == second.version;
        if events.iter().any(is_it) { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    store.close().await;
}

/// Notes with which position each state was published.
#[derive(Default)]
struct PositionSink {
    /// By content and version: all positions that came with it.
    positions: Mutex<HashMap<(ContentKey, u64), Vec<u64>>>,
    /// Whether it cannot be asked what diverged.
    is_away: AtomicBool,
}

impl PositionSink {
    fn of(&self, key: &ContentKey, version: u64) -> Vec<u64> {
        self.positions.lock().get(&(key.clone(), version)).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl OutboxSink for PositionSink {
    async fn begin_epoch(&self, _: &str, _: &EpochRecord) -> Result<(), PublishError> {
        Ok(())
    }

    async fn publish(&self, batch: OutboxBatch<'_>) -> Result<(), PublishError> {
        for row in batch.rows {
            let event = row.decode().map_err(PublishError::new)?;
            let state = (event.key, event.version.packed());
            self.positions.lock().entry(state).or_default().push(batch.hi);
        }
        Ok(())
    }

    async fn diverged_contents(
        &self,
        _: &str,
        _: &EpochRecord,
        _: &[EndedEpoch],
    ) -> Result<Vec<DivergedContent>, PublishError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(PublishError::new("it is away"));
        }
        Ok(Vec::new())
    }

    async fn complete_through(&self, _: &str, _: &EpochRecord, _: UnixMillis, _: u64) {}
}

/// X18: a relay that is started again publishes rows a second time. The position that comes with
/// them lies behind everything that was published before, or a scan would stop at them.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_published_again_comes_with_a_later_position() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let (database, sink) = (options.database.clone(), Arc::new(PositionSink::default()));
    let store = support::open(options.clone(), Arc::clone(&sink) as _).await;
    let (one, two) = (key_of(0, "one"), key_of(0, "two"));
    let first = put(&store, &one, "x").await.expect("written");
    let second = put(&store, &two, "x").await.expect("written");
    store.drained().await;
    store.close().await;
    let once = |key, version| sink.of(key, version).into_iter().max().expect("it is published");
    let published = once(&two, second.version.packed());
    assert!(published >= second.receipt.inside_lsn, "it covers the commit");
    assert!(once(&one, first.version.packed()) >= first.receipt.inside_lsn);
    // The relay died before its cursor was stored.
    support::execute(0, &database, "DELETE FROM relay_cursor").await;
    let store = support::open(options, Arc::clone(&sink) as _).await;
    wait_for_condition_async("the first row to be published again", PUBLISH_TIMEOUT, || async {
        let positions = sink.of(&one, first.version.packed());
        if positions.len() > 1 { Ok(()) } else { Err(format!("{positions:?}")) }
    })
    .await;
    let again = sink.of(&one, first.version.packed())[1];
    assert!(again >= published, "{again} of the first row, {published} of the second");
    store.close().await;
}

/// X17b: a relay that dies between its marker and the last state that it writes again has not
/// reconciled its epoch.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_reconciled_only_when_everything_that_diverged_was_written_again() {
    let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    let (database, sink) = (options.database.clone(), Arc::new(PositionSink::default()));
    sink.is_away.store(true, Ordering::SeqCst);
    let store = support::open(options, Arc::clone(&sink) as _).await;
    let key = key_of(0, "reconciled");
    let written = put(&store, &key, "x").await.expect("written");
    let reconciled = "SELECT count(*)::int FROM epoch WHERE reconciled_at IS NOT NULL";
    assert_eq!(support::number(0, &database, reconciled).await, 0);
    assert_eq!(sink.of(&key, written.version.packed()), [0; 0], "nothing is published before");
    sink.is_away.store(false, Ordering::SeqCst);
    wait_for_condition_async("the row is published", PUBLISH_TIMEOUT, || async {
        let positions = sink.of(&key, written.version.packed());
        if positions.is_empty() { Err("not yet") } else { Ok(()) }
    })
    .await;
    assert_eq!(support::number(0, &database, reconciled).await, 1);
    store.close().await;
}
