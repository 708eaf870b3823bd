//! The group-commit fold: a batch is the same as its writes one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use tagfast_domain::{
    ApplyContext, Call, ContentKey, Document, DomainError, Epoch, EpochId, EpochOrdinal,
    IdempotencyKey, IfMatch, JoinContext, JoinFate, Limits, Operation, Outcome, RecentWrite,
    Refusal, Tag, Tagging, UserId, Version, Write, WriteId, apply, join, remember,
};
use tagfast_sharding::LogicalShard;
use tagfast_store::write_batch::{CommitPosition, ItemResult, SlotCommit};
use tagfast_store::{
    CommitContext, Position, StoreError, WriteAnswer, WriteBatch, WriteRequest, stored_key,
};

const LIMITS: Limits = Limits { tags_per_content: 4 };
const NOW: i64 = 1_800_000_000_000;

fn epoch(number: u64) -> Epoch {
    Epoch { id: EpochId([number as u8; 16]), ordinal: EpochOrdinal(NOW as u64 + number) }
}

fn key(n: u8) -> ContentKey {
    ContentKey::parse("acme", "test.doc", &n.to_string()).expect("a content")
}

fn tag(n: u8) -> Tag {
    Tag::parse(&format!("t{n}")).expect("a tag")
}

fn request(id: u16, content: u8, operation: Operation) -> WriteRequest {
    WriteRequest::new(Write {
        id: WriteId(u128::from(id).to_be_bytes()),
        key: key(content),
        user: UserId::parse("ann").expect("a user"),
        operation,
        if_match: None,
    })
}

fn add(id: u16, content: u8, added: u8) -> WriteRequest {
    let operation = Operation::patch(vec![tag(added)], Vec::new(), &LIMITS).expect("a patch");
    request(id, content, operation)
}

fn committed(epoch: &Epoch, lsn: u64) -> SlotCommit {
    let position = Position { epoch: epoch.id, xid: lsn, lsn };
    SlotCommit::Committed(CommitPosition { inside_lsn: lsn - 1, position, xmin: lsn + 1 })
}

fn answer(item: ItemResult) -> WriteAnswer {
    match item {
        ItemResult::Done(Ok(answer)) => answer,
        other @ (ItemResult::Done(Err(_)) | ItemResult::Retry | ItemResult::Undecided) => {
            panic!("no answer: {other:?}")
        }
    }
}

fn load<'a>(batch: &mut WriteBatch<'a>, key: &'a ContentKey, doc: Result<Document, DomainError>) {
    batch.load(key, stored_key(LogicalShard::of(key), &key.to_bytes()), doc);
}

#[test]
fn writes_of_one_content_share_one_event_and_one_view() {
    let (epoch, writes) = (epoch(1), [add(1, 1, 1), add(2, 1, 2), add(3, 1, 2)]);
    let context = CommitContext { cluster: 7, epoch: &epoch, limits: &LIMITS, now: NOW };
    let mut batch = WriteBatch::new(context, writes.len());
    load(&mut batch, &writes[0].write.key, Ok(Document::default()));
    writes.iter().for_each(|request| batch.apply(request, None));
    let mut events = Vec::new();
    for (n, slot) in batch.slots_to_store_mut() {
        assert_eq!((n, slot.loaded_version), (0, Version::NONE));
        events.extend(slot.take_event(NOW, epoch.ordinal));
    }
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].changes.len(), events[0].tags.len()), (2, 2));
    let answers: Vec<_> = batch.finish(|_| committed(&epoch, 9)).into_iter().map(answer).collect();
    assert_eq!(answers.iter().map(|a| a.changed).collect::<Vec<_>>(), [true, true, false]);
    let (first, second) = (answers[0].view.as_ref(), answers[1].view.as_ref());
    let (first, second) = (first.expect("a view"), second.expect("a view"));
    assert!(Arc::ptr_eq(first, second));
    assert_eq!((first.version, first.tags.len(), first.xmin), (answers[1].version, 2, 10));
    assert!(answers[2].view.is_none(), "the third write made no version");
    let receipt = answers[0].receipt;
    assert_eq!((receipt.cluster, receipt.inside_lsn, receipt.position.lsn), (7, 8, 9));
}

