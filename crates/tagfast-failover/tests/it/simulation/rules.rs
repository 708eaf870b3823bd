//! The rules that a schedule runs under.

/// How a commit is proven to be of the living primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fence {
    /// The real one.
    Lease,
    /// It answered, so it is the primary.
    Absent,
    /// No other node is the primary now.
    NoOtherPrimary,
}

/// What names a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TermName {
    /// The creation revision of the leader key.
    Revision,
    /// The timeline that the server writes.
    Timeline,
}

/// When an entry leaves the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropping {
    /// All replicas have it, by positions of its epoch.
    CoveredByAll,
    /// One replica has it.
    CoveredByOne,
    /// All nodes are past its position, in whatever log.
    PositionReached,
}

/// The rules. Each value but the first of its type is a simpler rule that some schedule breaks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) fence: Fence,
    /// An acknowledgement needs the epoch of the commit to be the current one.
    pub(super) gate: bool,
    /// A repaired decision keeps the version of the write that made it.
    pub(super) join_keeps_versions: bool,
    /// An ordinal is above every one that etcd knows, not only above the newest row.
    pub(super) ordinal_from_etcd: bool,
    /// Each transaction checks the epoch, not only the connection.
    pub(super) transaction_checks_epoch: bool,
    pub(super) term: TermName,
    /// A mint is conditional on the key that was read.
    pub(super) conditional_mint: bool,
    /// An answer that changed nothing is journaled.
    pub(super) no_ops_journaled: bool,
    /// The answer to a retry is journaled.
    pub(super) repeated_journaled: bool,
    /// A write that changes nothing decides again in a new epoch.
    pub(super) no_ops_stamp: bool,
    pub(super) dropping: Dropping,
    /// A replaced set decides every tagging, listed or not.
    pub(super) replace_decides_all: bool,
    /// A repaired entry stays in the journal.
    pub(super) repaired_stays: bool,
}

pub(super) const REAL: Rules = Rules {
    fence: Fence::Lease,
    gate: true,
    join_keeps_versions: true,
    ordinal_from_etcd: true,
    transaction_checks_epoch: true,
    term: TermName::Revision,
    conditional_mint: true,
    no_ops_journaled: true,
    repeated_journaled: true,
    no_ops_stamp: true,
    dropping: Dropping::CoveredByAll,
    replace_decides_all: true,
    repaired_stays: true,
};
