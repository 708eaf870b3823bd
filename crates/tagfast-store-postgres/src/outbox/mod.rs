//! The outbox: committed events on their way to the bus.
//!
//! | module | it does |
//! |---|---|
//! | [`sink`] | the port that a bus implements, and the sink that keeps nothing |
//! | [`horizon`] | up to which transaction id the outbox is complete; pure |
//! | [`relay`] | publishes the rows of one cluster, in order and without gaps |
//! | [`rotation`] | rotates and truncates the outbox tables and those of evicted write ids |

pub(crate) mod horizon;
#[cfg(test)]
mod horizon_model;
pub(crate) mod relay;
pub(crate) mod rotation;
pub(crate) mod sink;
