//! Finds the server to connect to: the configured one, or the primary that a Sentinel names.
//!
//! How it fails: a Sentinel that does not answer costs [`SENTINEL_TIMEOUT`]; then the next one is
//! queried. When none answers, the error names the last one.

use std::time::Duration;

use redis::{Client, ConnectionAddr, ConnectionInfo};

use crate::endpoint::Endpoint;

/// Timeout of a query to one Sentinel.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(300);

/// The server to connect to at this moment.
///
/// # Errors
/// No Sentinel named a primary; the text says what the last one answered.
pub(crate) async fn discover(endpoint: &Endpoint) -> Result<ConnectionInfo, String> {
    let (sentinels, name, server) = match endpoint {
        Endpoint::Server(server) => return Ok(server.clone()),
        Endpoint::Sentinels { sentinels, name, server } => (sentinels, name, server),
    };
    let mut problem = String::new();
    for sentinel in sentinels {
        match tokio::time::timeout(SENTINEL_TIMEOUT, query_sentinel(sentinel, name)).await {
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

async fn query_sentinel(sentinel: &str, name: &str) -> redis::RedisResult<Option<(String, u16)>> {
    let client = Client::open(format!("redis://{sentinel}"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("SENTINEL")
        .arg("get-master-addr-by-name")
        .arg(name)
        .query_async(&mut connection)
        .await
}
