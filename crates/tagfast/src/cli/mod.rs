//! The clap definitions of the program; those of client commands are in [`tagfast_client::args`].

mod command_line;
mod local;
mod server;
mod usage;

pub(crate) use command_line::{Command, command, parse};
pub(crate) use local::{
    ConfigCommand, ConfigFile, DebugCommand, DecodeArgs, TokenCommand, TokenIssueArgs,
};
pub(crate) use server::{BackupArgs, BackupCommand, RestoreArgs, Role, ServeArgs, VerifyArgs};
pub(crate) use usage::report_usage;
