//! Automation of the workspace: `cargo xtask check`, `test`, `bench`, `stack`.
//!
//! It compiles without any system library, because it is what installs them.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks to its terminal"
)]

mod alerts;
mod bench;
mod check;
mod clients_test;
mod features;
mod files;
mod run;
mod schema_test;
mod stack;
mod test;
mod test_binaries;
mod tools;
mod totals;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Automation of the tagfast workspace")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints, arrows between crates, licences, file rules, docs.
    Check(check::CheckOptions),
    /// Install what the tests need and run them all; ends with `N passed, N failed`.
    Test(test::TestOptions),
    /// Generate clients from the API's document and call a server with them: a part of `test`.
    /// Takes the program as it is built.
    Clients {
        /// Go too.
        #[arg(long)]
        full: bool,
    },
    /// The real cluster on this machine: etcd, PostgreSQL under Patroni, Redis, Kafka, OpenSearch.
    Stack(stack::StackCommand),
    /// Measure every figure of docs/measured/performance.md beside its baseline.
    Bench(bench::BenchOptions),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Check(options) => check::check(&options),
        // Its last line is the totals: nothing may follow them.
        Command::Test(options) if test::test(&options) => Ok(()),
        Command::Test(_) => return std::process::ExitCode::FAILURE,
        Command::Clients { full } => clients_test::alone(full),
        Command::Bench(options) => bench::bench(&options),
        Command::Stack(command) => stack::stack(command),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
