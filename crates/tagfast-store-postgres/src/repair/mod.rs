//! Repairs: what a failover lost of the writes that this process acknowledged comes back, and
//! everybody can ask what became of each.
//!
//! | module | it does |
//! |---|---|
//! | [`pass`] | takes an ended epoch's writes from the journal, chunk by chunk, and reports |
//! | [`chunk`] | one transaction: reads documents, joins, writes, records verdicts |
//! | [`resolution`] | decides about one entry of the journal |
//! | [`closer`] | closes the repair of an epoch, so that its verdicts are final; forgets old ones |
//! | [`verdicts`] | answers receipts |
//! | [`failovers`] | reports failovers, and lists the writes that were not simply kept |

pub(crate) mod chunk;
pub(crate) mod closer;
mod failovers;
pub(crate) mod pass;
mod resolution;
mod verdicts;
pub(crate) use verdicts::VerdictSession;
