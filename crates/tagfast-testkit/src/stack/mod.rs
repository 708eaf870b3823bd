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
mod change;
mod cleanup;
mod etcd;
mod etcd_auth;
mod etcd_faults;
pub mod fault;
mod gate;
pub mod host;
mod index_faults;
pub mod info;
pub mod install;
mod kafka_admin;
mod netns;
mod node_log;
mod options;
pub mod patroni;
pub mod ports;
mod postgres_faults;
pub mod proxy;
mod redis_faults;
mod rejoin;
mod rotate;
mod running;
mod secret;
mod servers;
mod shared;
mod state_fault;
mod tls;
mod topic_faults;

pub use self::auth::Secured;
pub use self::build::{StartProxy, proxy_here};
pub use self::fault::Fault;
pub use self::index_faults::IndexFault;
pub use self::info::{ClusterInfo, NodeInfo, ServerInfo, StackInfo};
pub use self::install::{Needs, Progress, Tools, install, install_libraries, install_packages};
pub use self::options::StackOptions;
pub use self::postgres_faults::PostgresFault;
pub use self::redis_faults::RedisFault;
pub use self::running::Stack;
pub use self::shared::SharedStack;
pub use self::state_fault::StateFault;
pub use self::topic_faults::TopicFault;
