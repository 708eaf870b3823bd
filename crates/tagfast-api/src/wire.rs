//! Bodies of requests and answers. Answers borrow what they show and are written straight to bytes.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, header};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use tagfast_domain::{Content, ContentKey, TagName, Tagging, UnixMillis, Version};
use tagfast_popular::TagCount;
use tagfast_store::{Degraded, Source, View};
use utoipa::ToSchema;

use crate::call::age;
use crate::problem::ProblemBody;
use crate::time::Stamp;

/// An index or a count that is older than this is called stale.
pub(crate) const STALE_MS: i64 = 30_000;

/// Which content.
#[derive(Serialize, ToSchema)]
#[schema(as = Content)]
pub(crate) struct ContentBody<'a> {
    /// Its kind, for example `jira.issue`.
    #[serde(rename = "type")]
    #[schema(pattern = "^[a-z0-9._-]{1,64}$")]
    content_type: &'a str,
    /// Its id within the kind.
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
    /// The spelling of who added it.
    display: &'a str,
    /// Who added it.
    added_by: &'a str,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    added_at: Stamp,
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
                added_at: Stamp(t.at),
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

/// A version as a string: it has more digits than some JSON readers keep.
#[derive(Clone, Copy)]
pub(crate) struct VersionText(pub(crate) Version);

impl Serialize for VersionText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// How an answer came about.
#[derive(Serialize, ToSchema)]
pub(crate) struct Meta {
    /// Where it was read: `cache`, `primary`, `replica`, `index` or `snapshot`.
    #[schema(value_type = String, pattern = "^(cache|primary|replica|index|snapshot)$")]
    source: &'static str,
    /// Everything committed before this moment is in the answer.
    #[schema(value_type = String, format = DateTime)]
    as_of: Stamp,
    /// How old that is, in milliseconds.
    age_ms: u64,
    /// Older than the service promises.
    pub(crate) stale: bool,
    /// Features that this answer could not give fully.
    degraded: Vec<DegradedBody>,
}

/// A feature that an answer could not give fully.
#[derive(Serialize, ToSchema)]
#[schema(as = Degraded)]
pub(crate) struct DegradedBody {
    /// A stable word.
    pub(crate) feature: String,
    /// Why.
    pub(crate) reason: String,
}

impl From<&Degraded> for DegradedBody {
    fn from(degraded: &Degraded) -> Self {
        Self { feature: degraded.feature.to_owned(), reason: degraded.reason.to_owned() }
    }
}

impl Meta {
    pub(crate) fn new(source: Source, as_of: UnixMillis, now: UnixMillis) -> Self {
        Self {
            source: source.as_str(),
            as_of: Stamp(as_of),
            age_ms: age(now, as_of).as_millis() as u64,
            stale: now.saturating_sub(as_of) > STALE_MS,
            degraded: Vec::new(),
        }
    }

    /// Of a view: how the store came to it.
    pub(crate) fn of(view: &View, now: UnixMillis) -> Self {
        let mut meta = Self::new(view.source, view.as_of, now);
        // The store knows which promise was asked for; an entry that is proven current may be
        // minutes old.
        meta.stale = view.stale;
        view.degraded.iter().for_each(|d| meta.degrade(d.feature, d.reason));
        meta
    }

    /// Whether the answer is worse than what the service gives usually.
    pub(crate) fn is_worse(&self) -> bool {
        self.stale || !self.degraded.is_empty()
    }

    /// The moment before which everything is in the answer.
    pub(crate) fn as_of(&self) -> UnixMillis {
        self.as_of.0
    }

    /// A part of the answer is of this moment.
    pub(crate) fn not_newer_than(&mut self, as_of: UnixMillis, now: UnixMillis) {
        if as_of < self.as_of.0 {
            self.as_of = Stamp(as_of);
            self.age_ms = age(now, as_of).as_millis() as u64;
            self.stale |= now.saturating_sub(as_of) > STALE_MS;
        }
    }

    pub(crate) fn degrade(&mut self, feature: &str, reason: &str) {
        self.degraded.push(DegradedBody { feature: feature.to_owned(), reason: reason.to_owned() });
    }
}

