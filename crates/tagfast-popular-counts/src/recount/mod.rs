//! Comparing the counts with the shards.
//!
//! | module | it does |
//! |---|---|
//! | [`run`] | walks the shards while writes go on, and waits for the counts once |
//! | [`page`] | compares one page of a shard with the counted states, and repairs them |
//! | [`sums`] | compares the sums of one file with the states that they sum up |

mod page;
mod run;
mod sums;

pub(crate) use run::recount;
