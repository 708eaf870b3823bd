//! Why calls of a cluster fail: a closed list, so that metrics, readiness, answers and the log name
//! a cause with one word, and each cause has one sentence and one remedy.
//!
//! How it fails: an error that no row of the table knows is `other`; the log has its text.

use tagfast_resilience::{LabelEnum, label_enum};

use crate::connect::PgError;
use crate::sql::EPOCH_ENDED;

label_enum! {
    /// What was called.
    pub enum CallKind {
        /// Writes.
        Writes = "writes",
        /// Reads.
        Reads = "reads",
    }
}

/// What is said of a cause.
struct Words {
    name: &'static str,
    /// The reason in [`StoreError::Unavailable`](tagfast_store::StoreError::Unavailable).
    reason: &'static str,
    /// What the caller waited for in [`StoreError::Deadline`](tagfast_store::StoreError::Deadline).
    waiting_for: &'static str,
    sentence: &'static str,
    remedy: &'static str,
}

macro_rules! causes {
    ($($(#[$meta:meta])* $variant:ident = $name:literal $sentence:literal $remedy:literal;)+) => {
        /// Why calls of a cluster fail.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum FailureCause { $($(#[$meta])* $variant),+ }

        impl FailureCause {
            /// All causes, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            const WORDS: &'static [Words] = &[$(Words {
                name: $name,
                reason: concat!($sentence, " (", $name, ")"),
                waiting_for: concat!("a node that can serve it: ", $sentence, " (", $name, ")"),
                sentence: $sentence,
                remedy: $remedy,
            }),+];
        }

        impl LabelEnum for FailureCause {
            const VALUES: &'static [&'static str] = &[$($name),+];

            fn as_str(self) -> &'static str {
                self.words().name
            }
        }
    };
}

causes! {
    /// SQLSTATE 25006.
    ReadOnly = "read_only"
        "the primary takes no writes because it is read-only"
        "default_transaction_read_only is set for the server, the database or the role, or Patroni \
         has demoted the primary: look at `patronictl list` and SHOW default_transaction_read_only";
    /// No leadership proof in time.
    Unproven = "unproven"
        "what the primary commits cannot be proven, because a different node may be primary"
        "look at `patronictl list`: a node was promoted by hand, a member does not answer or does \
         not follow while Patroni is paused, or etcd does not prove the lease";
    /// There is no primary.
    NoPrimary = "no_primary"
        "the cluster has no primary"
        "docs/operate/runbooks/cluster-down.md";
    /// SQLSTATE 55P03.
    Locked = "locked"
        "a lock on a table or row of the database is held by someone else"
        "look at pg_locks and pg_stat_activity for who holds it; the service itself holds no lock \
         for longer than one statement";
    /// Statements do not end in time.
    NoAnswer = "no_answer"
        "PostgreSQL does not finish statements in time"
        "the server or its disk is overloaded, frozen or cut off; look at pg_stat_activity and the \
         machine";
    /// It answers, but slowly.
    Slow = "slow"
        "PostgreSQL answers so slowly that it is called only now and then"
        "the server or the network to it is overloaded; `tagfast breakers list` shows the breaker";
    /// A commit waited for a synchronous standby in vain.
    NoStandby = "no_standby"
        "no synchronous standby confirms commits"
        "start the replicas and look at pg_stat_replication on the primary";
    /// The guard of loss holds or refuses writes.
    ReplicationLag = "replication_lag"
        "no replica has the newest writes, and a failover could lose more of them than is allowed"
        "docs/operate/runbooks/replication-lag.md";
    /// The connection cannot be opened, or ended.
    Unreachable = "unreachable"
        "PostgreSQL cannot be reached"
        "look at the server, at pg_hba.conf and at the network to it";
    /// SQLSTATE 57P01 to 57P03.
    Restarting = "restarting"
        "PostgreSQL is starting or shutting down"
        "wait; if it lasts, look at the log of PostgreSQL and of Patroni";
    /// SQLSTATE class 28.
    Authentication = "authentication"
        "PostgreSQL refuses the role or its password"
        "look at store.user, store.password_file and pg_hba.conf";
    /// SQLSTATE 42501.
    MissingRight = "missing_right"
        "the role of the service lacks a right in the database"
        "the role of store.user must own the database and its tables, and have pg_monitor";
    /// SQLSTATE class 42, 3D and 3F.
    SchemaChanged = "schema_changed"
        "a table, column or database of the service is missing or was changed"
        "put the schema back, or restore the cluster from its backup";
    /// SQLSTATE 53100.
    DiskFull = "disk_full"
        "the disk of the primary is full"
        "free space on the primary; nothing needs a restart";
    /// SQLSTATE 53300.
    TooManyConnections = "too_many_connections"
        "PostgreSQL has no connection left"
        "end what holds them or raise max_connections: docs/operate/install.md says how many each \
         process of the service needs";
    /// SQLSTATE classes 53 and 54.
    OutOfResources = "out_of_resources"
        "PostgreSQL has run out of memory or of another resource"
        "look at the log of PostgreSQL";
    /// The store refuses writes because events cannot be published.
    OutboxFull = "outbox_full"
        "the outbox is full, because its events are not published"
        "docs/operate/runbooks/outbox-full.md";
    /// More calls than there is room for.
    Overloaded = "overloaded"
        "there are more calls than the cluster carries"
        "send fewer, or add nodes; callers are told when to come back";
    /// The epoch check failed.
    EpochEnded = "epoch_ended"
        "the primary was replaced, or its epoch is not that of etcd"
        "wait; if it lasts, look at `patronictl list`";
    /// Anything else.
    Other = "other"
        "PostgreSQL refuses in a way that is not known"
        "the log of the service has its words";
}

