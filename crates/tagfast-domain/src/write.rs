//! What a client asks for: one operation on one content, under a write id.

use sha2::{Digest, Sha256};

use crate::{ContentKey, DomainError, Limits, Tag, TagName, TenantId, UserId, Version};

/// Names one write, so that a retry after a lost answer has no second effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(pub [u8; 16]);

impl WriteId {
    /// The id of item `item` of a request that carried an `Idempotency-Key`: the first 16 bytes of
    /// SHA-256(tenant, user, key, item), so that it is the same at every retry and on every node.
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
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What to do with a content's tags. Atomic for the content. Build with [`Operation::patch`] or
/// [`Operation::replace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Add some tags and remove others.
    Patch {
        /// Tags to add; no canonical name twice.
        add: Vec<Tag>,
        /// Tags to remove; none of them is added too.
        remove: Vec<TagName>,
    },
    /// Make the set exactly this one.
    Replace {
        /// The whole new set; no canonical name twice.
        tags: Vec<Tag>,
    },
}

impl Operation {
    /// Adds and removes; duplicates collapse (the first spelling stays), a tag in both lists is
    /// refused.
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

    /// Replaces the set; duplicates collapse (the first spelling stays). An empty set removes
    /// everything.
    pub fn replace(tags: Vec<Tag>, limits: &Limits) -> Result<Self, DomainError> {
        check_raw_count(tags.len(), limits)?;
        let tags = unique(tags, |t| &t.name);
        check_count(tags.len(), limits)?;
        Ok(Self::Replace { tags })
    }

    /// 64 bits that two different operations share with negligible probability: tells a retry from
    /// a reused key.
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

/// Before duplicates collapse (quadratic): ten spellings of every allowed tag are more than any
/// client means.
fn check_raw_count(given: usize, limits: &Limits) -> Result<(), DomainError> {
    if given > limits.tags_per_content * 10 { check_count(given, limits) } else { Ok(()) }
}

fn check_count(given: usize, limits: &Limits) -> Result<(), DomainError> {
    let allowed = limits.tags_per_content;
    if given > allowed { Err(DomainError::TooManyTagsInWrite { allowed, given }) } else { Ok(()) }
}

/// One write, ready for [`crate::apply()`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its name.
    pub id: WriteId,
    /// Which content it changes.
    pub key: ContentKey,
    /// Who asks.
    pub user: UserId,
    /// What it does.
    pub operation: Operation,
    /// The version the content must have for the write to happen; `Version::NONE` = never written.
    pub if_match: Option<Version>,
}