/// The tags of a content.
#[derive(Serialize, ToSchema)]
#[schema(as = View)]
pub(crate) struct ViewBody<'a> {
    pub(crate) content: ContentBody<'a>,
    /// Sorted by canonical name; empty for a content that nobody tagged.
    #[schema(value_type = Vec<TaggingBody<'static>>)]
    pub(crate) tags: Taggings<'a>,
    /// The state's version; `0` for a content that nobody tagged. The `ETag` is the same number in
    /// quotes.
    #[schema(value_type = String, pattern = "^[0-9]+$")]
    pub(crate) version: VersionText,
    pub(crate) meta: Meta,
}

/// What a write did.
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
    /// Names the write for `GET /v1/receipts/{token}`.
    pub(crate) receipt: String,
    /// The same write had been applied before; this is that answer again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub(crate) repeated: bool,
    /// Promises about later reads that could not be kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(crate) degraded: Vec<DegradedBody>,
}

/// One item's result: the fields of a single call, or a problem.
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
    /// `true`.
    ok: bool,
    #[serde(flatten)]
    value: T,
}

/// An item that failed; the others did not notice.
#[derive(Serialize, ToSchema)]
#[schema(as = FailedItem)]
pub(crate) struct FailedItem<'a> {
    /// `false`.
    ok: bool,
    /// The content as it was given.
    content: RawContent<'a>,
    problem: ProblemBody<'a>,
}

/// A content as a client wrote it, valid or not.
#[derive(Serialize, ToSchema)]
pub(crate) struct RawContent<'a> {
    #[serde(rename = "type")]
    content_type: &'a str,
    id: &'a str,
}

impl<'a, T> BatchItem<'a, T> {
    pub(crate) fn done(value: T) -> Self {
        Self::Done(DoneItem { ok: true, value })
    }

    pub(crate) fn failed(content_type: &'a str, id: &'a str, problem: ProblemBody<'a>) -> Self {
        Self::Failed(Box::new(FailedItem {
            ok: false,
            content: RawContent { content_type, id },
            problem,
        }))
    }
}

/// The results of a batch, in the order asked.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchBody<'a, T> {
    pub(crate) results: Vec<BatchItem<'a, T>>,
}

/// A JSON object: derived readers of structs take arrays too, which no schema of ours allows.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Map<T> {
            type Value = T;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Map(std::marker::PhantomData)).map(Object)
    }
}

/// A batch of views to get.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchGet {
    /// The contents; the same one may come twice.
    #[schema(value_type = Vec<ContentItem>, min_items = 0, max_items = 500)]
    pub(crate) items: Vec<Object<ContentItem>>,
}

/// A content of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContentItem {
    #[serde(rename = "type")]
    pub(crate) content_type: String,
    pub(crate) id: String,
}

/// A batch of writes, each atomic by itself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchTag {
    /// The writes; the same content may come twice, then they are applied in order.
    #[schema(value_type = Vec<TagItem>, min_items = 0, max_items = 500)]
    pub(crate) items: Vec<Object<TagItem>>,
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

/// A tag as a client writes it: its spelling, or (an import, scope `admin`) also who added it and
/// when.
#[derive(Deserialize, ToSchema)]
#[serde(untagged, expecting = "a tag must be a string or an object with tag, by and at")]
pub(crate) enum TagInput {
    Plain(String),
    #[schema(value_type = ImportedTag)]
    Imported(Object<ImportedTag>),
}

/// A tag with its origin.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportedTag {
    /// The spelling.
    pub(crate) tag: String,
    /// Who added it.
    pub(crate) by: Option<String>,
    /// When, RFC 3339.
    pub(crate) at: Option<String>,
}

/// Tags to add and remove.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchTags {
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub(crate) add: Vec<String>,
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub(crate) remove: Vec<String>,
}

/// The whole new set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplaceTags {
    #[schema(max_items = 1000)]
    pub(crate) tags: Vec<String>,
}

/// A search's answer.
#[derive(Serialize, ToSchema)]
#[schema(as = SearchResult)]
pub(crate) struct SearchBody<'a> {
    pub(crate) hits: Vec<HitBody<'a>>,
    pub(crate) total: TotalBody,
    /// Tags of all matching contents; only with `facets=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) facets: Option<Vec<FacetBody<'a>>>,
    /// Where the next page starts; `null` on the last one.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
    pub(crate) meta: Meta,
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
    /// When the indexed state was committed.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) updated_at: Stamp,
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

