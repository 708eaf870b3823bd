//! Who is calling: bearer JWTs, or nobody in particular when authentication is off.
//!
//! The algorithm is fixed by the kind of key, never by the token: HS256 with the secret, RS256,
//! ES256 or EdDSA with a key of a key set. Every other algorithm, `none` and critical header
//! extensions are refused. Verified tokens are remembered by their SHA-256 until they expire or the
//! key set changes, because checking a signature costs more than answering the request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tagfast_domain::{TenantId, UserId};
use tagfast_resilience::Clock;

use crate::jwks::KeySet;
use crate::parts::AuthConfig;
use crate::problem::{Code, Problem};

/// Longest bearer token that is looked at, in bytes.
const TOKEN_BYTES: usize = 8192;
const CACHE_STRIPES: usize = 16;
const CACHE_PER_STRIPE: usize = 1024;

/// What a token may allow. `admin` includes the other two.
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
    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.scopes & (scope as u8 | Scope::Admin as u8) != 0
    }

    #[cfg(test)]
    pub(crate) fn for_tests(tenant: &str, user: &str) -> Self {
        Self {
            tenant: TenantId::parse(tenant).unwrap(),
            user: UserId::parse(user).unwrap(),
            scopes: 7,
        }
    }
}

/// Finds out who is calling.
pub(crate) enum Authenticator {
    Off(Arc<Caller>),
    Jwt(Box<Jwt>),
}

pub(crate) struct Jwt {
    secret: Option<DecodingKey>,
    keys: Option<Arc<KeySet>>,
    audience: Option<String>,
    issuer: Option<String>,
    leeway: Duration,
    clock: Arc<dyn Clock>,
    verified: Vec<Mutex<HashMap<[u8; 32], Verified>>>,
}

struct Verified {
    who: Arc<Caller>,
    from_ms: i64,
    until_ms: i64,
    generation: u64,
}

/// Why a token was refused: the metric's label, and what the client is told.
struct Refused(&'static str, &'static str);

