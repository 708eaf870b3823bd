//! The dead-letter store conformance suite. Each promise has a store of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochOrdinal, UnixMillis, Version};

use crate::bus::{
    BusRecord, ClusterName, ConsumerGroup, DeadLetter, FailureClass, Partition, RecordKind,
};
use crate::consumer::ReplayOutcome;
use crate::dead_letters::{
    AuditCursor, AuditEntry, AuditPage, AutoReplayPolicy, DeadLetterFilter, DeadLetterState,
    DeadLetterStore, Due, NewReplayJob, ReplayJob, ReplayResult, StoredDeadLetter,
};

/// How the suite drives a store.
#[async_trait]
pub trait DeadLetterStoreHarness: Send + Sync {
    /// The store as a newly started process sees it. Empty at first.
    async fn store(&self) -> Arc<dyn DeadLetterStore>;
    /// Parks dead letters as the service does; returns when the store has them.
    async fn park(&self, dead_letters: &[DeadLetter]);
}

const NOW: UnixMillis = 1_800_000_000_000;
const PARTITIONS: [Partition; 2] = [Partition(0), Partition(1)];

/// Dead letter `n` of a tenant: page `n`, at offset `n + 1`, in partition 0 or 1.
fn dead_letter(tenant: &str, n: u64) -> DeadLetter {
    let key = ContentKey::parse(tenant, "page", &format!("p{n}")).expect("a valid key");
    let at = NOW + i64::try_from(n).expect("a small number");
    let record = BusRecord {
        kind: RecordKind::Event,
        partition: PARTITIONS[(n % 2) as usize],
        offset: n + 1,
        key: key.to_bytes(),
        version: Version::from_packed(100 + n).expect("a version"),
        at,
        cluster: ClusterName::from(""),
        publisher_epoch: EpochOrdinal(7),
        headers: vec![("ce_id".to_owned(), b"x".to_vec()), ("raw".to_owned(), vec![0xff, 0, 1])],
        payload: format!("{{\"n\":{n}}}").into_bytes(),
    };
    exhausted(record, at)
}

/// A dead letter of the indexer after four attempts, the last five seconds after the first.
pub fn exhausted(record: BusRecord, first_failed_at: UnixMillis) -> DeadLetter {
    DeadLetter {
        group: ConsumerGroup::INDEXER,
        record,
        class: FailureClass::Exhausted,
        code: "sink_failed".to_owned(),
        message: "four attempts".to_owned(),
        attempts: 4,
        first_failed_at,
        last_failed_at: first_failed_at + 5000,
    }
}

fn dead_letters(tenant: &str, count: u64) -> Vec<DeadLetter> {
    (0..count).map(|n| dead_letter(tenant, n)).collect()
}

fn of(tenant: &str) -> DeadLetterFilter {
    DeadLetterFilter { tenant: Some(tenant.to_owned()), ..DeadLetterFilter::default() }
}

fn new_job(id: &str, dry_run: bool) -> NewReplayJob {
    NewReplayJob { id: id.to_owned(), dry_run, rate: 500, at: NOW }
}

async fn all(
    store: &dyn DeadLetterStore,
    filter: &DeadLetterFilter,
    limit: usize,
) -> Vec<StoredDeadLetter> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(filter, after.as_ref(), limit).await.expect("a page");
        assert!(page.dead_letters.len() <= limit);
        found.extend(page.dead_letters);
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

async fn ids(store: &dyn DeadLetterStore, filter: &DeadLetterFilter) -> BTreeSet<String> {
    all(store, filter, 100).await.iter().map(|stored| stored.dead_letter.id()).collect()
}

async fn states(store: &dyn DeadLetterStore, tenant: &str) -> Vec<(u64, DeadLetterState)> {
    let mut states: Vec<_> = all(store, &of(tenant), 100)
        .await
        .iter()
        .map(|s| (s.dead_letter.record.offset, s.state))
        .collect();
    states.sort_by_key(|(offset, _)| *offset);
    states
}

