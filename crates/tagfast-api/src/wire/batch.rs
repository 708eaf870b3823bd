//! Bodies of batches.

use serde::{Deserialize, Serialize};
use tagfast_json::Strict;
use utoipa::ToSchema;

use super::constant::Fixed;
use crate::problem::ProblemBody;

/// The result of one item: the fields of a single call, or a problem; `ok` tells which.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchItem)]
#[serde(untagged)]
pub(crate) enum BatchItem<'a, T> {
    Done(DoneItem<T>),
    #[schema(value_type = FailedItem<'static>)]
    Failed(Box<FailedItem<'a>>),
}

/// An item that succeeded.
#[derive(Serialize, ToSchema)]
#[schema(as = DoneItem)]
pub(crate) struct DoneItem<T> {
    #[schema(inline)]
    ok: Fixed<true>,
    #[serde(flatten)]
    value: T,
}

/// An item that failed; the other items are not affected.
#[derive(Serialize, ToSchema)]
#[schema(as = FailedItem)]
pub(crate) struct FailedItem<'a> {
    #[schema(inline)]
    ok: Fixed<false>,
    /// The content as it was given.
    content: RawContent<'a>,
    problem: ProblemBody<'a>,
}

/// A content as the client wrote it, valid or not.
#[derive(Serialize, ToSchema)]
pub(crate) struct RawContent<'a> {
    #[serde(rename = "type")]
    content_type: &'a str,
    id: &'a str,
}

impl<T> DoneItem<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { ok: Fixed, value }
    }
}

impl<'a, T> BatchItem<'a, T> {
    pub(crate) fn done(value: T) -> Self {
        Self::Done(DoneItem::new(value))
    }

    pub(crate) fn failed(content_type: &'a str, id: &'a str, problem: ProblemBody<'a>) -> Self {
        Self::Failed(Box::new(FailedItem {
            ok: Fixed,
            content: RawContent { content_type, id },
            problem,
        }))
    }
}

/// The results of a batch, in the order of its items.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchBody<'a, T> {
    pub(crate) results: Vec<BatchItem<'a, T>>,
}

/// A batch of contents to read.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"items": [
    {"type": "jira.issue", "id": "PROJ-1"},
    {"type": "jira.issue", "id": "PROJ-2"},
]}))]
pub(crate) struct BatchGet {
    /// The contents; the same one may come twice.
    #[schema(min_items = 0, max_items = 500)]
    pub(crate) items: Vec<ContentItem>,
}

/// A content of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContentItem {
    #[serde(rename = "type")]
    pub(crate) content_type: String,
    pub(crate) id: String,
}

/// A batch of writes; each item is atomic.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"items": [
    {"type": "jira.issue", "id": "PROJ-1", "add": ["critical"], "remove": ["wontfix"]},
    {"type": "jira.issue", "id": "PROJ-2", "add": ["ui"]},
]}))]
pub(crate) struct BatchTag {
    /// The writes; the same content may come twice, its writes are then applied in order.
    #[schema(min_items = 0, max_items = 500)]
    pub(crate) items: Vec<TagItem>,
}

/// One write of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TagItem {
    #[serde(rename = "type")]
    pub(crate) content_type: String,
    pub(crate) id: String,
    /// Tags to add.
    #[serde(default)]
    pub(crate) add: Vec<TagInput>,
    /// Tags to remove.
    #[serde(default)]
    pub(crate) remove: Vec<String>,
}

/// A tag as a client writes it: its spelling, or (an import, scope `admin`) also the user who added
/// it and the time.
#[derive(Deserialize, ToSchema)]
#[serde(untagged, expecting = "a tag must be a string or an object with tag, by and at")]
pub(crate) enum TagInput {
    Plain(String),
    #[schema(value_type = ImportedTag)]
    Imported(Strict<ImportedTag>),
}

/// A tag with its origin.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportedTag {
    /// The spelling.
    pub(crate) tag: String,
    /// The user who added it; missing: the caller.
    pub(crate) by: Option<String>,
    /// The time it was added, RFC 3339; missing: now.
    pub(crate) at: Option<String>,
}
