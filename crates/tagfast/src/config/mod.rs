//! Configuration in two stages: what somebody wrote ([`raw`]), then what may be run ([`resolved`]).
//!
//! Unknown keys are refused with a suggestion and every fault is reported at once: a start that
//! fails clearly is better than a limit that silently does nothing.

pub mod bus;
pub mod cache;
pub mod docs;
pub mod env;
pub mod keys;
pub mod letters;
pub mod postgres;
pub mod raw;
pub mod resolved;

use std::collections::BTreeMap;
use std::path::Path;

pub use bus::{KafkaConfig, OpenSearchConfig};
pub use cache::CacheConfig;
pub use letters::LettersConfig;
pub use postgres::PostgresConfig;
pub use raw::{Override, Sources};
pub use resolved::{AuthMode, Config, LogConfig, LogFormat, TelemetryConfig};

/// Reads the file (if any), joins environment and flags, and judges the result.
pub fn load(
    file: Option<&Path>,
    env: &BTreeMap<String, String>,
    flags: &[Override],
) -> Result<(Config, Sources), Vec<String>> {
    let text = match file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|e| vec![format!("cannot read {}: {e}", path.display())])?,
        ),
        None => None,
    };
    let sources = raw::gather(file.zip(text.as_deref()), env, flags)?;
    let config = Config::resolve(&sources.raw)?;
    Ok((config, sources))
}
