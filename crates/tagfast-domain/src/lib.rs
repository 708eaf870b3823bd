//! Tags, content, limits, versions, documents and events as pure types.
//!
//! Everything here is a pure function of its arguments: no tokio, no I/O, no clock, no randomness.
//! Every store shares [`document::Document`] and the two modules that change it,
//! [`apply`](mod@apply) and, after a failover, [`join`](mod@join), so two stores can never disagree
//! about the meaning of a write.
//!
//! How it fails: with a [`DomainError`] that names the limit, its value and the given value. A
//! value of a domain type has passed its rules; code downstream must not check them again.

pub mod apply;
pub mod codec;
pub mod content;
pub mod document;
pub mod error;
pub mod event;
mod former;
pub mod if_match;
mod invisible;
pub mod join;
pub mod limits;
mod new_data;
pub mod tag;
pub mod time;
pub mod version;
pub mod write;

pub use apply::{ApplyContext, Outcome, Refusal, apply, remember};
pub use content::{Content, ContentId, ContentKey, ContentType, TenantId, UserId};
pub use document::{Document, Effect, RecentWrite, RecordedOutcome, Tagging};
pub use error::DomainError;
pub use event::{Change, TaggingsEvent};
pub use if_match::IfMatch;
pub use join::{JoinContext, JoinFate, Joined, join};
pub use limits::Limits;
pub use tag::{Origin, Tag, TagName, UNICODE_VERSION};
pub use version::{Epoch, EpochId, EpochOrdinal, UnixMillis, Version};
pub use write::{Call, IdempotencyKey, Operation, Write, WriteId};
