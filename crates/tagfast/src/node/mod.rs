//! The composition root: the parts of a running node, opened, joined and closed.
//!
//! [`embedded`] is the whole service in one process on files; [`cluster`] is one process of many
//! over PostgreSQL, with its caches ([`cache`]) and what reads the event bus ([`events`]). The
//! parts know each other only through ports; this folder alone names their implementations.

pub(crate) mod cache;
pub(crate) mod cluster;
mod dead_letters;
pub(crate) mod embedded;
pub(crate) mod events;
mod identity;
#[cfg(feature = "kafka")]
mod kafka;
pub(crate) mod roles;
mod shutdown;
