//! What the program's own commands do: those that need the data directory, the configuration or the
//! API's description. Client commands are in [`tagfast_client::commands`].

mod backup;
mod configuration;
mod decode;
mod descriptions;
mod dispatch;
mod token;

pub(crate) use dispatch::run;
