//! How a command ends: an exit code, and on failure a message, its causes and a hint.
//!
//! `Display` prints the message alone; [`report`] prints the whole cause chain, once. With `--json`
//! it prints one line of JSON instead, the last one on stderr:
//! `{"error": {"code", "message", "hint", "exit_code"}}`. stdout has results only.

use std::error::Error;

use serde_json::json;
use tagfast_resilience::ErrorChain;

use crate::advice;
use crate::terminal::Terminal;

/// Exit codes; stable, scripts depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// The command failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Some items failed; they were listed.
    Partly = 3,
}

/// Begins the second line of a hint, aligned with the first.
const HINT_LINE: &str = "\n      ";

/// What a command returns.
pub type CommandResult = Result<Exit, CliError>;

/// Why a command failed.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// What happened, without its cause; empty = print nothing (the reader of stdout went away).
    pub message: String,
    /// What to do about it; `None` = nothing beyond the advice for the problem code.
    pub hint: Option<String>,
    code: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl CliError {
    /// The command failed.
    pub fn new(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), hint: None, code: None, source: None }
    }

    /// The command line or the configuration asks for something impossible.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(message) }
    }

    /// All faults of a configuration at once.
    pub fn config(errors: &[String]) -> Self {
        Self::usage(format!("the configuration is not usable:\n  {}", errors.join("\n  ")))
            .hint("`tagfast config docs` explains every key")
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a line to what to do.
    #[must_use]
    pub(crate) fn more_hint(mut self, more: &str) -> Self {
        self.hint = Some(match self.hint.take() {
            Some(hint) => format!("{hint}{HINT_LINE}{more}"),
            None => more.to_owned(),
        });
        self
    }

    /// Adds the cause, which is printed behind the message with its own causes.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Names the problem code of the server's answer, so that [`report`] finds the advice for it,
    /// or what kept the server from answering.
    #[must_use]
    pub(crate) fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into()).filter(|code| !code.is_empty());
        self
    }

    /// What went wrong, as a stable word: the problem code of the server's answer, `unreachable`,
    /// `no_answer` or `not_tagfast`; else `usage` or `failed`, by the exit code.
    pub fn code(&self) -> &str {
        let by_exit = if self.exit == Exit::Usage { "usage" } else { "failed" };
        self.code.as_deref().unwrap_or(by_exit)
    }

    /// The message with its whole cause chain.
    pub fn full_message(&self) -> String {
        ErrorChain(self).to_string()
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // `tagfast export - | head` ends well.
            return Self { exit: Exit::Done, ..Self::new("") };
        }
        // The chain prints a source only once, so the message may repeat it.
        Self::new(error.to_string()).with_source(error)
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        Self::new("JSON").with_source(error)
    }
}

/// Prints an error with its causes and what to do about it, and returns the exit code. The advice
/// for the problem code of a server's answer comes before the error's own hint: in the words of the
/// command line, or else by `of_api`, unless that speaks of HTTP.
pub fn report(
    result: CommandResult,
    terminal: &Terminal,
    of_api: impl FnOnce(&str) -> Option<&'static str>,
) -> Exit {
    let error = match result {
        Ok(exit) => return exit,
        Err(error) => error,
    };
    let advice = error.code.as_deref().and_then(|code| advice::of(code, of_api));
    let hints: Vec<&str> = advice.into_iter().chain(error.hint.as_deref()).collect();
    if error.message.is_empty() {
        return error.exit;
    }
    let message = error.full_message();
    if terminal.json {
        let hint = (!hints.is_empty()).then(|| hints.join("\n").replace(HINT_LINE, "\n"));
        terminal.note(json_error(error.code(), &message, hint.as_deref(), error.exit));
    } else {
        terminal.error(&message);
        if !hints.is_empty() {
            terminal.hint(&hints.join(HINT_LINE));
        }
    }
    error.exit
}

/// The line of JSON that stands for an error.
pub fn json_error(code: &str, message: &str, hint: Option<&str>, exit: Exit) -> String {
    let error = json!({"code": code, "message": message, "hint": hint, "exit_code": exit as u8});
    json!({"error": error}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_printed_with_its_causes_once() {
        let (terminal, captured) = Terminal::memory(false);
        let cause = std::io::Error::other("the disk is full");
        let error = CliError::new("cannot write out.ndjson").with_source(cause).hint("make room");
        assert_eq!(report(Err(error), &terminal, |_| None), Exit::Failed);
        assert_eq!(
            captured.err(),
            "error: cannot write out.ndjson: the disk is full\nhint: make room\n"
        );
    }

    #[test]
    fn the_advice_for_a_problem_code_comes_before_the_hint() {
        let (terminal, captured) = Terminal::memory(false);
        let advice = |code: &str| (code == "new_code").then_some("come back later");
        let error = || CliError::new("no").with_code("new_code");
        report(Err(error()), &terminal, advice);
        report(Err(error().more_hint("resume")), &terminal, advice);
        assert_eq!(
            captured.err(),
            "error: no\nhint: come back later\nerror: no\nhint: come back later\n      resume\n"
        );
    }

    #[test]
    fn with_json_an_error_is_a_line_of_json() {
        let (terminal, captured) = Terminal::memory(true);
        let cause = std::io::Error::other("two\nlines");
        let error = CliError::new("no").with_source(cause).hint("a").more_hint("b");
        report(Err(error), &terminal, |_| None);
        report(Err(CliError::usage("bad")), &terminal, |_| None);
        report(Err(CliError::new("no").with_code("overloaded")), &terminal, |_| None);
        let lines: Vec<serde_json::Value> =
            captured.err().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines[0]["error"],
            json!({"code": "failed", "message": "no: two\nlines", "hint": "a\nb",
                "exit_code": 1})
        );
        assert_eq!(
            lines[1]["error"],
            json!({"code": "usage", "message": "bad", "hint": null, "exit_code": 2})
        );
        assert_eq!(lines[2]["error"]["code"], "overloaded");
        assert_eq!(captured.out(), "");
    }

    #[test]
    fn a_closed_pipe_ends_a_command_quietly() {
        let (terminal, captured) = Terminal::memory(false);
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(report(Err(closed.into()), &terminal, |_| None), Exit::Done);
        assert_eq!(captured.err(), "");
    }
}