#[test]
fn a_stamp_changes_no_tag_and_has_a_view() {
    let (old, new) = (epoch(1), epoch(2));
    let mut document = Document::default();
    let first = add(1, 1, 1);
    let context = ApplyContext { epoch: &old, now: NOW, limits: &LIMITS, call: None };
    apply(&mut document, &first.write, None, &context);
    let confirm = add(2, 1, 1);
    let context = CommitContext { cluster: 0, epoch: &new, limits: &LIMITS, now: NOW };
    let mut batch = WriteBatch::new(context, 1);
    load(&mut batch, &confirm.write.key, Ok(document));
    batch.apply(&confirm, None);
    assert_eq!(batch.slots_to_store_mut().count(), 1);
    let stamp = answer(batch.finish(|_| committed(&new, 1)).remove(0));
    assert!(!stamp.changed && !stamp.repeated);
    assert_eq!(stamp.view.expect("a view").version, stamp.version);
}

#[test]
fn a_lost_race_and_a_damaged_document_fail_their_content_only() {
    let (epoch, writes) = (epoch(1), [add(1, 1, 1), add(2, 2, 1), add(3, 3, 1)]);
    let context = CommitContext { cluster: 0, epoch: &epoch, limits: &LIMITS, now: NOW };
    let mut batch = WriteBatch::new(context, 3);
    load(&mut batch, &writes[0].write.key, Ok(Document::default()));
    let damaged = DomainError::Undecodable { what: "document", reason: "truncated" };
    load(&mut batch, &writes[1].write.key, Err(damaged));
    load(&mut batch, &writes[2].write.key, Ok(Document::default()));
    writes.iter().for_each(|request| batch.apply(request, None));
    let commit = |n| if n == 0 { SlotCommit::LostRace } else { committed(&epoch, 5) };
    let items = batch.finish(commit);
    assert!(matches!(items[0], ItemResult::Retry));
    assert!(matches!(&items[1], ItemResult::Done(Err(StoreError::Damaged { .. }))));
    assert!(matches!(&items[2], ItemResult::Done(Ok(answer)) if answer.changed));
}

fn tagging(n: u8) -> Tagging {
    Tagging::of(tag(n), UserId::parse("ann").expect("a user"), NOW, Version::NONE)
}

