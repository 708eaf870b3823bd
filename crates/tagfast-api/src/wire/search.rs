//! Bodies of searches.

use serde::Serialize;
use tagfast_search::{Hint, HintCode};
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
    /// Why the query probably does not find what was meant; only when there is a reason, at most
    /// 10, on the first page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(crate) hints: Vec<HintBody>,
    pub(crate) meta: Meta,
}

/// Why a query probably does not find what was meant.
#[derive(Serialize, ToSchema)]
#[schema(as = Hint)]
pub(crate) struct HintBody {
    pub(crate) code: HintCodeBody,
    /// A sentence for people.
    pub(crate) message: String,
}

/// The kind of a hint.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HintCode)]
pub(crate) enum HintCodeBody {
    OperatorWord,
    OperatorSymbol,
    LookAlike,
    UnknownField,
    Wildcard,
    QuotedSyntax,
    Contradiction,
    UnusedTerm,
}

impl From<Hint> for HintBody {
    fn from(hint: Hint) -> Self {
        let code = match hint.code {
            HintCode::OperatorWord => HintCodeBody::OperatorWord,
            HintCode::OperatorSymbol => HintCodeBody::OperatorSymbol,
            HintCode::LookAlike => HintCodeBody::LookAlike,
            HintCode::UnknownField => HintCodeBody::UnknownField,
            HintCode::Wildcard => HintCodeBody::Wildcard,
            HintCode::QuotedSyntax => HintCodeBody::QuotedSyntax,
            HintCode::Contradiction => HintCodeBody::Contradiction,
            HintCode::UnusedTerm => HintCodeBody::UnusedTerm,
        };
        Self { code, message: hint.message }
    }
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
    pub(crate) relation: RelationName,
}

/// How a total is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RelationName {
    /// Exactly.
    Eq,
    /// At least.
    Gte,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_on_the_wire_are_those_of_the_language() {
        for code in HintCode::ALL {
            let body = HintBody::from(Hint { code: *code, message: String::new() });
            assert_eq!(serde_json::to_value(body.code).unwrap(), code.as_str());
        }
    }
}
