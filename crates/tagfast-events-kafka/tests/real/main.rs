//! A real broker: the promises of the bus, topics, groups, poison, faults.

mod faults;
mod groups;
mod kit;
mod poison;
mod suite;
mod topics;