/// Takes all dead letters of one job and completes each with the given outcome.
async fn work(
    store: &dyn DeadLetterStore,
    outcome: impl Fn(u64) -> ReplayOutcome,
) -> (ReplayJob, Vec<ReplayResult>) {
    let taken = store
        .take_batch(ConsumerGroup::INDEXER, &PARTITIONS, 100)
        .await
        .expect("an answer")
        .expect("dead letters");
    let (job, dead_letters) = taken;
    let results: Vec<ReplayResult> = dead_letters
        .iter()
        .map(|stored| ReplayResult {
            id: stored.dead_letter.id(),
            outcome: outcome(stored.dead_letter.record.offset),
        })
        .collect();
    store.complete(&job, &results, NOW + 9000).await.expect("completed");
    (job, results)
}

fn failed() -> ReplayOutcome {
    ReplayOutcome::Failed { code: "still".to_owned(), message: "bad".to_owned() }
}

/// A record parked several times is one dead letter, stored unchanged.
pub async fn a_dead_letter_is_stored_once_and_unchanged(harness: &dyn DeadLetterStoreHarness) {
    let parked = dead_letter("once", 0);
    for _ in 0..3 {
        harness.park(std::slice::from_ref(&parked)).await;
    }
    let found = all(harness.store().await.as_ref(), &of("once"), 10).await;
    let stored = StoredDeadLetter {
        dead_letter: parked,
        state: DeadLetterState::Open,
        reason: None,
        replays: 0,
    };
    assert_eq!(found, [stored]);
}

/// A dead letter whose key is not that of a content belongs to no tenant, but is stored.
pub async fn a_dead_letter_without_a_content_belongs_to_no_tenant(
    harness: &dyn DeadLetterStoreHarness,
) {
    let mut garbage = dead_letter("unowned", 0);
    garbage.record.key = vec![0xff, 0xfe, 0];
    garbage.class = FailureClass::Poison;
    harness.park(std::slice::from_ref(&garbage)).await;
    let store = harness.store().await;
    assert_eq!(all(store.as_ref(), &of("unowned"), 10).await, []);
    let found = all(store.as_ref(), &DeadLetterFilter::default(), 10).await;
    assert_eq!(found.iter().map(|s| &s.dead_letter).collect::<Vec<_>>(), [&garbage]);
}

/// Every condition of a filter finds its dead letters and no others.
pub async fn dead_letters_are_found_by_each_condition(harness: &dyn DeadLetterStoreHarness) {
    let mut odd = dead_letter("found", 1);
    odd.class = FailureClass::Poison;
    odd.code = "event_undecodable".to_owned();
    odd.group = ConsumerGroup::ANALYTICS;
    odd.record.key = ContentKey::parse("found", "issue", "PROJ-1").expect("a key").to_bytes();
    let mut other = dead_letter("other", 2);
    other.record.offset = 30;
    harness
        .park(&[dead_letter("found", 0), odd.clone(), dead_letter("found", 3), other.clone()])
        .await;
    let store = harness.store().await;
    let none = DeadLetterFilter::default();
    let (odd, other) = (odd.id(), other.id());
    let cases = [
        (none.clone(), 4),
        (of("found"), 3),
        (
            DeadLetterFilter {
                ids: vec![odd.clone(), other.clone(), "indexer/0/999".to_owned()],
                ..none.clone()
            },
            2,
        ),
        (DeadLetterFilter { group: Some(ConsumerGroup::ANALYTICS), ..none.clone() }, 1),
        (DeadLetterFilter { class: Some(FailureClass::Poison), ..none.clone() }, 1),
        (DeadLetterFilter { code: Some("event_undecodable".to_owned()), ..none.clone() }, 1),
        (DeadLetterFilter { content_type: Some("issue".to_owned()), ..none.clone() }, 1),
        (DeadLetterFilter { id_prefix: Some("PROJ-".to_owned()), ..none.clone() }, 1),
        (DeadLetterFilter { id_prefix: Some("p".to_owned()), ..none.clone() }, 3),
        (DeadLetterFilter { id_prefix: Some("P%".to_owned()), ..none.clone() }, 0),
        (DeadLetterFilter { from: Some(NOW + 5002), ..none.clone() }, 2),
        (DeadLetterFilter { until: Some(NOW + 5001), ..none.clone() }, 1),
        (DeadLetterFilter { state: Some(DeadLetterState::Open), ..none.clone() }, 4),
        (DeadLetterFilter { state: Some(DeadLetterState::Discarded), ..none.clone() }, 0),
        (DeadLetterFilter { group: Some(ConsumerGroup::ANALYTICS), ..of("other") }, 0),
    ];
    for (filter, count) in cases {
        assert_eq!(ids(store.as_ref(), &filter).await.len(), count, "{filter:?}");
    }
    assert_eq!(ids(store.as_ref(), &of("other")).await, BTreeSet::from([other]));
}