/// A tag with its display and how many contents carry it.
#[derive(Serialize, ToSchema)]
#[schema(as = TagUse)]
pub(crate) struct FacetBody<'a> {
    pub(crate) tag: &'a str,
    pub(crate) display: &'a str,
    pub(crate) count: u64,
}

impl<'a> From<&'a TagCount> for FacetBody<'a> {
    fn from(t: &'a TagCount) -> Self {
        Self { tag: t.tag.as_str(), display: &t.display, count: t.count }
    }
}

/// A ranking of tags.
#[derive(Serialize, ToSchema)]
#[schema(as = Popular)]
pub(crate) struct PopularBody<'a> {
    #[schema(value_type = String, pattern = "^(1h|24h|7d|all)$")]
    pub(crate) window: &'static str,
    pub(crate) tags: Vec<FacetBody<'a>>,
    pub(crate) meta: Meta,
}

/// Suggestions for a prefix.
#[derive(Serialize, ToSchema)]
#[schema(as = Suggestions)]
pub(crate) struct SuggestBody<'a> {
    pub(crate) tags: Vec<FacetBody<'a>>,
    pub(crate) meta: Meta,
}

/// One tag.
#[derive(Serialize, ToSchema)]
#[schema(as = TagInfo)]
pub(crate) struct TagBody<'a> {
    pub(crate) tag: &'a str,
    pub(crate) display: &'a str,
    /// Contents that carry it.
    pub(crate) count: u64,
    /// Tags that occur together with it, most often first.
    pub(crate) related: Vec<RelatedBody<'a>>,
    pub(crate) meta: Meta,
}

/// A related tag and in how many contents both occur.
#[derive(Serialize, ToSchema)]
#[schema(as = RelatedTag)]
pub(crate) struct RelatedBody<'a> {
    pub(crate) tag: &'a str,
    pub(crate) count: u64,
}

/// What became of a write.
#[derive(Serialize, ToSchema)]
#[schema(as = Verdict)]
pub(crate) struct VerdictBody {
    /// `kept`, `repaired`, `lost` or `unknown`.
    #[schema(value_type = String, pattern = "^(kept|repaired|lost|unknown)$")]
    pub(crate) verdict: &'static str,
    /// Why it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// The write's id.
    pub(crate) write_id: String,
    /// The logical shard of its content.
    #[schema(maximum = 63)]
    pub(crate) shard: u8,
    /// The epoch it was acknowledged in.
    pub(crate) epoch: String,
}

/// A content with its tags, as the export's lines have it.
#[derive(Serialize, ToSchema)]
#[schema(as = ExportLine)]
pub(crate) struct ExportLine<'a> {
    #[serde(rename = "type")]
    pub(crate) content_type: &'a str,
    pub(crate) id: &'a str,
    pub(crate) tags: Vec<ExportTag<'a>>,
}

/// A tag of an exported content.
#[derive(Serialize, ToSchema)]
pub(crate) struct ExportTag<'a> {
    /// The spelling.
    pub(crate) tag: &'a str,
    pub(crate) by: &'a str,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Stamp,
}

impl<'a> ExportLine<'a> {
    pub(crate) fn new(key: &'a ContentKey, tags: impl Iterator<Item = &'a Tagging>) -> Self {
        Self {
            content_type: key.content.content_type.as_str(),
            id: key.content.content_id.as_str(),
            tags: tags
                .map(|t| ExportTag { tag: &t.display, by: t.user.as_str(), at: Stamp(t.at) })
                .collect(),
        }
    }
}

/// An answer that is made of what is kept for it, not read where the truth is.
pub(crate) trait Derived: Serialize {
    /// How it came about.
    fn meta(&self) -> &Meta;
}

macro_rules! derived {
    ($($name:ident)*) => {$(
        impl Derived for $name<'_> {
            fn meta(&self) -> &Meta {
                &self.meta
            }
        }
    )*};
}
derived!(SearchBody PopularBody SuggestBody TagBody);

/// 200 with a JSON body.
pub(crate) fn json<T: Serialize>(body: &T) -> Response {
    // A view with some tags fits.
    let mut bytes = Vec::with_capacity(1024);
    // Writing to memory fails only for a map with keys that are not text, which no body here has.
    if let Err(error) = serde_json::to_writer(&mut bytes, body) {
        tracing::error!(%error, "an answer cannot be written as JSON");
    }
    let mut response = Response::new(Body::from(bytes));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
