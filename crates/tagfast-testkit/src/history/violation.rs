//! A violated invariant, with the shortest piece of the history that shows it.

use std::fmt;

/// What must hold in every history; the numbers are those of the failover protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// I1: two epochs never share an ordinal, two states of a content never share a version.
    UniqueVersions,
    /// I2: the commit of every acknowledged write precedes the next promotion.
    CommittedBeforePromotion,
    /// I3: the tags of each content are those after some serial order of its writes that respects
    /// real time and has every acknowledged write, but for those listed as lost.
    SerialOrder,
    /// I4: every acknowledged write has exactly one final verdict, and it is true.
    FinalVerdict,
    /// I5: what a failover loses of one process was acknowledged within the maximum loss.
    LossBound,
    /// I6: what was acknowledged as replicated by all is never absent after a promotion of one.
    ReplicatedSurvives,
    /// I7: at rest the index has the primary's state of every content.
    IndexEqualsPrimary,
    /// I8: the index never goes back, and no event of a replaced relay changes it.
    IndexGoesForward,
    /// I9: every outbox row of the current history is in the topic.
    OutboxIsPublished,
    /// I10: no unmarked answer shows what lies beyond the end of an epoch known to have ended.
    FreshIsCurrent,
    /// I11: an unmarked read with a token shows what the token covers.
    TokenIsCovered,
    /// I12: no content ever has more tags than the limit.
    TagLimit,
    /// I13: a write id has effect at most once in the current history.
    OneEffect,
}

impl Invariant {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::UniqueVersions,
        Self::CommittedBeforePromotion,
        Self::SerialOrder,
        Self::FinalVerdict,
        Self::LossBound,
        Self::ReplicatedSurvives,
        Self::IndexEqualsPrimary,
        Self::IndexGoesForward,
        Self::OutboxIsPublished,
        Self::FreshIsCurrent,
        Self::TokenIsCovered,
        Self::TagLimit,
        Self::OneEffect,
    ];
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = Self::ALL.iter().position(|i| i == self).map_or(0, |place| place + 1);
        write!(f, "I{number} {self:?}")
    }
}

/// A violated invariant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How it is violated.
    pub what: String,
    /// The calls and states that show it, in an order that reads well.
    pub trace: Vec<String>,
}

impl Violation {
    /// A violation that these show.
    pub(super) fn new<'a>(
        invariant: Invariant,
        what: impl Into<String>,
        trace: impl IntoIterator<Item = &'a dyn fmt::Display>,
    ) -> Self {
        let trace = trace.into_iter().map(ToString::to_string).collect();
        Self { invariant, what: what.into(), trace }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)?;
        self.trace.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// As [`fmt::Display`]: a failed assertion prints lines that can be read.
impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