/// Pages list every dead letter once, newest failures first, also where many failed at once.
pub async fn pages_list_every_dead_letter_once(harness: &dyn DeadLetterStoreHarness) {
    let mut parked = dead_letters("pages", 250);
    parked.iter_mut().for_each(|dead_letter| {
        dead_letter.last_failed_at =
            NOW + i64::try_from(dead_letter.record.offset / 60).unwrap_or(0)
    });
    harness.park(&parked).await;
    let found = all(harness.store().await.as_ref(), &of("pages"), 70).await;
    let order: Vec<_> =
        found.iter().map(|s| (s.dead_letter.last_failed_at, s.dead_letter.id())).collect();
    assert!(order.is_sorted_by(|a, b| a > b), "newest first");
    assert_eq!(order.len(), 250);
}

/// A job gets the open dead letters of its filter; their outcomes are stored and counted.
pub async fn a_job_ends_with_the_outcomes_of_its_dead_letters(
    harness: &dyn DeadLetterStoreHarness,
) {
    harness.park(&dead_letters("job", 4)).await;
    let store = harness.store().await;
    let begun = store.create_job(&new_job("j1", false), &of("job")).await.expect("a job");
    assert_eq!((begun.dead_letters, begun.closed, begun.busy, begun.left()), (4, 0, 0, 4));
    let second = store.create_job(&new_job("j2", false), &of("job")).await.expect("a job");
    assert_eq!((second.dead_letters, second.busy, second.left()), (0, 4, 0));

    let (_, results) = work(store.as_ref(), |offset| match offset {
        1 => ReplayOutcome::Applied,
        2 => ReplayOutcome::Superseded,
        3 => failed(),
        _ => ReplayOutcome::NotHere,
    })
    .await;
    assert_eq!(results.len(), 4);
    let job = store.job("j1").await.expect("an answer").expect("the job");
    assert_eq!((job.applied, job.superseded, job.failed, job.left()), (1, 1, 1, 1));
    let open = DeadLetterState::Open;
    let expected =
        [(1, DeadLetterState::Replayed), (2, DeadLetterState::Superseded), (3, open), (4, open)];
    assert_eq!(states(store.as_ref(), "job").await, expected);
    let again =
        ids(store.as_ref(), &DeadLetterFilter { code: Some("still".to_owned()), ..of("job") })
            .await;
    assert_eq!(again.len(), 1, "it keeps the last failure");

    // A dead letter that was not here stays in the job; a failed one leaves it for a later job.
    let taken = store
        .take_batch(ConsumerGroup::INDEXER, &PARTITIONS, 100)
        .await
        .expect("an answer")
        .expect("a dead letter");
    assert_eq!(taken.1.iter().map(|s| s.dead_letter.record.offset).collect::<Vec<_>>(), [4]);
    assert_eq!(
        store.take_batch(ConsumerGroup::ANALYTICS, &PARTITIONS, 100).await.expect("an answer"),
        None
    );
    assert_eq!(
        store.take_batch(ConsumerGroup::INDEXER, &[Partition(0)], 100).await.expect("an answer"),
        None,
        "it is in partition 1"
    );
    let third = store.create_job(&new_job("j3", false), &of("job")).await.expect("a job");
    assert_eq!((third.dead_letters, third.closed, third.busy), (1, 2, 1));
    assert_eq!(store.job("none").await.expect("an answer"), None);
}

