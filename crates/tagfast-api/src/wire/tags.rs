//! Bodies about tags: rankings, pages of tags, one tag.

use serde::{Deserialize, Serialize};
use tagfast_popular::{TagCount, Window};
use utoipa::ToSchema;

use super::meta::{Derived, Meta};

/// A tag with its display name and the number of contents that carry it.
#[derive(Serialize, ToSchema)]
#[schema(as = TagUse)]
pub(crate) struct TagUseBody<'a> {
    pub(crate) tag: &'a str,
    pub(crate) display: &'a str,
    pub(crate) count: u64,
}

impl<'a> From<&'a TagCount> for TagUseBody<'a> {
    fn from(t: &'a TagCount) -> Self {
        Self { tag: t.tag.as_str(), display: &t.display, count: t.count }
    }
}

/// A window of time.
#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
pub(crate) enum WindowName {
    #[serde(rename = "1h")]
    Hour,
    #[serde(rename = "24h")]
    Day,
    #[serde(rename = "7d")]
    Week,
    #[serde(rename = "all")]
    All,
}

impl From<WindowName> for Window {
    fn from(window: WindowName) -> Self {
        match window {
            WindowName::Hour => Self::Hour,
            WindowName::Day => Self::Day,
            WindowName::Week => Self::Week,
            WindowName::All => Self::All,
        }
    }
}

/// A ranking of tags.
#[derive(Serialize, ToSchema)]
#[schema(as = Popular)]
pub(crate) struct PopularBody<'a> {
    pub(crate) window: WindowName,
    pub(crate) tags: Vec<TagUseBody<'a>>,
    pub(crate) meta: Meta,
}

/// A page of all tags, or the completions of a text.
#[derive(Serialize, ToSchema)]
#[schema(as = TagPage)]
pub(crate) struct TagPageBody<'a> {
    pub(crate) tags: Vec<TagUseBody<'a>>,
    /// Where the next page of all tags starts; `null` on the last one and for completions.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
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
    /// Tags that occur together with it, most frequent first.
    pub(crate) related: Vec<RelatedBody<'a>>,
    pub(crate) meta: Meta,
}

/// A related tag and the number of contents that carry both.
#[derive(Serialize, ToSchema)]
#[schema(as = RelatedTag)]
pub(crate) struct RelatedBody<'a> {
    pub(crate) tag: &'a str,
    pub(crate) count: u64,
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
derived!(PopularBody TagPageBody TagBody);
