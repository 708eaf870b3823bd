//! What every book of dead letters must do, as functions over a harness. Each has the book for
//! itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochOrdinal, UnixMillis, Version};

use crate::letters::{Due, LetterState};
use crate::{
    Act, BusRecord, ClusterName, Cooldown, DeadLetter, Group, Job, LetterBook, LetterClass,
    LetterFilter, NewJob, Partition, RecordKind, ReplayOutcome, Settled, StoredLetter,
};

/// How the suite drives a book.
#[async_trait]
pub trait LetterHarness: Send + Sync {
    /// The book, as a process that has just started has it. Empty at first.
    async fn book(&self) -> Arc<dyn LetterBook>;
    /// Parks letters, as the service does it; returns when the book has them.
    async fn park(&self, letters: &[DeadLetter]);
}

const NOW: UnixMillis = 1_800_000_000_000;
const PARTITIONS: [Partition; 2] = [Partition(0), Partition(1)];

/// Letter `n` of a tenant: page `n`, at offset `n + 1`, in partition 0 or 1.
fn letter(tenant: &str, n: u64) -> DeadLetter {
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
        emit: EpochOrdinal(7),
        headers: vec![("ce_id".to_owned(), b"x".to_vec()), ("raw".to_owned(), vec![0xff, 0, 1])],
        payload: format!("{{\"n\":{n}}}").into_bytes(),
    };
    exhausted(record, at)
}

/// A letter of the indexer whose four attempts failed, the last one five seconds after the first.
pub fn exhausted(record: BusRecord, first_failed_at: UnixMillis) -> DeadLetter {
    DeadLetter {
        group: Group::INDEXER,
        record,
        class: LetterClass::Exhausted,
        code: "sink_failed".to_owned(),
        message: "four attempts".to_owned(),
        attempts: 4,
        first_failed_at,
        last_failed_at: first_failed_at + 5000,
    }
}

fn letters(tenant: &str, count: u64) -> Vec<DeadLetter> {
    (0..count).map(|n| letter(tenant, n)).collect()
}

fn of(tenant: &str) -> LetterFilter {
    LetterFilter { tenant: Some(tenant.to_owned()), ..LetterFilter::default() }
}

fn new_job(id: &str, dry_run: bool) -> NewJob {
    NewJob { id: id.to_owned(), dry_run, rate: 500, at: NOW }
}

async fn all(book: &dyn LetterBook, filter: &LetterFilter, limit: usize) -> Vec<StoredLetter> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = book.list(filter, after.as_ref(), limit).await.expect("a page");
        assert!(page.letters.len() <= limit);
        found.extend(page.letters);
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

async fn ids(book: &dyn LetterBook, filter: &LetterFilter) -> BTreeSet<String> {
    all(book, filter, 100).await.iter().map(|stored| stored.letter.id()).collect()
}

async fn states(book: &dyn LetterBook, tenant: &str) -> Vec<(u64, LetterState)> {
    let mut states: Vec<_> = all(book, &of(tenant), 100)
        .await
        .iter()
        .map(|s| (s.letter.record.offset, s.state))
        .collect();
    states.sort_by_key(|(offset, _)| *offset);
    states
}

/// Takes everything of one job and settles each letter as told.
async fn work(
    book: &dyn LetterBook,
    outcome: impl Fn(u64) -> ReplayOutcome,
) -> (Job, Vec<Settled>) {
    let taken =
        book.take(Group::INDEXER, &PARTITIONS, 100).await.expect("a look").expect("letters");
    let (job, letters) = taken;
    let settled: Vec<Settled> = letters
        .iter()
        .map(|stored| Settled {
            id: stored.letter.id(),
            outcome: outcome(stored.letter.record.offset),
        })
        .collect();
    book.settle(&job, &settled, NOW + 9000).await.expect("settled");
    (job, settled)
}

fn failed() -> ReplayOutcome {
    ReplayOutcome::Failed { code: "still".to_owned(), message: "bad".to_owned() }
}

/// A letter that is parked twice is one letter, and nothing of it is changed.
pub async fn a_letter_is_there_once_as_it_was(harness: &dyn LetterHarness) {
    let parked = letter("once", 0);
    for _ in 0..3 {
        harness.park(std::slice::from_ref(&parked)).await;
    }
    let found = all(harness.book().await.as_ref(), &of("once"), 10).await;
    let stored =
        StoredLetter { letter: parked, state: LetterState::Open, reason: None, replays: 0 };
    assert_eq!(found, [stored]);
}

