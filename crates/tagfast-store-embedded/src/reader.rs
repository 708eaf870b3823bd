//! The reader pool of a file, and the choice of the thread on which a read runs.
//!
//! A view whose pages are in memory takes a few microseconds, less than a hop to a different
//! thread, so it runs on the caller's task. On a slow disk that would block the runtime's workers:
//! once two views within `SLOW_MEMORY` took longer than `SLOW_READ` while their threads read from
//! the disk, the file's views run on the blocking pool for `SLOW_MEMORY`. A thread that only lost
//! its core is not a slow disk; a hop to one more thread would make matters worse.
//!
//! Walks (scans, the bus, counts) always run on the blocking pool, on their own connection: they
//! neither occupy a view's connection nor count as slow reads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use tagfast_resilience::counter;

use crate::metric::STORE_SLOW_READS;

/// A read slower than this was served by the disk, not from memory.
const SLOW_READ: Duration = Duration::from_millis(2);
/// How long views then run on the blocking pool.
const SLOW_MEMORY: Duration = Duration::from_secs(1);

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PREFERRED: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    /// Bytes this thread had read from the disk at its last check; initially at its first view.
    static DISK_BYTES: Cell<Option<u64>> = Cell::new(disk_bytes());
}

/// Bytes this thread has read from a disk; `None`: the system does not report it.
fn disk_bytes() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.parse().ok()
}

/// Whether this thread has read from the disk since its last check; true where it is unknown.
fn waited_for_disk() -> bool {
    let now = disk_bytes();
    let before = DISK_BYTES.replace(now);
    now.is_none() || before.is_none() || now > before
}

/// Read connections of one file.
pub(crate) struct ReaderPool {
    views: Vec<Mutex<Connection>>,
    detector: SlowReadDetector,
    walks: Mutex<Connection>,
}

impl ReaderPool {
    /// `views` must not be empty.
    pub(crate) fn new(views: Vec<Connection>, walks: Connection) -> Self {
        Self {
            views: views.into_iter().map(Mutex::new).collect(),
            detector: SlowReadDetector::new(),
            walks: Mutex::new(walks),
        }
    }

    /// Whether a view should run on the blocking pool.
    pub(crate) fn is_slow(&self) -> bool {
        self.detector.is_slow(Instant::now())
    }

    /// Runs a short read on a free connection, waiting for one if necessary.
    pub(crate) fn view<T>(&self, read: impl FnOnce(&Connection) -> T) -> T {
        let conn = self.checkout();
        let started = Instant::now();
        let result = read(&conn);
        self.detector.took(started, Instant::now(), waited_for_disk);
        result
    }

    /// Runs a long read. Must be called only on threads that may block.
    pub(crate) fn walk<T>(&self, read: impl FnOnce(&Connection) -> T) -> T {
        read(&self.walks.lock())
    }

    fn checkout(&self) -> MutexGuard<'_, Connection> {
        // A thread prefers one connection, so that its cache stays with the thread's core.
        let first = PREFERRED.with(|n| *n);
        DISK_BYTES.with(|_| ());
        for n in 0..self.views.len() {
            // A panic during a read leaves the connection usable: statements are reset on drop.
            if let Some(conn) = self.views[(first + n) % self.views.len()].try_lock() {
                return conn;
            }
        }
        self.views[first % self.views.len()].lock()
    }
}

/// Detects that reads are slow.
struct SlowReadDetector {
    origin: Instant,
    /// End of the last slow read, and until when views run on the blocking pool, in ms after
    /// `origin`; 0 = never.
    slow_at_ms: AtomicU64,
    slow_until_ms: AtomicU64,
}

impl SlowReadDetector {
    fn new() -> Self {
        Self {
            origin: Instant::now(),
            slow_at_ms: AtomicU64::new(0),
            slow_until_ms: AtomicU64::new(0),
        }
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.origin).as_millis()).unwrap_or(u64::MAX)
    }

    fn took(&self, started: Instant, ended: Instant, waited_for_disk: impl FnOnce() -> bool) {
        if ended.duration_since(started) > SLOW_READ && waited_for_disk() {
            counter!(STORE_SLOW_READS).increment(1);
            let before = self.slow_at_ms.swap(self.ms(ended), Ordering::Relaxed);
            if before != 0 && self.ms(ended) <= before + self.ms(self.origin + SLOW_MEMORY) {
                self.slow_until_ms.store(self.ms(ended + SLOW_MEMORY), Ordering::Relaxed);
            }
        }
    }

    fn is_slow(&self, now: Instant) -> bool {
        let until = self.slow_until_ms.load(Ordering::Relaxed);
        until != 0 && self.ms(now) < until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_reads_in_a_row_move_the_next_second_of_reads_to_the_blocking_pool() {
        let detector = SlowReadDetector::new();
        let after = |ms| detector.origin + Duration::from_millis(ms);
        detector.took(after(10), after(11), || true);
        detector.took(after(11), after(40), || false);
        detector.took(after(40), after(80), || false);
        assert!(!detector.is_slow(after(81)), "the threads only lost their core");
        detector.took(after(100), after(103), || true);
        assert!(!detector.is_slow(after(104)), "one is no slow disk");
        detector.took(after(2000), after(2003), || true);
        assert!(!detector.is_slow(after(2004)), "nor is one now and then");
        detector.took(after(2500), after(2503), || true);
        assert!(detector.is_slow(after(2504)) && detector.is_slow(after(3502)));
        assert!(!detector.is_slow(after(3504)));
    }

    #[test]
    fn a_thread_that_reads_no_disk_did_not_wait_for_it() {
        DISK_BYTES.with(|_| ());
        if disk_bytes().is_some() {
            assert!(!waited_for_disk());
        }
        assert_eq!(DISK_BYTES.get(), disk_bytes());
    }

    #[test]
    fn a_view_finds_the_free_connection_and_a_walk_takes_none() {
        let open = || Connection::open_in_memory().expect("a database in memory");
        let pool = ReaderPool::new(vec![open(), open()], open());
        pool.walk(|_| pool.view(|_| pool.view(|_| ())));
        assert!(pool.views.iter().all(|c| c.try_lock().is_some()));
    }
}
