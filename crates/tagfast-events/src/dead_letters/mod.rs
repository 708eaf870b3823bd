//! Dead letters: records that could not be applied, kept to be replayed or discarded.
//!
//! A dead letter is open until it is replayed, found superseded, or discarded for a reason
//! ([`transitions`] is the state machine). A replay job marks the open dead letters of a filter;
//! the process that runs their consumer applies the marked ones ([`ReplayWorker`]). A job therefore
//! needs no lease: the process that has the partition continues it. Replays are judged by version
//! alone, so replaying a dead letter twice changes nothing the second time.
//!
//! How it fails: while the store cannot be reached, dead letters are neither listed nor replayed;
//! consuming and parking go on. State lost with a database makes dead letters open again, which is
//! harmless for the same reason.
//!
//! | file | what it does |
//! |---|---|
//! | `model` | dead letters, filters, jobs, audit entries |
//! | `transitions` | which action is allowed in which state |
//! | `policy` | when a dead letter is replayed automatically |
//! | `store` | the store port |
//! | `stored_headers` | the text in which stores keep headers |
//! | `ingest` | copies dead letters from the bus into the store |
//! | `replay_worker` | applies the dead letters of jobs |
//! | `supervisor` | the elected leader: automatic replays, counts, retention, notifications |
//! | `webhook` | the notification and its port |

mod ingest;
pub(crate) mod model;
pub(crate) mod policy;
pub(crate) mod replay_worker;
pub(crate) mod store;
mod stored_headers;
mod supervisor;
pub mod transitions;
mod webhook;

pub use ingest::{DeadLetterIngest, DeadLetterReader, DeadLetterSource, IngestTarget, ReadOffsets};
pub use model::{
    AuditCursor, AuditEntry, AuditPage, Criterion, DEAD_LETTERS_PAGE_MAX, DeadLetterCursor,
    DeadLetterFilter, DeadLetterPage, DeadLetterState, Due, FILTER_IDS_MAX, FilterField,
    GroupDeadLetters, NewReplayJob, REPLAY_RATE_DEFAULT, REPLAY_RATE_MAX, ReplayJob, ReplayResult,
    StoredDeadLetter, UnknownState, content_of,
};
pub use policy::AutoReplayPolicy;
pub use replay_worker::ReplayWorker;
pub use store::{DeadLetterStore, DeadLetterStoreError};
pub use stored_headers::{decode_headers, encode_headers};
pub use supervisor::{DeadLetterSupervisor, SupervisorOptions};
pub use webhook::{DeadLetterNotice, DeadLetterNotifier, GroupNotice};
