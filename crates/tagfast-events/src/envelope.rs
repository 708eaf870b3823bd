//! The event envelope: CloudEvents 1.0 in JSON. The embedded store's files hold structured mode; on
//! Kafka events are in binary mode (attributes in headers `ce_*`, the data as the value).
//!
//! The type carries the major version. Decoding ignores unknown fields, so that a newer producer
//! may add some, and refuses an unknown major version. A golden file and
//! `docs/reference/event.schema.json` pin the format.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tagfast_domain::time::{parse_rfc3339, rfc3339};
use tagfast_domain::{
    Change, ContentKey, DomainError, EpochOrdinal, TagName, Tagging, TaggingsEvent, UnixMillis,
    UserId, Version, WriteId,
};
use tagfast_sharding::ContentHash;

use crate::bus::{BusRecord, ClusterName, RecordKind};

/// The CloudEvents type of [`TaggingsEvent`].
pub const EVENT_TYPE: &str = "tagfast.taggings.v1";

/// The CloudEvents type of a marker: an epoch began to publish.
pub const MARKER_TYPE: &str = "tagfast.epoch.v1";
/// The CloudEvents type of a heartbeat: how far a partition is complete.
pub const HEARTBEAT_TYPE: &str = "tagfast.heartbeat.v1";
/// The CloudEvents source; in a cluster followed by `/` and the cluster's name.
const SOURCE: &str = "/tagfast";

/// Why an envelope cannot be decoded. Such a record can never succeed: it is poison.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not the JSON of an event, or a value in it breaks a rule.
    #[error("the event cannot be decoded: {0}")]
    Undecodable(String),
    /// A type or major version that this program does not know.
    #[error("the event has the unknown type {0:?}")]
    UnknownType(String),
    /// The record's key names a different content than its body.
    #[error("the key is not that of the body")]
    KeyMismatch,
}

