//! Tests of the embedded store through its public API.

mod backup;
mod backup_check;
mod bus;
mod crash;
mod dead_letters;
mod directory;
mod keys;
mod migrations;
mod suite;
mod support;
mod writes;
