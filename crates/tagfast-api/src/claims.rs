//! The claims of a token whose signature was verified (RFC 7519, section 4).
//!
//! A claim that is there has the type of the RFC, whether it is needed or not: `iss` is one string,
//! `aud` a string or a list of strings. `null` is as absent.
//!
//! How it fails: with the name of the first claim that is missing or wrong, never with its value.

use serde::Deserialize;
use serde_json::Value;
use tagfast_domain::{TenantId, UserId};

use crate::metric::AuthFailure;

/// Why a token was rejected: the metric's label, and the detail for the client.
#[derive(Debug)]
pub(crate) struct TokenRejected(pub(crate) AuthFailure, pub(crate) &'static str);

/// The claims that are looked at. One that comes twice is refused with the whole token.
#[derive(Debug, Deserialize)]
pub(crate) struct Claims {
    tenant: Option<Value>,
    sub: Option<Value>,
    scope: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    iat: Option<Value>,
    iss: Option<Value>,
    aud: Option<Value>,
}

/// What the claims must say.
#[derive(Debug, Default)]
pub(crate) struct Demands<'a> {
    /// `None`: any or no issuer.
    pub(crate) issuer: Option<&'a str>,
    /// `None`: any or no audience.
    pub(crate) audience: Option<&'a str>,
    /// Clock skew allowed on `exp` and `nbf`, in milliseconds.
    pub(crate) leeway_ms: i64,
}

/// What accepted claims say.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) tenant: TenantId,
    pub(crate) user: UserId,
    /// The words of `scope`.
    pub(crate) scopes: Vec<String>,
    /// Valid from this time, Unix ms.
    pub(crate) from_ms: i64,
    /// Valid before this time, Unix ms.
    pub(crate) until_ms: i64,
}

impl Claims {
    /// Who the token is for at the time `now`, in Unix ms.
    pub(crate) fn accept(
        &self,
        demands: &Demands<'_>,
        now: i64,
    ) -> Result<Identity, TokenRejected> {
        self.check_issuer(demands.issuer)?;
        self.check_audience(demands.audience)?;
        let exp = time(self.exp.as_ref(), "the claim exp must be a number")?
            .ok_or(wrong("the claim exp is missing"))?;
        let nbf = time(self.nbf.as_ref(), "the claim nbf must be a number")?;
        time(self.iat.as_ref(), "the claim iat must be a number")?;
        let until_ms = exp.saturating_add(demands.leeway_ms);
        let from_ms = nbf.map_or(i64::MIN, |nbf| nbf.saturating_sub(demands.leeway_ms));
        if now >= until_ms {
            return Err(TokenRejected(
                AuthFailure::Expired,
                "the token has expired: the claim exp is past",
            ));
        }
        if now < from_ms {
            return Err(TokenRejected(
                AuthFailure::NotYetValid,
                "the token is not valid yet: the claim nbf is ahead",
            ));
        }
        let tenant = text(self.tenant.as_ref(), "the claim tenant must be a string")?
            .ok_or(wrong("the claim tenant is missing"))?;
        let tenant = TenantId::parse(tenant)
            .map_err(|_| wrong("the claim tenant is not the name of a tenant"))?;
        let user = text(self.sub.as_ref(), "the claim sub must be a string")?
            .ok_or(wrong("the claim sub is missing"))?;
        let user =
            UserId::parse(user).map_err(|_| wrong("the claim sub is not the name of a user"))?;
        Ok(Identity { tenant, user, scopes: self.scopes()?, from_ms, until_ms })
    }

    fn check_issuer(&self, issuer: Option<&str>) -> Result<(), TokenRejected> {
        let given = text(self.iss.as_ref(), "the claim iss must be one string")?;
        match (issuer, given) {
            (Some(_), None) => {
                Err(TokenRejected(AuthFailure::Issuer, "the claim iss is missing: no issuer"))
            }
            (Some(issuer), Some(given)) if issuer != given => {
                Err(TokenRejected(AuthFailure::Issuer, "the claim iss names a different issuer"))
            }
            (Some(_), Some(_)) | (None, _) => Ok(()),
        }
    }

    fn check_audience(&self, audience: Option<&str>) -> Result<(), TokenRejected> {
        let reason = "the claim aud must be a string or a list of strings";
        let given = strings(self.aud.as_ref(), reason)?;
        match (audience, given) {
            (Some(_), None) => {
                Err(TokenRejected(AuthFailure::Audience, "the claim aud is missing: no audience"))
            }
            (Some(audience), Some(given)) if !given.contains(&audience) => Err(TokenRejected(
                AuthFailure::Audience,
                "the claim aud names a different audience",
            )),
            (Some(_), Some(_)) | (None, _) => Ok(()),
        }
    }

    /// The words of `scope`: separated by blanks (RFC 8693), or as a list.
    fn scopes(&self) -> Result<Vec<String>, TokenRejected> {
        let reason = "the claim scope must be a string or a list of strings";
        let given = strings(self.scope.as_ref(), reason)?.unwrap_or_default();
        Ok(match &self.scope {
            Some(Value::String(words)) => words.split_whitespace().map(str::to_owned).collect(),
            Some(_) | None => given.into_iter().map(str::to_owned).collect(),
        })
    }
}

fn wrong(reason: &'static str) -> TokenRejected {
    TokenRejected(AuthFailure::Claims, reason)
}

fn text<'a>(
    claim: Option<&'a Value>,
    reason: &'static str,
) -> Result<Option<&'a str>, TokenRejected> {
    claim.map(|value| value.as_str().ok_or(wrong(reason))).transpose()
}

fn strings<'a>(
    claim: Option<&'a Value>,
    reason: &'static str,
) -> Result<Option<Vec<&'a str>>, TokenRejected> {
    let all = match claim {
        None => return Ok(None),
        Some(Value::Array(all)) => all.iter().map(Value::as_str).collect(),
        Some(one) => one.as_str().map(|one| vec![one]),
    };
    all.map(Some).ok_or(wrong(reason))
}

/// A `NumericDate` in Unix ms.
fn time(claim: Option<&Value>, reason: &'static str) -> Result<Option<i64>, TokenRejected> {
    let millis = |value: &Value| value.as_f64().map(|seconds| (seconds * 1000.0) as i64);
    claim.map(|value| millis(value).ok_or(wrong(reason))).transpose()
}
