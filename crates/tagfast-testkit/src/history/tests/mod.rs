//! Tests of the checks: hand-made histories, and random ones from a simulated store.

mod examples;
mod feed;
mod losses;
mod mutations;
mod simulation;

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

fn set(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(|t| (*t).to_owned()).collect()
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An acknowledged write of client 1 to content `c` in epoch 1, from `began` for 10 ms. Its id is
/// its version.
fn write(began: u64, adds: &[&str], removes: &[&str], version: u64) -> WriteCall {
    WriteCall {
        id: u128::from(version),
        client: 1,
        node: 0,
        content: "c".to_owned(),
        began: at(began),
        ended: at(began + 10),
        adds: set(adds),
        removes: set(removes),
        replaces: false,
        if_match: None,
        outcome: Outcome::Acknowledged,
        changed: true,
        repeated: false,
        version,
        epoch: (0xA, 1),
        log: None,
        replicated: None,
        verdicts: Vec::new(),
    }
}

/// A read of client 1 with its token.
fn read(began: u64, tags: &[&str], version: u64) -> ReadCall {
    ReadCall {
        client: 1,
        node: 0,
        content: "c".to_owned(),
        began: at(began),
        ended: at(began + 5),
        tags: set(tags),
        version,
        position: None,
        session: true,
        marked: false,
    }
}

/// A history that ends with these tags of content `c`.
fn history(
    writes: Vec<WriteCall>,
    reads: Vec<ReadCall>,
    (version, tags): (u64, &[&str]),
) -> History {
    let finally = FinalContent { version, tags: set(tags), recent: Vec::new() };
    let finals = [("c".to_owned(), finally)].into();
    History { writes, reads, finals, limit: 3, ..History::default() }
}

fn no_violations(history: &History) {
    assert_eq!(history.check().violations, []);
}

/// Checks that there is exactly one violation, of this invariant; returns its text.
#[track_caller]
fn violation(history: &History, invariant: Invariant) -> String {
    let found = history.check().violations;
    let [violation] = &found[..] else { panic!("one violation was planted, found {found:#?}") };
    assert_eq!(violation.invariant, invariant, "{violation}");
    violation.to_string()
}
