//! A real OpenSearch: the suite that every engine passes, what only a server can suffer, and
//! rebuilds.

mod engine;
mod faults;
mod kit;
mod overloaded;
mod rebuild;
mod shared;