#[derive(Deserialize)]
struct Claims {
    tenant: String,
    sub: String,
    #[serde(default)]
    scope: Scopes,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scopes {
    Words(String),
    List(Vec<String>),
}

impl Default for Scopes {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Authenticator {
    pub(crate) fn new(config: &AuthConfig, clock: &Arc<dyn Clock>) -> Self {
        match config {
            AuthConfig::None => Self::Off(Arc::new(Caller {
                tenant: TenantId::default_tenant(),
                user: UserId::parse_stored("anonymous"),
                scopes: Scope::Read as u8 | Scope::Write as u8 | Scope::Admin as u8,
            })),
            AuthConfig::Jwt { hs256_secret, jwks, audience, issuer, leeway } => {
                Self::Jwt(Box::new(Jwt {
                    secret: hs256_secret.as_deref().map(DecodingKey::from_secret),
                    keys: jwks.as_ref().map(|source| KeySet::new(source.clone())),
                    audience: audience.clone(),
                    issuer: issuer.clone(),
                    leeway: *leeway,
                    clock: Arc::clone(clock),
                    verified: (0..CACHE_STRIPES).map(|_| Mutex::default()).collect(),
                }))
            }
        }
    }

    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        match self {
            Self::Off(who) => Ok(Arc::clone(who)),
            Self::Jwt(jwt) => jwt.authenticate(headers).await,
        }
    }
}

impl Jwt {
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        let Some(token) = bearer(headers) else {
            count("missing");
            let problem = Problem::new(Code::Unauthenticated, "the request has no bearer token");
            return Err(problem.header(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"tagfast\""),
            ));
        };
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = self.clock.now_ms();
        if let Some(keys) = &self.keys {
            keys.refresh_when_due();
        }
        if let Some(who) = self.remembered(&hash, now) {
            return Ok(who);
        }
        let generation = self.generation();
        match self.verify(token, now).await {
            Ok((who, from_ms, until_ms)) => {
                let who = Arc::new(who);
                self.remember(
                    hash,
                    Verified { who: Arc::clone(&who), from_ms, until_ms, generation },
                    now,
                );
                Ok(who)
            }
            Err(Refused("keys_unavailable", detail)) => {
                count("keys_unavailable");
                Err(Problem::new(Code::KeysUnavailable, detail).retry_after(Duration::from_secs(5)))
            }
            Err(Refused(reason, detail)) => {
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

    fn generation(&self) -> u64 {
        self.keys.as_ref().map_or(0, |k| k.generation())
    }

    fn stripe(&self, hash: &[u8; 32]) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Verified>> {
        self.verified[hash[0] as usize % CACHE_STRIPES]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, hash: &[u8; 32], now: i64) -> Option<Arc<Caller>> {
        let stripe = self.stripe(hash);
        let known = stripe.get(hash)?;
        let good =
            known.from_ms <= now && now < known.until_ms && known.generation == self.generation();
        good.then(|| Arc::clone(&known.who))
    }

    fn remember(&self, hash: [u8; 32], verified: Verified, now: i64) {
        let mut stripe = self.stripe(&hash);
        if stripe.len() >= CACHE_PER_STRIPE {
            stripe.retain(|_, v| v.until_ms > now && v.generation == verified.generation);
        }
        if stripe.len() >= CACHE_PER_STRIPE {
            // All in use: starting over costs each one signature check.
            stripe.clear();
        }
        stripe.insert(hash, verified);
    }

    async fn verify(&self, token: &str, now: i64) -> Result<(Caller, i64, i64), Refused> {
        if token.len() > TOKEN_BYTES {
            return Err(Refused("malformed", "the token is too long"));
        }
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| Refused("malformed", "the token is not a JWT of a known algorithm"))?;
        if header.crit.is_some() {
            return Err(Refused("critical", "the token has critical extensions"));
        }
        let claims = match (header.alg, &self.secret, &self.keys) {
            (Algorithm::HS256, Some(secret), _) => self.check(token, Algorithm::HS256, secret)?,
            (alg @ (Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA), _, Some(keys)) => {
                self.check_with_set(token, alg, header.kid.as_deref(), keys).await?
            }
            _ => return Err(Refused("algorithm", "the token's algorithm is not accepted")),
        };
        self.accept(&claims, now)
    }

    async fn check_with_set(
        &self,
        token: &str,
        alg: Algorithm,
        kid: Option<&str>,
        keys: &Arc<KeySet>,
    ) -> Result<Claims, Refused> {
        let mut set = keys.current();
        if set.as_ref().is_none_or(|s| s.find(kid, alg).next().is_none()) {
            keys.refresh().await;
            set = keys.current();
        }
        let set = set.ok_or(Refused("keys_unavailable", "no key set could be loaded yet"))?;
        let mut outcome = Err(Refused("unknown_key", "the token's key is not known"));
        for key in set.find(kid, alg) {
            outcome = self.check(token, alg, key);
            if !matches!(outcome, Err(Refused("signature", _))) {
                break;
            }
        }
        outcome
    }

    fn check(&self, token: &str, alg: Algorithm, key: &DecodingKey) -> Result<Claims, Refused> {
        let mut rules = Validation::new(alg);
        rules.algorithms = vec![alg];
        // Times are checked against the service's own clock below.
        rules.validate_exp = false;
        rules.required_spec_claims.clear();
        rules.validate_aud = self.audience.is_some();
        if let Some(audience) = &self.audience {
            rules.set_audience(&[audience]);
            rules.required_spec_claims.insert("aud".to_owned());
        }
        if let Some(issuer) = &self.issuer {
            rules.set_issuer(&[issuer]);
            rules.required_spec_claims.insert("iss".to_owned());
        }
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the library's list is open; all other kinds mean one thing"
        )]
        let refused = |error: jsonwebtoken::errors::Error| match error.kind() {
            ErrorKind::InvalidSignature => {
                Refused("signature", "the token's signature does not fit")
            }
            ErrorKind::InvalidAudience => Refused("audience", "the token is for another audience"),
            ErrorKind::InvalidIssuer => Refused("issuer", "the token is of another issuer"),
            ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => {
                Refused("audience", "the token names no audience")
            }
            ErrorKind::MissingRequiredClaim(_) => Refused("issuer", "the token names no issuer"),
            ErrorKind::InvalidAlgorithm => {
                Refused("algorithm", "the token's algorithm is not accepted")
            }
            ErrorKind::Json(_) => {
                Refused("claims", "the token needs the claims tenant, sub and exp")
            }
            _ => Refused("malformed", "the token cannot be read"),
        };
        jsonwebtoken::decode::<Claims>(token, key, &rules).map(|data| data.claims).map_err(refused)
    }

    fn accept(&self, claims: &Claims, now: i64) -> Result<(Caller, i64, i64), Refused> {
        let leeway = i64::try_from(self.leeway.as_millis()).unwrap_or(i64::MAX);
        let millis = |seconds: f64| (seconds * 1000.0) as i64;
        let until = millis(claims.exp).saturating_add(leeway);
        let from = claims.nbf.map_or(i64::MIN, |nbf| millis(nbf).saturating_sub(leeway));
        if now >= until {
            return Err(Refused("expired", "the token has expired"));
        }
        if now < from {
            return Err(Refused("not_yet_valid", "the token is not valid yet"));
        }
        let tenant = TenantId::parse(&claims.tenant)
            .map_err(|_| Refused("claims", "the token's tenant is not acceptable"))?;
        let user = UserId::parse(&claims.sub)
            .map_err(|_| Refused("claims", "the token's sub is not acceptable"))?;
        let known =
            |word: &str| Scope::ALL.into_iter().find(|s| s.as_str() == word).map_or(0, |s| s as u8);
        let scopes = match &claims.scope {
            Scopes::Words(words) => words.split_whitespace().fold(0, |all, w| all | known(w)),
            Scopes::List(list) => list.iter().fold(0, |all, w| all | known(w)),
        };
        Ok((Caller { tenant, user, scopes }, from, until))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|t| !t.is_empty())
}

fn count(reason: &'static str) {
    metrics::counter!("tagfast_auth_failures_total", "reason" => reason).increment(1);
}
