//! What became of an acknowledged write.
//!
//! How it fails: what cannot be told is `unknown` with its reason, never a guess.

/// What a repair recorded about a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordedVerdict {
    /// It was in the new history.
    Kept,
    /// It was lost and brought back.
    Repaired,
    /// It was lost for good.
    Lost,
}

/// Everything a verdict depends on.
#[derive(Debug, Clone, Copy)]
pub struct VerdictFacts {
    /// What a repair recorded; `None`: nothing.
    pub recorded: Option<RecordedVerdict>,
    /// The content's document, or the table of evicted ids, holds the write's id.
    pub is_known: bool,
    /// Up to where the write's epoch is part of the current history; 0: not at all. `None`: the
    /// epoch is unknown.
    pub epoch_end: Option<u64>,
    /// A position inside the write's transaction.
    pub inside: u64,
    /// A position at or after its commit.
    pub flushed: u64,
    /// The repairs of all later epochs are closed, and replicas have their closings.
    pub is_closed: bool,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteVerdict {
    /// It is in the current history.
    Kept,
    /// A failover lost it, and a repair brought it back.
    Repaired,
    /// A failover lost it.
    Lost,
    /// A repair may still bring it back.
    Pending,
    /// It was too long ago.
    Expired,
}

/// Decides about a write: the first rule that applies.
pub fn verdict(facts: &VerdictFacts) -> WriteVerdict {
    match facts.recorded {
        Some(RecordedVerdict::Kept) => return WriteVerdict::Kept,
        Some(RecordedVerdict::Repaired) => return WriteVerdict::Repaired,
        Some(RecordedVerdict::Lost) => return WriteVerdict::Lost,
        None => {}
    }
    let end = facts.epoch_end.unwrap_or(0);
    if facts.is_known || facts.flushed <= end {
        return WriteVerdict::Kept;
    }
    // An unknown epoch may be one that began a moment ago.
    if facts.epoch_end.is_none() || !facts.is_closed {
        return WriteVerdict::Pending;
    }
    if facts.inside >= end { WriteVerdict::Lost } else { WriteVerdict::Expired }
}