/// A key that is no content's belongs to no tenant; the letter is there all the same.
pub async fn a_letter_without_a_content_is_nobodys(harness: &dyn LetterHarness) {
    let mut garbage = letter("nobody", 0);
    garbage.record.key = vec![0xff, 0xfe, 0];
    garbage.class = LetterClass::Poison;
    harness.park(std::slice::from_ref(&garbage)).await;
    let book = harness.book().await;
    assert_eq!(all(book.as_ref(), &of("nobody"), 10).await, []);
    let found = all(book.as_ref(), &LetterFilter::default(), 10).await;
    assert_eq!(found.iter().map(|s| &s.letter).collect::<Vec<_>>(), [&garbage]);
}

/// Every condition of a filter finds its letters and no others.
pub async fn letters_are_found_by_each_condition(harness: &dyn LetterHarness) {
    let mut odd = letter("found", 1);
    odd.class = LetterClass::Poison;
    odd.code = "event_undecodable".to_owned();
    odd.group = Group::ANALYTICS;
    odd.record.key = ContentKey::parse("found", "issue", "PROJ-1").expect("a key").to_bytes();
    let mut other = letter("other", 2);
    other.record.offset = 30;
    harness.park(&[letter("found", 0), odd.clone(), letter("found", 3), other.clone()]).await;
    let book = harness.book().await;
    let none = LetterFilter::default();
    let (odd, other) = (odd.id(), other.id());
    let cases = [
        (none.clone(), 4),
        (of("found"), 3),
        (
            LetterFilter {
                ids: vec![odd.clone(), other.clone(), "indexer/0/999".to_owned()],
                ..none.clone()
            },
            2,
        ),
        (LetterFilter { group: Some(Group::ANALYTICS), ..none.clone() }, 1),
        (LetterFilter { class: Some(LetterClass::Poison), ..none.clone() }, 1),
        (LetterFilter { code: Some("event_undecodable".to_owned()), ..none.clone() }, 1),
        (LetterFilter { content_type: Some("issue".to_owned()), ..none.clone() }, 1),
        (LetterFilter { id_prefix: Some("PROJ-".to_owned()), ..none.clone() }, 1),
        (LetterFilter { id_prefix: Some("p".to_owned()), ..none.clone() }, 3),
        (LetterFilter { id_prefix: Some("P%".to_owned()), ..none.clone() }, 0),
        (LetterFilter { from: Some(NOW + 5002), ..none.clone() }, 2),
        (LetterFilter { until: Some(NOW + 5001), ..none.clone() }, 1),
        (LetterFilter { state: Some(LetterState::Open), ..none.clone() }, 4),
        (LetterFilter { state: Some(LetterState::Discarded), ..none.clone() }, 0),
        (LetterFilter { group: Some(Group::ANALYTICS), ..of("other") }, 0),
    ];
    for (filter, count) in cases {
        assert_eq!(ids(book.as_ref(), &filter).await.len(), count, "{filter:?}");
    }
    assert_eq!(ids(book.as_ref(), &of("other")).await, BTreeSet::from([other]));
}

/// Pages meet every letter once, newest failures first, also where many failed in one moment.
pub async fn pages_meet_every_letter_once(harness: &dyn LetterHarness) {
    let mut parked = letters("pages", 250);
    parked.iter_mut().for_each(|letter| {
        letter.last_failed_at = NOW + i64::try_from(letter.record.offset / 60).unwrap_or(0)
    });
    harness.park(&parked).await;
    let found = all(harness.book().await.as_ref(), &of("pages"), 70).await;
    let order: Vec<_> = found.iter().map(|s| (s.letter.last_failed_at, s.letter.id())).collect();
    assert!(order.is_sorted_by(|a, b| a > b), "newest first");
    assert_eq!(order.len(), 250);
}

