//! Keys made for one test run, and tokens signed with them.

use std::sync::LazyLock;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::{rsa, signature};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::{NOW, SECRET};

/// A private key with the algorithm it is for.
pub(crate) struct Signer {
    pub(crate) kid: &'static str,
    pub(crate) alg: Algorithm,
    key: EncodingKey,
}

impl Signer {
    fn new(kid: &'static str, alg: Algorithm, pkcs8: &[u8]) -> Self {
        let pem =
            format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", wrapped(pkcs8));
        let read: fn(&[u8]) -> _ = if alg == Algorithm::RS256 {
            EncodingKey::from_rsa_pem
        } else if alg == Algorithm::ES256 {
            EncodingKey::from_ec_pem
        } else {
            EncodingKey::from_ed_pem
        };
        let key = read(pem.as_bytes());
        Self { kid, alg, key: key.unwrap() }
    }

    /// The public key as a member of a key set.
    pub(crate) fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.alg).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(self.alg) };
        encode(&header, claims, &self.key).unwrap()
    }
}

fn wrapped(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    text.as_bytes()
        .chunks(64)
        .map(|c| std::str::from_utf8(c).unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

pub(crate) static RSA: LazyLock<Signer> = LazyLock::new(|| {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
    Signer::new("rsa-1", Algorithm::RS256, der.as_ref())
});

pub(crate) fn ec(kid: &'static str) -> Signer {
    let der = signature::EcdsaKeyPair::generate_pkcs8(
        &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &SystemRandom::new(),
    );
    Signer::new(kid, Algorithm::ES256, der.unwrap().as_ref())
}

pub(crate) fn ed(kid: &'static str) -> Signer {
    let der = signature::Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new());
    Signer::new(kid, Algorithm::EdDSA, der.unwrap().as_ref())
}

pub(crate) fn set(keys: &[&Signer]) -> String {
    json!({ "keys": keys.iter().map(|k| k.public()).collect::<Vec<_>>() }).to_string()
}

pub(crate) fn claims(tenant: &str, scope: &str) -> Value {
    json!({ "tenant": tenant, "sub": "ada", "scope": scope, "exp": NOW / 1000 + 3600 })
}

/// An HS256 token with these claims.
pub(crate) fn hs256(claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

/// A token of a tenant with both tag scopes.
pub(crate) fn user(tenant: &str) -> String {
    hs256(&claims(tenant, "tags:read tags:write"))
}

/// Three parts as given: for tokens that no library would make.
pub(crate) fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature))
}
