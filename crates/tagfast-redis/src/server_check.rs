//! Checks a server before it is used: version, mode, role and eviction policy; and tells which
//! state Redis it is ([`generation`]).
//!
//! How it fails: a server that could lose data in its role is unusable; one that only works worse
//! than it could is used with a warning.

use redis::aio::MultiplexedConnection;
use redis::{AsyncTypedCommands, RedisResult, Script};

use crate::keys;
use crate::role::RedisRole;

/// Oldest major version that has the commands in use.
const MIN_MAJOR_VERSION: u32 = 7;

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerCheck {
    /// The server can be used. `warning` says what is not set up well; `None` when all is.
    Usable { run_id: String, warning: Option<String> },
    /// The server must not be used; the text says why.
    Unusable(String),
}

/// Replaces the generation unless another node did; returns the one that is stored then.
const RENEW_GENERATION_SCRIPT: &str = "
local known = redis.call('GET', KEYS[1])
if (known or '') ~= ARGV[1] then return known end
local now = redis.call('TIME')
local new = ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. now[1]
redis.call('SET', KEYS[1], new)
return new";

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}

/// Evaluates a server's `INFO` text.
pub(crate) fn evaluate(info: &str, role: RedisRole) -> ServerCheck {
    let version = field(info, "redis_version").unwrap_or("0");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < MIN_MAJOR_VERSION {
        return ServerCheck::Unusable(format!(
            "it is Redis {version}; {MIN_MAJOR_VERSION}.0 or newer is needed"
        ));
    }
    if field(info, "cluster_enabled") == Some("1") {
        return ServerCheck::Unusable(
            "it runs in cluster mode; use a single server or Sentinel".to_owned(),
        );
    }
    if field(info, "role").is_some_and(|role| role != "master") {
        return ServerCheck::Unusable("it is a replica".to_owned());
    }
    // Without `maxmemory` nothing is evicted, whatever the policy.
    let bounded = field(info, "maxmemory").is_some_and(|bytes| bytes != "0");
    let policy = field(info, "maxmemory_policy").unwrap_or("noeviction");
    let warning = match (role, policy) {
        (RedisRole::State, "noeviction") => None,
        (RedisRole::State, _) if !bounded => None,
        (RedisRole::State, other) => {
            let what = format!(
                "its maxmemory-policy is {other}, which evicts leaderboards and positions; set it to noeviction"
            );
            return ServerCheck::Unusable(what);
        }
        (
            RedisRole::Cache,
            "volatile-lru" | "volatile-lfu" | "volatile-ttl" | "volatile-random",
        ) if bounded => None,
        (RedisRole::Cache, other) if bounded && other.starts_with("allkeys") => {
            let what = format!(
                "its maxmemory-policy is {other}, which evicts the sequences of invalidation messages; set it to volatile-lru"
            );
            return ServerCheck::Unusable(what);
        }
        (RedisRole::Cache, _) if !bounded => {
            Some("it has no maxmemory: cached views can fill the machine's memory".to_owned())
        }
        (RedisRole::Cache, other) => Some(format!(
            "its maxmemory-policy is {other}: when it is full, no view is cached; volatile-lru is better"
        )),
    };
    ServerCheck::Usable { run_id: field(info, "run_id").unwrap_or_default().to_owned(), warning }
}

/// Checks the server behind a connection.
pub(crate) async fn check(
    connection: &mut MultiplexedConnection,
    role: RedisRole,
) -> RedisResult<ServerCheck> {
    let info: String = redis::cmd("INFO").query_async(connection).await?;
    Ok(evaluate(&info, role))
}

/// A unique random name: 24 hexadecimal digits, for a generation, a claim or a sequence.
///
/// # Errors
/// The operating system has no random bytes.
pub fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(hex::encode(bytes))
}

/// The generation of a state Redis: `id run_id unix_seconds`. It is renewed when it is missing or
/// names another server process: a restored copy and a promoted replica hold the old one.
pub(crate) async fn generation(
    connection: &mut MultiplexedConnection,
    run_id: &str,
) -> RedisResult<String> {
    let known: Option<String> = AsyncTypedCommands::get(connection, keys::GENERATION).await?;
    if let Some(known) = &known
        && known.split(' ').nth(1) == Some(run_id)
    {
        return Ok(known.clone());
    }
    let id = random_name()?;
    let script = Script::new(RENEW_GENERATION_SCRIPT);
    let mut call = script.key(keys::GENERATION);
    let renewed: String =
        call.arg(known.unwrap_or_default()).arg(id).arg(run_id).invoke_async(connection).await?;
    tracing::info!(generation = renewed, "the state Redis has a new generation");
    Ok(renewed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(version: &str, policy: &str, maxmemory: &str) -> String {
        format!(
            "# Server\r\nredis_version:{version}\r\nrun_id:abc\r\n\r\nmaxmemory:{maxmemory}\r\n\
             maxmemory_policy:{policy}\r\nrole:master\r\ncluster_enabled:0\r\n"
        )
    }

    #[test]
    fn a_server_must_suit_its_role() {
        let check = |info: &str, role| match evaluate(info, role) {
            ServerCheck::Usable { run_id, warning } => {
                assert_eq!(run_id, "abc");
                Ok(warning.is_some())
            }
            ServerCheck::Unusable(why) => Err(why),
        };
        assert_eq!(check(&info("7.0.15", "noeviction", "100"), RedisRole::State), Ok(false));
        assert_eq!(check(&info("7.2.0", "allkeys-lru", "0"), RedisRole::State), Ok(false));
        assert!(
            check(&info("7.0.15", "volatile-lru", "100"), RedisRole::State)
                .unwrap_err()
                .contains("noeviction")
        );
        assert_eq!(check(&info("8.0.0", "volatile-lru", "100"), RedisRole::Cache), Ok(false));
        assert_eq!(
            check(&info("8.0.0", "noeviction", "100"), RedisRole::Cache),
            Ok(true),
            "a developer's box"
        );
        assert_eq!(check(&info("8.0.0", "volatile-lru", "0"), RedisRole::Cache), Ok(true));
        assert!(
            check(&info("8.0.0", "allkeys-lru", "100"), RedisRole::Cache)
                .unwrap_err()
                .contains("volatile-lru")
        );
        assert!(
            check(&info("6.2.1", "noeviction", "0"), RedisRole::State).unwrap_err().contains("7.0")
        );
        let cluster =
            info("7.0.0", "noeviction", "0").replace("cluster_enabled:0", "cluster_enabled:1");
        assert!(check(&cluster, RedisRole::Cache).unwrap_err().contains("cluster mode"));
        let replica = info("7.0.0", "noeviction", "0").replace("role:master", "role:slave");
        assert!(check(&replica, RedisRole::Cache).unwrap_err().contains("replica"));
    }
}
