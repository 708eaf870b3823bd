//! What was published past the end of its epoch, and what of it a repair may use.
//!
//! Consumers may know such contents in a state that the current history has lost: they are written
//! again. Where the event had its content's document with it, the document is a second witness of
//! what the lost history acknowledged: a repair can join it, also when the process that had
//! acknowledged it died together with the primary.
//!
//! A document is no witness if consumers drop its record, because a record of a later publisher
//! epoch lies before it in the partition; or if it was committed after the new epoch was minted. A
//! replaced primary may have committed either of them, after the new history had begun.
//!
//! How it fails: a document that is damaged, or beyond the bytes that are kept, is left out, and
//! the log says how many. Its content is still written again.

use std::collections::BTreeMap;

use tagfast_domain::{ContentKey, Document, EpochOrdinal, UnixMillis, Version, codec};

/// Bytes of documents that one scan keeps. Too low: after a failover with a long lag, fewer writes
/// of processes that died come back. Too high: memory.
const DOCUMENTS_BYTES_MAX: usize = 64 << 20;

/// An epoch that has ended, as the current history has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedEpoch {
    /// Its ordinal.
    pub ordinal: EpochOrdinal,
    /// When it was minted, Unix ms.
    pub minted_at: UnixMillis,
    /// The log position up to which its log and the current one are the same; 0 if nothing is.
    pub epoch_end: u64,
    /// Every content that had diverged when it began was written again, in this history.
    pub reconciled: bool,
}

/// A document that was published beside an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedDocument {
    /// Ordinal of the epoch whose relay published it.
    pub publisher_epoch: EpochOrdinal,
    /// A log position of that epoch at or after the commit of the event.
    pub hi: u64,
    /// The document's version.
    pub version: Version,
    /// The encoded document.
    pub document: Vec<u8>,
}

/// A content of which something was published that the current history may lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DivergedContent {
    /// The content.
    pub key: ContentKey,
    /// Its witnesses: of each publisher epoch the newest document; empty: it is only written
    /// again.
    pub documents: Vec<PublishedDocument>,
}

/// An event past the end of its epoch, as a scan finds it.
#[derive(Debug, Clone, Copy)]
pub struct DivergedEvent<'a> {
    /// Ordinal of the epoch whose relay published it.
    pub publisher_epoch: EpochOrdinal,
    /// A log position of that epoch at or after the commit; `None`: unknown.
    pub hi: Option<u64>,
    /// Commit time, Unix ms.
    pub at: UnixMillis,
    /// The encoded document beside it; `None`: it came alone.
    pub document: Option<&'a [u8]>,
}

type Contents = BTreeMap<ContentKey, Vec<PublishedDocument>>;

/// Collects what a scan finds, which reads each partition backwards.
#[derive(Debug)]
pub struct DivergedContents {
    /// When the new epoch was minted, Unix ms.
    minted_at: UnixMillis,
    bytes_max: usize,
    bytes: usize,
    /// Of the partitions that are read.
    finished: Contents,
    /// Of the partition that is being read.
    partition: Contents,
    damaged: u64,
    left_out: u64,
}

impl DivergedContents {
    /// Nothing yet. `minted_at`: when the new epoch was minted, Unix ms.
    pub fn new(minted_at: UnixMillis) -> Self {
        Self {
            minted_at,
            bytes_max: DOCUMENTS_BYTES_MAX,
            bytes: 0,
            finished: Contents::new(),
            partition: Contents::new(),
            damaged: 0,
            left_out: 0,
        }
    }

    /// A record of this publisher epoch lies before everything that was added since the partition
    /// was begun: consumers drop what an earlier epoch's relay published behind it.
    pub fn fence(&mut self, publisher_epoch: EpochOrdinal) {
        for documents in self.partition.values_mut() {
            documents.retain(|known| {
                let is_accepted = known.publisher_epoch >= publisher_epoch;
                if !is_accepted {
                    self.bytes -= known.document.len();
                }
                is_accepted
            });
        }
    }

