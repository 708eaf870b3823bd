//! Bodies of searches.

use serde::Serialize;
use utoipa::ToSchema;

use super::content::Names;
use super::meta::{Derived, Meta};
use super::tags::TagUseBody;
use crate::time::Rfc3339;

/// The answer of a search.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchResult)]
pub(crate) struct SearchBody<'a> {
    pub(crate) hits: Vec<HitBody<'a>>,
    pub(crate) total: TotalBody,
    /// Tags of all matching contents; only with `facets=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) facets: Option<Vec<TagUseBody<'a>>>,
    /// Where the next page starts; `null` on the last one.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
    pub(crate) meta: Meta,
}

impl Derived for SearchBody<'_> {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

/// A content that matches.
#[derive(Serialize, ToSchema)]
#[schema(as = Hit)]
pub(crate) struct HitBody<'a> {
    #[serde(rename = "type")]
    pub(crate) content_type: &'a str,
    pub(crate) id: &'a str,
    /// Canonical names, sorted.
    #[schema(value_type = Vec<String>)]
    pub(crate) tags: Names<'a>,
    /// Commit time of the indexed state.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) updated_at: Rfc3339,
}

/// How many contents match.
#[derive(Serialize, ToSchema)]
#[schema(as = Total)]
pub(crate) struct TotalBody {
    pub(crate) value: u64,
    /// `eq`: exactly; `gte`: at least.
    #[schema(value_type = String, pattern = "^(eq|gte)$")]
    pub(crate) relation: &'static str,
}
