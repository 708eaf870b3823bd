//! Help, and errors of the command line itself: what clap says, in our colours, and as JSON when
//! the command line asks for that.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};

use clap::error::ErrorKind;
use tagfast_client::color::ColorChoice;
use tagfast_client::error::{Exit, json_error};

/// Prints a help, a version or an error, and returns the exit code. Help and versions go to stdout
/// with 0, everything else to stderr with 2.
pub(crate) fn report_usage(error: &clap::Error, arguments: &[OsString], color: ColorChoice) -> u8 {
    let is_error = error.use_stderr();
    let text = if is_error && asks_for_json(arguments) {
        format!("{}\n", as_json(error))
    } else {
        let is_terminal = if is_error {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        let text = error.render();
        if color.is_on(is_terminal) { text.ansi().to_string() } else { text.to_string() }
    };
    // No reader is left if this fails.
    let _ = if is_error {
        std::io::stderr().write_all(text.as_bytes())
    } else {
        std::io::stdout().write_all(text.as_bytes())
    };
    if is_error { Exit::Usage as u8 } else { Exit::Done as u8 }
}

/// Whether a command line that cannot be parsed has `--json`.
fn asks_for_json(arguments: &[OsString]) -> bool {
    arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

/// The error as JSON: its first paragraph is the message, the others are the hint.
fn as_json(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let hint = Some("--help lists the commands");
        return json_error("usage", "a command is missing", hint, Exit::Usage);
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    let (message, hint) = match text.split_once("\n\n") {
        Some((message, hint)) => (message, Some(hint.trim_start())),
        None => (text, None),
    };
    json_error("usage", message, hint, Exit::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn json_is_asked_for_before_the_operands() {
        assert!(asks_for_json(&line(&["tagfast", "view", "--json"])));
        assert!(!asks_for_json(&line(&["tagfast", "view", "--", "--json"])));
    }

    #[test]
    fn an_error_of_the_command_line_is_a_message_and_a_hint() {
        for (words, part) in
            [(&["tagfast", "view"][..], "CONTENT_TYPE"), (&["tagfast"], "command is missing")]
        {
            let error = crate::cli::command().try_get_matches_from(line(words)).unwrap_err();
            let json: serde_json::Value = serde_json::from_str(&as_json(&error)).unwrap();
            let error = &json["error"];
            assert!(error["message"].as_str().unwrap().contains(part), "{error}");
            assert!(error["hint"].as_str().unwrap().contains("--help"), "{error}");
            assert_eq!((&error["code"], &error["exit_code"]), (&"usage".into(), &2.into()));
        }
    }
}
