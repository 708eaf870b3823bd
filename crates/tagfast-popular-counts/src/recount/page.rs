//! One page of a shard beside the counted states of the same range of keys, both in key order.
//!
//! A different tag set at the same version is drift. If the shard is ahead, an event is in flight,
//! or it never comes; if only the counted state exists, the content may have been written since the
//! page was read. Both are looked at again ([`Unsettled`]) once the counts have caught up. If the
//! counted state is ahead, it is newer than the page.
//!
//! How it fails: a state that cannot be decoded fails the recount; the counts of a damaged file are
//! rebuilt, not repaired.

use std::collections::HashMap;

use tagfast_domain::{ContentKey, Document, Tagging, Version};
use tagfast_sharding::LogicalShard;

use crate::files::{Files, stored_key, written_at};
use crate::partition_file::{self, PartitionFile, Replace, State};
use crate::recount::sums::DriftRows;

/// Contents to look at again, by stored key: the version that the counts must reach; `None`: the
/// shard must have the content.
pub(super) type Unsettled = HashMap<Vec<u8>, Option<Version>>;

/// How often contents were compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// All contents of the page, for the first time.
    First,
    /// Those that are unsettled, after the counts have caught up with the first pass.
    Again,
    /// Those that are still unsettled: the counts have caught up with the pass before, too. One
    /// time is not enough: how far the counts are may be read between a commit and its event.
    Last,
}

/// The keys of a page.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) shard: LogicalShard,
    /// The page begins after this content; `None`: with the shard.
    pub(super) after: Option<ContentKey>,
    /// The page ends with this content; `None`: with the shard.
    pub(super) through: Option<ContentKey>,
}

impl Range {
    /// The stored keys after which and up to which the range lies.
    fn bounds(&self) -> [Vec<u8>; 2] {
        let number = self.shard.number();
        // No stored key is a shard's byte alone.
        let key = |key: &Option<ContentKey>, end: u8| key.as_ref().map_or(vec![end], stored_key);
        [key(&self.after, number), key(&self.through, number + 1)]
    }
}

/// What the comparison of a page has found.
#[derive(Default)]
pub(super) struct PageDrift {
    /// Contents whose counted state is wrong.
    pub(super) contents: u64,
    pub(super) rows: DriftRows,
    /// Contents to look at again.
    pub(super) unsettled: Unsettled,
}

/// A counted state.
struct Counted {
    key: Vec<u8>,
    version: Version,
    tags: Vec<u8>,
}

/// What is wrong with a counted state, and what it should be.
struct Wrong {
    key: Vec<u8>,
    content: ContentKey,
    counted: Vec<Tagging>,
    /// `None`: the shard has no such content.
    document: Option<Document>,
    /// The counted version.
    version: Version,
}

/// The comparison of a page.
pub(super) struct PageComparison {
    pub(super) range: Range,
    /// The contents of the shard, in key order.
    pub(super) items: Vec<(ContentKey, Document)>,
    pub(super) pass: Pass,
    /// What is compared again; empty in the first pass.
    pub(super) only: Unsettled,
    pub(super) repair: bool,
}

impl PageComparison {
    /// Compares the page; repairs what is wrong, if it is to be repaired.
    pub(super) fn compare(mut self, files: &Files) -> rusqlite::Result<PageDrift> {
        let Some(file) = files.of_shard(self.range.shard) else { return Ok(PageDrift::default()) };
        let items = std::mem::take(&mut self.items);
        let mut found = PageDrift::default();
        let mut wrong = Vec::new();
        file.read(|conn| {
            let mut select = conn.prepare_cached(
                "SELECT k, ver, state FROM pop_state WHERE k > ?1 AND k <= ?2 ORDER BY k",
            )?;
            let mut rows = select.query(self.range.bounds())?;
            let mut next = || -> rusqlite::Result<Option<Counted>> {
                let Some(row) = rows.next()? else { return Ok(None) };
                let version = row.get::<_, i64>(1)?.max(0).unsigned_abs();
                Ok(Some(Counted {
                    key: row.get(0)?,
                    version: Version::from_packed(version).unwrap_or_default(),
                    tags: row.get(2)?,
                }))
            };
            let mut state = next()?;
            for (content, document) in items {
                let key = stored_key(&content);
                while let Some(before) = state.take_if(|state| state.key < key) {
                    self.without_content(before, &mut found, &mut wrong)?;
                    state = next()?;
                }
                let counted = state.take_if(|state| state.key == key);
                if counted.is_some() {
                    state = next()?;
                }
                self.content(key, content, document, counted, &mut found, &mut wrong)?;
            }
            while let Some(left) = state {
                self.without_content(left, &mut found, &mut wrong)?;
                state = next()?;
            }
            Ok(())
        })?;
        found.contents = wrong.len() as u64;
        for wrong in &wrong {
            found.rows.add_content(wrong.content.tenant.as_str(), &wrong.counted, &wrong.real());
        }
        if self.repair && !wrong.is_empty() {
            repair_states(file, &wrong)?;
        }
        Ok(found)
    }

