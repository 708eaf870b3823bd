//! The horizon against a model of PostgreSQL: generated schedules of sessions in several databases,
//! with everything that happens between the statements of a poll, and inside of the check of the
//! sessions.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use crate::outbox::horizon::{HorizonTracker, Snapshot, lower_bits};

const SEEDS: u64 = 60;
const POLLS: usize = 150;
const SLOTS: usize = 4;
/// Database 0 is ours.
const DATABASES: u8 = 3;
/// Small, so that polls are full now and then.
const POLL_ROWS: usize = 3;

/// A transaction that has an id.
#[derive(Debug, Clone)]
struct Transaction {
    xid: u64,
    database: u8,
    /// Outbox rows, in our database only.
    rows: Vec<i32>,
    /// The largest id that it took, for itself or a subtransaction.
    last_xid: u64,
}

/// A session; `visible`: the view of sessions shows it (it has logged in).
#[derive(Debug, Clone)]
struct Session {
    database: u8,
    visible: bool,
    transaction: Option<Transaction>,
}

struct Server {
    rng: Rng,
    next_xid: u64,
    latest_completed: u64,
    slots: Vec<Option<Session>>,
    last_slot: usize,
    prepared: Vec<Transaction>,
    /// Committed rows of our outbox and when they were committed.
    committed: Vec<((u64, i32), u64)>,
    clock: u64,
}

impl Server {
    fn new(seed: u64) -> Self {
        // The lower bits wrap around on the way.
        let first = (3 << 32) - 60;
        Self {
            rng: Rng::with_seed(seed),
            next_xid: first,
            latest_completed: first - 1,
            slots: vec![None; SLOTS],
            last_slot: 0,
            prepared: Vec::new(),
            committed: Vec::new(),
            clock: 0,
        }
    }

    fn running(&self) -> impl Iterator<Item = &Transaction> {
        let of_sessions = self.slots.iter().flatten().filter_map(|s| s.transaction.as_ref());
        of_sessions.chain(&self.prepared)
    }

    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let running: Vec<String> =
            self.running().filter(|t| t.xid < xmax).map(|t| t.xid.to_string()).collect();
        let xmin = self.running().map(|t| t.xid).min().map_or(xmax, |xid| xid.min(xmax));
        Snapshot::parse(&format!("{xmin}:{xmax}:{}", running.join(","))).expect("a snapshot")
    }

    /// What no horizon may exceed: a transaction of ours from here on may still write.
    fn limit(&self) -> u64 {
        let ours = self.running().filter(|t| t.database == 0).map(|t| t.xid);
        ours.min().unwrap_or(self.next_xid)
    }

    fn end(&mut self, transaction: Transaction, commits: bool) {
        self.latest_completed = self.latest_completed.max(transaction.last_xid);
        if commits {
            let at = self.clock;
            let rows = transaction.rows.iter().map(|n| ((transaction.xid, *n), at));
            self.committed.extend(rows);
        }
    }

    /// One random step of one session.
    fn step(&mut self) {
        self.clock += 1;
        // Often the same one, so that a session ends and another one begins within a check.
        let slot = if self.rng.bool() { self.last_slot } else { self.rng.usize(..SLOTS) };
        self.last_slot = slot;
        let Some(mut session) = self.slots[slot].take() else {
            let database = self.rng.u8(..DATABASES);
            let visible = self.rng.bool();
            self.slots[slot] = Some(Session { database, visible, transaction: None });
            return;
        };
        match session.transaction.take() {
            _ if !session.visible => session.visible = true,
            None => match self.rng.u8(..4) {
                0 => return, // The session ends.
                _ => {
                    let xid = self.next_xid;
                    self.next_xid += 1;
                    let (database, rows) = (session.database, Vec::new());
                    session.transaction = Some(Transaction { xid, database, rows, last_xid: xid });
                }
            },
            Some(mut t) => match self.rng.u8(..10) {
                0..=2 => self.end(t, true),
                3 => self.end(t, false),
                4 => {
                    self.end(t, false);
                    return;
                }
                5 if self.prepared.len() < 2 => self.prepared.push(t),
                6 => {
                    t.last_xid = self.next_xid;
                    self.next_xid += 1;
                    session.transaction = Some(t);
                }
                _ => {
                    if t.database == 0 {
                        t.rows.push(t.rows.len() as i32);
                    }
                    session.transaction = Some(t);
                }
            },
        }
        self.slots[slot] = Some(session);
        if !self.prepared.is_empty() && self.rng.u8(..12) == 0 {
            let n = self.rng.usize(..self.prepared.len());
            let (t, commits) = (self.prepared.swap_remove(n), self.rng.bool());
            self.end(t, commits);
        }
    }

    fn some_steps(&mut self, max: usize) {
        for _ in 0..self.rng.usize(..=max) {
            self.step();
        }
    }

    /// The view of sessions, read as PostgreSQL reads it: the database of a slot first, its id
    /// later.
    fn check_sessions(&mut self, steps_between: usize) -> Vec<u32> {
        let mut shown = Vec::new();
        for slot in 0..SLOTS {
            let session = self.slots[slot].as_ref().filter(|session| session.visible);
            let Some(database) = session.map(|session| session.database) else { continue };
            self.some_steps(steps_between);
            let transaction = self.slots[slot].as_ref().and_then(|s| s.transaction.as_ref());
            shown.extend(
                transaction
                    .filter(|_| database != 0)
                    .map(|transaction| lower_bits(transaction.xid)),
            );
        }
        shown.extend(self.prepared.iter().filter(|t| t.database != 0).map(|t| lower_bits(t.xid)));
        shown
    }

    fn next_after(&self, cursor: (u64, i32), horizon: u64) -> Vec<(u64, i32)> {
        let rows = self.committed.iter().map(|(row, _)| *row);
        let mut rows: Vec<_> = rows.filter(|row| *row > cursor && row.0 < horizon).collect();
        rows.sort_unstable();
        rows.truncate(POLL_ROWS);
        rows
    }
}

