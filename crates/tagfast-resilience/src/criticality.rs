//! What is given up first when not everything can be answered.

/// How much an answer matters. Ordered: what is less is given up earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Criticality {
    /// Nice to have: popular tags, suggestions, related tags, facets.
    Sheddable,
    /// Can be late or incomplete: search, batches.
    Degradable,
    /// What the service is for: views and writes.
    #[default]
    Critical,
}

impl Criticality {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sheddable => "sheddable",
            Self::Degradable => "degradable",
            Self::Critical => "critical",
        }
    }

    /// The share of a limit up to which a call of this kind may begin.
    pub fn share(self) -> f64 {
        match self {
            Self::Sheddable => 0.5,
            Self::Degradable => 0.8,
            Self::Critical => 1.0,
        }
    }

    /// What may be under way of a limit when a call of this kind begins, itself included; at least
    /// 1.
    pub fn most_of(self, limit: usize) -> usize {
        ((limit as f64 * self.share()) as usize).max(1)
    }
}
