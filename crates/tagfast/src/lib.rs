//! The tagfast program: command line, configuration, composition root, telemetry.
//!
//! The program is the only place that reads files, the environment and the command line; the other
//! crates get what they need from here. What talks to a running server is in [`tagfast_client`].
//! Commands return an [`tagfast_client::error::Exit`] or a [`tagfast_client::error::CliError`];
//! only [`main`] prints it.

mod cli;
mod commands;
// Public, so that settings which only builds with the feature `kafka` read are no dead code.
pub mod config;
mod consumers;
mod credentials;
mod demo;
mod failover_notices;
#[cfg(test)]
mod golden;
mod machine;
mod node;
#[cfg(feature = "kafka")]
pub mod outbox;
mod serve;
mod telemetry;
mod webhook;

use std::ffi::OsString;
use std::process::ExitCode;

use tagfast_client::color::ColorChoice;
use tagfast_client::error::report;
use tagfast_client::terminal::Terminal;

use crate::cli::report_usage;

/// The description of the command line, for tests that go through all commands.
pub fn command_line() -> clap::Command {
    cli::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match cli::parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let color = ColorChoice::of_command_line(arguments.iter().skip(1).cloned());
            return ExitCode::from(report_usage(&error, &arguments, color));
        }
    };
    if cli.command.makes_store_files() {
        // Before any file is made: whatever a library makes is its owner's alone.
        let others = rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO;
        let narrowed = rustix::process::umask(others);
        rustix::process::umask(narrowed | others);
    }
    let terminal = Terminal::process(cli.json, cli.color);
    let result = commands::run(&cli.command, &terminal);
    ExitCode::from(report(result, &terminal, advice) as u8)
}

/// What to do about a problem code, from the API's table.
fn advice(code: &str) -> Option<&'static str> {
    tagfast_api::PROBLEM_CODES.iter().find(|row| row.code == code).map(|row| row.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_code_has_an_advice() {
        assert!(advice("not_in_this_mode").is_some());
        assert!(advice("no_such_code").is_none());
    }
}
