//! Runs the command of a command line.

use tagfast_client::error::CommandResult;
use tagfast_client::terminal::Terminal;
use tagfast_client::{commands as client, load};

use super::{backup, configuration, decode, descriptions, token};
use crate::cli::{Command, ConfigCommand, DebugCommand, TokenCommand};
use crate::serve;

/// Runs a command to its end.
///
/// # Errors
/// Why the command failed, with its exit code.
pub(crate) fn run(command: &Command, terminal: &Terminal) -> CommandResult {
    match command {
        Command::Serve(args) => serve::run(args, terminal),
        Command::Client(command) => client::run(command, terminal),
        Command::Backup(args) => backup::backup(args, terminal),
        Command::Restore(args) => backup::restore(args, terminal),
        Command::Debug(DebugCommand::Decode(args)) => decode::decode(args, terminal),
        Command::Debug(DebugCommand::MetricsDocs) => descriptions::metrics_docs(terminal),
        Command::Token(TokenCommand::Issue(args)) => token::issue(args, terminal),
        Command::Config(ConfigCommand::Check(file)) => configuration::check(file, terminal),
        Command::Config(ConfigCommand::Print(file)) => configuration::print(file, terminal),
        Command::Config(ConfigCommand::Docs) => configuration::docs(terminal),
        Command::Openapi => descriptions::openapi(terminal),
        Command::Completions { shell } => descriptions::completions(*shell, terminal),
        Command::Bench(args) => load::run(args, terminal),
    }
}
