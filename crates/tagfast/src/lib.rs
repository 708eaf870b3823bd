//! The parts of the tagfast program: command line, configuration, composition root, telemetry,
//! client, load generator.
//!
//! The program is the only place that reads files, the environment and the command line; the other
//! crates get what they need from here. Commands return an [`failure::Exit`] or a
//! [`failure::Failure`]; only [`main`] prints it.

pub mod bench;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod commands;
pub mod compose;
pub mod config;
pub mod consumers;
pub mod demo;
pub mod failure;
pub mod intake;
pub mod outbox;
pub mod progress;
pub mod replayer;
pub mod roles;
pub mod serve;
pub mod shield;
pub mod telemetry;
pub mod term;
pub mod transfer;
pub mod webhook;

use std::process::ExitCode;

use clap::Parser as _;

use cli::Cli;
use failure::{CommandResult, Exit};
use term::Term;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and versions go to stdout with 0, everything else to stderr with 2: clap knows
            // which.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let term = Term::process(cli.json);
    let result = commands::run(cli.command, &term);
    ExitCode::from(report(result, &term) as u8)
}

/// Prints a failure and gives the exit code.
pub fn report(result: CommandResult, term: &Term) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(failure) => {
            if !failure.message.is_empty() {
                term.note(format_args!("error: {}", failure.message));
            }
            if let Some(hint) = &failure.hint {
                term.note(format_args!("hint: {hint}"));
            }
            failure.exit
        }
    }
}
