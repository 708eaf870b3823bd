//! Repairs: what a failover lost of acknowledged writes comes back, from journals and events, and
//! all callers can ask what became of theirs.
//!
//! | module | it does |
//! |---|---|
//! | [`pass`] | takes an ended epoch's writes from the journal, chunk by chunk, and reports |
//! | [`chunk`] | one transaction: reads documents, joins, writes, records verdicts |
//! | [`published`] | joins what was published with events that a failover lost |
//! | [`resolution`] | decides about one entry of the journal |
//! | [`closer`] | closes the repair of an epoch, so that its verdicts are final; forgets old ones |
//! | [`verdicts`] | answers receipts |
//! | [`verdict_session`], [`verdict_rows`] | their connection, and the rows of `repair_log` |
//! | [`report`] | makes the report of a failover |
//! | [`failovers`] | reads reports of failovers, and lists the writes that were not simply kept |

pub(crate) mod chunk;
pub(crate) mod closer;
mod failovers;
pub(crate) mod pass;
pub(crate) mod published;
mod report;
mod resolution;
mod verdict_rows;
mod verdict_session;
mod verdicts;

pub(crate) use verdict_session::VerdictSession;
