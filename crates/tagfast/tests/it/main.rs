//! End-to-end tests of the running program: over HTTP, through its command line, and through the
//! faults it must survive.

mod abuse;
mod backup;
mod bench;
mod command_line;
mod commands;
mod configuration;
mod connections;
mod crash;
mod damage;
mod dead_letters;
mod disk_full;
mod golden;
mod lifecycle;
mod main_job;
mod races;
mod rotation;
#[cfg(feature = "kafka")]
mod secrets;
mod support;
mod tenants;
mod traces;
mod transfer;
mod transfer_files;
#[cfg(feature = "kafka")]
mod unresponsive;
