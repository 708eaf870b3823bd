//! Path parameters that several calls share: how they are read, and how OpenAPI describes them.

use std::borrow::Cow;

use tagfast_domain::{ContentKey, Tag, TagName, Write};
use utoipa::IntoParams;

use crate::problem::{Code, Problem};
use crate::request::ApiRequest;

/// The content of a `/v1/content/{type}/{id}/...` path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ContentPath<'a> {
    /// The content's type.
    #[param(
        rename = "type",
        value_type = String,
        pattern = "^[a-z0-9._-]{1,64}$",
        min_length = 1,
        max_length = 64,
        example = "jira.issue"
    )]
    content_type: Cow<'a, str>,
    /// The content's id, percent-encoded as one path segment (`/` is `%2F`): 1 to 256 bytes
    /// without control characters.
    #[param(value_type = String, min_length = 1, max_length = 256, example = "PROJ-1")]
    id: Cow<'a, str>,
}

impl ContentPath<'_> {
    /// The content that the path names, of the caller's tenant.
    pub(super) fn key(request: &ApiRequest) -> Result<ContentKey, Problem> {
        let path =
            ContentPath { content_type: request.path_segment(3)?, id: request.path_segment(4)? };
        request.content_key(&path.content_type, &path.id)
    }
}

/// The tag of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TagPath<'a> {
    /// Any spelling of the tag, percent-encoded as one path segment: 1 to 64 characters, at most
    /// 256 bytes, without control characters and `< > " \ ,`.
    #[param(
        value_type = String,
        min_length = 1,
        max_length = 2048,
        example = "implemented-in::c++"
    )]
    tag: Cow<'a, str>,
}

impl TagPath<'_> {
    /// The tag with its spelling, from this segment of the path.
    pub(super) fn tag(request: &ApiRequest, segment: usize) -> Result<Tag, Problem> {
        let path = TagPath { tag: request.path_segment(segment)? };
        Ok(Tag::parse(&path.tag)?)
    }

    /// The name to look the tag up under, from this segment of the path; it may be a former one.
    pub(super) fn name(request: &ApiRequest, segment: usize) -> Result<TagName, Problem> {
        let path = TagPath { tag: request.path_segment(segment)? };
        Ok(TagName::lookup(&path.tag)?)
    }
}

/// Refuses what older data may have and new data must not. Called before the key of the request is
/// bound, so that a mistake does not use it up.
pub(super) fn check_new_data(write: &Write) -> Result<(), Problem> {
    check_reachable(write)?;
    Ok(write.check_new_data()?)
}

/// Refuses to give a tag to a content that no URL can name, or a tag that none can name: URL
/// libraries remove the segments `.` and `..`, also encoded. Older data with such names can still
/// be read and removed.
fn check_reachable(write: &Write) -> Result<(), Problem> {
    let added = write.operation.added();
    if added.is_empty() {
        return Ok(());
    }
    let content = &write.key.content;
    let tags = added.iter().flat_map(|tag| [tag.name.as_str(), tag.display.trim()]);
    let names = [
        ("content type", content.content_type.as_str()),
        ("content id", content.content_id.as_str()),
    ];
    let unreachable = |(_, name): &(&str, &str)| matches!(*name, "." | "..");
    match names.into_iter().chain(tags.map(|name| ("tag", name))).find(unreachable) {
        Some((what, name)) => {
            let detail = format!("the {what} {name:?} cannot be a segment of a URL");
            Err(Problem::new(Code::DotSegment, detail))
        }
        None => Ok(()),
    }
}
