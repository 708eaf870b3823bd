//! Writes with a copy of the journal on disk beside writes without: two stores on one cluster,
//! whose replicas keep up, and then stand still, so that everything is copied.

use std::time::Duration;

use tagfast_store::Durability;

use crate::figure::Figure;
use crate::fixture::{Fixture, FrozenSenders};
use crate::load::Offered;
use crate::rounds::Rounds;
use crate::{Options, progress};

/// The guard must stay open while the replicas stand still.
const MAX_LOSS: Duration = Duration::from_secs(60);
/// Rounds while they do: the journal must not overflow.
const EXPOSED_ROUNDS_MAX: usize = 4;

/// `carried`: writes a second that are carried.
pub(crate) fn figures(fixture: &Fixture, carried: f64, options: &Options) -> Vec<Figure> {
    let dir = tempfile::tempdir().expect("a folder");
    let open = |name, journal_dir| {
        fixture.open_with(name, |options| {
            options.max_loss = MAX_LOSS;
            options.journal_dir = journal_dir;
        })
    };
    let copied = open("copy", Some(dir.path().to_owned()));
    let plain = open("plain", None);
    let with_and_without = |offered: Offered, options: &Options| {
        Rounds::measure(fixture, options, |is_without| {
            (if is_without { &plain } else { &copied }, offered)
        })
    };
    let latency =
        |rounds: &Rounds, what: &str| rounds.figure(what, "ms", |window| window.latency_ms[1]);
    progress("copy of the journal beside none, full load");
    let full = with_and_without(Offered::ALL, options);
    progress("copy of the journal beside none, half load");
    let half = Offered::half_of(carried, Durability::Local);
    let covered = with_and_without(half, options);
    progress("copy of the journal beside none, replicas stand still");
    let senders = FrozenSenders::of(&fixture.primary());
    let rounds = options.rounds.min(EXPOSED_ROUNDS_MAX);
    let exposed = with_and_without(half, &Options { rounds, ..options.clone() });
    senders.kill();
    fixture.wait_until_healthy();
    [copied, plain].into_iter().for_each(|store| fixture.close(store));
    let rate = half.rate.unwrap_or_default();
    vec![
        full.figure(
            "writes, 256 callers, with a copy of the journal on disk beside without",
            "/s",
            |window| window.per_second,
        ),
        full.figure("CPU for each of them", "us", |window| window.cpu.total_us()),
        latency(&covered, &format!("p99 at {rate} writes/s, with the copy beside without")),
        exposed.figure(
            "CPU for each of them while the replicas stand still: all is copied",
            "us",
            |window| window.cpu.total_us(),
        ),
        latency(&exposed, "p99 meanwhile"),
    ]
}
