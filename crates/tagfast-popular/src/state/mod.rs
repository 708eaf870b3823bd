//! The boards of all processes, in the state Redis.
//!
//! Each partition's owner pushes absolute counts of the tags that changed; the owner of a tenant's partition adds them up to the
//! tenant's boards; whoever answers questions reads those. Redis keeps nothing that is not in the owners' files: emptied, restored
//! from an old copy or replaced by a replica it is filled again. Every change is made behind a claim: who owned a partition
//! before cannot put older counts over newer ones.
//!
//! | key | |
//! |---|---|
//! | `tf:gen` | which Redis this is: `id run_id time`; made by whoever finds it missing or of another server process |
//! | `tf:po:P` | who owns partition P: a random claim |
//! | `tf:pc:P:tenant:window` | hash tag -> count in this partition; of `all` with the first spelling |
//! | `tf:pp:P` | tenants that partition P has counts of |
//! | `tf:pa` | hash partition -> everything committed before this is pushed |
//! | `tf:pd:tenant`, `tf:pm:tenant` | tags to be added up, and those being added up |
//! | `tf:pt:P` | tenants whose boards the owner of P has to add up |
//! | `tf:pl:tenant:window`, `tf:pn:tenant` | the board, and the spellings |
//! | `tf:pv:tenant` | when the boards changed: no counter, which an emptied Redis would begin anew |
//! | `tf:pw` | hash partition -> everything committed before this is on the boards that its owner adds up |

mod reader;
mod writer;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, AsyncTypedCommands, Client, ErrorKind, RedisError, Script, ServerErrorKind};
use tagfast_domain::TenantId;
use tagfast_events::Partition;
use tagfast_sharding::ContentHash;
use tokio::sync::Mutex;

pub use self::reader::StateBoards;
pub use self::writer::BoardWriter;
use crate::Window;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// The oldest version that has what is used.
const OLDEST: u32 = 7;

/// Why the state Redis cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The URL cannot be read. It is not repeated: it may hold a password.
    #[error("the URL of the state Redis cannot be used: {0}")]
    Url(String),
    /// Another server than this needs.
    #[error("the state Redis cannot be used: {0}")]
    Unfit(String),
    /// It cannot be reached, or does not answer.
    #[error("the state Redis is unavailable: {0}")]
    Unavailable(String),
    /// Somebody else claimed the partition.
    #[error("another process owns the partition")]
    Fenced,
}

impl From<RedisError> for StateError {
    fn from(error: RedisError) -> Self {
        if error.code() == Some("FENCED") {
            return Self::Fenced;
        }
        if error.kind() == ErrorKind::AuthenticationFailed {
            return Self::Unfit(format!("it refuses the password or user: {error}"));
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            return Self::Unavailable("it is a replica now".to_owned());
        }
        Self::Unavailable(error.to_string())
    }
}

/// The state Redis.
pub struct StateRedis {
    client: Client,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// The number of a window's part in scripts and values.
pub(crate) const WINDOWS: [Window; 4] = [Window::All, Window::Hour, Window::Day, Window::Week];

/// The partition whose owner adds up a tenant's boards.
pub(crate) fn merging(tenant: &TenantId, partitions: u16) -> Partition {
    let hash = ContentHash::of_bytes(tenant.as_str().as_bytes()).0;
    Partition((hash % u64::from(partitions.max(1))) as u16)
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

/// Random text: a claim, or the id of a Redis.
fn random() -> Result<String, StateError> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|error| StateError::Unavailable(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl StateRedis {
    /// Nothing is asked of the server yet.
    pub fn new(url: &str) -> Result<Self, StateError> {
        let client = Client::open(url).map_err(|error| StateError::Url(error.to_string()))?;
        Ok(Self { client, connection: Mutex::new(None) })
    }

    /// A connection, opened and checked if there is none.
    async fn connection(&self) -> Result<MultiplexedConnection, StateError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let config =
            AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER)).set_connection_timeout(Some(CONNECT));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        check(&mut connection).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// A connection that failed is thrown away.
    async fn failed(&self) {
        *self.connection.lock().await = None;
    }

    /// Whether it can be used: reached, new enough, and not one that throws entries away.
    pub async fn check(&self) -> Result<(), StateError> {
        self.connection().await.map(drop)
    }

    /// Which Redis this is: another id means that what was there may be gone or old.
    pub async fn generation(&self) -> Result<String, StateError> {
        let mut connection = self.connection().await?;
        let asked = generation(&mut connection).await;
        if asked.is_err() {
            self.failed().await;
        }
        asked
    }
}

async fn check(connection: &mut MultiplexedConnection) -> Result<(), StateError> {
    let info: String = redis::cmd("INFO").query_async(connection).await?;
    let version = field(&info, "redis_version").unwrap_or("0");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < OLDEST {
        return Err(StateError::Unfit(format!("it is Redis {version}; {OLDEST}.0 or newer is needed")));
    }
    if field(&info, "cluster_enabled") == Some("1") {
        return Err(StateError::Unfit("it runs in cluster mode; use a single server or Sentinel".to_owned()));
    }
    match field(&info, "maxmemory_policy") {
        Some("noeviction") | None => Ok(()),
        // Without a bound nothing is thrown away whatever the policy is.
        Some(_) if field(&info, "maxmemory") == Some("0") => Ok(()),
        Some(other) => {
            let what = format!("its maxmemory-policy is {other}, which throws counts away; set it to noeviction");
            Err(StateError::Unfit(what))
        }
    }
}

async fn generation(connection: &mut MultiplexedConnection) -> Result<String, StateError> {
    let info: String = redis::cmd("INFO").arg("server").query_async(connection).await?;
    let run_id = field(&info, "run_id").unwrap_or_default();
    let known: Option<String> = AsyncTypedCommands::get(connection, "tf:gen").await?;
    if let Some(known) = &known
        && known.split(' ').nth(1) == Some(run_id)
    {
        return Ok(known.clone());
    }
    // Missing, or of a server process that is gone: a copy that was restored, or a replica that took over.
    let script = Script::new(RENEW);
    let mut call = script.key("tf:gen");
    let made: String = call.arg(known.unwrap_or_default()).arg(random()?).arg(run_id).invoke_async(connection).await?;
    tracing::info!(generation = made, "the state Redis is another one than before");
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_from_what_redis_says_of_itself() {
        let info =
            "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!((field(info, "redis_version"), field(info, "run_id")), (Some("7.0.15"), Some("abc")));
        assert_eq!((field(info, "maxmemory"), field(info, "nothing")), (Some("0"), None));
    }

    #[test]
    fn every_tenant_has_one_partition_that_adds_up() {
        let tenant: TenantId = "acme".parse().unwrap();
        assert_eq!(merging(&tenant, 8), merging(&tenant, 8));
        assert!(merging(&tenant, 3).0 < 3);
    }
}
