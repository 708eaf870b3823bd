//! Each tag of a content is a register, present or absent. Its writes are ordered by the versions
//! that they made, so the value at every version is known without a search.
//!
//! Deciding whether some order explains a history of registers is NP-hard in general, which is why
//! Knossos searches and gives up on long histories. Elle shows the way around: where the answers
//! tell the order of the writes (there by lists that are appended to, here by versions), it is
//! enough to check that this one order explains everything. That takes n log n.
//!
//! How it fails: a write with an unknown outcome has no version, so it may explain any state from
//! its call on. The more outcomes are unknown, the less is proven.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::outcome::Outcome;
use super::record::{History, WriteCall, WriteVerdict};

/// After everything: the largest version, and no limit of time.
pub(super) const END: (u64, Duration) = (u64::MAX, Duration::MAX);

/// What a write says about a tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decision<'a> {
    pub(super) write: &'a WriteCall,
    pub(super) present: bool,
}

/// The decisions about one tag.
#[derive(Debug, Default)]
struct Register<'a> {
    /// Of acknowledged writes, which must be in the history; by version.
    required: Vec<Decision<'a>>,
    /// Of acknowledged writes that a failover lost or may have lost; by version.
    optional: Vec<Decision<'a>>,
    /// Of writes with an unknown outcome.
    unknown: Vec<Decision<'a>>,
}

impl<'a> Register<'a> {
    fn insert(&mut self, standing: Standing, decision: Decision<'a>) {
        match standing {
            Standing::Required => self.required.push(decision),
            Standing::Optional => self.optional.push(decision),
            Standing::Unknown => self.unknown.push(decision),
        }
    }

    fn sort(&mut self) {
        self.required.sort_by_key(|d| d.write.version);
        self.optional.sort_by_key(|d| d.write.version);
    }
}

/// The newest decision up to a version.
fn newest<'a>(decisions: &[Decision<'a>], version: u64) -> Option<Decision<'a>> {
    let count = decisions.partition_point(|d| d.write.version <= version);
    count.checked_sub(1).map(|last| decisions[last])
}

/// Whether a write must be in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Required,
    Optional,
    Unknown,
}

/// The registers of one content.
#[derive(Debug, Default)]
pub(super) struct ContentRegisters<'a> {
    tags: BTreeMap<&'a str, Register<'a>>,
    /// Replaced sets: they decide that each tag which they do not add is absent.
    replaced: Register<'a>,
}

impl<'a> ContentRegisters<'a> {
    fn insert(&mut self, standing: Standing, write: &'a WriteCall) {
        for (tags, present) in [(&write.adds, true), (&write.removes, false)] {
            for tag in tags {
                let register = self.tags.entry(tag).or_default();
                register.insert(standing, Decision { write, present });
            }
        }
        if write.replaces {
            self.replaced.insert(standing, Decision { write, present: false });
        }
    }

