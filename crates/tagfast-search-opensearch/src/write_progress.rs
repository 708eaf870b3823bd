//! Progress of writes: how far this process has written, how far searches see it, and when to
//! refresh and to sweep.

use std::time::Duration;

use tagfast_events::{Positions, SinkError};
use tokio::time::Instant;

/// Interval between refreshes.
const REFRESH_INTERVAL: Duration = Duration::from_millis(200);
/// Interval between refreshes under load: a refresh costs as much as thousands of documents and
/// creates segments to merge.
const BUSY_REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// Written documents per second above which refreshes follow the longer interval.
const BUSY_DOCS_PER_SECOND: f64 = 3000.0;
/// Interval between sweeps of expired tombstones.
const SWEEP_INTERVAL: Duration = Duration::from_secs(86_400);

/// Progress of the writes of this process.
#[derive(Default)]
pub(crate) struct WriteProgress {
    /// Positions whose records are visible.
    visible: Positions,
    /// Whether something was written since the last refresh started.
    dirty: bool,
    /// Whether a refresh is running: its positions count as visible only after it ends.
    refreshing: bool,
    /// Error of the last refresh until the runtime has seen it.
    refresh_error: Option<SinkError>,
    /// When the last refresh ended; `None` before the first one.
    refreshed_at: Option<Instant>,
    /// Documents written since the last refresh started.
    written: u64,
    /// When the last sweep started; `None` before the first one.
    swept_at: Option<Instant>,
}

impl WriteProgress {
    /// Notes that documents were written.
    pub(crate) fn wrote(&mut self, documents: u64) {
        self.dirty = true;
        self.written += documents;
    }

    /// Returns whether to start a refresh now for `positions`. The runtime calls this sequentially,
    /// so everything below the positions was written before.
    ///
    /// # Errors
    ///
    /// The error of the last refresh, once.
    pub(crate) fn start_refresh(&mut self, positions: &Positions) -> Result<bool, SinkError> {
        if let Some(error) = self.refresh_error.take() {
            return Err(error);
        }
        let since = self.refreshed_at.map(|at| at.elapsed());
        let busy = since.is_some_and(|since| {
            self.written as f64 > BUSY_DOCS_PER_SECOND * since.as_secs_f64().max(0.2)
        });
        let interval = if busy { BUSY_REFRESH_INTERVAL } else { REFRESH_INTERVAL };
        if self.dirty && !self.refreshing && since.is_none_or(|since| since >= interval) {
            (self.dirty, self.refreshing, self.written) = (false, true, 0);
            return Ok(true);
        }
        if !self.dirty && !self.refreshing {
            self.visible.clone_from(positions);
        }
        Ok(false)
    }

    /// Ends a refresh: its positions are visible, or the next refresh must repeat it.
    pub(crate) fn end_refresh(&mut self, result: Result<Positions, SinkError>) {
        self.refreshing = false;
        self.refreshed_at = Some(Instant::now());
        match result {
            Ok(positions) => self.visible = positions,
            Err(error) => {
                self.dirty = true;
                self.refresh_error = Some(error);
            }
        }
    }

    /// Notes that a running refresh was cancelled; the next one repeats it.
    pub(crate) fn abort_refresh(&mut self) {
        self.dirty |= self.refreshing;
        self.refreshing = false;
    }

    /// Returns whether a sweep is due, and notes its start.
    pub(crate) fn start_sweep(&mut self) -> bool {
        let due = self.swept_at.is_none_or(|at| at.elapsed() > SWEEP_INTERVAL);
        if due {
            self.swept_at = Some(Instant::now());
        }
        due
    }

    /// Positions whose records are visible.
    pub(crate) fn visible(&self) -> Positions {
        self.visible.clone()
    }
}
