//! `token issue`: signs a development token with the server's HS256 secret.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tagfast_client::error::{CliError, CommandResult, Exit};
use tagfast_client::terminal::Terminal;
use tagfast_domain::{TenantId, UserId};

use crate::cli::TokenIssueArgs;
use crate::config::secrets::read_secret;
use crate::config::values::use_one_of;

/// The scopes of the API.
const SCOPES: &[&str] = &["tags:read", "tags:write", "admin"];

/// `token issue`
pub(super) fn issue(args: &TokenIssueArgs, terminal: &Terminal) -> CommandResult {
    let secret = read_secret(&args.secret_file).map_err(CliError::new)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let claims = claims(args, now)?;
    let token = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(&secret),
    )
    .map_err(|e| CliError::new("cannot sign the token").with_source(e))?;
    if terminal.json {
        terminal.value(&json!({"token": token, "claims": claims}))?;
    } else {
        terminal.line(token)?;
    }
    Ok(Exit::Done)
}

fn claims(args: &TokenIssueArgs, now: u64) -> Result<Value, CliError> {
    let tenant =
        TenantId::parse(&args.tenant).map_err(|e| CliError::usage(e.to_string()).with_source(e))?;
    let user =
        UserId::parse(&args.user).map_err(|e| CliError::usage(e.to_string()).with_source(e))?;
    if let Some(scope) = args.scope.split_whitespace().find(|s| !SCOPES.contains(s)) {
        return Err(CliError::usage(format!(
            "unknown scope {scope:?}; {}",
            use_one_of(scope, SCOPES)
        )));
    }
    let mut claims = json!({
        "tenant": tenant.as_str(),
        "sub": user.as_str(),
        "scope": args.scope.split_whitespace().collect::<Vec<_>>().join(" "),
        "iat": now,
        "nbf": now,
        "exp": now.saturating_add(args.ttl.as_secs()),
    });
    for (name, value) in [("aud", &args.audience), ("iss", &args.issuer)] {
        if let Some(value) = value {
            claims[name] = json!(value);
        }
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn args(dir: &std::path::Path) -> TokenIssueArgs {
        let secret_file = dir.join("secret");
        std::fs::write(&secret_file, format!("{}\n", "k".repeat(40))).unwrap();
        TokenIssueArgs {
            secret_file,
            tenant: "acme".to_owned(),
            user: "ana".to_owned(),
            scope: "tags:read admin".to_owned(),
            ttl: Duration::from_secs(60),
            audience: None,
            issuer: Some("me".to_owned()),
        }
    }

    #[test]
    fn a_token_can_be_verified_with_the_same_secret() {
        let dir = tempfile::tempdir().unwrap();
        let (terminal, captured) = Terminal::memory(false);
        assert_eq!(issue(&args(dir.path()), &terminal).unwrap(), Exit::Done);
        let key = jsonwebtoken::DecodingKey::from_secret("k".repeat(40).as_bytes());
        let mut rules = jsonwebtoken::Validation::new(Algorithm::HS256);
        rules.set_issuer(&["me"]);
        let token = jsonwebtoken::decode::<Value>(captured.out().trim(), &key, &rules).unwrap();
        assert_eq!(token.claims["tenant"], "acme");
        assert_eq!(token.claims["scope"], "tags:read admin");
    }

    #[test]
    fn bad_tenants_and_scopes_are_wrong_usage() {
        let dir = tempfile::tempdir().unwrap();
        let (terminal, _) = Terminal::memory(false);
        for change in [
            (|a: &mut TokenIssueArgs| a.tenant = "_x".to_owned()) as fn(&mut TokenIssueArgs),
            |a| a.scope = "tags:all".to_owned(),
            |a| a.user = String::new(),
        ] {
            let mut bad = args(dir.path());
            change(&mut bad);
            assert_eq!(issue(&bad, &terminal).unwrap_err().exit, Exit::Usage);
        }
    }
}
