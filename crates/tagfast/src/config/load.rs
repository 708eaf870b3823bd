//! A checked configuration from its file, the environment and the flags.

use std::collections::BTreeMap;
use std::path::Path;

use super::check::machine_faults;
use super::settings::Config;
use super::sources::{Override, gather};
use super::values::Sources;

/// Reads the file (if any), joins environment and flags, and checks the result and what it names on
/// this machine: `serve` and `config check` both refuse what this refuses.
///
/// # Errors
/// Every fault, one text each.
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
    let sources = gather(file.zip(text.as_deref()), env, flags)?;
    let config = Config::resolve(&sources)?;
    let faults = machine_faults(&config);
    if faults.is_empty() { Ok((config, sources)) } else { Err(faults) }
}
