//! Lines of the export.

use serde::Serialize;
use tagfast_domain::{ContentKey, Tagging};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::time::Rfc3339;

/// The body of the export: a text of lines. OpenAPI 3.1 has no words for a sequence of documents,
/// so the schema of one line is the content schema of the text.
pub(crate) struct ExportLines;

impl PartialSchema for ExportLines {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .description(Some("Each line ends with a line feed and is an `ExportLine` as JSON."))
            .content_media_type("application/x-ndjson")
            .content_schema(Some(Ref::from_schema_name("ExportLine")));
        RefOr::T(Schema::Object(text.build()))
    }
}

impl ToSchema for ExportLines {
    fn schemas(all: &mut Vec<(String, RefOr<Schema>)>) {
        all.push((ExportLine::name().into_owned(), ExportLine::schema()));
        ExportLine::schemas(all);
    }
}

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