/// When the sessions are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SessionCheck {
    AfterTheSnapshot,
    /// Wrong: what is shown proves nothing about a later snapshot.
    BeforeTheSnapshot,
    Never,
}

struct Relay {
    tracker: HorizonTracker,
    session_check: SessionCheck,
    now: Instant,
    cursor: (u64, i32),
    horizon: u64,
    published: Vec<(u64, i32)>,
    /// Commits that are checked to be published.
    checked: usize,
    pending: Vec<(u64, u64)>,
}

impl Relay {
    fn new(session_check: SessionCheck) -> Self {
        Self {
            tracker: HorizonTracker::default(),
            session_check,
            now: Instant::now(),
            cursor: (0, -1),
            horizon: 0,
            published: Vec::new(),
            checked: 0,
            pending: Vec::new(),
        }
    }

    /// A poll, with up to `steps` of others between its statements. The error says which promise
    /// is broken.
    fn poll(&mut self, server: &mut Server, steps: usize) -> Result<(), &'static str> {
        self.now += Duration::from_millis(60);
        let early = match self.session_check {
            SessionCheck::BeforeTheSnapshot => server.check_sessions(steps),
            SessionCheck::AfterTheSnapshot | SessionCheck::Never => Vec::new(),
        };
        server.some_steps(steps);
        let (at, snapshot) = (server.clock, server.snapshot());
        self.pending.push((snapshot.xmax, at));
        let mut horizon = self.tracker.observe(snapshot, self.now);
        server.some_steps(steps);
        // A check that is not due proves as much.
        if self.tracker.session_check_is_due(self.now) || server.rng.bool() {
            match self.session_check {
                SessionCheck::AfterTheSnapshot => {
                    let shown = server.check_sessions(steps);
                    horizon = self.tracker.prove(shown, self.now);
                }
                SessionCheck::BeforeTheSnapshot => horizon = self.tracker.prove(early, self.now),
                SessionCheck::Never => {}
            }
        }
        if horizon > server.limit() {
            return Err("the horizon passes a transaction of ours");
        }
        if horizon < self.horizon {
            return Err("the horizon moves back");
        }
        self.horizon = horizon;
        server.some_steps(steps);
        let rows = server.next_after(self.cursor, horizon);
        if let Some(last) = rows.last() {
            self.cursor = *last;
        }
        // Sorted, or the rows were not in order: the end of the run compares them.
        self.published.extend(&rows);
        if rows.len() < POLL_ROWS {
            let through = self.pending.iter().filter(|(xmax, _)| *xmax <= horizon);
            if let Some(at) = through.map(|(_, at)| *at).max() {
                self.pending.retain(|(xmax, _)| *xmax > horizon);
                // In the order of commits.
                let due = server.committed.partition_point(|(_, committed)| *committed < at);
                let promised = server.committed.get(self.checked..due).unwrap_or_default();
                if promised.iter().any(|(row, _)| self.published.binary_search(row).is_err()) {
                    return Err("a heartbeat promises what is not published");
                }
                self.checked = self.checked.max(due);
            }
        }
        Ok(())
    }
}