    /// Adds an event of the partition that is being read.
    pub fn add(&mut self, key: ContentKey, event: &DivergedEvent<'_>) {
        let documents = self.partition.entry(key).or_default();
        let DivergedEvent { publisher_epoch, hi, at, document } = *event;
        // Without a position it cannot be told which part of its log the history has.
        let (Some(hi), Some(bytes)) = (hi, document) else { return };
        let Ok(document) = codec::decode(bytes) else {
            self.damaged += 1;
            return;
        };
        if at.max(newest_write(&document)) > self.minted_at {
            return;
        }
        let known = documents.iter().position(|known| known.publisher_epoch == publisher_epoch);
        // A later document of one log has everything that an earlier one has.
        if known.is_some_and(|n| documents[n].version >= document.version) {
            return;
        }
        let freed = known.map_or(0, |n| documents[n].document.len());
        if self.bytes - freed + bytes.len() > self.bytes_max {
            self.left_out += 1;
            return;
        }
        self.bytes = self.bytes - freed + bytes.len();
        known.map(|n| documents.remove(n));
        let version = document.version;
        let document = bytes.to_vec();
        documents.push(PublishedDocument { publisher_epoch, hi, version, document });
    }

    /// The partition is read as far as it must be.
    pub fn end_partition(&mut self) {
        self.finished.append(&mut self.partition);
    }

    /// The contents of all partitions, sorted by key.
    pub fn into_contents(mut self, cluster: &str) -> Vec<DivergedContent> {
        self.end_partition();
        if self.damaged + self.left_out > 0 {
            let (damaged, left_out) = (self.damaged, self.left_out);
            tracing::warn!(
                cluster,
                damaged,
                left_out,
                "some published documents repair nothing: damaged, or too many bytes"
            );
        }
        let contents = self.finished.into_iter();
        contents.map(|(key, documents)| DivergedContent { key, documents }).collect()
    }
}

