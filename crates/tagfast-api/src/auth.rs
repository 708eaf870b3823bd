//! Authentication: bearer JWTs, or one anonymous caller when authentication is off.
//!
//! The kind of key fixes the algorithm, the token never does: HS256 with the secret, RS256, ES256
//! or EdDSA with a key of the key set. Every other algorithm, `none` and critical header extensions
//! are refused. Verified tokens are cached by their SHA-256 until they expire or a key changes,
//! because verifying a signature costs more than answering the request.
//!
//! How it fails: a bad token is 401 and names the claim or part that is wrong; while no key set has
//! been loaded, tokens that need one are 503 (`keys_unavailable`), because the token may be good.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use tagfast_domain::{TenantId, UserId};
use tagfast_resilience::{Clock, Credential, Secret, counter, jittered_retry_after};

use crate::claims::{Claims, Demands, Identity, TokenRejected};
use crate::jwks::KeySet;
use crate::metric::{AUTH_FAILURES, AuthFailure};
use crate::problem::{Code, Problem};
use crate::services::{ApiServices, AuthConfig, JwksSource};

/// Longest bearer token that is parsed, in bytes.
const TOKEN_BYTES_MAX: usize = 8192;
const CACHE_STRIPES: usize = 16;
/// Verified tokens that one stripe of the cache holds.
const STRIPE_TOKENS_MAX: usize = 1024;

/// A permission that a token carries. `admin` includes the other two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Read = 1,
    Write = 2,
    Admin = 4,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "tags:read",
            Self::Write => "tags:write",
            Self::Admin => "admin",
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    pub(crate) user: UserId,
    scopes: u8,
}

impl Caller {
    /// Whether the caller's token carries this scope.
    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.scopes & (scope as u8 | Scope::Admin as u8) != 0
    }
}

/// Authenticates requests.
pub(crate) enum Authenticator {
    /// Authentication is off: every request has this caller.
    Off(Arc<Caller>),
    Jwt(Box<JwtVerifier>),
}

/// Verifies bearer JWTs.
pub(crate) struct JwtVerifier {
    secret: Option<Credential<Secret<Vec<u8>>>>,
    keys: Option<Arc<KeySet>>,
    audience: Option<String>,
    issuer: Option<String>,
    leeway: Duration,
    clock: Arc<dyn Clock>,
    /// Verified tokens by their SHA-256, in stripes.
    verified: Vec<Mutex<HashMap<[u8; 32], VerifiedToken>>>,
}

/// A token that was verified.
struct VerifiedToken {
    caller: Arc<Caller>,
    /// Valid from this time, Unix ms.
    from_ms: i64,
    /// Valid before this time, Unix ms.
    until_ms: i64,
    /// The generation of the keys that verified it.
    generation: u64,
}

impl Authenticator {
    pub(crate) fn new(services: &ApiServices) -> Self {
        let key_set = |source: &JwksSource| KeySet::new(source.clone());
        match &services.auth {
            AuthConfig::None => Self::Off(Arc::new(Caller {
                tenant: TenantId::default_tenant(),
                user: UserId::from_stored("anonymous"),
                scopes: Scope::Read as u8 | Scope::Write as u8 | Scope::Admin as u8,
            })),
            AuthConfig::Jwt { hs256_secret, jwks, audience, issuer, leeway } => {
                Self::Jwt(Box::new(JwtVerifier {
                    secret: hs256_secret.clone(),
                    keys: jwks.as_ref().map(key_set),
                    audience: audience.clone(),
                    issuer: issuer.clone(),
                    leeway: *leeway,
                    clock: Arc::clone(&services.clock),
                    verified: (0..CACHE_STRIPES).map(|_| Mutex::default()).collect(),
                }))
            }
        }
    }

    /// Whether the keys that verify tokens could not be refreshed.
    pub(crate) fn has_outdated_keys(&self) -> bool {
        match self {
            Self::Off(_) => false,
            Self::Jwt(jwt) => jwt.keys.as_ref().is_some_and(|keys| keys.is_outdated()),
        }
    }

    /// The caller of a request with these headers.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        match self {
            Self::Off(caller) => Ok(Arc::clone(caller)),
            Self::Jwt(jwt) => jwt.authenticate(headers).await,
        }
    }
}

