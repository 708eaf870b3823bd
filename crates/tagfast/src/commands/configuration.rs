//! `config`: checks, prints and explains the configuration.

use std::path::Path;

use serde_json::json;
use tagfast_client::error::{CliError, CommandResult, Exit};
use tagfast_client::terminal::Terminal;

use crate::cli::ConfigFile;
use crate::config::{Config, docs, env, gather, load, machine_notes, without_effect};

/// `config check`
pub(super) fn check(file: &ConfigFile, terminal: &Terminal) -> CommandResult {
    let (config, sources) =
        load(file.config.as_deref(), &env::of_process(), &[]).map_err(|e| CliError::config(&e))?;
    let notes = machine_notes(&config);
    let without_effect = without_effect(&sources);
    if terminal.json {
        terminal.value(&json!({"ok": true, "without_effect": without_effect, "notes": notes}))?;
    } else {
        for path in &without_effect {
            terminal.note(format_args!("note: {path} has no effect beside the other keys"));
        }
        for note in &notes {
            terminal.note(format_args!("note: {note}"));
        }
        terminal.line("the configuration is usable")?;
    }
    Ok(Exit::Done)
}

/// `config print`; also prints a configuration that is not usable, because that is when an operator
/// wants to see it.
pub(super) fn print(file: &ConfigFile, terminal: &Terminal) -> CommandResult {
    let text = match &file.config {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|e| unreadable(path, e))?),
        None => None,
    };
    let sources = gather(file.config.as_deref().zip(text.as_deref()), &env::of_process(), &[])
        .map_err(|e| CliError::config(&e))?;
    if terminal.json {
        terminal.value(&docs::effective_json(&sources))?;
    } else {
        terminal.bytes(docs::effective(&sources).as_bytes())?;
    }
    if let Err(errors) = Config::resolve(&sources) {
        return Err(CliError::config(&errors));
    }
    Ok(Exit::Done)
}

/// `config docs`
pub(super) fn docs(terminal: &Terminal) -> CommandResult {
    terminal.bytes(docs::markdown().as_bytes())?;
    Ok(Exit::Done)
}

fn unreadable(path: &Path, error: std::io::Error) -> CliError {
    CliError::usage(format!("cannot read {}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_wrong_usage() {
        let (terminal, _) = Terminal::memory(false);
        let file = ConfigFile { config: Some("/no/such/file.toml".into()) };
        assert_eq!(print(&file, &terminal).unwrap_err().exit, Exit::Usage);
        assert_eq!(check(&file, &terminal).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_check_names_keys_without_effect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        std::fs::write(&path, "[kafka]\npartitions = 8\n").unwrap();
        let (terminal, captured) = Terminal::memory(false);
        assert_eq!(check(&ConfigFile { config: Some(path) }, &terminal).unwrap(), Exit::Done);
        assert!(captured.err().contains("kafka.partitions has no effect"));
    }
}
