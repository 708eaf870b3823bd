//! Shows an answer of the server once, or again and again until Ctrl-C: in place on a terminal,
//! else a line each time.

use std::time::Duration;

use serde_json::Value;
use tagfast_domain::time::rfc3339;
use tagfast_resilience::{Clock, SystemClock};

use crate::args::WatchArgs;
use crate::error::{CliError, CommandResult, Exit};
use crate::http::Client;
use crate::terminal::Terminal;

/// How an answer is shown.
pub(super) struct Shown {
    /// The call that is asked.
    pub(super) path: &'static str,
    /// The whole answer, for people.
    pub(super) text: fn(&Value, &Terminal) -> String,
    /// The answer on one line, for logs.
    pub(super) line: fn(&Value) -> String,
}

/// Asks once, or repeatedly.
pub(super) async fn show(
    client: &Client,
    shown: &Shown,
    args: &WatchArgs,
    terminal: &Terminal,
) -> CommandResult {
    if !args.watch {
        let answer = client.get(shown.path).await?;
        if terminal.json {
            terminal.value(&answer)?;
        } else {
            terminal.line((shown.text)(&answer, terminal))?;
        }
        return Ok(Exit::Done);
    }
    let in_place = terminal.screen && !terminal.json;
    if in_place {
        terminal.bytes(b"\x1b[2J")?;
    }
    let mut tick = tokio::time::interval(Duration::from_secs(args.interval));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let answer = client.get(shown.path).await;
        let at = rfc3339(SystemClock.now_ms());
        match answer {
            Ok(answer) if terminal.json => terminal.line(&answer)?,
            Ok(answer) if in_place => {
                let text = (shown.text)(&answer, terminal);
                terminal.bytes(frame(&format!("{at}\n{text}")).as_bytes())?
            }
            Ok(answer) => terminal.line(format_args!("{at} {}", (shown.line)(&answer)))?,
            // Watching goes on while the server restarts.
            Err(error) if error.is_retryable() => {
                let message = CliError::from(error).full_message();
                if in_place {
                    terminal.bytes(frame(&format!("{at}\n{message}")).as_bytes())?;
                } else {
                    terminal.note(format_args!("{at} {message}"));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Text that overwrites the previous frame: no flicker, and no remains of a longer line.
fn frame(text: &str) -> String {
    let mut out = String::from("\x1b[H");
    for line in text.lines() {
        out.push_str(line);
        out.push_str("\x1b[K\r\n");
    }
    out.push_str("\x1b[J");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_covers_the_previous_one() {
        assert_eq!(frame("a\nb"), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
    }
}
