//! The error type of the domain: the broken rule, its limit and the given value.

/// Why a value was refused. Each variant names the rule; [`DomainError::limit`] returns the
/// numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// An empty tag, id, type, tenant or user.
    #[error("{what} is empty")]
    Empty {
        /// The kind of value, as the docs name it ("tag", "content id", ...).
        what: &'static str,
    },
    /// Text of which nothing is left without its invisible characters.
    #[error("{what} is empty: it has only invisible characters ({characters})")]
    OnlyInvisible {
        /// The kind of value.
        what: &'static str,
        /// The first of the characters, as `U+XXXX`.
        characters: String,
    },
    /// More characters (Unicode scalar values) than allowed.
    #[error("{what} has {given} characters; at most {allowed} are allowed")]
    TooManyCharacters {
        /// The kind of value.
        what: &'static str,
        /// The limit in Unicode scalar values.
        allowed: usize,
        /// The given length in Unicode scalar values.
        given: usize,
    },
    /// More bytes of UTF-8 than allowed.
    #[error("{what} has {given} bytes; at most {allowed} are allowed")]
    TooManyBytes {
        /// The kind of value.
        what: &'static str,
        /// The limit in bytes.
        allowed: usize,
        /// The given length in bytes.
        given: usize,
    },
    /// A character that the rule for this value forbids.
    #[error("{what} contains {character}, which is not allowed ({reason})")]
    ForbiddenCharacter {
        /// The kind of value.
        what: &'static str,
        /// The character as `U+XXXX`, with its glyph where it is printable.
        character: String,
        /// The forbidden class of characters.
        reason: &'static str,
    },
    /// A tenant that begins with `_`, which is reserved for the service itself.
    #[error("tenant {0:?} begins with '_', which is reserved")]
    ReservedTenant(String),
    /// One write adds and removes the same tag.
    #[error("tag {0:?} is both added and removed by one write")]
    AddedAndRemoved(String),
    /// A write that names no tag.
    #[error("the write names no tag to add or remove")]
    NothingToDo,
    /// More tags in one write than a content may hold.
    #[error("the write names {given} tags; at most {allowed} are allowed in one write")]
    TooManyTagsInWrite {
        /// The limit, in tags.
        allowed: usize,
        /// The given number of tags.
        given: usize,
    },
    /// A stored document or identifier that cannot be decoded.
    #[error("{what} cannot be decoded: {reason}")]
    Undecodable {
        /// The kind of value.
        what: &'static str,
        /// The reason.
        reason: &'static str,
    },
}

impl DomainError {
    /// The stable error code in API responses.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty { .. } | Self::OnlyInvisible { .. } => "empty",
            Self::TooManyCharacters { .. } | Self::TooManyBytes { .. } => "too_long",
            Self::ForbiddenCharacter { .. } => "forbidden_character",
            Self::ReservedTenant(_) => "reserved_tenant",
            Self::AddedAndRemoved(_) => "added_and_removed",
            Self::NothingToDo => "nothing_to_do",
            Self::TooManyTagsInWrite { .. } => "too_many_tags_in_write",
            Self::Undecodable { .. } => "undecodable",
        }
    }

    /// The exceeded limit: its name, the allowed and the given value. `None` when the rule is not a
    /// number.
    pub fn limit(&self) -> Option<(&'static str, u64, u64)> {
        match self {
            Self::TooManyCharacters { what, allowed, given } => {
                Some((limit_name(what, true), *allowed as u64, *given as u64))
            }
            Self::TooManyBytes { what, allowed, given } => {
                Some((limit_name(what, false), *allowed as u64, *given as u64))
            }
            Self::TooManyTagsInWrite { allowed, given } => {
                Some(("tags_per_write", *allowed as u64, *given as u64))
            }
            Self::Empty { .. }
            | Self::OnlyInvisible { .. }
            | Self::ForbiddenCharacter { .. }
            | Self::ReservedTenant(_)
            | Self::AddedAndRemoved(_)
            | Self::NothingToDo
            | Self::Undecodable { .. } => None,
        }
    }
}

fn limit_name(what: &str, characters: bool) -> &'static str {
    match (what, characters) {
        ("tag", true) => "tag_characters",
        ("tag", false) => "tag_bytes",
        ("content id", _) => "content_id_bytes",
        ("content type", _) => "content_type_characters",
        ("tenant", _) => "tenant_characters",
        ("user", _) => "user_bytes",
        _ => "length",
    }
}
