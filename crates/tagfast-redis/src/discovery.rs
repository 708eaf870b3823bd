//! Finds the server to connect to: the configured one, or the primary that a Sentinel names.
//!
//! How it fails: a Sentinel that does not answer costs [`SENTINEL_TIMEOUT`]; then the next one is
//! queried. When none answers, the error names the last one. A password that a Sentinel refuses is
//! followed by the one before.

use std::time::Duration;

use redis::{Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo};

use crate::credentials::{RedisOptions, passwords};
use crate::endpoint::Endpoint;

/// Timeout of a query to one Sentinel.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(300);

/// The server to connect to at this moment.
///
/// # Errors
/// No Sentinel named a primary; the text says what the last one answered.
pub(crate) async fn discover(
    endpoint: &Endpoint,
    options: &RedisOptions,
) -> Result<ConnectionInfo, String> {
    let (sentinels, name, server) = match endpoint {
        Endpoint::Server(server) => return Ok(server.clone()),
        Endpoint::Sentinels { sentinels, name, server } => (sentinels, name, server),
    };
    let mut problem = String::new();
    for sentinel in sentinels {
        match tokio::time::timeout(SENTINEL_TIMEOUT, query_sentinel(sentinel, name, options)).await
        {
            Ok(Ok(Some((host, port)))) => {
                return Ok(server.clone().set_addr(ConnectionAddr::Tcp(host, port)));
            }
            Ok(Ok(None)) => problem = format!("Sentinel {sentinel} knows no {name:?}"),
            Ok(Err(error)) => problem = format!("Sentinel {sentinel}: {error}"),
            Err(_) => problem = format!("Sentinel {sentinel} does not answer"),
        }
    }
    Err(problem)
}

async fn query_sentinel(
    sentinel: &str,
    name: &str,
    options: &RedisOptions,
) -> redis::RedisResult<Option<(String, u16)>> {
    let info = format!("redis://{sentinel}").into_connection_info()?;
    let mut refused = None;
    for version in passwords(options.sentinel_password.as_ref()) {
        let mut settings = info.redis_settings().clone();
        if let Some(version) = &version {
            settings = settings.set_password(version.value.expose());
            if let Some(user) = &options.sentinel_user {
                settings = settings.set_username(user);
            }
        }
        let client = Client::open(info.clone().set_redis_settings(settings))?;
        let report = |accepted: bool| {
            let known = options.sentinel_password.as_ref().zip(version.as_ref());
            match known {
                Some((password, version)) if accepted => {
                    password.accepted(sentinel, version.number)
                }
                Some((password, version)) => password.refused(sentinel, version.number),
                None => {}
            }
        };
        match client.get_multiplexed_async_connection().await {
            Ok(mut connection) => {
                report(true);
                return redis::cmd("SENTINEL")
                    .arg("get-master-addr-by-name")
                    .arg(name)
                    .query_async(&mut connection)
                    .await;
            }
            Err(error) if error.kind() == ErrorKind::AuthenticationFailed => {
                report(false);
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    // There is always one attempt.
    refused.map_or(Ok(None), Err)
}
