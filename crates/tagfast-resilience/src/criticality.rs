//! Criticality: the order in which load is shed when not every request can be answered.

use crate::label_enum;

label_enum! {
    /// The criticality of a request. Ordered: smaller values are shed earlier.
    #[derive(PartialOrd, Ord, Hash, Default)]
    pub enum Criticality {
        /// Optional: popular tags, suggestions, related tags, facets.
        Sheddable = "sheddable",
        /// May be late or incomplete: search, batches.
        Degradable = "degradable",
        /// The core of the service: views and writes.
        #[default]
        Critical = "critical",
    }
}

impl Criticality {
    /// The share of a limit that calls of this criticality may use.
    pub fn share(self) -> f64 {
        match self {
            Self::Sheddable => 0.5,
            Self::Degradable => 0.8,
            Self::Critical => 1.0,
        }
    }

    /// Maximum calls in flight, under `limit`, with which a call of this criticality is admitted,
    /// itself included; at least 1.
    pub fn max_of(self, limit: usize) -> usize {
        ((limit as f64 * self.share()) as usize).max(1)
    }
}