impl EnvelopeError {
    /// The stable error code in dead letters.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "event_undecodable",
            Self::UnknownType(_) => "event_type_unknown",
            Self::KeyMismatch => "event_key_mismatch",
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
    #[serde(rename = "emit")]
    publisher_epoch: u64,
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
    /// Unix ms: what consumers compute with.
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

fn id(event: &TaggingsEvent) -> String {
    format!("{:016x}-{}", ContentHash::of(&event.key).0, event.version)
}

fn traceparent(event: &TaggingsEvent) -> Option<&str> {
    event.changes.last().and_then(|c| c.traceparent.as_deref())
}

fn data(event: &TaggingsEvent) -> Data<'_> {
    let names =
        |names: &'_ [TagName]| names.iter().map(|n| Cow::Owned(n.as_str().to_owned())).collect();
    Data {
        tenant: event.key.tenant.as_str().into(),
        content_type: event.key.content.content_type.as_str().into(),
        id: event.key.content.content_id.as_str().into(),
        version: event.version.to_string().into(),
        publisher_epoch: event.publisher_epoch.0,
        tags: event
            .tags
            .iter()
            .map(|t| TagData {
                tag: t.name.as_str().into(),
                display: (*t.display).into(),
                added_by: t.user.as_str().into(),
                added_at: t.at,
                ord: t.decided_at.to_string().into(),
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
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value)
        .unwrap_or_else(|e| unreachable!("strings and numbers always serialise: {e}"))
}

/// Encodes an event in structured mode.
pub fn encode(event: &TaggingsEvent) -> Vec<u8> {
    json(&Envelope {
        specversion: "1.0".into(),
        id: id(event).into(),
        source: SOURCE.into(),
        event_type: EVENT_TYPE.into(),
        subject: event.key.to_string().into(),
        time: rfc3339(event.at).into(),
        datacontenttype: "application/json".into(),
        traceparent: traceparent(event).map(Cow::Borrowed),
        data: data(event),
    })
}

/// A record in binary mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The attributes as headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The data.
    pub payload: Vec<u8>,
}

/// Attributes beyond CloudEvents: a reader can drop an old record without decoding its data.
const VERSION_HEADER: &str = "ce_tagfastversion";
const PUBLISHER_EPOCH_HEADER: &str = "ce_tagfastemit";
/// How far a heartbeat's partition is complete, Unix ms.
const COMPLETE_HEADER: &str = "ce_tagfastcomplete";

fn attributes(
    event_type: &str,
    cluster: &str,
    id: &str,
    at: UnixMillis,
    publisher_epoch: u64,
) -> Vec<(String, Vec<u8>)> {
    [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_type", event_type.to_owned()),
        ("ce_source", format!("{SOURCE}/{cluster}")),
        ("ce_id", id.to_owned()),
        ("ce_time", rfc3339(at)),
        (PUBLISHER_EPOCH_HEADER, publisher_epoch.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.into_bytes()))
    .collect()
}

/// A log position at or after the event's commit: after a failover it shows whether the current
/// history may lack the event. It never decreases within an epoch.
const HI_HEADER: &str = "ce_tagfasthi";

/// The content's document as the publisher's primary had it, in base64: what no replica had yet is
/// published with it, so that a repair can join it after a failover. Consumers ignore it.
const DOCUMENT_HEADER: &str = "ce_tagfastdocument";

impl Message {
    /// Adds the encoded document of the event's content.
    #[must_use]
    pub fn with_document(mut self, document: &[u8]) -> Self {
        self.headers.push((DOCUMENT_HEADER.to_owned(), STANDARD.encode(document).into_bytes()));
        self
    }
}

/// The encoded document in the headers of an event; `None`: it came without one, or with one that
/// is no base64.
pub fn document(headers: &[(String, Vec<u8>)]) -> Option<Vec<u8>> {
    STANDARD.decode(header(headers, DOCUMENT_HEADER)?).ok()
}

/// Encodes an event of a cluster in binary mode. `hi` is a log position at or after its commit.
pub fn encode_binary(event: &TaggingsEvent, cluster: &str, hi: u64) -> Message {
    let mut headers =
        attributes(EVENT_TYPE, cluster, &id(event), event.at, event.publisher_epoch.0);
    let mut header =
        |name: &str, value: String| headers.push((name.to_owned(), value.into_bytes()));
    header("ce_subject", event.key.to_string());
    header(VERSION_HEADER, event.version.to_string());
    header(HI_HEADER, hi.to_string());
    header("content-type", "application/json".to_owned());
    if let Some(traceparent) = traceparent(event) {
        header("ce_traceparent", traceparent.to_owned());
    }
    Message { headers, payload: json(&data(event)) }
}

/// Encodes a marker: every record of the cluster behind it belongs to this epoch or a later one.
pub fn encode_marker(cluster: &str, publisher_epoch: EpochOrdinal, at: UnixMillis) -> Message {
    Message {
        headers: attributes(
            MARKER_TYPE,
            cluster,
            &format!("{cluster}-{}", publisher_epoch.0),
            at,
            publisher_epoch.0,
        ),
        payload: Vec::new(),
    }
}

/// Encodes a heartbeat: every event of the cluster in this partition committed before
/// `complete_through` lies before it, and `hi` is at or after the commit of each of them.
pub fn encode_heartbeat(
    cluster: &str,
    publisher_epoch: EpochOrdinal,
    complete_through: UnixMillis,
    hi: u64,
) -> Message {
    let id = format!("{cluster}-{}-{complete_through}", publisher_epoch.0);
    let mut headers = attributes(HEARTBEAT_TYPE, cluster, &id, complete_through, publisher_epoch.0);
    headers.push((COMPLETE_HEADER.to_owned(), complete_through.to_string().into_bytes()));
    headers.push((HI_HEADER.to_owned(), hi.to_string().into_bytes()));
    Message { headers, payload: Vec::new() }
}

/// The attributes in the headers of a record in binary mode. A record without them is an event
/// whose attributes are unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Kind of the record.
    pub kind: RecordKind,
    /// The cluster whose relay published it; empty if unknown.
    pub cluster: ClusterName,
    /// Ordinal of the epoch that published it; 0 if unknown.
    pub publisher_epoch: EpochOrdinal,
    /// Version of the state; [`Version::NONE`] if unknown.
    pub version: Version,
    /// Commit time, Unix ms; `None` if unknown.
    pub at: Option<UnixMillis>,
    /// A log position at or after the commit; `None` if unknown.
    pub hi: Option<u64>,
    /// Commit time (Unix ms) through which the partition is complete; `None` in other records.
    pub complete_through: Option<UnixMillis>,
}

impl Attributes {
    /// Decodes headers.
    pub fn of(headers: &[(String, Vec<u8>)]) -> Self {
        let text = |name| header(headers, name).unwrap_or_default();
        let kind = match text("ce_type") {
            MARKER_TYPE => RecordKind::Marker,
            HEARTBEAT_TYPE => RecordKind::Heartbeat,
            _ => RecordKind::Event,
        };
        let cluster = text("ce_source")
            .strip_prefix(SOURCE)
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or_default();
        Self {
            kind,
            cluster: cluster.into(),
            publisher_epoch: EpochOrdinal(text(PUBLISHER_EPOCH_HEADER).parse().unwrap_or(0)),
            version: text(VERSION_HEADER).parse().unwrap_or(Version::NONE),
            at: parse_rfc3339(text("ce_time")),
            hi: text(HI_HEADER).parse().ok(),
            complete_through: text(COMPLETE_HEADER).parse().ok(),
        }
    }
}

