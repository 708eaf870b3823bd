//! A real broker: the conformance suite, topics, groups, poison, faults.

mod faults;
mod groups;
mod poison;
mod replaced;
mod suite;
mod support;
mod topics;
