//! How a Redis and its Sentinels are reached: address and passwords.
//!
//! How it fails: a password that is wrong is found when a server refuses it, not here.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind};
use tagfast_resilience::{Address, Credential, CredentialVersion, Secret};

/// How a Redis is reached.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// A `redis://`, `unix://`, `redis+unix://` or `redis+sentinel://` URL; may hold a user and a
    /// password.
    pub url: Address,
    /// The password in place of the URL's; a changed one is used by the next connection. `None`:
    /// the URL's.
    pub password: Option<Credential>,
    /// The user of the Sentinels; `None`: the default user.
    pub sentinel_user: Option<String>,
    /// The password of the Sentinels; `None`: they ask for none.
    pub sentinel_password: Option<Credential>,
}

impl RedisOptions {
    /// A Redis with the password of the URL, and Sentinels that ask for none.
    pub fn new(url: &str) -> Self {
        Self {
            url: Address::new(url),
            password: None,
            sentinel_user: None,
            sentinel_password: None,
        }
    }
}

/// The passwords to try, in this order; one `None` without a credential.
pub(crate) fn passwords(credential: Option<&Credential>) -> Vec<Option<CredentialVersion<Secret>>> {
    match credential {
        None => vec![None],
        Some(credential) => credential.to_try().into_iter().map(Some).collect(),
    }
}

/// A server's address with a password in place of the URL's; `None`: the URL's.
pub(crate) fn with_password(info: &ConnectionInfo, password: Option<&Secret>) -> ConnectionInfo {
    let Some(password) = password else { return info.clone() };
    let settings = info.redis_settings().clone().set_password(password.expose());
    info.clone().set_redis_settings(settings)
}

/// Opens a connection with the newest password, or with the one before it if the server has not
/// changed yet. Returns the password that was accepted; `None`: the URL's.
///
/// # Errors
/// Why there is no connection, for health reports.
pub(crate) async fn log_in(
    info: &ConnectionInfo,
    credential: Option<&Credential>,
    config: &AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Option<Secret>), String> {
    let server = info.addr().to_string();
    let mut problem = None;
    for version in passwords(credential) {
        let password = version.as_ref().map(|version| &version.value);
        let client = Client::open(with_password(info, password)).map_err(|e| e.to_string())?;
        let error = match client.get_multiplexed_async_connection_with_config(config).await {
            Ok(connection) => {
                if let Some((credential, version)) = credential.zip(version.as_ref()) {
                    credential.accepted(&server, version.number);
                }
                return Ok((connection, password.cloned()));
            }
            Err(error) => error,
        };
        if error.kind() != ErrorKind::AuthenticationFailed {
            return Err(error.to_string());
        }
        if let Some((credential, version)) = credential.zip(version.as_ref()) {
            credential.refused(&server, version.number);
        }
        problem.get_or_insert(format!("authentication: it refuses the password or user: {error}"));
    }
    // There is always one attempt.
    Err(problem.unwrap_or_default())
}

/// Authenticates again on an open connection, which stays as it is if the server refuses. Returns
/// the password that the server accepts; `None`: it accepts none, or does not say.
pub(crate) async fn check(
    connection: &mut MultiplexedConnection,
    user: Option<&str>,
    credential: &Credential,
    address: &ConnectionAddr,
) -> Option<Secret> {
    let server = address.to_string();
    for version in credential.to_try() {
        let mut auth = redis::cmd("AUTH");
        if let Some(user) = user {
            auth.arg(user);
        }
        match auth.arg(version.value.expose()).query_async::<()>(connection).await {
            Ok(()) => {
                credential.accepted(&server, version.number);
                return Some(version.value);
            }
            Err(error) if error.code() == Some("WRONGPASS") => {
                credential.refused(&server, version.number);
            }
            Err(_) => return None,
        }
    }
    None
}