/// Completing twice counts once, also when two processes replayed the same dead letters.
pub async fn what_was_completed_stays_completed(harness: &dyn DeadLetterStoreHarness) {
    harness.park(&dead_letters("twice", 3)).await;
    let store = harness.store().await;
    store.create_job(&new_job("t", false), &of("twice")).await.expect("a job");
    let (job, results) = work(store.as_ref(), |_| ReplayOutcome::Applied).await;
    let late: Vec<ReplayResult> =
        results.into_iter().map(|s| ReplayResult { outcome: failed(), ..s }).collect();
    store.complete(&job, &late, NOW + 10_000).await.expect("completed again");
    let job = store.job("t").await.expect("an answer").expect("the job");
    assert_eq!((job.applied, job.failed, job.left()), (3, 0, 0));
    let replayed = DeadLetterState::Replayed;
    assert_eq!(
        states(store.as_ref(), "twice").await,
        [(1, replayed), (2, replayed), (3, replayed)]
    );
    assert_eq!(
        store.take_batch(ConsumerGroup::INDEXER, &PARTITIONS, 100).await.expect("an answer"),
        None
    );
}

/// A dry run counts and changes nothing; afterwards the dead letters can be replayed.
pub async fn a_dry_run_changes_no_dead_letter(harness: &dyn DeadLetterStoreHarness) {
    harness.park(&dead_letters("dry", 3)).await;
    let store = harness.store().await;
    let before = all(store.as_ref(), &of("dry"), 100).await;
    store.create_job(&new_job("d", true), &of("dry")).await.expect("a job");
    work(store.as_ref(), |offset| if offset == 1 { failed() } else { ReplayOutcome::Applied })
        .await;
    let job = store.job("d").await.expect("an answer").expect("the job");
    assert_eq!((job.applied, job.failed, job.left(), job.dry_run), (2, 1, 0, true));
    assert_eq!(all(store.as_ref(), &of("dry"), 100).await, before);
    assert_eq!(
        store.create_job(&new_job("e", false), &of("dry")).await.expect("a job").dead_letters,
        3
    );
}

/// Discarded dead letters keep the reason, leave their job, and are not replayed.
pub async fn discarded_dead_letters_keep_the_reason(harness: &dyn DeadLetterStoreHarness) {
    harness.park(&dead_letters("gone", 3)).await;
    let store = harness.store().await;
    store.create_job(&new_job("g", false), &of("gone")).await.expect("a job");
    let one =
        DeadLetterFilter { ids: vec![dead_letter("gone", 1).id()], ..DeadLetterFilter::default() };
    assert_eq!(store.discard(&one, "test data", NOW + 1).await.expect("discarded"), 1);
    assert_eq!(store.discard(&one, "again", NOW + 2).await.expect("nothing left"), 0);
    let job = store.job("g").await.expect("an answer").expect("the job");
    assert_eq!((job.dropped, job.left()), (1, 2));
    work(store.as_ref(), |_| ReplayOutcome::Applied).await;
    assert_eq!(store.job("g").await.expect("an answer").expect("the job").left(), 0);
    let discarded = all(
        store.as_ref(),
        &DeadLetterFilter { state: Some(DeadLetterState::Discarded), ..of("gone") },
        10,
    )
    .await;
    let reasons: Vec<_> =
        discarded.iter().map(|s| (s.dead_letter.record.offset, s.reason.as_deref())).collect();
    assert_eq!(reasons, [(2, Some("test data"))]);
}

/// Dead letters are due after their cool-down, a few times; poison never is.
pub async fn dead_letters_are_due_a_few_times(harness: &dyn DeadLetterStoreHarness) {
    let policy = AutoReplayPolicy { first_ms: 1000, factor: 10, times: 2 };
    let mut poison = dead_letter("due", 1);
    poison.class = FailureClass::Poison;
    let retryable = dead_letter("due", 0);
    harness.park(&[retryable.clone(), poison]).await;
    let store = harness.store().await;
    let due = |at| DeadLetterFilter { due: Some(Due { at, policy }), ..of("due") };
    let counts = |at: UnixMillis| {
        let (store, filter) = (Arc::clone(&store), due(at));
        async move { ids(store.as_ref(), &filter).await.len() }
    };
    let failed_at = retryable.last_failed_at;
    assert_eq!((counts(failed_at + 999).await, counts(failed_at + 1000).await), (0, 1));
    for (n, at) in [(1, NOW + 9000), (2, NOW + 9000)] {
        store.create_job(&new_job(&format!("due{n}"), false), &due(i64::MAX)).await.expect("a job");
        work(store.as_ref(), |_| failed()).await;
        let next = policy.next_replay_at(FailureClass::Exhausted, n, at);
        if let Some(next) = next {
            assert_eq!((counts(next - 1).await, counts(next).await), (0, 1));
        } else {
            assert_eq!(counts(i64::MAX).await, 0);
        }
    }
    let open = store.open_counts(policy).await.expect("counts");
    let indexer = open.iter().find(|of| of.group == ConsumerGroup::INDEXER).expect("the group");
    assert_eq!(
        (indexer.open, indexer.needs_attention, indexer.oldest),
        (2, 2, Some(retryable.first_failed_at))
    );
    let analytics = open.iter().find(|of| of.group == ConsumerGroup::ANALYTICS).expect("the group");
    assert_eq!(
        (analytics.open, analytics.oldest),
        (0, None),
        "a group without dead letters is listed"
    );
}

