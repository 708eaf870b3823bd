//! Progress on stderr: a bar on a terminal, a plain line about every second otherwise, nothing with
//! `--json`.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use crate::terminal::Terminal;

/// Shortest time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Template of a bar with a known total.
const BAR_TEMPLATE: &str = "{msg} [{wide_bar}] {percent}% eta {eta}";
/// The same in colours.
const BAR_TEMPLATE_COLOR: &str = "{msg} [{wide_bar:.cyan/dim}] {percent}% eta {eta}";

/// The progress of one piece of work.
pub struct Progress {
    view: View,
}

enum View {
    Bar {
        bar: ProgressBar,
        color: bool,
    },
    Plain {
        terminal: Terminal,
        what: String,
        total: Option<u64>,
        started: Instant,
        last: Mutex<Instant>,
    },
    Silent,
}

impl Progress {
    /// Starts a display called `what` over `total` items; `None` = the total is unknown.
    pub fn new(terminal: &Terminal, what: &str, total: Option<u64>) -> Self {
        if terminal.json {
            return Self { view: View::Silent };
        }
        if !terminal.bars {
            let now = Instant::now();
            let (what, last) = (what.to_owned(), Mutex::new(now));
            return Self {
                view: View::Plain { terminal: terminal.clone(), what, total, started: now, last },
            };
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(bar_style(terminal.err_color)),
            None => ProgressBar::new_spinner()
                .with_style(style("{spinner} {msg} {human_pos} {elapsed}")),
        };
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { view: View::Bar { bar, color: terminal.err_color } }
    }

    /// Shows that `done` items are done in all.
    pub fn set(&self, done: u64) {
        match &self.view {
            View::Bar { bar, .. } => bar.set_position(done),
            View::Plain { terminal, what, total, started, last } => {
                let Some(mut last) = last.try_lock() else { return };
                if last.elapsed() < PLAIN_INTERVAL {
                    return;
                }
                *last = Instant::now();
                terminal.note(plain_line(what, done, *total, started.elapsed()));
            }
            View::Silent => {}
        }
    }

    /// Shows that `done` of the total is done; `message` replaces the name.
    pub fn set_with(&self, done: u64, message: &str) {
        match &self.view {
            View::Bar { bar, .. } => {
                bar.set_message(message.to_owned());
                bar.set_position(done);
            }
            View::Plain { terminal, total, started, last, .. } => {
                let Some(mut last) = last.try_lock() else { return };
                if last.elapsed() < PLAIN_INTERVAL {
                    return;
                }
                *last = Instant::now();
                terminal.note(message_line(message, done, *total, started.elapsed()));
            }
            View::Silent => {}
        }
    }

    /// Sets the total once it is known.
    pub fn set_total(&mut self, now_known: u64) {
        match &mut self.view {
            View::Bar { bar, color } => {
                if bar.length().is_none() {
                    bar.set_style(bar_style(*color));
                }
                bar.set_length(now_known);
            }
            View::Plain { total, .. } => *total = Some(now_known),
            View::Silent => {}
        }
    }

    /// Writes a note without breaking the display.
    pub fn note(&self, terminal: &Terminal, text: &str) {
        match &self.view {
            View::Bar { bar, .. } => bar.suspend(|| terminal.note(text)),
            View::Plain { .. } | View::Silent => terminal.note(text),
        }
    }

    /// Ends the display.
    pub fn finish(&self) {
        if let View::Bar { bar, .. } = &self.view {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How a bar with a known total looks.
fn bar_style(color: bool) -> ProgressStyle {
    style(if color { BAR_TEMPLATE_COLOR } else { BAR_TEMPLATE })
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn plain_line(what: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-3);
    match total {
        Some(total) if done > 0 => {
            let left = total.saturating_sub(done) as f64 / rate;
            format!("{what}: {done}/{total}, {rate:.0}/s, {left:.0} s left")
        }
        Some(total) => format!("{what}: {done}/{total}"),
        None => format!("{what}: {done}, {rate:.0}/s"),
    }
}

/// A message with the share done and the time left; without a total the message alone.
fn message_line(message: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    match total.filter(|t| *t > 0 && done > 0) {
        Some(total) => {
            let share = done as f64 / total as f64;
            let left = elapsed.as_secs_f64() * (1.0 / share - 1.0).max(0.0);
            format!("{message}, {:.0} %, {left:.0} s left", share * 100.0)
        }
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_rate_and_time_left() {
        let text = plain_line("import", 50, Some(100), Duration::from_secs(5));
        assert_eq!(text, "import: 50/100, 10/s, 5 s left");
        assert_eq!(
            message_line("import 3", 25, Some(100), Duration::from_secs(5)),
            "import 3, 25 %, 15 s left"
        );
        assert_eq!(message_line("import 3", 25, None, Duration::from_secs(5)), "import 3");
        assert_eq!(plain_line("export", 50, None, Duration::from_secs(5)), "export: 50, 10/s");
    }
}
