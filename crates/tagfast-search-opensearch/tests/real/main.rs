//! A real OpenSearch: the conformance suite, faults that only a server has, and rebuilds.

mod engine;
mod faults;
mod items;
mod overloaded;
mod rebuild;
mod shared_progress;
mod states;
mod support;
