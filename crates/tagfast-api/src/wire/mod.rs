//! Bodies of requests and answers, one file per resource. Answers borrow what they show and are
//! written straight to bytes.

pub(crate) mod admin;
pub(crate) mod batch;
pub(crate) mod breakers;
pub(crate) mod clusters;
pub(crate) mod constant;
pub(crate) mod content;
pub(crate) mod dead_letters;
pub(crate) mod export;
pub(crate) mod failovers;
pub(crate) mod jobs;
pub(crate) mod meta;
pub(crate) mod public;
pub(crate) mod reason;
pub(crate) mod receipts;
pub(crate) mod response;
pub(crate) mod search;
pub(crate) mod tags;
pub(crate) mod words;
