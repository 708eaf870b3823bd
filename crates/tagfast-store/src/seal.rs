//! Opaque strings that clients carry: a MAC binds each to a tenant and a purpose, so a client can
//! neither forge one nor use that of a different tenant.
//!
//! Form: base64url without padding of `kind byte, body, first 16 bytes of HMAC-SHA256(key, kind,
//! tenant, body)`. The first key signs and every key verifies, so that keys can be rotated. The
//! kind byte is also the format version.
//!
//! How it fails: [`Sealer::open`] returns a [`SealError`]; the comparison takes constant time.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::RwLock;
use sha2::Sha256;
use tagfast_domain::TenantId;
use tagfast_resilience::{Credential, CredentialVersion};

const MAC_BYTES: usize = 16;

/// Maximum length of a sealed string, in bytes.
pub const SEALED_BYTES: usize = 4096;

/// The purpose of a sealed string: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SealKind {
    /// A consistency token, format 1.
    Consistency = 0x11,
    /// A receipt, format 1.
    Receipt = 0x21,
    /// A search cursor, format 1.
    SearchCursor = 0x31,
    /// The cursor of any other list, format 1.
    ListCursor = 0x41,
}

/// Why a sealed string was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Longer than [`SEALED_BYTES`].
    #[error("it is longer than {SEALED_BYTES} bytes")]
    TooLong,
    /// Not base64url, or too short.
    #[error("it is not one that this service made")]
    Malformed,
    /// The first byte names a different kind or an unknown version.
    #[error("it is of a different kind or version")]
    WrongKind,
    /// The MAC does not match: a different tenant, a different key, or altered.
    #[error("it was not made for this tenant by this service")]
    WrongMac,
}

/// Keys of 32 bytes each; the first one signs.
pub type SealKeys = Vec<[u8; 32]>;

/// Seals and opens strings. Clones are the same sealer.
#[derive(Clone)]
pub struct Sealer {
    keys: Credential<SealKeys>,
    macs: Arc<RwLock<Macs>>,
}

/// The keys of one version of the credential, ready for use.
struct Macs {
    version: u64,
    keys: Arc<[Hmac<Sha256>]>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("keys", &self.macs.read().keys.len()).finish()
    }
}

impl Macs {
    fn new(keys: CredentialVersion<SealKeys>) -> Self {
        assert!(!keys.value.is_empty(), "a sealer needs a key");
        let mac =
            |key: &[u8; 32]| Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
        Self { version: keys.number, keys: keys.value.iter().map(mac).collect() }
    }
}

impl Sealer {
    /// A sealer with these keys.
    ///
    /// # Panics
    ///
    /// With an empty list, which the configuration refuses.
    pub fn new(keys: &[[u8; 32]]) -> Self {
        Self::of(keys.to_vec().into())
    }

    /// A sealer with keys that may change while the process runs.
    ///
    /// # Panics
    ///
    /// With an empty list, which the configuration refuses.
    pub fn of(keys: Credential<SealKeys>) -> Self {
        let macs = Arc::new(RwLock::new(Macs::new(keys.newest())));
        Self { keys, macs }
    }

    /// The keys in force.
    fn macs(&self) -> Arc<[Hmac<Sha256>]> {
        {
            let macs = self.macs.read();
            if macs.version == self.keys.number() {
                return Arc::clone(&macs.keys);
            }
        }
        let mut macs = self.macs.write();
        *macs = Macs::new(self.keys.newest());
        Arc::clone(&macs.keys)
    }

    fn mac(key: &Hmac<Sha256>, kind: SealKind, tenant: &TenantId, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = key.clone();
        mac.update(&[kind as u8, tenant.as_str().len() as u8]);
        mac.update(tenant.as_str().as_bytes());
        mac.update(body);
        mac
    }

    /// Seals `body` for a tenant.
    pub fn seal(&self, kind: SealKind, tenant: &TenantId, body: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(1 + body.len() + MAC_BYTES);
        bytes.push(kind as u8);
        bytes.extend_from_slice(body);
        let mac = Self::mac(&self.macs()[0], kind, tenant, body).finalize().into_bytes();
        bytes.extend_from_slice(&mac[..MAC_BYTES]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The body of a sealed string of this kind and tenant.
    ///
    /// # Errors
    ///
    /// A [`SealError`] when the string is too long, malformed, of a different kind, or has a wrong
    /// MAC.
    pub fn open(
        &self,
        kind: SealKind,
        tenant: &TenantId,
        sealed: &str,
    ) -> Result<Vec<u8>, SealError> {
        if sealed.len() > SEALED_BYTES {
            return Err(SealError::TooLong);
        }
        let bytes = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| SealError::Malformed)?;
        let (first, rest) = bytes.split_first().ok_or(SealError::Malformed)?;
        if *first != kind as u8 {
            return Err(SealError::WrongKind);
        }
        let split = rest.len().checked_sub(MAC_BYTES).ok_or(SealError::Malformed)?;
        let (body, given) = rest.split_at(split);
        // Constant time: the duration must not tell how much of a guess was right.
        let fits = |key| Self::mac(key, kind, tenant, body).verify_truncated_left(given).is_ok();
        if self.macs().iter().any(fits) { Ok(body.to_vec()) } else { Err(SealError::WrongMac) }
    }
}
