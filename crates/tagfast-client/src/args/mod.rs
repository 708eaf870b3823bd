//! The clap definitions of the client commands; what they do is in [`crate::commands`].

mod command;
mod connection;
mod content;
mod dead_letters;
mod duration;
mod failovers;
mod load;
mod operations;
mod search;
mod transfer;

pub use command::ClientCommand;
pub use connection::ClientArgs;
pub use content::{ApplyArgs, ViewArgs};
pub use dead_letters::{
    DeadLetterFilterArgs, DeadLetterSelectionArgs, DeadLettersCommand, ListDeadLettersArgs,
};
pub use duration::duration;
pub use failovers::FailoversArgs;
pub use load::BenchArgs;
pub use operations::{
    BreakersCommand, ClustersArgs, ReceiptsCommand, RecountArgs, ReindexArgs, SetBreakerArgs,
    StatusArgs, WatchArgs,
};
pub use search::{PopularArgs, SearchArgs, SortArg, SuggestArgs, WindowArg};
pub use transfer::{ExportArgs, ImportArgs};
