//! The fields of the index and the stored form of a hit.

use tagfast_domain::{Content, ContentKey, TagName, TenantId, Version};
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::{IndexSettings, TantivyDocument, Term};

use crate::Hit;
use crate::entry::Entry;

/// Goes up when fields or the stored form change: an index of another format is rebuilt.
pub(super) const FORMAT: u32 = 1;

pub(super) const KEY: &str = "key";
pub(super) const TAG: &str = "tag";
pub(super) const UPDATED_AT: &str = "updated_at";
pub(super) const VERSION: &str = "ver";

/// The fields.
#[derive(Clone, Copy)]
pub(super) struct Fields {
    /// `tenant 0 type 0 id`: identity and tie-breaker.
    pub(super) key: Field,
    /// `tenant 0 tag`, one per tag; none on a tombstone, so that no query finds one.
    pub(super) tag: Field,
    /// `tenant`, on contents with tags.
    pub(super) tenant: Field,
    /// `tenant 0 type`, on contents with tags.
    pub(super) content_type: Field,
    pub(super) updated_at: Field,
    pub(super) version: Field,
    /// Commit time of a tombstone, so that a sweep finds old ones.
    pub(super) gone_at: Field,
    /// What a hit shows.
    pub(super) stored: Field,
}

pub(super) fn schema() -> (Schema, Fields) {
    let mut builder = Schema::builder();
    // Positions and frequencies say nothing about tags.
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

/// Small blocks: a page's hits lie anywhere, and a whole block is unpacked for each that is not
/// cached.
pub(super) fn settings() -> IndexSettings {
    IndexSettings { docstore_blocksize: 4096, ..IndexSettings::default() }
}

/// `tenant 0 word`.
pub(super) fn scoped(tenant: &TenantId, word: &str) -> String {
    [tenant.as_str(), "\0", word].concat()
}

/// The text of a key term. Keys are made of strings, so they are UTF-8.
pub(super) fn key_text(key: &ContentKey) -> String {
    String::from_utf8_lossy(&key.to_bytes()).into_owned()
}

impl Fields {
    pub(super) fn key_term(&self, key: &str) -> Term {
        Term::from_field_text(self.key, key)
    }
}

impl Entry<'_> {
    /// As tantivy indexes it.
    pub(super) fn document(&self, fields: &Fields) -> TantivyDocument {
        let mut doc = TantivyDocument::default();
        doc.add_text(fields.key, key_text(self.key));
        doc.add_u64(fields.version, self.version.packed());
        doc.add_i64(fields.updated_at, self.updated_at);
        if self.tags.is_empty() {
            doc.add_i64(fields.gone_at, self.updated_at);
            return doc;
        }
        let tenant = &self.key.tenant;
        doc.add_text(fields.tenant, tenant.as_str());
        doc.add_text(fields.content_type, scoped(tenant, self.key.content.content_type.as_str()));
        for tag in &self.tags {
            doc.add_text(fields.tag, scoped(tenant, tag));
        }
        doc.add_bytes(fields.stored, &self.stored());
        doc
    }

    /// version, time, then key and tags separated by bytes 0: none of them contains one (the key:
    /// exactly two).
    fn stored(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&self.version.packed().to_le_bytes());
        bytes.extend_from_slice(&self.updated_at.to_le_bytes());
        bytes.extend_from_slice(&self.key.to_bytes());
        for tag in &self.tags {
            bytes.push(0);
            bytes.extend_from_slice(tag.as_bytes());
        }
        bytes
    }
}

/// The hit in a stored form.
pub(super) fn hit(bytes: &[u8]) -> Option<Hit> {
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
