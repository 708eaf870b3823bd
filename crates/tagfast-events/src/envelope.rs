//! The event as it travels: CloudEvents 1.0, structured mode, JSON.
//!
//! The type carries the major version. Unknown fields are ignored, so that a newer producer may add some; an unknown
//! major version is refused, so that nobody guesses at its meaning. A golden file and `docs/event.schema.json` pin it.

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use tagfast_domain::time::{parse_rfc3339, rfc3339};
use tagfast_domain::{
    Change, ContentKey, DomainError, EpochOrdinal, TagName, Tagging, TaggingsEvent, UserId, Version, WriteId,
};
use tagfast_sharding::ContentHash;

/// The CloudEvents type of [`TaggingsEvent`].
pub const EVENT_TYPE: &str = "tagfast.taggings.v1";

/// Why an envelope cannot be read. Such a record can never succeed: it is poison.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not the JSON of an event, or a value in it breaks a rule.
    #[error("the event cannot be decoded: {0}")]
    Undecodable(String),
    /// A major version this program does not know.
    #[error("the event has the unknown type {0:?}")]
    UnknownType(String),
}

impl EnvelopeError {
    /// The stable error code in dead letters.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "event_undecodable",
            Self::UnknownType(_) => "event_type_unknown",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    subject: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    datacontenttype: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Serialize, Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    content_type: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    version: Cow<'a, str>,
    emit: u64,
    #[serde(borrow)]
    tags: Vec<TagData<'a>>,
    #[serde(borrow)]
    changes: Vec<ChangeData<'a>>,
}

#[derive(Serialize, Deserialize)]
struct TagData<'a> {
    #[serde(borrow)]
    tag: Cow<'a, str>,
    #[serde(borrow)]
    display: Cow<'a, str>,
    #[serde(borrow)]
    added_by: Cow<'a, str>,
    /// Unix milliseconds: what consumers compute with.
    added_at: i64,
    /// The version that decided the tagging.
    #[serde(borrow)]
    ord: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct ChangeData<'a> {
    #[serde(borrow)]
    write_id: Cow<'a, str>,
    #[serde(borrow)]
    user: Cow<'a, str>,
    #[serde(borrow)]
    version: Cow<'a, str>,
    #[serde(borrow)]
    added: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    removed: Vec<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
}

/// The bytes of an event.
pub fn encode(event: &TaggingsEvent) -> Vec<u8> {
    let mut id = String::with_capacity(40);
    // Writing to a String cannot fail.
    let _ = write!(id, "{:016x}-{}", ContentHash::of(&event.key).0, event.version);
    let names = |names: &'_ [TagName]| names.iter().map(|n| Cow::Owned(n.as_str().to_owned())).collect();
    let envelope = Envelope {
        specversion: "1.0".into(),
        id: id.into(),
        source: "/tagfast".into(),
        event_type: EVENT_TYPE.into(),
        subject: event.key.to_string().into(),
        time: rfc3339(event.at).into(),
        datacontenttype: "application/json".into(),
        traceparent: event.changes.last().and_then(|c| c.traceparent.as_deref()).map(Cow::Borrowed),
        data: Data {
            tenant: event.key.tenant.as_str().into(),
            content_type: event.key.content.content_type.as_str().into(),
            id: event.key.content.content_id.as_str().into(),
            version: event.version.to_string().into(),
            emit: event.emit.0,
            tags: event
                .tags
                .iter()
                .map(|t| TagData {
                    tag: t.name.as_str().into(),
                    display: (*t.display).into(),
                    added_by: t.user.as_str().into(),
                    added_at: t.at,
                    ord: t.ord.to_string().into(),
                })
                .collect(),
            changes: event
                .changes
                .iter()
                .map(|c| ChangeData {
                    write_id: c.write_id.to_string().into(),
                    user: c.user.as_str().into(),
                    version: c.version.to_string().into(),
                    added: names(&c.added),
                    removed: names(&c.removed),
                    traceparent: c.traceparent.as_deref().map(Cow::Borrowed),
                })
                .collect(),
        },
    };
    serde_json::to_vec(&envelope).unwrap_or_else(|e| unreachable!("strings and numbers always serialise: {e}"))
}

/// The event in `bytes`; unknown fields are ignored.
pub fn decode(bytes: &[u8]) -> Result<TaggingsEvent, EnvelopeError> {
    let bad = |e: &dyn std::fmt::Display| EnvelopeError::Undecodable(e.to_string());
    let envelope: Envelope<'_> = match serde_json::from_slice(bytes) {
        Ok(envelope) => envelope,
        // A record of another major version need not look like ours at all: its type decides what is wrong with it.
        Err(e) => return Err(unknown_type(bytes).unwrap_or_else(|| bad(&e))),
    };
    if envelope.event_type != EVENT_TYPE {
        return Err(EnvelopeError::UnknownType(envelope.event_type.into_owned()));
    }
    event(&envelope).map_err(|e| bad(&e))
}

fn unknown_type(bytes: &[u8]) -> Option<EnvelopeError> {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(rename = "type")]
        event_type: String,
    }
    let typed: Typed = serde_json::from_slice(bytes).ok()?;
    (typed.event_type != EVENT_TYPE).then_some(EnvelopeError::UnknownType(typed.event_type))
}

fn event(envelope: &Envelope<'_>) -> Result<TaggingsEvent, DomainError> {
    let data = &envelope.data;
    let tags = data.tags.iter().map(|t| {
        let name = TagName::from_canonical(&t.tag);
        let display = if t.display == t.tag { name.shared() } else { (*t.display).into() };
        let ord = t.ord.parse()?;
        Ok(Tagging { name, display, user: UserId::parse(&t.added_by)?, at: t.added_at, ord, present: true })
    });
    let names = |names: &[Cow<'_, str>]| names.iter().map(|n| TagName::from_canonical(n)).collect();
    let changes = data.changes.iter().map(|c| {
        Ok(Change {
            write_id: write_id(&c.write_id)?,
            user: UserId::parse(&c.user)?,
            version: c.version.parse()?,
            added: names(&c.added),
            removed: names(&c.removed),
            traceparent: c.traceparent.as_deref().map(str::to_owned),
        })
    });
    Ok(TaggingsEvent {
        key: key(data)?,
        version: data.version.parse::<Version>()?,
        at: parse_rfc3339(&envelope.time).ok_or(DomainError::Undecodable { what: "event", reason: "time" })?,
        emit: EpochOrdinal(data.emit),
        tags: tags.collect::<Result<_, DomainError>>()?,
        changes: changes.collect::<Result<_, DomainError>>()?,
    })
}

/// Reserved tenants pass: events are the service's own.
fn key(data: &Data<'_>) -> Result<ContentKey, DomainError> {
    let mut bytes = Vec::with_capacity(data.tenant.len() + data.content_type.len() + data.id.len() + 2);
    for (n, part) in [&data.tenant, &data.content_type, &data.id].into_iter().enumerate() {
        if n > 0 {
            bytes.push(0);
        }
        bytes.extend_from_slice(part.as_bytes());
    }
    ContentKey::from_bytes(&bytes)
}

fn write_id(hex: &str) -> Result<WriteId, DomainError> {
    let bad = DomainError::Undecodable { what: "event", reason: "write id" };
    if hex.len() != 32 || !hex.is_ascii() {
        return Err(bad);
    }
    u128::from_str_radix(hex, 16).map(|n| WriteId(n.to_be_bytes())).map_err(|_| bad)
}
