//! Progress on stderr: a bar on a terminal, a plain line about every second otherwise, nothing with
//! `--json`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::term::Term;

/// How long between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(1);
const BAR: &str = "{msg} [{wide_bar:.cyan/dim}] {percent}% eta {eta}";

/// One piece of work with a known or unknown end.
pub struct Progress {
    view: View,
}

enum View {
    Bar(ProgressBar),
    Plain { term: Term, what: String, total: Option<u64>, started: Instant, last: Mutex<Instant> },
    Silent,
}

impl Progress {
    /// Work on `total` items (unknown: `None`), called `what`.
    pub fn new(term: &Term, what: &str, total: Option<u64>) -> Self {
        if term.json {
            return Self { view: View::Silent };
        }
        if !term.bars {
            let now = Instant::now();
            let (what, last) = (what.to_owned(), Mutex::new(now));
            return Self {
                view: View::Plain { term: term.clone(), what, total, started: now, last },
            };
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total)
                .with_style(style("{msg} [{wide_bar:.cyan/dim}] {percent}% eta {eta}")),
            None => ProgressBar::new_spinner()
                .with_style(style("{spinner} {msg} {human_pos} {elapsed}")),
        };
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { view: View::Bar(bar) }
    }

    /// `done` items are done in all.
    pub fn set(&self, done: u64) {
        match &self.view {
            View::Bar(bar) => bar.set_position(done),
            View::Plain { term, what, total, started, last } => {
                let Ok(mut last) = last.try_lock() else { return };
                if last.elapsed() < PLAIN_EVERY {
                    return;
                }
                *last = Instant::now();
                term.note(plain(what, done, *total, started.elapsed()));
            }
            View::Silent => {}
        }
    }

    /// `done` of the total is done; `message` says what that means.
    pub fn set_with(&self, done: u64, message: &str) {
        match &self.view {
            View::Bar(bar) => {
                bar.set_message(message.to_owned());
                bar.set_position(done);
            }
            View::Plain { term, total, started, last, .. } => {
                let Ok(mut last) = last.try_lock() else { return };
                if last.elapsed() < PLAIN_EVERY {
                    return;
                }
                *last = Instant::now();
                term.note(part(message, done, *total, started.elapsed()));
            }
            View::Silent => {}
        }
    }

    /// The total became known.
    pub fn set_total(&mut self, now_known: u64) {
        match &mut self.view {
            View::Bar(bar) => {
                if bar.length().is_none() {
                    bar.set_style(style(BAR));
                }
                bar.set_length(now_known);
            }
            View::Plain { total, .. } => *total = Some(now_known),
            View::Silent => {}
        }
    }

    /// A remark beside the progress.
    pub fn note(&self, term: &Term, text: &str) {
        match &self.view {
            View::Bar(bar) => bar.suspend(|| term.note(text)),
            View::Plain { .. } | View::Silent => term.note(text),
        }
    }

    /// Ends the display.
    pub fn finish(&self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn plain(what: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
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

/// A message with the share that is done and the time left; without a total the message alone.
fn part(message: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
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
        let text = plain("import", 50, Some(100), Duration::from_secs(5));
        assert_eq!(text, "import: 50/100, 10/s, 5 s left");
        assert_eq!(
            part("import 3", 25, Some(100), Duration::from_secs(5)),
            "import 3, 25 %, 15 s left"
        );
        assert_eq!(part("import 3", 25, None, Duration::from_secs(5)), "import 3");
        assert_eq!(plain("export", 50, None, Duration::from_secs(5)), "export: 50, 10/s");
    }
}