    /// A content of the shard, and its counted state.
    fn content(
        &self,
        key: Vec<u8>,
        content: ContentKey,
        document: Document,
        counted: Option<Counted>,
        found: &mut PageDrift,
        wrong: &mut Vec<Wrong>,
    ) -> rusqlite::Result<()> {
        let first_seen = match self.pass {
            Pass::First => None,
            Pass::Again | Pass::Last => match self.only.get(&key) {
                // It was settled before.
                None => return Ok(()),
                Some(first_seen) => *first_seen,
            },
        };
        let version = counted.as_ref().map_or(Version::NONE, |state| state.version);
        let tags = counted.map(|state| state.tags).unwrap_or_default();
        let drifted = match document.version.cmp(&version) {
            // The counted state is newer than the page.
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => !is_counted(&document, &tags)?,
            // A content that is written all the time is always in flight: it must reach the version
            // that was seen first.
            std::cmp::Ordering::Greater if first_seen.is_some_and(|first| version >= first) => {
                false
            }
            // It was written since its counted state was seen alone.
            std::cmp::Ordering::Greater if self.pass != Pass::First && first_seen.is_none() => {
                false
            }
            std::cmp::Ordering::Greater if self.pass == Pass::Last => true,
            std::cmp::Ordering::Greater => {
                found.unsettled.insert(key, Some(first_seen.unwrap_or(document.version)));
                return Ok(());
            }
        };
        if drifted {
            let counted = partition_file::decode_tags(&tags)?;
            wrong.push(Wrong { key, content, counted, document: Some(document), version });
        }
        Ok(())
    }

    /// A counted state without a content. A shard never removes a content.
    fn without_content(
        &self,
        state: Counted,
        found: &mut PageDrift,
        wrong: &mut Vec<Wrong>,
    ) -> rusqlite::Result<()> {
        if state.tags.is_empty() {
            return Ok(());
        }
        if self.pass == Pass::First {
            found.unsettled.insert(state.key, None);
            return Ok(());
        }
        if !self.only.contains_key(&state.key) {
            return Ok(());
        }
        let Ok(content) = ContentKey::from_bytes(state.key.get(1..).unwrap_or_default()) else {
            return Ok(());
        };
        let counted = partition_file::decode_tags(&state.tags)?;
        let Counted { key, version, .. } = state;
        wrong.push(Wrong { key, content, counted, document: None, version });
        Ok(())
    }
}

impl Wrong {
    /// The tags that the shard has.
    fn real(&self) -> Vec<Tagging> {
        self.document.iter().flat_map(Document::live).cloned().collect()
    }
}

/// Whether the tags of a document are those of the counted state at the same version.
fn is_counted(document: &Document, tags: &[u8]) -> rusqlite::Result<bool> {
    let live: Vec<Tagging> = document.live().cloned().collect();
    // The same bytes, almost always; else what counts decides.
    if partition_file::encode_tags(document.version, &live) == tags {
        return Ok(true);
    }
    let counted = partition_file::decode_tags(tags)?;
    let alike = |(a, b): (&Tagging, &Tagging)| partition_file::counts_alike(a, b);
    Ok(live.len() == counted.len() && live.iter().zip(&counted).all(alike))
}

fn repair_states(file: &PartitionFile, wrong: &[Wrong]) -> rusqlite::Result<()> {
    let tags: Vec<Vec<Tagging>> = wrong.iter().map(Wrong::real).collect();
    let states = wrong.iter().zip(&tags).map(|(wrong, tags)| State {
        k: &wrong.key,
        tenant: &wrong.content.tenant,
        version: wrong.document.as_ref().map_or(wrong.version, |document| document.version),
        at: wrong.document.as_ref().map_or(0, written_at),
        tags,
    });
    file.apply(&states.collect::<Vec<_>>(), Replace::IfNotOlder)?;
    file.write(|tx| {
        let mut delete =
            tx.prepare_cached("DELETE FROM pop_state WHERE k = ?1 AND length(state) = 0")?;
        for gone in wrong.iter().filter(|wrong| wrong.document.is_none()) {
            delete.execute([&gone.key])?;
        }
        Ok(())
    })
}
