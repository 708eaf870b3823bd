//! Two ways of writing, measured in turns in the same run.

use std::sync::Arc;

use tagfast_store_postgres::PostgresStore;

use crate::Options;
use crate::figure::{Figure, median, spread};
use crate::fixture::Fixture;
use crate::load::{Offered, Window, measure};

/// The rounds of the first way and of the second one.
pub(crate) struct Rounds([Vec<Window>; 2]);

impl Rounds {
    /// Each round begins with the other way. `prepare` prepares one of them, and says what is
    /// offered to which store: true is the second.
    pub(crate) fn measure<'a>(
        fixture: &Fixture,
        options: &Options,
        prepare: impl Fn(bool) -> (&'a Arc<PostgresStore>, Offered),
    ) -> Self {
        let dir = fixture.primary().data_dir;
        let mut rounds = [Vec::new(), Vec::new()];
        for round in 0..options.rounds {
            for n in 0..2 {
                let is_second = (round + n) % 2 == 1;
                let (store, offered) = prepare(is_second);
                let window = measure(store, offered, options.window, &dir);
                rounds[usize::from(is_second)].push(fixture.runtime.block_on(window));
            }
        }
        Self(rounds)
    }

    /// Those of the first way.
    pub(crate) fn first(&self) -> &[Window] {
        &self.0[0]
    }

    pub(crate) fn medians(&self, of: impl Fn(&Window) -> f64) -> [f64; 2] {
        self.0.each_ref().map(|windows| median(windows.iter().map(&of)))
    }

    /// The ratio of the first way to the second, beside what it is the ratio of.
    pub(crate) fn figure(&self, what: &str, unit: &str, of: impl Fn(&Window) -> f64) -> Figure {
        let [first, second] = &self.0;
        let pairs = first.iter().zip(second);
        let ratios: Vec<f64> = pairs.map(|(first, second)| of(first) / of(second)).collect();
        let [first, second] = self.medians(&of);
        let scatter = spread(ratios.iter().copied());
        let text = format!("{first:.1} {unit} beside {second:.1}; rounds {scatter}");
        Figure::new(what, median(ratios), "x").beside(text)
    }
}
