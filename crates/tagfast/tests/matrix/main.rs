//! Every source of answers while its feed breaks silently, on real servers: no answer is older than
//! it says, readiness or status names the cause, and all is well again without help.
//!
//! A wave breaks one or several things that do not disturb each other ([`cells`]). Writers note
//! what was acknowledged when ([`load`]); every source is asked several times a second
//! ([`probes`]), and each answer is judged by one rule ([`judge`]).
//! `docs/operate/what-is-noticed.md` has the table of cells and is checked against it.
//!
//! How it fails: the results of all cells are the message. A cell whose servers do not come back is
//! followed by a restart of the service, so that the next one is judged alone.

mod cells;
mod docs;
mod judge;
mod load;
mod probes;
mod servers;
mod wave;

/// Runs the cells whose sentence has this text, each alone: while you work on one.
const ONLY: &str = "MATRIX_CELLS";

/// Whether the tests run with all cells.
fn full() -> bool {
    cfg!(feature = "full")
}

#[test]
#[expect(clippy::print_stdout, reason = "the table of results is what a reader wants to see")]
fn no_answer_is_older_than_it_says_and_every_cause_is_named() {
    let waves = match std::env::var(ONLY) {
        Ok(words) => cells::only(&words),
        Err(_) => cells::waves(full()),
    };
    assert!(!waves.is_empty(), "no cell has the words of {ONLY}");
    let mut servers = servers::Servers::start();
    let (mut lines, mut failed) = (Vec::new(), 0);
    for (number, cells) in waves.iter().enumerate() {
        for result in wave::run(&mut servers, number, cells) {
            failed += usize::from(!result.failures.is_empty());
            println!("{}", result.line());
            lines.push(result.line());
        }
    }
    assert_eq!(failed, 0, "{failed} of {} cells failed:\n{}", lines.len(), lines.join("\n"));
}
