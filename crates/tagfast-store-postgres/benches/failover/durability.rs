//! `Durability: replicated` beside local durability, at half of what is carried.

use std::sync::Arc;

use tagfast_store::Durability;
use tagfast_store_postgres::PostgresStore;

use crate::figure::Figure;
use crate::fixture::Fixture;
use crate::load::Offered;
use crate::rounds::Rounds;
use crate::{Options, progress};

pub(crate) fn figures(
    fixture: &Fixture,
    store: &Arc<PostgresStore>,
    carried: f64,
    options: &Options,
) -> Vec<Figure> {
    progress("replicated durability beside local durability");
    let replicated = Offered::half_of(carried, Durability::Replicated);
    let local = Offered::half_of(carried, Durability::Local);
    let rounds = Rounds::measure(fixture, options, |is_local| match is_local {
        true => (store, local),
        false => (store, replicated),
    });
    let rate = replicated.rate.unwrap_or_default();
    let latency = [0, 1, 2].map(|n| rounds.medians(|window| window.latency_ms[n])[0]);
    let figure = |name: &str, n: usize, limit: f64| {
        let what = format!("{name} of replicated writes at {rate} writes/s beside local ones");
        let figure = rounds.figure(&what, "ms", |window| window.latency_ms[n]);
        figure.latency(latency).at_most(limit, "x")
    };
    vec![figure("p50", 0, 3.0), figure("p99", 1, 5.0)]
}
