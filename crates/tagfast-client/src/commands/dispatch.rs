//! Runs a client command in a runtime of its own.

use super::content::{self, Change};
use super::{breakers, clusters, dead_letters, failovers, operations, receipts, search, status};
use crate::args::{ClientCommand, ReceiptsCommand};
use crate::error::{CommandResult, Exit};
use crate::runtime::{block_on, block_on_until, runtime};
use crate::signal::stop_signal;
use crate::terminal::Terminal;
use crate::{export, import};

/// Runs a command to its end; Ctrl-C ends it.
///
/// # Errors
/// Why the command failed, with its exit code.
pub fn run(command: &ClientCommand, terminal: &Terminal) -> CommandResult {
    match command {
        ClientCommand::View(args) => block_on(content::view(args, terminal)),
        ClientCommand::Tag(args) => block_on(content::change(args, Change::Add, terminal)),
        ClientCommand::Untag(args) => block_on(content::change(args, Change::Remove, terminal)),
        ClientCommand::Search(args) => block_on(search::search(args, terminal)),
        ClientCommand::Popular(args) => block_on(search::popular(args, terminal)),
        ClientCommand::Suggest(args) => block_on(search::suggest(args, terminal)),
        // An interrupted import stores a checkpoint, so it waits for the signal itself.
        ClientCommand::Import(args) => {
            let runtime = runtime()?;
            let result =
                runtime.block_on(async { import::run(args, terminal, stop_signal()?).await });
            // A thread that waits for the writer of a pipe must not keep the process alive.
            runtime.shutdown_background();
            result
        }
        ClientCommand::Export(args) => block_on(export::run(args, terminal)),
        ClientCommand::Recount(args) => block_on(operations::recount(args, terminal)),
        ClientCommand::Reindex(args) => block_on(operations::reindex(args, terminal)),
        // Only Ctrl-C ends the watching, so it is no failure.
        ClientCommand::Status(args) if args.watch.watch => {
            block_on_until(status::status(args, terminal), || Ok(Exit::Done))
        }
        ClientCommand::Status(args) => block_on(status::status(args, terminal)),
        ClientCommand::Clusters(args) if args.watch.watch => {
            block_on_until(clusters::clusters(args, terminal), || Ok(Exit::Done))
        }
        ClientCommand::Clusters(args) => block_on(clusters::clusters(args, terminal)),
        ClientCommand::Failovers(args) => block_on(failovers::failovers(args, terminal)),
        ClientCommand::Receipts(ReceiptsCommand::Check { file, client }) => {
            block_on(receipts::check(file, client, terminal))
        }
        ClientCommand::DeadLetters(command) => block_on(dead_letters::run(command, terminal)),
        ClientCommand::Breakers(command) => block_on(breakers::run(command, terminal)),
    }
}
