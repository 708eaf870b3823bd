//! Queries that name a tag as an earlier release stored it, with invisible characters.
//!
//! Such a term finds both what has exactly that name and what has the tag that it is today. Nothing
//! here fails.

use crate::Query;

impl Query {
    /// The query that an engine runs: each term with a former name also asks for the name of today.
    #[must_use]
    pub fn with_former_names(self) -> Self {
        let all = |parts: Vec<Self>| parts.into_iter().map(Self::with_former_names).collect();
        match self {
            Self::Tag(name) if name.is_former() => match name.identity() {
                Some(today) => Self::Or(vec![Self::Tag(name), Self::Tag(today)]),
                None => Self::Tag(name),
            },
            Self::And(parts) => Self::And(all(parts)),
            Self::Or(parts) => Self::Or(all(parts)),
            Self::Not(part) => Self::Not(Box::new(part.with_former_names())),
            Self::Tag(_) | Self::Prefix(_) | Self::Type(_) => self,
        }
    }
}
