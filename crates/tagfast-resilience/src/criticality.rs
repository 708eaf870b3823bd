//! Criticality: the order in which load is shed when not every request can be answered.

/// The criticality of a request. Ordered: smaller values are shed earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Criticality {
    /// Optional: popular tags, suggestions, related tags, facets.
    Sheddable,
    /// May be late or incomplete: search, batches.
    Degradable,
    /// The core of the service: views and writes.
    #[default]
    Critical,
}

impl Criticality {
    /// The stable value in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sheddable => "sheddable",
            Self::Degradable => "degradable",
            Self::Critical => "critical",
        }
    }

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
