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
mod demo;
#[cfg(test)]
mod golden;
mod node;
#[cfg(feature = "kafka")]
pub mod outbox;
mod serve;
mod telemetry;
mod webhook;

use std::process::ExitCode;

use tagfast_client::error::report;
use tagfast_client::terminal::Terminal;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and versions go to stdout with 0, everything else to stderr with 2: clap knows
            // which.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if cli.command.makes_store_files() {
        // Before any file is made: whatever a library makes is its owner's alone.
        let others = rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO;
        let narrowed = rustix::process::umask(others);
        rustix::process::umask(narrowed | others);
    }
    let terminal = Terminal::process(cli.json);
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
