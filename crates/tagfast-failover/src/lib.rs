//! When a commit may be acknowledged: epochs, leadership proofs and the acknowledgement gate as
//! pure state machines.
//!
//! Facts go in (what etcd answered and when the request was sent, what the members answered, when
//! a commit returned), decisions come out. There is no I/O, no clock and no runtime here, so a
//! test can run every rule against the schedules that break a simpler one.
//!
//! How it fails: towards not acknowledging. A fact that is missing, late or of a different leader
//! term never permits an acknowledgement; the write's outcome is then unknown, and the writer
//! retries it with the same id.
//!
//! # Words
//!
//! A *leader term* is one acquisition of Patroni's leader key, named by the key's creation
//! revision. An *epoch* is what this service mints for a term: an id, and an ordinal that orders
//! it. An *epoch end* is the log position up to which an ended epoch is part of the current
//! history. A *leadership proof* shows that no other node can have become primary before a commit
//! returned.
//!
//! # Counterexamples
//!
//! Each rule is here because a simpler one loses an acknowledged write, or acknowledges a lost one.
//! The schedule that breaks the simpler rule is a test:
//!
//! | the schedule | the test |
//! |---|---|
//! | a node loses the key and retakes it | `the_lease_of_a_different_term_proves_nothing` |
//! | etcd's former leader renews a lease | `a_lease_of_etcds_former_leader_proves_nothing` |
//! | an observation is overtaken | `an_observation_that_was_overtaken_changes_nothing` |
//! | a commit returns an epoch late | `a_late_result_of_an_older_epoch_stays_behind_the_gate` |
//! | a replica leads between two probes | `a_member_that_was_primary_in_between_breaks_the_chain` |
//! | the same, while probes are late | `a_gap_that_hides_a_promotion_breaks_the_chain` |
//! | the `epoch` row dies with its primary | `an_ordinal_lost_with_its_row_is_not_minted_again` |
//! | etcd is restored from a backup | `an_ordinal_that_only_the_table_has_is_not_minted_again` |
//! | two failovers unnoticed | `a_node_that_slept_through_two_failovers_acknowledges_nothing_old` |
//! | a promotion within a leader term | `a_promotion_within_a_leader_term_begins_an_epoch` |
//! | the key is retaken, no promotion | `a_key_taken_again_without_a_promotion_is_a_new_term` |
//! | a node mints after the term has ended | `a_late_node_cannot_mint_for_a_dead_term` |
//! | a backend outlives its postmaster | `a_slow_commit_needs_a_proof_requested_after_it` |
//! | a replaced primary lives | `a_connection_writes_only_where_row_and_timeline_agree_with_etcd` |
//!
//! The counterexamples of journal, repair and epochs (X1 to X14) run in a simulated cluster, each
//! under the real rules and under the simpler one: `tests/it/simulation`. Those of the relay and
//! its consumers (X15 to X20) are about other crates: X16 and X18 are tests of the relay
//! (`tagfast-store-postgres/tests/real/counterexamples.rs`), X17b and X18 of the scan
//! (`tagfast-events-kafka/src/reverse_scan/tests.rs`).

pub mod ack_gate;
pub mod acknowledger;
pub mod closing;
pub mod coverage;
pub mod epoch;
mod exposure;
pub mod guard;
pub mod journal;
pub mod journal_record;
pub mod journal_segments;
pub mod journaled;
pub mod leadership;
mod unsaved;
pub mod verdict;

pub use ack_gate::{AckGate, Commit, Decision};
pub use acknowledger::{AckDecision, Acknowledger, JournaledCommit};
pub use closing::{Closing, closing, superseded};
pub use coverage::{Coverage, ReplicaCount};
pub use epoch::{
    ConnectionFacts, EpochRecord, EpochRow, LeaderKey, MintCondition, MintDecision, MintFacts,
    PrimaryFacts, TimelineSwitch, WriteEligibility, check_eligibility, mint,
};
pub use guard::{GuardFacts, GuardOptions, GuardState, OnLag, guard};
pub use journal::{GroupId, Journal, RepairEntry, RepairId};
pub use journal_record::{
    DecodedFile, FileEnd, FileError, FileHeader, JOURNAL_FORMAT, JournalRecord, decode_file,
    encode_group, encode_header, encode_record,
};
pub use journal_segments::{GivenUp, JournalSegments};
pub use journaled::{
    AcknowledgedGroup, IncompleteRange, JournaledContent, JournaledWrite, LogRange,
};
pub use leadership::{
    BootTime, LeaderObservation, LeadershipProof, LeaseAnswer, MemberAnswer, ProbeRound,
};
pub use unsaved::UnsavedBatch;
pub use verdict::{RecordedVerdict, VerdictFacts, WriteVerdict, verdict};
