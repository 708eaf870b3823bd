//! Lines of the export.

use serde::Serialize;
use tagfast_domain::{ContentKey, Tagging};
use utoipa::ToSchema;

use crate::time::Rfc3339;

/// A content with its tags: one line of the export.
#[derive(Serialize, ToSchema)]
#[schema(as = ExportLine)]
pub(crate) struct ExportLine<'a> {
    #[serde(rename = "type")]
    content_type: &'a str,
    id: &'a str,
    tags: Vec<ExportTag<'a>>,
}

/// A tag of an exported content.
#[derive(Serialize, ToSchema)]
pub(crate) struct ExportTag<'a> {
    /// The spelling.
    tag: &'a str,
    by: &'a str,
    #[schema(value_type = String, format = DateTime)]
    at: Rfc3339,
}

impl<'a> ExportLine<'a> {
    pub(crate) fn new(key: &'a ContentKey, tags: impl Iterator<Item = &'a Tagging>) -> Self {
        Self {
            content_type: key.content.content_type.as_str(),
            id: key.content.content_id.as_str(),
            tags: tags
                .map(|t| ExportTag { tag: &t.display, by: t.user.as_str(), at: Rfc3339(t.at) })
                .collect(),
        }
    }
}
