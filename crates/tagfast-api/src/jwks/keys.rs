//! A JSON Web Key Set (RFC 7517) as the keys that may have signed a token.
//!
//! How it fails: a member that is no key for signatures of RS256, ES256 or EdDSA is left out, as
//! RFC 7517 demands, so that an issuer may publish kinds of keys that are not known here.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Least digits of an RSA modulus in base64url: 2,048 bits (RFC 7518, section 3.3).
const RSA_MODULUS_DIGITS_MIN: usize = 342;

/// The usable keys of one set, each with its algorithm.
pub(super) struct Keys {
    all: Vec<Key>,
    /// Members of the set that are no keys here.
    pub(super) left_out: usize,
}

struct Key {
    /// `None`: the set gives it no id.
    kid: Option<String>,
    alg: Algorithm,
    key: DecodingKey,
}

impl Keys {
    /// The keys that may have signed a token: those of its algorithm and, if the token names a key
    /// id, of exactly that id. An empty id is an id. Several keys may share one.
    pub(super) fn find<'a>(
        &'a self,
        kid: Option<&'a str>,
        alg: Algorithm,
    ) -> impl Iterator<Item = &'a DecodingKey> {
        self.all
            .iter()
            .filter(move |k| k.alg == alg && (kid.is_none() || k.kid.as_deref() == kid))
            .map(|k| &k.key)
    }

    /// The number of usable keys.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Parses a set.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = tagfast_json::from_slice(bytes)?;
        let members = set.keys.len();
        let key = |member| Key::new(&tagfast_json::from_value(member).ok()?);
        let all: Vec<Key> = set.keys.into_iter().filter_map(key).collect();
        Ok(Self { left_out: members - all.len(), all })
    }
}

impl Key {
    /// `None`: the key is of a kind, size or use that is not supported here.
    fn new(jwk: &Jwk) -> Option<Self> {
        let alg = match &jwk.algorithm {
            AlgorithmParameters::RSA(p) if p.n.len() >= RSA_MODULUS_DIGITS_MIN => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            // A symmetric key in a public set would let every reader of the set sign tokens.
            AlgorithmParameters::RSA(_)
            | AlgorithmParameters::EllipticCurve(_)
            | AlgorithmParameters::OctetKeyPair(_)
            | AlgorithmParameters::OctetKey(_)
            | AlgorithmParameters::Other(_)
            | _ => return None,
        };
        let common = &jwk.common;
        let declared = common.key_algorithm.is_none_or(|a| a.to_string() == format!("{alg:?}"));
        let signs = common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature);
        let operations = common.key_operations.as_deref();
        let verifies = operations.is_none_or(|all| all.contains(&KeyOperations::Verify));
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (declared && signs && verifies).then(|| Self { kid: common.key_id.clone(), alg, key })
    }
}
