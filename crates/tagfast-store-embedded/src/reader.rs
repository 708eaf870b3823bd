//! The reader pool of a file, and where a read runs.
//!
//! A view that finds its pages in memory takes a few microseconds: less than a hop to another
//! thread, so it runs on the caller's task. On a slow disk that would hold the runtime's workers;
//! so once two views within `SLOW_FOR` took longer than `SLOW_READ` while their threads read from
//! the disk, the file's views run on the blocking pool for `SLOW_FOR`. Those two have cost their
//! workers that time; the next ones do not. A thread that only lost its core to another is not a
//! slow disk: a hop to one more thread would then make matters worse.
//!
//! Walks (scans, the bus, counts) always run on the blocking pool, on a connection of their own:
//! they neither take a view's connection nor count as slow reads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// A read slower than this says that the disk answers, not the memory.
const SLOW_READ: Duration = Duration::from_millis(2);
/// How long views then keep off the runtime's workers.
const SLOW_FOR: Duration = Duration::from_secs(1);

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PREFERRED: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    /// Bytes this thread had read from the disk when it was last asked; first at its first view.
    static DISK_BYTES: Cell<Option<u64>> = Cell::new(disk_bytes());
}

/// Bytes this thread has caused to be read from a disk; `None` where the system does not tell.
fn disk_bytes() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.parse().ok()
}

/// Whether this thread has read from the disk since it was last asked. Where that is not known:
/// yes.
fn waited_for_disk() -> bool {
    let now = disk_bytes();
    let before = DISK_BYTES.replace(now);
    now.is_none() || before.is_none() || now > before
}

/// Read connections of one file.
pub(crate) struct ReaderPool {
    views: Vec<Mutex<Connection>>,
    pace: Pace,
    walks: Mutex<Connection>,
}

impl ReaderPool {
    /// `views` must not be empty.
    pub(crate) fn new(views: Vec<Connection>, walks: Connection) -> Self {
        Self {
            views: views.into_iter().map(Mutex::new).collect(),
            pace: Pace::new(),
            walks: Mutex::new(walks),
        }
    }

    /// Whether a view should run on the blocking pool.
    pub(crate) fn is_slow(&self) -> bool {
        self.pace.is_slow(Instant::now())
    }

    /// Runs a short read on a free connection, or waits for one.
    pub(crate) fn view<T>(&self, read: impl FnOnce(&Connection) -> T) -> T {
        let conn = self.checkout();
        let started = Instant::now();
        let result = read(&conn);
        self.pace.took(started, Instant::now(), waited_for_disk);
        result
    }

    /// Runs a long read. Only on threads that may block.
    pub(crate) fn walk<T>(&self, read: impl FnOnce(&Connection) -> T) -> T {
        read(&self.walks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn checkout(&self) -> MutexGuard<'_, Connection> {
        // A thread keeps to one connection: its cache stays with the thread's core.
        let first = PREFERRED.with(|n| *n);
        DISK_BYTES.with(|_| ());
        for n in 0..self.views.len() {
            match self.views[(first + n) % self.views.len()].try_lock() {
                Ok(conn) => return conn,
                // A panic during a read leaves the connection usable: statements are reset when
                // they are dropped.
                Err(TryLockError::Poisoned(conn)) => return conn.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.views[first % self.views.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Remembers whether reads have been slow lately.
struct Pace {
    origin: Instant,
    /// When the last slow read ended, and until when views run elsewhere; 0 = never. Milliseconds
    /// after `origin`.
    slow_at_ms: AtomicU64,
    slow_until_ms: AtomicU64,
}

impl Pace {
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
            metrics::counter!("tagfast_store_slow_reads_total").increment(1);
            let before = self.slow_at_ms.swap(self.ms(ended), Ordering::Relaxed);
            if before != 0 && self.ms(ended) <= before + self.ms(self.origin + SLOW_FOR) {
                self.slow_until_ms.store(self.ms(ended + SLOW_FOR), Ordering::Relaxed);
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
    fn slow_reads_in_a_row_send_the_next_second_of_reads_elsewhere() {
        let pace = Pace::new();
        let after = |ms| pace.origin + Duration::from_millis(ms);
        pace.took(after(10), after(11), || true);
        pace.took(after(11), after(40), || false);
        pace.took(after(40), after(80), || false);
        assert!(!pace.is_slow(after(81)), "the threads only lost their core");
        pace.took(after(100), after(103), || true);
        assert!(!pace.is_slow(after(104)), "one is no slow disk");
        pace.took(after(2000), after(2003), || true);
        assert!(!pace.is_slow(after(2004)), "nor is one now and then");
        pace.took(after(2500), after(2503), || true);
        assert!(pace.is_slow(after(2504)) && pace.is_slow(after(3502)));
        assert!(!pace.is_slow(after(3504)));
    }

    #[test]
    fn a_thread_that_reads_no_disk_did_not_wait_for_one() {
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
        assert!(pool.views.iter().all(|c| c.try_lock().is_ok()));
    }
}
