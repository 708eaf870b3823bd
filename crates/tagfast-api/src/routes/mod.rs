//! Handlers, one file per resource. Each makes one call into a port and one answer.

pub(crate) mod batch;
pub(crate) mod breakers;
pub(crate) mod content;
pub(crate) mod export;
pub(crate) mod find;
pub(crate) mod letters;
pub(crate) mod open;
pub(crate) mod operations;
pub(crate) mod tags;

use utoipa::IntoParams;

/// The content of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "describes the path to the OpenAPI document; the values are read from the raw path"
)]
pub(crate) struct ContentPath {
    /// The content's kind.
    #[param(
        rename = "type",
        pattern = "^[a-z0-9._-]{1,64}$",
        min_length = 1,
        max_length = 64,
        example = "jira.issue"
    )]
    content_type: String,
    /// The content's id, percent-encoded as one path segment (`/` is `%2F`): 1 to 256 bytes
    /// without control characters.
    #[param(min_length = 1, max_length = 256, example = "PROJ-1")]
    id: String,
}

/// The tag of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "describes the path to the OpenAPI document; the values are read from the raw path"
)]
pub(crate) struct TagPath {
    /// Any spelling of the tag, percent-encoded as one path segment: 1 to 64 characters, at most
    /// 256 bytes, without control characters and `< > " \ ,`.
    #[param(min_length = 1, max_length = 2048, example = "implemented-in::c++")]
    tag: String,
}
