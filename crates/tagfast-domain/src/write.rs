//! A write: one operation on one content, under a write id that makes retries idempotent.

use sha2::{Digest, Sha256};

use crate::{Content, ContentKey, DomainError, IfMatch, Limits, Tag, TagName, TenantId, UserId};

/// The idempotency id of a write: a retry after a lost response has no second effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(pub [u8; 16]);

impl WriteId {
    /// The id of write number `item` of a request with an `Idempotency-Key` on one content: the
    /// first 16 bytes of SHA-256(tenant, user, key, item), so it is the same for every retry and on
    /// every node. On different contents it names different writes.
    pub fn derived(tenant: &TenantId, user: &UserId, key: &str, item: u32) -> Self {
        let mut hash = Sha256::new();
        for part in [tenant.as_str(), user.as_str(), key] {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.update(item.to_be_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        Self(id)
    }
}

impl std::fmt::Display for WriteId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The call of a write with an idempotency key. The same key in a different call is a different
/// request, also where the effect is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// Adds one tag.
    AddTag,
    /// Removes one tag.
    RemoveTag,
    /// Adds and removes several tags.
    Patch,
    /// Replaces the set.
    Replace,
    /// One item of a batch.
    BatchItem,
}

impl Call {
    /// The byte of a call in a fingerprint. Never reused.
    fn code(self) -> u8 {
        match self {
            Self::AddTag => b'a',
            Self::RemoveTag => b'r',
            Self::Patch => b'p',
            Self::Replace => b's',
            Self::BatchItem => b'b',
        }
    }
}

/// The idempotency key of a request, and the request that it names: the call and the contents. What
/// the request does to each content is compared by [`Operation::fingerprint`].
///
/// Stores keep both hashes, so they must never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Names the key: a hash of tenant, user and key.
    pub id: [u8; 16],
    /// The call that it came with.
    pub call: Call,
    /// The first 64 bits of SHA-256 of the call and the sorted contents.
    pub request: u64,
}

impl IdempotencyKey {
    /// The key of a request on these contents (type and id), which may come in any order.
    pub fn of_request<'a>(
        tenant: &TenantId,
        user: &UserId,
        key: &str,
        call: Call,
        contents: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        // No write of a request has this number.
        let id = WriteId::derived(tenant, user, key, u32::MAX).0;
        Self { id, call, request: request_hash(call, contents) }
    }

    /// A key of its own for a write of one content.
    pub fn of_write(id: WriteId, call: Call, content: &Content) -> Self {
        let content = (content.content_type.as_str(), content.content_id.as_str());
        Self { id: id.0, call, request: request_hash(call, [content]) }
    }
}

fn request_hash<'a>(call: Call, contents: impl IntoIterator<Item = (&'a str, &'a str)>) -> u64 {
    let mut contents: Vec<(&str, &str)> = contents.into_iter().collect();
    contents.sort_unstable();
    let mut hash = Sha256::new();
    hash.update([call.code()]);
    for part in contents.into_iter().flat_map(|(content_type, id)| [content_type, id]) {
        hash.update((part.len() as u32).to_be_bytes());
        hash.update(part.as_bytes());
    }
    first_64_bits(&hash.finalize())
}

fn first_64_bits(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |n, b| (n << 8) | u64::from(*b))
}

/// A change of a content's tags, applied atomically. Build with [`Operation::patch`] or
/// [`Operation::replace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Adds some tags and removes others.
    Patch {
        /// Tags to add; canonical names are unique.
        add: Vec<Tag>,
        /// Tags to remove; disjoint from `add`.
        remove: Vec<TagName>,
    },
    /// Replaces the whole set.
    Replace {
        /// The new set; canonical names are unique.
        tags: Vec<Tag>,
    },
}

