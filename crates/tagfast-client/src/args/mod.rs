//! The clap definitions of the client commands; what they do is in [`crate::commands`].

mod command;
mod connection;
mod content;
mod dead_letters;
mod duration;
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
pub use load::BenchArgs;
pub use operations::{
    BreakersCommand, FailoversArgs, ReceiptsCommand, RecountArgs, ReindexArgs, SetBreakerArgs,
    StatusArgs,
};
pub use search::{PopularArgs, SearchArgs, SortArg, SuggestArgs, WindowArg};
pub use transfer::{ExportArgs, ImportArgs};
