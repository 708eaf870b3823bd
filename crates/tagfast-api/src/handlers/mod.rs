//! Handlers, one file per resource. Each makes one call into a port and one answer.

pub(crate) mod admin;
pub(crate) mod batch;
pub(crate) mod breakers;
pub(crate) mod clusters;
pub(crate) mod content;
pub(crate) mod dead_letters;
mod derived;
pub(crate) mod export;
pub(crate) mod failovers;
pub(crate) mod jobs;
mod lists;
mod paths;
pub(crate) mod public;
pub(crate) mod receipts;
pub(crate) mod search;
pub(crate) mod tags;