fn run(seed: u64, session_check: SessionCheck) -> Result<(), &'static str> {
    let (mut server, mut relay) = (Server::new(seed), Relay::new(session_check));
    for _ in 0..POLLS {
        relay.poll(&mut server, 8)?;
    }
    // Ours end, those of other databases go on.
    for slot in 0..SLOTS {
        let Some(mut session) = server.slots[slot].take() else { continue };
        session.visible = true;
        match session.transaction.take() {
            Some(t) if session.database == 0 => server.end(t, true),
            other => session.transaction = other,
        }
        server.slots[slot] = Some(session);
    }
    let (ours, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut server.prepared).into_iter().partition(|t| t.database == 0);
    server.prepared = others;
    ours.into_iter().for_each(|t| server.end(t, true));
    // A hold of a moment before the check, a second after one that proved nothing, and full polls.
    for _ in 0..POLLS * 20 {
        relay.poll(&mut server, 0)?;
    }
    if session_check == SessionCheck::AfterTheSnapshot
        && relay.horizon != server.latest_completed + 1
    {
        return Err("transactions of other databases hold the horizon");
    }
    let mut committed: Vec<_> = server.committed.iter().map(|(row, _)| *row).collect();
    committed.sort_unstable();
    committed.retain(|row| row.0 < relay.horizon);
    if relay.published != committed {
        return Err("not every row once, in order");
    }
    Ok(())
}

#[test]
fn no_schedule_breaks_the_order_or_misses_a_row() {
    for seed in 0..SEEDS {
        assert_eq!(run(seed, SessionCheck::AfterTheSnapshot), Ok(()), "seed {seed}");
        assert_eq!(run(seed, SessionCheck::Never), Ok(()), "seed {seed}, nothing is ever proven");
    }
}

/// The order of snapshot and check is what the proof rests on, and the model can tell.
#[test]
fn what_was_shown_before_the_snapshot_proves_nothing() {
    let wrong =
        (0..SEEDS).filter(|seed| run(*seed, SessionCheck::BeforeTheSnapshot).is_err()).count();
    assert!(wrong > 0, "no schedule shows it");
}

#[test]
fn a_snapshot_is_read_as_postgresql_writes_it() {
    let parsed = |text| Snapshot::parse(text);
    let snapshot = Snapshot { xmax: 20, running: vec![10, 14] };
    assert_eq!(parsed("10:20:10,14"), Some(snapshot));
    assert_eq!(parsed("20:20:"), Some(Snapshot { xmax: 20, running: Vec::new() }));
    for wrong in ["", "20", "20:20", "20:20:x", "a:20:", "1:2:3:4"] {
        assert_eq!(parsed(wrong), None, "{wrong:?}");
    }
}

/// A short transaction costs no check, a long one a check a second.
#[test]
fn only_a_transaction_that_stays_is_looked_for() {
    let (mut tracker, mut now) = (HorizonTracker::default(), Instant::now());
    let mut checks = 0;
    for n in 0..300_u64 {
        // Transaction 7 stays from the 100th poll to the 200th one; others end within a poll.
        let xid = if (100..200).contains(&n) { 7 } else { 1_000 + n };
        let snapshot = Snapshot { xmax: 2_000, running: vec![xid] };
        assert_eq!(tracker.observe(snapshot, now), xid);
        checks += u32::from(tracker.session_check_is_due(now));
        now += Duration::from_millis(20);
    }
    assert_eq!(checks, 2, "after 0.1 s and a second later");
}