/// A job has the open letters of its filter; what became of them is written down and counted.
pub async fn a_job_ends_with_what_became_of_its_letters(harness: &dyn LetterHarness) {
    harness.park(&letters("job", 4)).await;
    let book = harness.book().await;
    let begun = book.begin(&new_job("j1", false), &of("job")).await.expect("a job");
    assert_eq!((begun.letters, begun.closed, begun.busy, begun.left()), (4, 0, 0, 4));
    let second = book.begin(&new_job("j2", false), &of("job")).await.expect("a job");
    assert_eq!((second.letters, second.busy, second.left()), (0, 4, 0));

    let (_, settled) = work(book.as_ref(), |offset| match offset {
        1 => ReplayOutcome::Applied,
        2 => ReplayOutcome::Superseded,
        3 => failed(),
        _ => ReplayOutcome::NotHere,
    })
    .await;
    assert_eq!(settled.len(), 4);
    let job = book.job("j1").await.expect("a look").expect("the job");
    assert_eq!((job.applied, job.superseded, job.failed, job.left()), (1, 1, 1, 1));
    let open = LetterState::Open;
    let expected = [(1, LetterState::Replayed), (2, LetterState::Superseded), (3, open), (4, open)];
    assert_eq!(states(book.as_ref(), "job").await, expected);
    let again =
        ids(book.as_ref(), &LetterFilter { code: Some("still".to_owned()), ..of("job") }).await;
    assert_eq!(again.len(), 1, "it says why it failed last");

    // What was not here is still in the job; what failed is not, and another job may have it.
    let taken =
        book.take(Group::INDEXER, &PARTITIONS, 100).await.expect("a look").expect("a letter");
    assert_eq!(taken.1.iter().map(|s| s.letter.record.offset).collect::<Vec<_>>(), [4]);
    assert_eq!(book.take(Group::ANALYTICS, &PARTITIONS, 100).await.expect("a look"), None);
    assert_eq!(
        book.take(Group::INDEXER, &[Partition(0)], 100).await.expect("a look"),
        None,
        "it is in partition 1"
    );
    let third = book.begin(&new_job("j3", false), &of("job")).await.expect("a job");
    assert_eq!((third.letters, third.closed, third.busy), (1, 2, 1));
    assert_eq!(book.job("none").await.expect("a look"), None);
}

/// Settling twice counts once, also when two processes replayed the same letters.
pub async fn what_was_settled_stays_settled(harness: &dyn LetterHarness) {
    harness.park(&letters("twice", 3)).await;
    let book = harness.book().await;
    book.begin(&new_job("t", false), &of("twice")).await.expect("a job");
    let (job, settled) = work(book.as_ref(), |_| ReplayOutcome::Applied).await;
    let late: Vec<Settled> =
        settled.into_iter().map(|s| Settled { outcome: failed(), ..s }).collect();
    book.settle(&job, &late, NOW + 10_000).await.expect("settled again");
    let job = book.job("t").await.expect("a look").expect("the job");
    assert_eq!((job.applied, job.failed, job.left()), (3, 0, 0));
    let replayed = LetterState::Replayed;
    assert_eq!(states(book.as_ref(), "twice").await, [(1, replayed), (2, replayed), (3, replayed)]);
    assert_eq!(book.take(Group::INDEXER, &PARTITIONS, 100).await.expect("a look"), None);
}

/// A dry run counts and changes nothing; afterwards the letters can be replayed.
pub async fn a_dry_run_changes_no_letter(harness: &dyn LetterHarness) {
    harness.park(&letters("dry", 3)).await;
    let book = harness.book().await;
    let before = all(book.as_ref(), &of("dry"), 100).await;
    book.begin(&new_job("d", true), &of("dry")).await.expect("a job");
    work(book.as_ref(), |offset| if offset == 1 { failed() } else { ReplayOutcome::Applied }).await;
    let job = book.job("d").await.expect("a look").expect("the job");
    assert_eq!((job.applied, job.failed, job.left(), job.dry_run), (2, 1, 0, true));
    assert_eq!(all(book.as_ref(), &of("dry"), 100).await, before);
    assert_eq!(book.begin(&new_job("e", false), &of("dry")).await.expect("a job").letters, 3);
}

/// Discarded letters keep the reason, leave the job they are in, and are not replayed.
pub async fn discarded_letters_keep_the_reason(harness: &dyn LetterHarness) {
    harness.park(&letters("gone", 3)).await;
    let book = harness.book().await;
    book.begin(&new_job("g", false), &of("gone")).await.expect("a job");
    let one = LetterFilter { ids: vec![letter("gone", 1).id()], ..LetterFilter::default() };
    assert_eq!(book.discard(&one, "test data", NOW + 1).await.expect("discarded"), 1);
    assert_eq!(book.discard(&one, "again", NOW + 2).await.expect("nothing left"), 0);
    let job = book.job("g").await.expect("a look").expect("the job");
    assert_eq!((job.dropped, job.left()), (1, 2));
    work(book.as_ref(), |_| ReplayOutcome::Applied).await;
    assert_eq!(book.job("g").await.expect("a look").expect("the job").left(), 0);
    let discarded =
        all(book.as_ref(), &LetterFilter { state: Some(LetterState::Discarded), ..of("gone") }, 10)
            .await;
    let reasons: Vec<_> =
        discarded.iter().map(|s| (s.letter.record.offset, s.reason.as_deref())).collect();
    assert_eq!(reasons, [(2, Some("test data"))]);
}