    /// Every tag that a write names.
    pub(super) fn tags(&self) -> impl Iterator<Item = &'a str> {
        self.tags.keys().copied()
    }

    /// Whether a write names this tag.
    pub(super) fn knows(&self, tag: &str) -> bool {
        self.tags.contains_key(tag)
    }

    /// The newest decision about a tag up to a version, of writes that must be in the history.
    pub(super) fn required(&self, tag: &str, version: u64) -> Option<Decision<'a>> {
        let own = self.tags.get(tag).and_then(|r| newest(&r.required, version));
        // A replaced set that adds the tag has its own decision about it, at the same version.
        let replaced =
            newest(&self.replaced.required, version).filter(|d| !d.write.adds.contains(tag));
        let both = [own, replaced].into_iter().flatten();
        both.max_by_key(|d| (d.write.version, d.present))
    }

    /// The decisions about a tag of writes that need not be in the history, after a version and up
    /// to another one.
    pub(super) fn optional(
        &self,
        tag: &str,
        after: u64,
        version: u64,
    ) -> impl Iterator<Item = Decision<'a>> {
        let own = self.tags.get(tag).map_or(&[][..], |r| &r.optional);
        let from = |decisions: &[Decision<'_>]| {
            decisions.partition_point(|d| d.write.version <= after)
                ..decisions.partition_point(|d| d.write.version <= version)
        };
        let replaced = &self.replaced.optional;
        let own = own.get(from(own)).unwrap_or_default().iter().copied();
        let replaced = replaced.get(from(replaced)).unwrap_or_default().iter().copied();
        let replaced: Vec<Decision<'a>> =
            replaced.filter(|d| !d.write.adds.contains(tag)).collect();
        own.chain(replaced)
    }

    /// Whether a write with an unknown outcome that was requested until `ended` explains this.
    fn may_be(&self, tag: &str, present: bool, ended: Duration) -> bool {
        let own = self.tags.get(tag).map_or(&[][..], |r| &r.unknown);
        let replaced = self.replaced.unknown.iter().filter(|d| !d.write.adds.contains(tag));
        own.iter().chain(replaced).any(|d| d.present == present && d.write.began <= ended)
    }

    /// Whether a tag that was added at `added` may have been removed since, in a state as of
    /// [`Self::explain`].
    pub(super) fn is_removed_after(
        &self,
        tag: &str,
        added: u64,
        (version, ended): (u64, Duration),
    ) -> bool {
        self.required(tag, version).is_some_and(|d| d.write.version > added)
            || self.optional(tag, added, version).any(|d| !d.present)
            || self.may_be(tag, false, ended)
    }

    /// Whether the order of the versions explains that a tag is `present` at `version`, in a state
    /// that was shown at `ended`. `may_count`: which writes that may be lost may count. The error
    /// is the newest decision that must count; none: the tag must be absent.
    pub(super) fn explain(
        &self,
        tag: &str,
        present: bool,
        (version, ended): (u64, Duration),
        may_count: impl Fn(&WriteCall) -> bool,
    ) -> Result<(), Option<Decision<'a>>> {
        let newest = self.required(tag, version);
        let after = newest.map_or(0, |d| d.write.version);
        if newest.is_some_and(|d| d.present) == present
            || self
                .optional(tag, after, version)
                .any(|d| d.present == present && may_count(d.write))
            || self.may_be(tag, present, ended)
        {
            Ok(())
        } else {
            Err(newest)
        }
    }
}

/// The registers of all contents.
#[derive(Debug)]
pub(super) struct Registers<'a> {
    contents: HashMap<&'a str, ContentRegisters<'a>>,
    none: ContentRegisters<'a>,
}

impl<'a> Registers<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let settled: BTreeSet<u128> = history.acknowledged().map(|w| w.id).collect();
        let mut contents: HashMap<&str, ContentRegisters<'_>> = HashMap::new();
        for write in &history.writes {
            let standing = match write.outcome {
                Outcome::Refused => continue,
                Outcome::Unknown if settled.contains(&write.id) => continue,
                Outcome::Unknown => Standing::Unknown,
                Outcome::Acknowledged if may_be_missing(history, write) => Standing::Optional,
                Outcome::Acknowledged => Standing::Required,
            };
            contents.entry(&write.content).or_default().insert(standing, write);
        }
        for content in contents.values_mut() {
            content.tags.values_mut().for_each(Register::sort);
            content.replaced.sort();
        }
        Self { contents, none: ContentRegisters::default() }
    }

    pub(super) fn content(&self, content: &str) -> &ContentRegisters<'a> {
        self.contents.get(content).unwrap_or(&self.none)
    }

    /// The contents that another process may have written.
    pub(super) fn contents(&self) -> impl Iterator<Item = (&'a str, &ContentRegisters<'a>)> {
        self.contents.iter().map(|(content, registers)| (*content, registers))
    }
}

/// Whether the history may lack this acknowledged write.
fn may_be_missing(history: &History, write: &WriteCall) -> bool {
    match write.final_verdict() {
        Some(WriteVerdict::Kept | WriteVerdict::Repaired) => false,
        Some(WriteVerdict::Lost(_) | WriteVerdict::Unknown(_)) => true,
        None => is_in_lossy_period(history, write),
    }
}

/// Whether the test says that this write may be lost.
pub(super) fn is_in_lossy_period(history: &History, write: &WriteCall) -> bool {
    history.may_lose.iter().any(|(from, to)| write.ended >= *from && write.ended <= *to)
}