/// When the newest write that the document remembers was decided, Unix ms; 0: it remembers none.
fn newest_write(document: &Document) -> UnixMillis {
    document.recent.iter().map(|write| write.at).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tagfast_domain::{
        ApplyContext, Epoch, EpochId, Limits, Operation, Tag, UserId, Write, WriteId, apply,
    };

    use super::*;

    const MINTED_AT: UnixMillis = 1_800_000_000_000;
    const ONE: EpochOrdinal = EpochOrdinal(1_799_000_000_001);
    const TWO: EpochOrdinal = EpochOrdinal(1_799_000_000_002);
    const THREE: EpochOrdinal = EpochOrdinal(1_799_000_000_003);

    fn key(id: u32) -> ContentKey {
        ContentKey::parse("test", "doc", &id.to_string()).expect("a content")
    }

    /// A document after so many writes, the last one at this time.
    fn document(ordinal: EpochOrdinal, writes: u8, at: UnixMillis) -> Vec<u8> {
        let mut document = Document::default();
        for n in 0..writes {
            let tag = Tag::parse(&format!("t{n}")).expect("a tag");
            let limits = Limits::default();
            let write = Write {
                id: WriteId([n; 16]),
                key: key(0),
                user: UserId::parse("ann").expect("a user"),
                operation: Operation::patch(vec![tag], vec![], &limits).expect("a patch"),
                if_match: None,
            };
            let epoch = Epoch { id: EpochId([1; 16]), ordinal };
            let context = ApplyContext { epoch: &epoch, now: at, limits: &limits, call: None };
            apply(&mut document, &write, None, &context);
        }
        codec::encode(&document)
    }

    fn event(publisher_epoch: EpochOrdinal, document: &[u8]) -> DivergedEvent<'_> {
        let at = MINTED_AT - 1000;
        DivergedEvent { publisher_epoch, hi: Some(7), at, document: Some(document) }
    }

    /// The publisher epochs of each content's documents.
    fn witnesses(found: DivergedContents) -> Vec<Vec<EpochOrdinal>> {
        let contents = found.into_contents("c0").into_iter();
        contents.map(|c| c.documents.iter().map(|d| d.publisher_epoch).collect()).collect()
    }

    /// A commits, the relay publishes, P and A die: the record is all that is left.
    #[test]
    fn x19_a_published_write_of_processes_that_died_has_a_witness() {
        let written = document(ONE, 2, MINTED_AT - 1000);
        let mut found = DivergedContents::new(MINTED_AT);
        found.fence(TWO);
        found.add(key(1), &event(ONE, &written));
        let [content] = &found.into_contents("c0")[..] else { panic!("one content") };
        assert_eq!((content.key.clone(), content.documents.len()), (key(1), 1));
        assert_eq!((content.documents[0].hi, &content.documents[0].document), (7, &written));
    }

    /// The first record of a content is published and lost: without a document it has no witness,
    /// and is written again all the same.
    #[test]
    fn x20_an_event_alone_is_written_again_and_joins_nothing() {
        let mut found = DivergedContents::new(MINTED_AT);
        found.add(key(1), &DivergedEvent { document: None, ..event(ONE, &[]) });
        assert_eq!(witnesses(found), [vec![]]);
    }

    /// Epoch 2 put its marker and died before it had touched anything: what epoch 1 published
    /// before is still a witness, and so is what epoch 2 published.
    #[test]
    fn x17b_a_marker_of_a_term_that_repaired_nothing_ends_no_witness() {
        let (one, two) = (document(ONE, 1, 5), document(TWO, 2, 6));
        let mut found = DivergedContents::new(MINTED_AT);
        found.fence(THREE);
        found.add(key(1), &event(TWO, &two));
        found.fence(TWO);
        found.add(key(1), &event(ONE, &one));
        found.fence(ONE);
        assert_eq!(witnesses(found), [vec![TWO, ONE]]);
    }

    /// The relay of a replaced primary publishes behind the marker of the next epoch.
    #[test]
    fn x15_x17_what_consumers_drop_is_no_witness() {
        let (one, two) = (document(ONE, 1, 5), document(TWO, 2, 6));
        let mut found = DivergedContents::new(MINTED_AT);
        found.add(key(1), &event(ONE, &one));
        found.add(key(2), &event(TWO, &two));
        found.fence(TWO);
        assert_eq!(witnesses(found), [vec![], vec![TWO]]);
        // In a different partition the marker fences nothing of this one.
        let mut found = DivergedContents::new(MINTED_AT);
        found.add(key(1), &event(ONE, &one));
        found.end_partition();
        found.fence(TWO);
        assert_eq!(witnesses(found), [vec![ONE]]);
    }

    #[test]
    fn what_was_committed_after_the_minting_is_no_witness() {
        let (before, after) = (document(ONE, 1, MINTED_AT), document(ONE, 2, MINTED_AT + 1));
        let mut found = DivergedContents::new(MINTED_AT);
        found.add(key(1), &event(ONE, &after));
        found.add(key(1), &event(ONE, &before));
        let late = DivergedEvent { at: MINTED_AT + 1, ..event(ONE, &before) };
        found.add(key(2), &late);
        let found = found.into_contents("c0");
        assert_eq!(found[0].documents[0].document, before);
        assert!(found[1].documents.is_empty());
    }

    #[test]
    fn damaged_documents_and_those_without_a_position_are_left_out() {
        let good = document(ONE, 1, 5);
        let mut found = DivergedContents::new(MINTED_AT);
        found.add(key(1), &event(ONE, &good[..good.len() - 1]));
        found.add(key(2), &DivergedEvent { hi: None, ..event(ONE, &good) });
        assert_eq!(found.damaged, 1);
        assert_eq!(witnesses(found), [vec![], vec![]]);
    }

    proptest! {
        /// Whatever a scan meets: of each content and publisher epoch the newest document that no
        /// later epoch fences, never more bytes than allowed, and the bytes are counted right.
        #[test]
        fn the_newest_document_of_each_epoch_stays(
            records in prop::collection::vec((0u32..3, 0usize..3, 1u8..6, any::<bool>()), 0..40),
            bytes_max in 0usize..2000,
        ) {
            let epochs = [ONE, TWO, THREE];
            let mut found = DivergedContents { bytes_max, ..DivergedContents::new(MINTED_AT) };
            let mut expected: BTreeMap<(u32, EpochOrdinal), u8> = BTreeMap::new();
            for (id, epoch, writes, is_fence) in &records {
                let epoch = epochs[*epoch];
                if *is_fence {
                    found.fence(epoch);
                    expected.retain(|(_, of), _| *of >= epoch);
                } else {
                    found.add(key(*id), &event(epoch, &document(epoch, *writes, 5)));
                    let newest = expected.entry((*id, epoch)).or_default();
                    *newest = (*newest).max(*writes);
                }
                let kept = found.partition.values().flatten().map(|d| d.document.len());
                prop_assert_eq!(found.bytes, kept.sum::<usize>());
                prop_assert!(found.bytes <= bytes_max);
            }
            if found.left_out == 0 {
                let kept = found.into_contents("c0").into_iter().flat_map(|content| {
                    let id = content.key.content.content_id.as_str();
                    let id: u32 = id.parse().expect("a number");
                    content.documents.into_iter().map(move |d| {
                        let doc = codec::decode(&d.document).expect("a document");
                        ((id, d.publisher_epoch), doc.recent.len() as u8)
                    })
                });
                prop_assert_eq!(kept.collect::<BTreeMap<_, _>>(), expected);
            }
        }
    }
}
