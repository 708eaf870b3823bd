//! Reads: routed to nodes, batched, limited.
//!
//! | module | it does |
//! |---|---|
//! | [`routing`] | chooses the nodes of a read and checks that an answer is fresh enough |
//! | [`freshness`] | what a session read must cover, and what covers it |
//! | [`history`] | the epochs of a shard |
//! | [`node_reader`] | batches and limits the reads of one node |
//! | [`read_queue`] | the reads that wait for one node |
//! | [`group_read`] | one read query on one connection |

pub(crate) mod freshness;
pub(crate) mod group_read;
mod history;
pub(crate) mod node_reader;
pub(crate) mod read_queue;
pub(crate) mod routing;
