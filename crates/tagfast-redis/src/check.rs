//! Whether a server can be used for what it is to be used for.

use redis::aio::MultiplexedConnection;
use redis::{AsyncTypedCommands, RedisResult, Script};

use crate::Use;

/// The oldest version that has what is used.
const OLDEST: u32 = 7;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// It can be used; perhaps not as it should be.
    Fit { run_id: String, warning: Option<String> },
    /// It cannot.
    Unfit(String),
}

/// Replaces `tf:gen` unless somebody else did.
const RENEW: &str = "
local known = redis.call('GET', KEYS[1])
if (known or '') ~= ARGV[1] then return known end
local now = redis.call('TIME')
local made = ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. now[1]
redis.call('SET', KEYS[1], made)
return made";

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}

/// Judges what a server says of itself.
pub(crate) fn judge(info: &str, used_as: Use) -> Fitness {
    let version = field(info, "redis_version").unwrap_or("0");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < OLDEST {
        return Fitness::Unfit(format!("it is Redis {version}; {OLDEST}.0 or newer is needed"));
    }
    if field(info, "cluster_enabled") == Some("1") {
        return Fitness::Unfit(
            "it runs in cluster mode; use a single server or Sentinel".to_owned(),
        );
    }
    if field(info, "role").is_some_and(|role| role != "master") {
        return Fitness::Unfit("it is a replica".to_owned());
    }
    // Without a bound nothing is thrown away whatever the policy is.
    let bounded = field(info, "maxmemory").is_some_and(|bytes| bytes != "0");
    let policy = field(info, "maxmemory_policy").unwrap_or("noeviction");
    let warning = match (used_as, policy) {
        (Use::State, "noeviction") => None,
        (Use::State, _) if !bounded => None,
        (Use::State, other) => {
            let what = format!(
                "its maxmemory-policy is {other}, which throws counts and positions away; set it to noeviction"
            );
            return Fitness::Unfit(what);
        }
        (Use::Cache, "volatile-lru" | "volatile-lfu" | "volatile-ttl" | "volatile-random")
            if bounded =>
        {
            None
        }
        (Use::Cache, other) if bounded && other.starts_with("allkeys") => {
            let what = format!(
                "its maxmemory-policy is {other}, which throws away the numbers of messages; set it to volatile-lru"
            );
            return Fitness::Unfit(what);
        }
        (Use::Cache, _) if !bounded => {
            Some("it has no maxmemory: views fill the machine's memory".to_owned())
        }
        (Use::Cache, other) => Some(format!(
            "its maxmemory-policy is {other}: when it is full, no view is kept; volatile-lru is better"
        )),
    };
    Fitness::Fit { run_id: field(info, "run_id").unwrap_or_default().to_owned(), warning }
}

/// Looks at a server.
pub(crate) async fn look(
    connection: &mut MultiplexedConnection,
    used_as: Use,
) -> RedisResult<Fitness> {
    let info: String = redis::cmd("INFO").query_async(connection).await?;
    Ok(judge(&info, used_as))
}

/// A name that nobody else has: of a Redis, of a claim, of numbers.
pub fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Which Redis this is: `id run_id time`. Made anew when it is missing, or of a server process that
/// is gone: a copy that was restored, or a replica that took over, may show the old one.
pub(crate) async fn generation(
    connection: &mut MultiplexedConnection,
    run_id: &str,
) -> RedisResult<String> {
    let known: Option<String> = AsyncTypedCommands::get(connection, "tf:gen").await?;
    if let Some(known) = &known
        && known.split(' ').nth(1) == Some(run_id)
    {
        return Ok(known.clone());
    }
    let id = random_name()?;
    let script = Script::new(RENEW);
    let mut call = script.key("tf:gen");
    let made: String =
        call.arg(known.unwrap_or_default()).arg(id).arg(run_id).invoke_async(connection).await?;
    tracing::info!(generation = made, "the state Redis is another one than before");
    Ok(made)
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
    fn a_server_must_fit_its_use() {
        let fit = |info: &str, used_as| match judge(info, used_as) {
            Fitness::Fit { run_id, warning } => {
                assert_eq!(run_id, "abc");
                Ok(warning.is_some())
            }
            Fitness::Unfit(why) => Err(why),
        };
        assert_eq!(fit(&info("7.0.15", "noeviction", "100"), Use::State), Ok(false));
        assert_eq!(fit(&info("7.2.0", "allkeys-lru", "0"), Use::State), Ok(false));
        assert!(
            fit(&info("7.0.15", "volatile-lru", "100"), Use::State)
                .unwrap_err()
                .contains("noeviction")
        );
        assert_eq!(fit(&info("8.0.0", "volatile-lru", "100"), Use::Cache), Ok(false));
        assert_eq!(
            fit(&info("8.0.0", "noeviction", "100"), Use::Cache),
            Ok(true),
            "a developer's box"
        );
        assert_eq!(fit(&info("8.0.0", "volatile-lru", "0"), Use::Cache), Ok(true));
        assert!(
            fit(&info("8.0.0", "allkeys-lru", "100"), Use::Cache)
                .unwrap_err()
                .contains("volatile-lru")
        );
        assert!(fit(&info("6.2.1", "noeviction", "0"), Use::State).unwrap_err().contains("7.0"));
        let cluster =
            info("7.0.0", "noeviction", "0").replace("cluster_enabled:0", "cluster_enabled:1");
        assert!(fit(&cluster, Use::Cache).unwrap_err().contains("cluster mode"));
        let replica = info("7.0.0", "noeviction", "0").replace("role:master", "role:slave");
        assert!(fit(&replica, Use::Cache).unwrap_err().contains("replica"));
    }
}
