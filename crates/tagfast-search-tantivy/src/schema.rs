//! The fields of the index and the stored encoding of a hit.

use tagfast_domain::{Content, ContentKey, TagName, TenantId, Version};
use tagfast_search::{Hit, IndexedState};
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::{IndexSettings, TantivyDocument, Term};

/// Version of the fields and the stored encoding; an index of a different version is rebuilt.
pub(crate) const FORMAT_VERSION: u32 = 1;

pub(crate) const KEY: &str = "key";
pub(crate) const TAG: &str = "tag";
pub(crate) const UPDATED_AT: &str = "updated_at";
pub(crate) const VERSION: &str = "ver";

/// The fields.
#[derive(Clone, Copy)]
pub(crate) struct Fields {
    /// `tenant 0 type 0 id`: identity and tie-breaker.
    pub(crate) key: Field,
    /// `tenant 0 tag`, one per tag; absent on a tombstone, so that no query finds it.
    pub(crate) tag: Field,
    /// `tenant`, only on contents with tags.
    pub(crate) tenant: Field,
    /// `tenant 0 type`, only on contents with tags.
    pub(crate) content_type: Field,
    updated_at: Field,
    version: Field,
    /// Commit time of a tombstone (Unix ms), by which the sweep finds expired ones.
    pub(crate) gone_at: Field,
    /// Encoded hit.
    pub(crate) stored: Field,
}

pub(crate) fn schema() -> (Schema, Fields) {
    let mut builder = Schema::builder();
    // Tags have neither positions nor frequencies.
    let exact = TextOptions::default().set_indexing_options(
        TextFieldIndexing::default()
            .set_tokenizer("raw")
            .set_fieldnorms(false)
            .set_index_option(IndexRecordOption::Basic),
    );
    let fields = Fields {
        key: builder.add_text_field(KEY, STRING | FAST),
        tag: builder.add_text_field(TAG, exact.clone() | FAST),
        tenant: builder.add_text_field("tenant", exact.clone()),
        content_type: builder.add_text_field("type", exact),
        updated_at: builder.add_i64_field(UPDATED_AT, FAST),
        version: builder.add_u64_field(VERSION, FAST),
        gone_at: builder.add_i64_field("gone_at", INDEXED),
        stored: builder.add_bytes_field("stored", STORED),
    };
    (builder.build(), fields)
}

/// Small blocks: the hits of a page lie in many blocks, and tantivy decompresses a whole block for
/// each hit that is not cached.
pub(crate) fn settings() -> IndexSettings {
    IndexSettings { docstore_blocksize: 4096, ..IndexSettings::default() }
}

/// Builds the term `tenant 0 word`.
pub(crate) fn scoped(tenant: &TenantId, word: &str) -> String {
    [tenant.as_str(), "\0", word].concat()
}

/// Builds the text of a key term; keys consist of strings, so they are UTF-8.
pub(crate) fn key_text(key: &ContentKey) -> String {
    String::from_utf8_lossy(&key.to_bytes()).into_owned()
}

impl Fields {
    pub(crate) fn key_term(&self, key: &str) -> Term {
        Term::from_field_text(self.key, key)
    }
}

/// Builds the document that tantivy indexes.
pub(crate) fn document(state: &IndexedState<'_>, fields: &Fields) -> TantivyDocument {
    let mut doc = TantivyDocument::default();
    doc.add_text(fields.key, key_text(state.key));
    doc.add_u64(fields.version, state.version.packed());
    doc.add_i64(fields.updated_at, state.updated_at);
    if state.tags.is_empty() {
        doc.add_i64(fields.gone_at, state.updated_at);
        return doc;
    }
    let tenant = &state.key.tenant;
    doc.add_text(fields.tenant, tenant.as_str());
    doc.add_text(fields.content_type, scoped(tenant, state.key.content.content_type.as_str()));
    for tag in &state.tags {
        doc.add_text(fields.tag, scoped(tenant, tag));
    }
    doc.add_bytes(fields.stored, &encode_hit(state));
    doc
}

/// Version, commit time, then key and tags separated by bytes 0: no tag contains one, the key
/// contains exactly two.
fn encode_hit(state: &IndexedState<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&state.version.packed().to_le_bytes());
    bytes.extend_from_slice(&state.updated_at.to_le_bytes());
    bytes.extend_from_slice(&state.key.to_bytes());
    for tag in &state.tags {
        bytes.push(0);
        bytes.extend_from_slice(tag.as_bytes());
    }
    bytes
}

/// Decodes a stored hit; `None` if the bytes are malformed.
pub(crate) fn decode_hit(bytes: &[u8]) -> Option<Hit> {
    let (version, rest) = bytes.split_first_chunk::<8>()?;
    let (updated_at, rest) = rest.split_first_chunk::<8>()?;
    let mut parts = std::str::from_utf8(rest).ok()?.split('\0').skip(1);
    let content = Content {
        content_type: parts.next()?.parse().ok()?,
        content_id: parts.next()?.parse().ok()?,
    };
    Some(Hit {
        content,
        tags: parts.map(TagName::from_canonical).collect(),
        updated_at: i64::from_le_bytes(*updated_at),
        version: Version::from_packed(u64::from_le_bytes(*version)).ok()?,
    })
}