impl FailureCause {
    fn words(self) -> &'static Words {
        &Self::WORDS[self as usize]
    }

    /// The cause of an error.
    pub(crate) fn of(error: &PgError) -> Self {
        let Some(code) = error.code() else {
            return match error {
                PgError::Timeout(..) => Self::NoAnswer,
                PgError::StandbyWaitCancelled => Self::NoStandby,
                PgError::Postgres(_) | PgError::Address(_) => Self::Unreachable,
            };
        };
        Self::of_code(code)
    }

    fn of_code(code: &str) -> Self {
        match code {
            "25006" => Self::ReadOnly,
            "55P03" | "40P01" | "40001" => Self::Locked,
            "57014" => Self::NoAnswer,
            "42501" => Self::MissingRight,
            "53100" => Self::DiskFull,
            "53300" => Self::TooManyConnections,
            EPOCH_ENDED => Self::EpochEnded,
            _ => match code.get(..2) {
                Some("28") => Self::Authentication,
                Some("42" | "3D" | "3F") => Self::SchemaChanged,
                Some("53" | "54") => Self::OutOfResources,
                Some("57") => Self::Restarting,
                Some("08") => Self::Unreachable,
                _ => Self::Other,
            },
        }
    }

    /// What is wrong, as a clause that can follow "because".
    pub fn sentence(self) -> &'static str {
        self.words().sentence
    }

    /// What an operator can do.
    pub fn remedy(self) -> &'static str {
        self.words().remedy
    }

    /// The reason in an error of a call.
    pub(crate) fn reason(self) -> &'static str {
        self.words().reason
    }

    /// What a call waited for that got no answer in time.
    pub(crate) fn waiting_for(self) -> &'static str {
        self.words().waiting_for
    }

    /// Whether the cluster cannot do its work. Too many calls are no reason to send them to a
    /// different process.
    pub fn is_outage(self) -> bool {
        self != Self::Overloaded
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_cause_has_one_word_a_sentence_and_a_remedy() {
        let names: BTreeSet<&str> = FailureCause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(names.len(), FailureCause::ALL.len());
        for (n, cause) in FailureCause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, n);
            assert!(cause.reason().contains(cause.as_str()));
            assert!(cause.waiting_for().contains(cause.sentence()));
            assert!(!cause.sentence().ends_with('.') && cause.remedy().len() > 3);
        }
    }

    #[test]
    fn codes_have_the_cause_that_an_operator_looks_for() {
        for (code, cause) in [
            ("25006", FailureCause::ReadOnly),
            ("28P01", FailureCause::Authentication),
            ("28000", FailureCause::Authentication),
            ("42501", FailureCause::MissingRight),
            ("42P01", FailureCause::SchemaChanged),
            ("42703", FailureCause::SchemaChanged),
            ("3D000", FailureCause::SchemaChanged),
            ("53100", FailureCause::DiskFull),
            ("53200", FailureCause::OutOfResources),
            ("53300", FailureCause::TooManyConnections),
            ("54000", FailureCause::OutOfResources),
            ("55P03", FailureCause::Locked),
            ("40P01", FailureCause::Locked),
            ("57014", FailureCause::NoAnswer),
            ("57P01", FailureCause::Restarting),
            ("57P03", FailureCause::Restarting),
            ("22012", FailureCause::EpochEnded),
            ("XX000", FailureCause::Other),
            ("", FailureCause::Other),
        ] {
            assert_eq!(FailureCause::of_code(code), cause, "{code}");
        }
        let late = PgError::Timeout("connecting", std::time::Duration::from_secs(3));
        assert_eq!(FailureCause::of(&late), FailureCause::NoAnswer);
        assert_eq!(FailureCause::of(&PgError::StandbyWaitCancelled), FailureCause::NoStandby);
    }
}
