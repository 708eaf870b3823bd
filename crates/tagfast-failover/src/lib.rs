//! What may be believed about a primary: epochs, the fence and the gate as pure state machines.
//!
//! Facts go in (what etcd said and when it was asked, what members answered, when a commit
//! returned), decisions come out. There is no I/O, no clock and no runtime here, so every rule can
//! be run against the schedules that break a simpler one.
//!
//! How it fails: towards not acknowledging. A fact that is missing, late or of another reign never
//! permits an answer; the write is then `unknown` and is tried again with its id.

pub mod ack;
pub mod epoch;
pub mod fence;

pub use ack::{Acknowledger, Commit, Decision};
pub use epoch::{
    Compare, ConnectionFacts, EpochRecord, EpochRow, LeaderKey, MintDecision, MintFacts,
    PrimaryFacts, Usable, mint, usable,
};
pub use fence::{BootTime, Fence, LeaseAnswer, MemberAnswer, Round};