#[test]
fn a_refusal_of_what_a_repair_may_bring_back_decides_nothing() {
    let (earlier, epoch) = (epoch(1), epoch(2));
    let context = CommitContext { cluster: 0, epoch: &epoch, limits: &LIMITS, now: NOW };
    let full = Document {
        version: epoch.first_version(),
        taggings: (0..LIMITS.tags_per_content).map(|n| tagging(n as u8)).collect(),
        ..Document::default()
    };
    // (the versions of `If-Match`, whether an earlier epoch may have taken it)
    let (old, new) = (earlier.first_version(), epoch.first_version().next(&epoch));
    let cases = [
        (None, true),
        (Some(vec![old]), true),
        (Some(vec![old, new]), true),
        (Some(vec![Version::NONE]), true),
        (Some(vec![new]), false),
    ];
    for (versions, could_be_taken) in cases {
        for may_come_back in [true, false] {
            let mut request = add(1, 1, 200);
            let call = Call::AddTag;
            request.keyed = Some(IdempotencyKey { id: [1; 16], call, request: 1 });
            request.write.if_match = versions.clone().map(IfMatch::any_of);
            let mut batch = WriteBatch::new(context, 1);
            load(&mut batch, &request.write.key, Ok(full.clone()));
            match may_come_back {
                true => batch.apply_undecided(&request, None),
                false => batch.apply(&request, None),
            }
            let remembered = batch.slots_to_store_mut().count();
            let is_undecided = match batch.finish(|_| committed(&epoch, 1)).remove(0) {
                ItemResult::Done(Err(StoreError::Refused(_))) => false,
                ItemResult::Undecided => true,
                other @ (ItemResult::Done(_) | ItemResult::Retry) => panic!("{other:?}"),
            };
            assert_eq!(is_undecided, may_come_back && could_be_taken, "{versions:?}");
            assert_eq!(remembered, usize::from(!is_undecided), "{versions:?}");
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Add(u8),
    Remove(u8),
    Replace(u8),
    /// With the version that the document has when it is written.
    Conditional(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let tag = 0u8..4;
    prop_oneof![
        tag.clone().prop_map(Change::Add),
        tag.clone().prop_map(Change::Remove),
        tag.clone().prop_map(Change::Replace),
        tag.prop_map(Change::Conditional),
    ]
}

/// A keyed write of the content.
fn write_of(change: &Change, id: u8, seen: Version) -> WriteRequest {
    let (mut request, number) = match change {
        Change::Add(n) | Change::Conditional(n) | Change::Remove(n) | Change::Replace(n) => {
            (add(id.into(), 1, *n), *n)
        }
    };
    let operation = match change {
        Change::Add(_) | Change::Conditional(_) => None,
        Change::Remove(_) => Some(Operation::patch(vec![], vec![tag(number).name], &LIMITS)),
        Change::Replace(_) => Some(Operation::replace(vec![tag(number)], &LIMITS)),
    };
    if let Some(operation) = operation {
        request.write.operation = operation.expect("an operation");
    }
    request.write.if_match = matches!(change, Change::Conditional(_)).then(|| seen.into());
    request.keyed = Some(IdempotencyKey { id: [id; 16], call: Call::Patch, request: id.into() });
    request
}

/// Folds one write over a document; returns the document and whether it was refused for good.
fn fold(
    epoch: &Epoch,
    document: &Document,
    request: &WriteRequest,
    may_come_back: bool,
) -> (Document, bool) {
    let limits = Limits { tags_per_content: 2 };
    let context = CommitContext { cluster: 0, epoch, limits: &limits, now: NOW };
    let mut batch = WriteBatch::new(context, 1);
    load(&mut batch, &request.write.key, Ok(document.clone()));
    match may_come_back {
        true => batch.apply_undecided(request, None),
        false => batch.apply(request, None),
    }
    let document = batch.slots().next().expect("its slot").1.document.clone();
    let item = batch.finish(|_| committed(epoch, 1)).remove(0);
    (document, matches!(item, ItemResult::Done(Err(StoreError::Refused(_)))))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Writes of an epoch are lost, the next one writes on, and clients retry the lost ones there
    /// before the repair: what a retry was refused for good is not brought back.
    #[test]
    fn no_repair_brings_back_what_a_retry_was_refused(
        kept in proptest::collection::vec(change(), 0..4),
        lost in proptest::collection::vec(change(), 1..4),
        later in proptest::collection::vec(change(), 0..4),
        retried in proptest::collection::vec(0usize..4, 1..4),
    ) {
        let (one, two) = (epoch(1), epoch(2));
        let mut id = 0u8;
        let mut write_all = |epoch: &Epoch, document: &mut Document, changes: &[Change]| {
            let mut written = Vec::new();
            for change in changes {
                id += 1;
                let request = write_of(change, id, document.version);
                *document = fold(epoch, document, &request, false).0;
                written.push((request, document.version));
            }
            written
        };
        let mut document = Document::default();
        write_all(&one, &mut document, &kept);
        let mut of_first = document.clone();
        let lost = write_all(&one, &mut of_first, &lost);
        write_all(&two, &mut document, &later);
        let mut refused = Vec::new();
        for n in retried {
            let (request, _) = &lost[n % lost.len()];
            let (after, is_refused) = fold(&two, &document, request, true);
            document = after;
            if is_refused {
                refused.push(request.write.id);
            }
        }
        let limits = Limits { tags_per_content: 2 };
        let writes: Vec<(WriteId, Version)> =
            lost.iter().map(|(request, version)| (request.write.id, *version)).collect();
        let ctx = JoinContext { epoch: &two, now: NOW, limits: &limits };
        let joined = join(&mut document, &of_first, &writes, &ctx);
        for (id, fate) in joined.fates {
            let is_back = matches!(fate, JoinFate::Repaired | JoinFate::Superseded);
            prop_assert!(!(is_back && refused.contains(&id)), "{id:?}: {fate:?}");
        }
    }
}

#[test]
fn a_write_without_its_document_is_refused() {
    let epoch = epoch(1);
    let context = CommitContext { cluster: 0, epoch: &epoch, limits: &LIMITS, now: NOW };
    let mut batch = WriteBatch::new(context, 1);
    batch.apply(&add(1, 1, 1), None);
    let items = batch.finish(|_| committed(&epoch, 1));
    assert!(matches!(&items[0], ItemResult::Done(Err(StoreError::Internal(_)))));
}

#[test]
fn a_forced_version_makes_an_unwritten_slot_changed() {
    let (old, new, content) = (epoch(1), epoch(2), key(1));
    let document = Document { version: old.first_version(), ..Document::default() };
    let context = CommitContext { cluster: 0, epoch: &new, limits: &LIMITS, now: NOW };
    let mut batch = WriteBatch::new(context, 1);
    load(&mut batch, &content, Ok(document));
    let slots = |batch: &mut WriteBatch<'_>| batch.slots_to_store_mut().count();
    assert_eq!(slots(&mut batch), 0);
    batch.slots_mut().for_each(|(_, slot)| slot.force_version(&new));
    assert_eq!(slots(&mut batch), 1);
    batch.slots_mut().for_each(|(_, slot)| {
        let version = slot.document.version;
        slot.force_version(&new);
        assert_eq!(slot.document.version, version, "a version of the epoch is kept");
    });
}

#[derive(Debug, Clone)]
struct Step {
    id: u16,
    content: u8,
    add: Vec<u8>,
    remove: Vec<u8>,
    is_replace: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let tags = || proptest::collection::vec(0u8..6, 0..4);
    (0u16..40, 0u8..3, tags(), tags(), prop::bool::weighted(0.2)).prop_map(
        |(id, content, add, remove, is_replace)| Step { id, content, add, remove, is_replace },
    )
}

fn request_of(step: &Step) -> Option<WriteRequest> {
    let added: Vec<Tag> = step.add.iter().copied().map(tag).collect();
    let operation = if step.is_replace {
        Operation::replace(added, &LIMITS)
    } else {
        let removed = step.remove.iter().copied().map(|n| tag(n).name).collect();
        Operation::patch(added, removed, &LIMITS)
    };
    // Every fourth write has an id of its own.
    let mut request = request(step.id, step.content, operation.ok()?);
    request.keyed = request.keyed.filter(|_| !step.id.is_multiple_of(4));
    // The key of every third request names all contents: that of a batch.
    if let Some(key) = request.keyed.as_mut().filter(|_| step.id.is_multiple_of(3)) {
        key.request = 0;
    }
    Some(request)
}

/// A store that applies one write at a time: documents and the `applied` table.
#[derive(Default)]
struct Model {
    documents: HashMap<ContentKey, Document>,
    applied: HashMap<(ContentKey, WriteId), RecentWrite>,
    keys: HashMap<[u8; 16], u64>,
}

impl Model {
    fn prior(&self, write: &Write, now: i64) -> Option<RecentWrite> {
        let overflow = self.documents.get(&write.key).map_or(0, |d| d.overflow_until);
        self.applied.get(&(write.key.clone(), write.id)).filter(|_| overflow > now).cloned()
    }

    fn apply(&mut self, request: &WriteRequest, epoch: &Epoch, now: i64) -> Outcome {
        let write = &request.write;
        if let Some(key) = request.keyed
            && *self.keys.entry(key.id).or_insert(key.request) != key.request
        {
            return Outcome::Refused(Refusal::KeyReused);
        }
        let prior = self.prior(write, now);
        let document = self.documents.entry(write.key.clone()).or_default();
        let call = request.keyed.map(|key| key.call);
        let context = ApplyContext { epoch, now, limits: &LIMITS, call };
        let outcome = apply(document, write, prior.as_ref(), &context);
        let evicted = if let Outcome::Written { evicted, .. } = &outcome {
            evicted.clone()
        } else {
            remember(document, write, &outcome, &context).unwrap_or_default()
        };
        self.applied.extend(evicted.into_iter().map(|w| ((write.key.clone(), w.id), w)));
        outcome
    }
}

proptest! {
    /// However writes are split into batches, the documents, the `applied` table and the answers
    /// are those of the same writes one at a time.
    #[test]
    fn a_batch_is_its_writes_one_after_the_other(
        batches in proptest::collection::vec(proptest::collection::vec(step(), 1..20), 1..6),
    ) {
        let (mut model, mut store) = (Model::default(), Model::default());
        for (n, steps) in batches.iter().enumerate() {
            let (now, epoch) = (NOW + n as i64 * 1000, epoch(n as u64 / 2));
            let requests: Vec<WriteRequest> = steps.iter().filter_map(request_of).collect();
            let outcomes: Vec<Outcome> =
                requests.iter().map(|r| model.apply(r, &epoch, now)).collect();

            let context = CommitContext { cluster: 0, epoch: &epoch, limits: &LIMITS, now };
            let mut batch = WriteBatch::new(context, requests.len());
            for request in &requests {
                let key = &request.write.key;
                let document = store.documents.get(key).cloned().unwrap_or_default();
                load(&mut batch, key, Ok(document));
                let prior = batch
                    .needs_prior(&request.write)
                    .and_then(|slot| store.applied.get(&(slot.key.clone(), request.write.id)))
                    .cloned();
                if let Some(key) = batch.needs_key(request) {
                    let bound = *store.keys.entry(key.id).or_insert(key.request);
                    batch.bind_key(key.id, bound);
                }
                batch.apply(request, prior.as_ref());
            }
            let mut published = 0;
            for (_, slot) in batch.slots_to_store_mut() {
                let evicted = slot.evicted.drain(..).map(|w| ((slot.key.clone(), w.id), w));
                store.applied.extend(evicted);
                store.documents.insert(slot.key.clone(), slot.document.clone());
                published += slot.take_event(now, epoch.ordinal).map_or(0, |e| e.changes.len());
            }
            let items = batch.finish(|_| committed(&epoch, 1));

            let is_written = |o: &&Outcome| matches!(o, Outcome::Written { .. });
            prop_assert_eq!(published, outcomes.iter().filter(is_written).count());
            for ((item, outcome), request) in items.into_iter().zip(&outcomes).zip(&requests) {
                let has_view = match (item, outcome) {
                    (
                        ItemResult::Done(Err(StoreError::Refused(got))),
                        Outcome::Refused(want) | Outcome::RefusedAgain(want),
                    ) => {
                        prop_assert_eq!(got, *want);
                        continue;
                    }
                    (ItemResult::Done(Ok(got)), Outcome::Unchanged { version }) => {
                        prop_assert_eq!((got.version, got.changed, got.repeated), (*version, false, false));
                        got.view.is_some()
                    }
                    (ItemResult::Done(Ok(got)), Outcome::Repeated { version, effect }) => {
                        prop_assert_eq!((got.version, got.repeated), (*version, true));
                        prop_assert_eq!((&got.added, &got.removed), (&effect.added, &effect.removed));
                        got.view.is_some()
                    }
                    (ItemResult::Done(Ok(got)), Outcome::Written { version, effect, .. }) => {
                        prop_assert_eq!((got.version, got.repeated), (*version, false));
                        prop_assert_eq!((&got.added, &got.removed), (&effect.added, &effect.removed));
                        let view = got.view.as_ref().expect("a view");
                        prop_assert_eq!(view.version, model.documents[&request.write.key].version);
                        true
                    }
                    (item, outcome) => panic!("{item:?} is not {outcome:?}"),
                };
                prop_assert_eq!(has_view, matches!(outcome, Outcome::Written { .. }));
            }
            model.documents.retain(|_, document| *document != Document::default());
            prop_assert_eq!(&store.documents, &model.documents);
            prop_assert_eq!(&store.applied, &model.applied);
            prop_assert_eq!(&store.keys, &model.keys);
        }
    }
}
