//! Configuration in two stages: what file, environment and flags set ([`sources`], [`values`]),
//! then what can be run ([`settings`]). Every key is one row of [`keys`].
//!
//! How it fails: unknown keys are refused with a suggestion, old names with the new one, and every
//! fault is reported at once; what only this machine can show, such as missing files, comes after
//! that ([`machine_faults`]). A start that fails clearly is better than a limit that silently has
//! no effect.

pub mod cache;
mod check;
pub mod dead_letters;
pub mod docs;
pub mod env;
pub mod events;
pub mod key;
pub mod keys;
pub mod load;
mod log_filter;
pub mod login;
pub mod postgres;
mod renamed;
pub mod secrets;
pub mod settings;
pub mod sources;
pub mod values;

pub use cache::{CacheConfig, RedisConfig};
pub(crate) use check::readable_by_others;
pub use check::{machine_faults, machine_notes};
pub use dead_letters::DeadLettersConfig;
pub use events::{KafkaConfig, OpenSearchConfig, SaslConfig, SaslMechanism, WITHOUT_KAFKA};
pub use load::load;
pub use postgres::{ClusterConfig, PostgresConfig};
pub use secrets::CredentialFile;
pub use settings::{AuthMode, Config, LogConfig, LogFormat, TelemetryConfig, without_effect};
pub use sources::{Override, gather};
pub use values::{Source, Sources};
