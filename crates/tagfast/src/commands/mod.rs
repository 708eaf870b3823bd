//! What each command does. A command gets its arguments and a [`Term`], and returns how it ended.

mod breakers;
mod content;
mod find;
mod letters;
mod local;
mod operations;
mod receipts;
mod status;
mod token;

use std::future::Future;

use crate::cli::{Command, ConfigCommand, DebugCommand, ReceiptsCommand, TokenCommand};
use crate::failure::{CommandResult, Exit, Failure};
use crate::serve::stop_signal;
use crate::term::Term;
use crate::{bench, serve, transfer};

/// Runs a command to its end.
pub fn run(command: Command, term: &Term) -> CommandResult {
    match command {
        Command::Serve(args) => serve::run(&args, term),
        Command::View(args) => block_on(content::view(&args, term)),
        Command::Tag(args) => block_on(content::change(&args, content::Change::Add, term)),
        Command::Untag(args) => block_on(content::change(&args, content::Change::Remove, term)),
        Command::Search(args) => block_on(find::search(&args, term)),
        Command::Popular(args) => block_on(find::popular(&args, term)),
        Command::Suggest(args) => block_on(find::suggest(&args, term)),
        // An import notes how far it came when it is interrupted, so it listens for the signal
        // itself.
        Command::Import(args) => {
            runtime()?.block_on(async { transfer::import::run(&args, term, stop_signal()?).await })
        }
        Command::Export(args) => block_on(transfer::export::run(&args, term)),
        Command::Recount(args) => block_on(operations::recount(&args, term)),
        Command::Reindex(args) => block_on(operations::reindex(&args, term)),
        // Watching is ended by Ctrl-C and by nothing else: that is no failure.
        Command::Status(args) if args.watch => {
            block_on_until(status::status(&args, term), || Ok(Exit::Done))
        }
        Command::Status(args) => block_on(status::status(&args, term)),
        Command::Failovers(args) => block_on(operations::failovers(&args, term)),
        Command::Receipts(ReceiptsCommand::Check { file, client }) => {
            block_on(receipts::check(&file, &client, term))
        }
        Command::DeadLetters(command) => block_on(letters::run(&command, term)),
        Command::Breakers(command) => block_on(breakers::run(&command, term)),
        Command::Backup(args) => local::backup(&args, term),
        Command::Restore(args) => local::restore(&args, term),
        Command::Debug(DebugCommand::Decode(args)) => local::decode(&args, term),
        Command::Debug(DebugCommand::MetricsDocs) => local::metrics_docs(term),
        Command::Token(TokenCommand::Issue(args)) => token::issue(&args, term),
        Command::Config(ConfigCommand::Check(file)) => local::config_check(&file, term),
        Command::Config(ConfigCommand::Print(file)) => local::config_print(&file, term),
        Command::Config(ConfigCommand::Docs) => local::config_docs(term),
        Command::Openapi => local::openapi(term),
        Command::Completions { shell } => local::completions(shell, term),
        Command::Bench(args) => bench::run(&args, term),
    }
}

/// A runtime for commands that wait for a server.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Runs a client command; Ctrl-C ends it.
fn block_on(command: impl Future<Output = CommandResult>) -> CommandResult {
    block_on_until(command, || Err(Failure::new("interrupted")))
}

/// Runs a client command; Ctrl-C ends it with this result.
fn block_on_until(
    command: impl Future<Output = CommandResult>,
    interrupted: impl FnOnce() -> CommandResult,
) -> CommandResult {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut stop = stop_signal()?;
        tokio::select! {
            result = command => result,
            _ = stop.wait_for(|stop| *stop) => interrupted(),
        }
    });
    // Whatever still reads stdin must not keep the process.
    runtime.shutdown_background();
    result
}
