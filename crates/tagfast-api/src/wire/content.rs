//! Bodies of the tags of one content.

use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use tagfast_domain::{Content, TagName, Tagging, Version};
use tagfast_store::ReplicaCount;
use utoipa::ToSchema;

use super::meta::{DegradedBody, Meta};
use crate::time::Rfc3339;

/// A content.
#[derive(Serialize, ToSchema)]
#[schema(as = Content)]
pub(crate) struct ContentBody<'a> {
    /// The content's type, for example `jira.issue`.
    #[serde(rename = "type")]
    #[schema(pattern = "^[a-z0-9._-]{1,64}$")]
    content_type: &'a str,
    /// The content's id within its type.
    id: &'a str,
}

impl<'a> From<&'a Content> for ContentBody<'a> {
    fn from(content: &'a Content) -> Self {
        Self { content_type: content.content_type.as_str(), id: content.content_id.as_str() }
    }
}

/// A tag on a content.
#[derive(Serialize, ToSchema)]
#[schema(as = Tagging)]
struct TaggingBody<'a> {
    /// The canonical name: the tag's identity.
    tag: &'a str,
    /// The spelling of the user who added it.
    display: &'a str,
    /// The user who added it.
    added_by: &'a str,
    /// The time it was added.
    #[schema(value_type = String, format = DateTime)]
    added_at: Rfc3339,
}

/// The live taggings of a content.
pub(crate) struct Taggings<'a>(pub(crate) &'a [Tagging]);

impl Serialize for Taggings<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for t in self.0.iter().filter(|t| t.present) {
            list.serialize_element(&TaggingBody {
                tag: t.name.as_str(),
                display: &t.display,
                added_by: t.user.as_str(),
                added_at: Rfc3339(t.at),
            })?;
        }
        list.end()
    }
}

/// Canonical names as a list.
pub(crate) struct Names<'a>(pub(crate) &'a [TagName]);

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(TagName::as_str))
    }
}

/// A version as a string, because it has more digits than some JSON readers keep.
#[derive(Clone, Copy)]
pub(crate) struct VersionText(pub(crate) Version);

impl Serialize for VersionText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// The tags of a content.
#[derive(Serialize, ToSchema)]
#[schema(as = View)]
pub(crate) struct ViewBody<'a> {
    pub(crate) content: ContentBody<'a>,
    /// Sorted by canonical name; empty for a content that was never tagged.
    #[schema(value_type = Vec<TaggingBody<'static>>)]
    pub(crate) tags: Taggings<'a>,
    /// The version of the state; `0` for a content that was never tagged. The `ETag` is the same
    /// number in quotes.
    #[schema(value_type = String, pattern = "^[0-9]+$")]
    pub(crate) version: VersionText,
    pub(crate) meta: Meta,
}

/// How many replicas had a write when it was acknowledged.
#[derive(Serialize, ToSchema)]
#[schema(as = Durability)]
pub(crate) struct DurabilityBody {
    /// The streaming replicas that had it on their disks. With 0 the write is lost if the primary
    /// is lost before one has it.
    replicas: usize,
    /// The replicas that streamed.
    of: usize,
}

impl From<ReplicaCount> for DurabilityBody {
    fn from(count: ReplicaCount) -> Self {
        Self { replicas: count.replicas, of: count.of }
    }
}

/// The effect of a write.
#[derive(Serialize, ToSchema)]
#[schema(as = WriteResult)]
pub(crate) struct WriteBody<'a> {
    pub(crate) content: ContentBody<'a>,
    /// Whether any tagging changed.
    pub(crate) changed: bool,
    /// Canonical names that were added.
    #[schema(value_type = Vec<String>)]
    pub(crate) added: Names<'a>,
    /// Canonical names that were removed.
    #[schema(value_type = Vec<String>)]
    pub(crate) removed: Names<'a>,
    /// The content's version after the write.
    #[schema(value_type = String, pattern = "^[0-9]+$")]
    pub(crate) version: VersionText,
    /// Identifies the write in `GET /v1/receipts/{token}`.
    pub(crate) receipt: String,
    /// The same write had been applied before; this is its answer again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub(crate) repeated: bool,
    /// The replicas that had the write when it was acknowledged; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub(crate) durability: Option<DurabilityBody>,
    /// Promises about later reads that the service could not keep.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(crate) degraded: Vec<DegradedBody>,
}

/// Tags to add and remove.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"add": ["Needs Review"], "remove": ["wontfix"]}))]
pub(crate) struct PatchTags {
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub(crate) add: Vec<String>,
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub(crate) remove: Vec<String>,
}

/// The new set of tags.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"tags": ["critical", "ui"]}))]
pub(crate) struct ReplaceTags {
    #[schema(max_items = 1000)]
    pub(crate) tags: Vec<String>,
}
