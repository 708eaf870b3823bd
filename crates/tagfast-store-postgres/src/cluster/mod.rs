//! One cluster: what this node knows of it, and the tasks that keep that knowledge current.
//!
//! | module | it answers |
//! |---|---|
//! | [`topology`] | which nodes there are, which one takes writes, what may be acknowledged |
//! | [`epoch_ends`] | how much of each epoch is part of the current history |
//! | [`guard_signal`] | what the guard of loss decided last |
//! | [`watcher`] | polls etcd, mints epochs, proves leadership by the lease |
//! | [`long_transactions`] | who holds the relay |
//! | [`member_probes`] | proves leadership by the members while etcd does not answer, and the age of replicas |
//! | [`node_registry`] | which processes of the service may hold a journal |
//! | [`password_check`] | notices that a node no longer accepts the password |
//! | [`preflight`] | what weakens a promise on this installation; how far replicas lag |
//! | [`primary_positions`] | when the primary had which log position |
//! | [`repair_window`] | whether reads may lack writes; the phases of a failover |
//! | [`replica_positions`] | which commits the replicas have, and what the guard of loss makes of it |
//! | [`replica_states`] | how old each replica is, proven by its position |
//! | [`roster`] | every member that was ever seen |
//! | [`etcd`], [`patroni`] | the clients of etcd and of Patroni's REST API |

pub(crate) mod epoch_ends;
pub(crate) mod etcd;
pub(crate) mod guard_signal;
pub(crate) mod long_transactions;
pub(crate) mod member_probes;
pub(crate) mod node;
pub(crate) mod node_registry;
pub(crate) mod password_check;
pub(crate) mod patroni;
pub(crate) mod preflight;
pub(crate) mod primary_positions;
pub(crate) mod repair_window;
#[cfg(test)]
mod replica_model;
pub(crate) mod replica_positions;
pub(crate) mod replica_states;
pub(crate) mod roster;
pub(crate) mod topology;
pub(crate) mod watcher;
