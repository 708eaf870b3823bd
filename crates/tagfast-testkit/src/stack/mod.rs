//! A real cluster from plain processes: etcd, PostgreSQL under Patroni, Redis, Kafka and
//! OpenSearch, each behind the fault proxy.
//!
//! `cargo xtask stack` and the tests start the same cluster with [`Stack::up`]. Data, logs and
//! sockets are in one folder below `/var/tmp`, owned by the user that the servers run as;
//! [`Stack::down`] ends every process that works there and removes the folder. A stack that a test
//! owns is also ended by a small watcher process once the test's process has ended, for whatever
//! reason.
//!
//! How it fails: a server that does not come up is named with the path of its log, and what was
//! started before it is ended.

mod auth;
mod build;
mod cleanup;
pub mod fault;
mod gate;
pub mod host;
pub mod info;
pub mod install;
mod netns;
mod options;
pub mod patroni;
pub mod proxy;
mod rotate;
mod running;
mod servers;
mod shared;
mod tls;

pub use self::auth::Secured;
pub use self::build::{StartProxy, proxy_here};
pub use self::fault::Fault;
pub use self::info::{ClusterInfo, NodeInfo, ServerInfo, StackInfo};
pub use self::install::{Needs, Progress, Tools, install, install_libraries, install_packages};
pub use self::options::StackOptions;
pub use self::running::Stack;
pub use self::shared::SharedStack;