impl Operation {
    /// A patch. Duplicates collapse (the first spelling wins).
    ///
    /// # Errors
    ///
    /// [`DomainError::NothingToDo`], [`DomainError::TooManyTagsInWrite`], or
    /// [`DomainError::AddedAndRemoved`] when a tag is in both lists.
    pub fn patch(
        add: Vec<Tag>,
        remove: Vec<TagName>,
        limits: &Limits,
    ) -> Result<Self, DomainError> {
        check_raw_count(add.len().max(remove.len()), limits)?;
        let add = unique(add, |t| &t.name);
        let remove = unique(remove, |n| n);
        if add.is_empty() && remove.is_empty() {
            return Err(DomainError::NothingToDo);
        }
        check_count(add.len().max(remove.len()), limits)?;
        if let Some(tag) = add.iter().find(|t| remove.contains(&t.name)) {
            return Err(DomainError::AddedAndRemoved(tag.name.as_str().to_owned()));
        }
        Ok(Self::Patch { add, remove })
    }

    /// A replace. Duplicates collapse (the first spelling wins); an empty set removes every tag.
    ///
    /// # Errors
    ///
    /// [`DomainError::TooManyTagsInWrite`].
    pub fn replace(tags: Vec<Tag>, limits: &Limits) -> Result<Self, DomainError> {
        check_raw_count(tags.len(), limits)?;
        let tags = unique(tags, |t| &t.name);
        check_count(tags.len(), limits)?;
        Ok(Self::Replace { tags })
    }

    /// The tags that the write adds, or keeps, in the order given.
    pub fn added(&self) -> &[Tag] {
        match self {
            Self::Patch { add, .. } => add,
            Self::Replace { tags } => tags,
        }
    }

    /// A 64-bit hash of the request: distinguishes a retry from a reused idempotency key. With a
    /// call it covers the call, the condition, the canonical names as sets, and the users that an
    /// import names; spellings, the order of the tags and the times of an import may differ.
    /// Without one (a write with an id of its own) it covers the condition and the names in order.
    pub fn fingerprint(&self, if_match: Option<&IfMatch>, call: Option<Call>) -> u64 {
        let mut hash = Sha256::new();
        let mut text = |kind: u8, s: &str| {
            hash.update([kind]);
            hash.update((s.len() as u32).to_be_bytes());
            hash.update(s.as_bytes());
        };
        let mut added: Vec<&Tag> = self.added().iter().collect();
        let mut removed: Vec<&TagName> = match self {
            Self::Patch { remove, .. } => remove.iter().collect(),
            Self::Replace { .. } => Vec::new(),
        };
        if let Some(call) = call {
            text(b'!', "");
            text(call.code(), "");
            added.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            removed.sort_unstable();
        }
        let kind = if matches!(self, Self::Replace { .. }) { b'=' } else { b'+' };
        if kind == b'=' {
            text(kind, "");
        }
        for tag in added {
            text(kind, tag.name.as_str());
            if let (Some(origin), Some(_)) = (&tag.origin, call) {
                text(b'@', origin.by.as_str());
            }
        }
        removed.iter().for_each(|n| text(b'-', n.as_str()));
        if let Some(condition) = if_match {
            condition.versions().iter().for_each(|v| text(b'?', &v.to_string()));
            if condition.versions().is_empty() {
                text(b'?', "");
            }
        }
        first_64_bits(&hash.finalize())
    }
}

fn unique<T>(items: Vec<T>, name: impl Fn(&T) -> &TagName) -> Vec<T> {
    let mut kept: Vec<T> = Vec::with_capacity(items.len());
    for item in items {
        if !kept.iter().any(|k| name(k) == name(&item)) {
            kept.push(item);
        }
    }
    kept
}

/// Bounds the quadratic deduplication: at most ten spellings per allowed tag.
fn check_raw_count(given: usize, limits: &Limits) -> Result<(), DomainError> {
    if given > limits.tags_per_content * 10 { check_count(given, limits) } else { Ok(()) }
}

fn check_count(given: usize, limits: &Limits) -> Result<(), DomainError> {
    let allowed = limits.tags_per_content;
    if given > allowed { Err(DomainError::TooManyTagsInWrite { allowed, given }) } else { Ok(()) }
}

/// One validated write, ready for [`crate::apply()`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The idempotency id.
    pub id: WriteId,
    /// The content to change.
    pub key: ContentKey,
    /// The writing user.
    pub user: UserId,
    /// The change.
    pub operation: Operation,
    /// The versions of which the content must have one, else the write is refused. `None`:
    /// unconditional.
    pub if_match: Option<IfMatch>,
}
