//! A write: one operation on one content, under a write id that makes retries idempotent.

use sha2::{Digest, Sha256};

use crate::{ContentKey, DomainError, Limits, Tag, TagName, TenantId, UserId, Version};

/// The idempotency id of a write: a retry after a lost response has no second effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(pub [u8; 16]);

impl WriteId {
    /// The id of item `item` of a request with an `Idempotency-Key`: the first 16 bytes of
    /// SHA-256(tenant, user, key, item), so it is the same for every retry and on every node.
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

    /// A 64-bit hash of the operation and its condition: distinguishes a retry from a reused
    /// idempotency key.
    pub fn fingerprint(&self, if_match: Option<Version>) -> u64 {
        let mut hash = Sha256::new();
        let mut text = |kind: u8, s: &str| {
            hash.update([kind]);
            hash.update((s.len() as u32).to_be_bytes());
            hash.update(s.as_bytes());
        };
        match self {
            Self::Patch { add, remove } => {
                add.iter().for_each(|t| text(b'+', t.name.as_str()));
                remove.iter().for_each(|n| text(b'-', n.as_str()));
            }
            Self::Replace { tags } => {
                text(b'=', "");
                tags.iter().for_each(|t| text(b'=', t.name.as_str()));
            }
        }
        if let Some(version) = if_match {
            text(b'?', &version.to_string());
        }
        let digest = hash.finalize();
        digest.iter().take(8).fold(0, |n, b| (n << 8) | u64::from(*b))
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
    /// The version the content must have, else the write is refused; [`Version::NONE`] = never
    /// written. `None`: unconditional.
    pub if_match: Option<Version>,
}
