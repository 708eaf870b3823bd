//! The identity of a content and of a user: tenant, content type, content id, user id.

use std::sync::Arc;

use crate::DomainError;
use crate::limits::{CONTENT_ID_BYTES, CONTENT_TYPE_CHARACTERS, TENANT_CHARACTERS, USER_BYTES};

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The value as shared text, without a copy.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = DomainError;
            fn from_str(s: &str) -> Result<Self, DomainError> {
                Self::parse(s)
            }
        }
    };
}
pub(crate) use text_newtype;

text_newtype! {
    /// A tenant: `[a-z0-9][a-z0-9._-]{0,63}`. No answer ever mixes data of two tenants.
    TenantId
}
text_newtype! {
    /// A content type: `[a-z0-9._-]{1,64}`, for example `jira.issue`.
    ContentType
}
text_newtype! {
    /// A content's id within its type: 1 to 256 bytes of UTF-8 without control characters.
    ContentId
}
text_newtype! {
    /// A user: the `sub` claim of the token, 1 to 128 bytes without control characters.
    UserId
}

fn lower_word(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
}

fn check_word(what: &'static str, s: &str, allowed: usize) -> Result<(), DomainError> {
    if s.is_empty() {
        return Err(DomainError::Empty { what });
    }
    if let Some(c) = s.chars().find(|c| !lower_word(*c)) {
        return Err(forbidden(what, c, "only a-z, 0-9, '.', '_' and '-' are"));
    }
    if s.len() > allowed {
        return Err(DomainError::TooManyCharacters { what, allowed, given: s.len() });
    }
    Ok(())
}

pub(crate) fn forbidden(what: &'static str, c: char, reason: &'static str) -> DomainError {
    let code = format!("U+{:04X}", u32::from(c));
    let character =
        if c.is_ascii_graphic() || c.is_alphanumeric() { format!("{code} '{c}'") } else { code };
    DomainError::ForbiddenCharacter { what, character, reason }
}

impl TenantId {
    /// Validates a tenant from a request; a leading `_` is reserved for the service itself.
    pub fn parse(s: &str) -> Result<Self, DomainError> {
        if s.starts_with('_') {
            return Err(DomainError::ReservedTenant(s.chars().take(TENANT_CHARACTERS).collect()));
        }
        check_word("tenant", s, TENANT_CHARACTERS)?;
        match s.chars().next() {
            Some(c) if c == '.' || c == '-' => {
                Err(forbidden("tenant", c, "as its first character"))
            }
            _ => Ok(Self(s.into())),
        }
    }

    /// The tenant of a server that runs without authentication.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }

    /// A tenant of the service itself (`_canary`). Must never be built from a request.
    pub fn reserved(word: &'static str) -> Self {
        Self(word.into())
    }
}

impl ContentType {
    /// Validates external input.
    pub fn parse(s: &str) -> Result<Self, DomainError> {
        check_word("content type", s, CONTENT_TYPE_CHARACTERS)?;
        Ok(Self(s.into()))
    }
}

impl ContentId {
    /// Validates an id. It is kept byte for byte, without normalisation: ids belong to the product.
    pub fn parse(s: &str) -> Result<Self, DomainError> {
        check_bytes("content id", s, CONTENT_ID_BYTES)?;
        Ok(Self(s.into()))
    }
}

impl UserId {
    /// A user as a store holds it, not validated again. Must not be used for external input.
    pub fn from_stored(s: &str) -> Self {
        Self(s.into())
    }

    /// Validates external input.
    pub fn parse(s: &str) -> Result<Self, DomainError> {
        check_bytes("user", s, USER_BYTES)?;
        Ok(Self(s.into()))
    }
}

fn check_bytes(what: &'static str, s: &str, allowed: usize) -> Result<(), DomainError> {
    if s.is_empty() {
        return Err(DomainError::Empty { what });
    }
    if s.len() > allowed {
        return Err(DomainError::TooManyBytes { what, allowed, given: s.len() });
    }
    match s.chars().find(|c| c.is_control()) {
        Some(c) => Err(forbidden(what, c, "control character")),
        None => Ok(()),
    }
}

/// A content without its tenant, as API paths and responses show it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    /// The content type.
    pub content_type: ContentType,
    /// The id within the type.
    pub content_id: ContentId,
}

/// A content of a tenant: the unit of atomicity, order and sharding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentKey {
    /// The owning tenant.
    pub tenant: TenantId,
    /// The content.
    pub content: Content,
}

impl ContentKey {
    /// Validates the three parts.
    pub fn parse(tenant: &str, content_type: &str, content_id: &str) -> Result<Self, DomainError> {
        Ok(Self {
            tenant: TenantId::parse(tenant)?,
            content: Content {
                content_type: ContentType::parse(content_type)?,
                content_id: ContentId::parse(content_id)?,
            },
        })
    }

    /// `tenant 0 type 0 id`: the bytes that are hashed for sharding and that order a scan. No part
    /// contains a zero byte.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (t, c) = (self.tenant.as_str(), &self.content);
        let mut bytes =
            Vec::with_capacity(t.len() + c.content_type.0.len() + c.content_id.0.len() + 2);
        bytes.extend_from_slice(t.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(c.content_type.0.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(c.content_id.0.as_bytes());
        bytes
    }

    /// The inverse of [`ContentKey::to_bytes`]. Reserved tenants are accepted, because a store
    /// wrote the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DomainError> {
        let bad = |reason| DomainError::Undecodable { what: "content key", reason };
        let text = std::str::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
        let mut parts = text.splitn(3, '\0');
        let (Some(tenant), Some(content_type), Some(content_id)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("fewer than three parts"));
        };
        Ok(Self {
            tenant: TenantId(tenant.into()),
            content: Content {
                content_type: ContentType::parse(content_type)?,
                content_id: ContentId::parse(content_id)?,
            },
        })
    }
}

impl std::fmt::Display for ContentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.content.content_type, self.content.content_id)
    }
}
