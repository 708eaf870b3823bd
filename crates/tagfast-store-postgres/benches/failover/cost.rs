//! Writes with journal and guard beside writes without them: one store, switched between rounds.

use std::sync::Arc;

use tagfast_store::Durability;
use tagfast_store_postgres::PostgresStore;

use crate::figure::{Figure, median};
use crate::fixture::Fixture;
use crate::load::{CONTENTS, Offered, Window, measure, tag_contents};
use crate::rounds::Rounds;
use crate::{Options, progress};

/// Prepares the contents; returns how many writes a second are carried.
pub(crate) fn carried(fixture: &Fixture, store: &Arc<PostgresStore>, options: &Options) -> f64 {
    progress("contents and full load");
    let dir = fixture.primary().data_dir;
    fixture.runtime.block_on(async {
        tag_contents(store, "content", CONTENTS).await;
        let mut rates = Vec::new();
        for _ in 0..3 {
            rates.push(measure(store, Offered::ALL, options.window, &dir).await.per_second);
        }
        median(rates)
    })
}

fn with_and_without(
    fixture: &Fixture,
    store: &Arc<PostgresStore>,
    offered: Offered,
    options: &Options,
) -> Rounds {
    let rounds = Rounds::measure(fixture, options, |is_without| {
        store.set_unguarded(is_without);
        (store, offered)
    });
    store.set_unguarded(false);
    rounds
}

pub(crate) fn figures(
    fixture: &Fixture,
    store: &Arc<PostgresStore>,
    carried: f64,
    options: &Options,
) -> Vec<Figure> {
    progress("journal and guard beside none, full load");
    let full = with_and_without(fixture, store, Offered::ALL, options);
    progress("journal and guard beside none, half load");
    let offered = Offered::half_of(carried, Durability::Local);
    let half = with_and_without(fixture, store, offered, options);
    let rate = offered.rate.unwrap_or_default();
    let [with, without] = full.medians(|window| window.cpu.server_us);
    let servers = format!("PostgreSQL {with:.1} beside {without:.1} us");
    let [with, without] = full.medians(|window| window.cpu.process_us);
    let parts = format!("{servers}, store and callers {with:.1} beside {without:.1} us");
    let latency = |what: &str, of: fn(&Window) -> f64| {
        let what = format!("{what} at {rate} writes/s, with journal and guard beside without");
        half.figure(&what, "ms", of).at_most(1.1, "x")
    };
    let bytes = full.first().iter().map(|window| window.journal_bytes).max().unwrap_or(0) as f64;
    let guarded = median(full.first().iter().map(|window| window.guarded)) * 100.0;
    vec![
        full.figure("writes, 256 callers, with journal and guard beside without", "/s", |window| {
            window.per_second
        })
        .at_least(0.95, "x"),
        full.figure(&format!("CPU for each of them ({parts})"), "us", |w| w.cpu.total_us())
            .at_most(1.05, "x"),
        latency("p50", |window| window.latency_ms[0]),
        latency("p99", |window| window.latency_ms[1]),
        Figure::new("the most that the journal held, 256 callers", bytes / 1e6, "MB")
            .beside(format!("guard not open in {guarded:.0} % of the time")),
    ]
}