/// Letters are due by themselves after their cool-down, a few times, and poison never is.
pub async fn letters_are_due_a_few_times(harness: &dyn LetterHarness) {
    let cooldown = Cooldown { first_ms: 1000, factor: 10, times: 2 };
    let mut poison = letter("due", 1);
    poison.class = LetterClass::Poison;
    let patient = letter("due", 0);
    harness.park(&[patient.clone(), poison]).await;
    let book = harness.book().await;
    let due = |at| LetterFilter { due: Some(Due { at, cooldown }), ..of("due") };
    let counts = |at: UnixMillis| {
        let (book, filter) = (Arc::clone(&book), due(at));
        async move { ids(book.as_ref(), &filter).await.len() }
    };
    let failed_at = patient.last_failed_at;
    assert_eq!((counts(failed_at + 999).await, counts(failed_at + 1000).await), (0, 1));
    for (n, at) in [(1, NOW + 9000), (2, NOW + 9000)] {
        book.begin(&new_job(&format!("due{n}"), false), &due(i64::MAX)).await.expect("a job");
        work(book.as_ref(), |_| failed()).await;
        let next = cooldown.next(LetterClass::Exhausted, n, at);
        if let Some(next) = next {
            assert_eq!((counts(next - 1).await, counts(next).await), (0, 1));
        } else {
            assert_eq!(counts(i64::MAX).await, 0);
        }
    }
    let open = book.open_letters(cooldown).await.expect("counts");
    let indexer = open.iter().find(|of| of.group == Group::INDEXER).expect("the group");
    assert_eq!(
        (indexer.open, indexer.need_a_person, indexer.oldest),
        (2, 2, Some(patient.first_failed_at))
    );
    let analytics = open.iter().find(|of| of.group == Group::ANALYTICS).expect("the group");
    assert_eq!((analytics.open, analytics.oldest), (0, None), "a group without letters says so");
}

/// Acts come newest first, with who did them.
pub async fn acts_are_remembered(harness: &dyn LetterHarness) {
    let book = harness.book().await;
    for n in 0..3 {
        let action = format!("act{n}");
        let act = Act {
            at: NOW + n,
            by: "acme/ana".to_owned(),
            action,
            detail: "why".to_owned(),
            letters: 4,
        };
        book.note(&act).await.expect("noted");
    }
    let acts = harness.book().await.acts(None, 2).await.expect("acts");
    assert_eq!(acts.iter().map(|a| a.action.as_str()).collect::<Vec<_>>(), ["act2", "act1"]);
    assert_eq!((acts[0].by.as_str(), acts[0].letters), ("acme/ana", 4));
    let older = book.acts(Some(acts[1].at), 10).await.expect("acts");
    assert_eq!(older.iter().map(|a| a.action.as_str()).collect::<Vec<_>>(), ["act0"]);
}

/// Old letters are forgotten once they are closed; open ones never are.
pub async fn only_closed_letters_are_forgotten(harness: &dyn LetterHarness) {
    harness.park(&letters("old", 2)).await;
    let book = harness.book().await;
    let one = LetterFilter { ids: vec![letter("old", 0).id()], ..LetterFilter::default() };
    book.discard(&one, "old", NOW).await.expect("discarded");
    book.forget(NOW).await.expect("nothing is old enough");
    assert_eq!(states(book.as_ref(), "old").await.len(), 2);
    book.forget(NOW + 1).await.expect("forgotten");
    assert_eq!(states(book.as_ref(), "old").await, [(2, LetterState::Open)]);
}

/// Expands to one test per promise. The expression makes a
/// [`LetterHarness`](crate::conformance::letters::LetterHarness); it is evaluated once per test,
/// inside the runtime, and may await.
#[macro_export]
macro_rules! letters_suite {
    ($harness:expr) => {
        $crate::letters_suite! { $harness =>
            a_letter_is_there_once_as_it_was,
            a_letter_without_a_content_is_nobodys,
            letters_are_found_by_each_condition,
            pages_meet_every_letter_once,
            a_job_ends_with_what_became_of_its_letters,
            what_was_settled_stays_settled,
            a_dry_run_changes_no_letter,
            discarded_letters_keep_the_reason,
            letters_are_due_a_few_times,
            acts_are_remembered,
            only_closed_letters_are_forgotten
        }
    };
    ($harness:expr => $($name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::letters::$name(&$harness).await;
            }
        )+
    };
}