/// The audit log lists the newest entries first, with their actors; its pages neither repeat nor
/// skip an entry, also when several are of the same millisecond.
pub async fn the_audit_log_is_newest_first(harness: &dyn DeadLetterStoreHarness) {
    let store = harness.store().await;
    for (n, at) in [NOW, NOW + 1, NOW + 1, NOW + 1, NOW + 2].into_iter().enumerate() {
        let action = format!("act{n}");
        let entry = AuditEntry {
            at,
            actor: "acme/ana".to_owned(),
            action,
            detail: "why".to_owned(),
            dead_letters: 4,
        };
        store.audit(&entry).await.expect("stored");
    }
    let store = harness.store().await;
    let actions = |page: &AuditPage| {
        page.entries.iter().map(|entry| entry.action.clone()).collect::<Vec<_>>()
    };
    for limit in 1..=6 {
        let (mut after, mut seen) = (Some(AuditCursor::NEWEST), Vec::new());
        while let Some(position) = after {
            let page = store.audit_log(position, limit).await.expect("a page");
            assert_eq!(
                (page.entries[0].actor.as_str(), page.entries[0].dead_letters),
                ("acme/ana", 4)
            );
            seen.extend(actions(&page));
            after = page.next;
        }
        assert_eq!(seen, ["act4", "act3", "act2", "act1", "act0"], "{limit} a page");
    }
    let older = store.audit_log(AuditCursor::before(NOW + 1), 10).await.expect("entries");
    assert_eq!((actions(&older), older.next), (vec!["act0".to_owned()], None));
}

/// Closed dead letters are purged after their retention; open ones never are.
pub async fn only_closed_dead_letters_are_purged(harness: &dyn DeadLetterStoreHarness) {
    harness.park(&dead_letters("old", 2)).await;
    let store = harness.store().await;
    let one =
        DeadLetterFilter { ids: vec![dead_letter("old", 0).id()], ..DeadLetterFilter::default() };
    store.discard(&one, "old", NOW).await.expect("discarded");
    store.purge_closed_before(NOW).await.expect("nothing is old enough");
    assert_eq!(states(store.as_ref(), "old").await.len(), 2);
    store.purge_closed_before(NOW + 1).await.expect("purged");
    assert_eq!(states(store.as_ref(), "old").await, [(2, DeadLetterState::Open)]);
}

/// Expands to one test per promise. The expression makes a
/// [`DeadLetterStoreHarness`](crate::conformance::dead_letters::DeadLetterStoreHarness); it is
/// evaluated once per test, inside the runtime, and may await.
#[macro_export]
macro_rules! dead_letter_store_suite {
    ($harness:expr) => {
        $crate::dead_letter_store_suite! { $harness =>
            a_dead_letter_is_stored_once_and_unchanged,
            a_dead_letter_without_a_content_belongs_to_no_tenant,
            dead_letters_are_found_by_each_condition,
            pages_list_every_dead_letter_once,
            a_job_ends_with_the_outcomes_of_its_dead_letters,
            what_was_completed_stays_completed,
            a_dry_run_changes_no_dead_letter,
            discarded_dead_letters_keep_the_reason,
            dead_letters_are_due_a_few_times,
            the_audit_log_is_newest_first,
            only_closed_dead_letters_are_purged
        }
    };
    ($harness:expr => $($name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::dead_letters::$name(&$harness).await;
            }
        )+
    };
}