impl JwtVerifier {
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        let Some(token) = bearer(headers) else {
            count(AuthFailure::Missing);
            let problem = Problem::new(Code::Unauthenticated, "the request has no bearer token");
            return Err(problem.header(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"tagfast\""),
            ));
        };
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = self.clock.now_ms();
        if let Some(keys) = &self.keys {
            keys.ensure_fresh().await;
        }
        if let Some(caller) = self.cached(&hash, now) {
            return Ok(caller);
        }
        let generation = self.generation();
        match self.verify(token, now).await {
            Ok((caller, from_ms, until_ms)) => {
                let caller = Arc::new(caller);
                let verified =
                    VerifiedToken { caller: Arc::clone(&caller), from_ms, until_ms, generation };
                self.cache(hash, verified, now);
                Ok(caller)
            }
            Err(TokenRejected(AuthFailure::KeysUnavailable, detail)) => {
                count(AuthFailure::KeysUnavailable);
                Err(Problem::new(Code::KeysUnavailable, detail).retry_after(jittered_retry_after()))
            }
            Err(TokenRejected(reason, detail)) => {
                count(reason);
                let challenge =
                    format!("Bearer error=\"invalid_token\", error_description=\"{detail}\"");
                let problem = Problem::new(Code::InvalidToken, detail);
                Err(match HeaderValue::try_from(challenge) {
                    Ok(value) => problem.header(header::WWW_AUTHENTICATE, value),
                    Err(_) => problem,
                })
            }
        }
    }

    /// Changes whenever a key does: both parts only grow.
    fn generation(&self) -> u64 {
        let secret = self.secret.as_ref().map_or(0, Credential::number);
        self.keys.as_ref().map_or(0, |k| k.generation()) + secret
    }

    fn stripe(&self, hash: &[u8; 32]) -> MutexGuard<'_, HashMap<[u8; 32], VerifiedToken>> {
        self.verified[hash[0] as usize % CACHE_STRIPES].lock()
    }

    fn cached(&self, hash: &[u8; 32], now: i64) -> Option<Arc<Caller>> {
        let stripe = self.stripe(hash);
        let known = stripe.get(hash)?;
        let valid =
            known.from_ms <= now && now < known.until_ms && known.generation == self.generation();
        valid.then(|| Arc::clone(&known.caller))
    }

    fn cache(&self, hash: [u8; 32], verified: VerifiedToken, now: i64) {
        let mut stripe = self.stripe(&hash);
        if stripe.len() >= STRIPE_TOKENS_MAX {
            stripe.retain(|_, v| v.until_ms > now && v.generation == verified.generation);
        }
        if stripe.len() >= STRIPE_TOKENS_MAX {
            // All are in use: starting over costs one signature check for each.
            stripe.clear();
        }
        stripe.insert(hash, verified);
    }

    async fn verify(&self, token: &str, now: i64) -> Result<(Caller, i64, i64), TokenRejected> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenRejected(AuthFailure::Malformed, "the token is too long"));
        }
        let header = jsonwebtoken::decode_header(token).ok().filter(|_| has_strict_header(token));
        let header = header.ok_or(TokenRejected(
            AuthFailure::Malformed,
            "the token is not a JWT of a known algorithm",
        ))?;
        if header.crit.is_some() {
            return Err(TokenRejected(AuthFailure::Critical, "the token has critical extensions"));
        }
        let claims = match (header.alg, &self.secret, &self.keys) {
            (Algorithm::HS256, Some(secret), _) => {
                let secret = DecodingKey::from_secret(secret.newest().value.expose());
                Self::check(token, Algorithm::HS256, &secret)?
            }
            (alg @ (Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA), _, Some(keys)) => {
                self.check_with_set(token, alg, header.kid.as_deref(), keys).await?
            }
            _ => {
                return Err(TokenRejected(
                    AuthFailure::Algorithm,
                    "the token's algorithm is not accepted",
                ));
            }
        };
        self.accept(&claims, now)
    }

    async fn check_with_set(
        &self,
        token: &str,
        alg: Algorithm,
        kid: Option<&str>,
        keys: &Arc<KeySet>,
    ) -> Result<Claims, TokenRejected> {
        let mut set = keys.current();
        if set.as_ref().is_none_or(|s| s.find(kid, alg).next().is_none()) {
            keys.refresh().await;
            set = keys.current();
        }
        let set = set
            .ok_or(TokenRejected(AuthFailure::KeysUnavailable, "no key set could be loaded yet"))?;
        let mut outcome =
            Err(TokenRejected(AuthFailure::UnknownKey, "the token's key is not known"));
        for key in set.find(kid, alg) {
            outcome = Self::check(token, alg, key);
            if !matches!(outcome, Err(TokenRejected(AuthFailure::Signature, _))) {
                break;
            }
        }
        outcome
    }

    /// The claims of a token that this key has signed with this algorithm.
    fn check(token: &str, alg: Algorithm, key: &DecodingKey) -> Result<Claims, TokenRejected> {
        const UNREADABLE: TokenRejected =
            TokenRejected(AuthFailure::Malformed, "the token cannot be read");
        let (message, signature) = token.rsplit_once('.').ok_or(UNREADABLE)?;
        let (_, payload) = message.split_once('.').ok_or(UNREADABLE)?;
        if !crypto::verify(signature, message.as_bytes(), key, alg).map_err(|_| UNREADABLE)? {
            return Err(TokenRejected(AuthFailure::Signature, "the token's signature is wrong"));
        }
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| UNREADABLE)?;
        tagfast_json::from_slice(&payload).map_err(|_| {
            let reason = "the claims are not a JSON object that has each claim once";
            TokenRejected(AuthFailure::Claims, reason)
        })
    }

    fn accept(&self, claims: &Claims, now: i64) -> Result<(Caller, i64, i64), TokenRejected> {
        let demands = Demands {
            issuer: self.issuer.as_deref(),
            audience: self.audience.as_deref(),
            leeway_ms: i64::try_from(self.leeway.as_millis()).unwrap_or(i64::MAX),
        };
        let Identity { tenant, user, scopes, from_ms, until_ms } = claims.accept(&demands, now)?;
        let known =
            |word: &str| Scope::ALL.into_iter().find(|s| s.as_str() == word).map_or(0, |s| s as u8);
        let scopes = scopes.iter().fold(0, |all, word| all | known(word));
        Ok((Caller { tenant, user, scopes }, from_ms, until_ms))
    }
}

/// Whether a token's header is an object that gives each key once; its library also reads arrays.
fn has_strict_header(token: &str) -> bool {
    let part = token.split('.').next().unwrap_or_default();
    let object = |bytes: Vec<u8>| {
        tagfast_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes).is_ok()
    };
    URL_SAFE_NO_PAD.decode(part).is_ok_and(object)
}

/// The bearer token; `None` when there is none.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|t| !t.is_empty())
}

fn count(reason: AuthFailure) {
    counter!(AUTH_FAILURES, "reason" => reason).increment(1);
}