fn header<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n == name).and_then(|(_, value)| std::str::from_utf8(value).ok())
}

/// Decodes the event of a record, in either mode.
///
/// # Errors
///
/// The record is poison.
pub fn decode_record(record: &BusRecord) -> Result<TaggingsEvent, EnvelopeError> {
    let Some(event_type) = header(&record.headers, "ce_type") else {
        return decode(&record.payload);
    };
    if event_type != EVENT_TYPE {
        return Err(EnvelopeError::UnknownType(event_type.to_owned()));
    }
    let bad = |e: &dyn std::fmt::Display| EnvelopeError::Undecodable(e.to_string());
    let data: Data<'_> = tagfast_json::from_slice(&record.payload).map_err(|e| bad(&e))?;
    let time = header(&record.headers, "ce_time").unwrap_or_default();
    event(&data, time).map_err(|e| bad(&e))
}

/// Decodes the event of a record to be applied: its key must be that of its content.
pub(crate) fn decode_keyed(record: &BusRecord) -> Result<TaggingsEvent, EnvelopeError> {
    let event = decode_record(record)?;
    if is_key(&record.key, &event.key) { Ok(event) } else { Err(EnvelopeError::KeyMismatch) }
}

/// Whether a record's key is that of its event: the parts, separated by NUL bytes or slashes.
fn is_key(key: &[u8], of: &ContentKey) -> bool {
    let parts =
        [of.tenant.as_str(), of.content.content_type.as_str(), of.content.content_id.as_str()];
    let mut rest = key;
    for (n, part) in parts.into_iter().enumerate() {
        if n > 0 {
            let Some(behind) = rest.strip_prefix(b"\0").or_else(|| rest.strip_prefix(b"/")) else {
                return false;
            };
            rest = behind;
        }
        let Some(behind) = rest.strip_prefix(part.as_bytes()) else { return false };
        rest = behind;
    }
    rest.is_empty()
}

/// Decodes an event in structured mode; ignores unknown fields.
///
/// # Errors
///
/// The bytes are no event of this major version.
pub fn decode(bytes: &[u8]) -> Result<TaggingsEvent, EnvelopeError> {
    let bad = |e: &dyn std::fmt::Display| EnvelopeError::Undecodable(e.to_string());
    let envelope: Envelope<'_> = match tagfast_json::from_slice(bytes) {
        Ok(envelope) => envelope,
        // A record of a different major version need not have our fields: its type decides which
        // error it is.
        Err(e) => return Err(unknown_type(bytes).unwrap_or_else(|| bad(&e))),
    };
    if envelope.event_type != EVENT_TYPE {
        return Err(EnvelopeError::UnknownType(envelope.event_type.into_owned()));
    }
    event(&envelope.data, &envelope.time).map_err(|e| bad(&e))
}

fn unknown_type(bytes: &[u8]) -> Option<EnvelopeError> {
    #[derive(Deserialize)]
    struct TypeOnly {
        #[serde(rename = "type")]
        event_type: String,
    }
    let typed: TypeOnly = tagfast_json::from_slice(bytes).ok()?;
    (typed.event_type != EVENT_TYPE).then_some(EnvelopeError::UnknownType(typed.event_type))
}

fn event(data: &Data<'_>, time: &str) -> Result<TaggingsEvent, DomainError> {
    let tags = data.tags.iter().map(|t| {
        let name = TagName::from_canonical(&t.tag);
        let display = if t.display == t.tag { name.shared() } else { (*t.display).into() };
        let ord = t.ord.parse()?;
        Ok(Tagging {
            name,
            display,
            user: UserId::parse(&t.added_by)?,
            at: t.added_at,
            decided_at: ord,
            present: true,
        })
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
        at: parse_rfc3339(time)
            .ok_or(DomainError::Undecodable { what: "event", reason: "time" })?,
        publisher_epoch: EpochOrdinal(data.publisher_epoch),
        tags: tags.collect::<Result<_, DomainError>>()?,
        changes: changes.collect::<Result<_, DomainError>>()?,
    })
}

/// Reserved tenants are accepted: the service wrote the event.
fn key(data: &Data<'_>) -> Result<ContentKey, DomainError> {
    let mut bytes =
        Vec::with_capacity(data.tenant.len() + data.content_type.len() + data.id.len() + 2);
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
