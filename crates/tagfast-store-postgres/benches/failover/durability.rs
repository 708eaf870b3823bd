//! `Durability: replicated` beside local durability, at half of what is carried.

use std::sync::Arc;

use tagfast_store::Durability;
use tagfast_store_postgres::PostgresStore;

use crate::figure::{Figure, median, spread};
use crate::fixture::Fixture;
use crate::load::{Offered, Window, measure};
use crate::{Options, progress};

pub(crate) fn figures(
    fixture: &Fixture,
    store: &Arc<PostgresStore>,
    carried: f64,
    options: &Options,
) -> Vec<Figure> {
    progress("replicated durability beside local durability");
    let rate = (carried / 2.0).round();
    let dir = fixture.primary().data_dir;
    let [mut replicated, mut local]: [Vec<Window>; 2] = Default::default();
    for _ in 0..options.rounds {
        for (windows, durability) in
            [(&mut replicated, Durability::Replicated), (&mut local, Durability::Local)]
        {
            let offered = Offered { rate: Some(rate), durability };
            let window = measure(store, offered, options.window, &dir);
            windows.push(fixture.runtime.block_on(window));
        }
    }
    let at = |windows: &[Window], n: usize| median(windows.iter().map(|w| w.latency_ms[n]));
    let all = |windows: &[Window]| [0, 1, 2].map(|n| at(windows, n));
    let figure = |name: &str, n: usize, limit: f64| {
        let ratio = |(r, l): (&Window, &Window)| r.latency_ms[n] / l.latency_ms[n];
        let ratios: Vec<f64> = replicated.iter().zip(&local).map(ratio).collect();
        let (own, beside) = (at(&replicated, n), at(&local, n));
        let scatter = spread(ratios.iter().copied());
        let what = format!("{name} of replicated writes at {rate} writes/s beside local ones");
        Figure::new(what, median(ratios), "x")
            .beside(format!("{own:.1} ms beside {beside:.1}; rounds {scatter}"))
            .latency(all(&replicated))
            .at_most(limit, "x")
    };
    vec![figure("p50", 0, 3.0), figure("p99", 1, 5.0)]
}
