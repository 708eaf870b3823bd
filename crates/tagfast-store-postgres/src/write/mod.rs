//! Writes: queued in lanes, committed in groups.
//!
//! | module | it does |
//! |---|---|
//! | [`lane`] | queues the writes of a lane and answers those that waited too long |
//! | [`lane_worker`] | takes batches from a lane, commits them, has the commits proven, answers |
//! | [`acknowledgement`] | journals a commit and decides what its callers may be told |
//! | [`group_commit`] | applies a batch to its documents and commits it |
//! | [`slots`] | loads and writes the documents of a batch, guarded by version and epoch |
//! | [`session`] | the prepared statements of a writing connection |
//! | [`rewrite`] | writes contents again in a new epoch, unchanged |

pub(crate) mod acknowledgement;
pub(crate) mod group_commit;
pub(crate) mod lane;
pub(crate) mod lane_worker;
pub(crate) mod rewrite;
pub(crate) mod session;
pub(crate) mod slots;
