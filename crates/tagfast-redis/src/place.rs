//! Where a Redis is: one server, or whatever Sentinels say.
//!
//! How it fails: a URL that cannot be read is refused at once, without repeating it: it may hold a
//! password. A Sentinel that does not answer costs its time, then the next one is asked.

use std::time::Duration;

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

/// How long one Sentinel may take.
const SENTINEL: Duration = Duration::from_millis(300);
const SENTINEL_SCHEME: &str = "redis+sentinel://";

/// A URL that names no Redis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not a Redis URL ({0}); write redis://[user:password@]host:port[/db] or redis+sentinel://[user:password@]host:port,host:port/name"
)]
pub struct BadUrl(pub(crate) String);

/// Where a Redis is.
#[derive(Debug, Clone)]
pub enum Place {
    /// One server.
    Server(ConnectionInfo),
    /// The primary that Sentinels name.
    Sentinels {
        /// The Sentinels, `host:port`.
        sentinels: Vec<String>,
        /// The name they know it by.
        name: String,
        /// User, password and database of the server that they name; Sentinels are asked without.
        server: ConnectionInfo,
    },
}

impl Place {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, BadUrl> {
        let Some(rest) = url.strip_prefix(SENTINEL_SCHEME) else {
            let known = url.starts_with("redis://")
                || url.starts_with("unix://")
                || url.starts_with("redis+unix://");
            if !known {
                return Err(BadUrl("the scheme is another one".to_owned()));
            }
            return url
                .into_connection_info()
                .map(Self::Server)
                .map_err(|error| BadUrl(error.category().to_owned()));
        };
        let (user, rest) =
            rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let (hosts, name) =
            rest.split_once('/').ok_or_else(|| BadUrl("the name is missing".to_owned()))?;
        let (name, db) = name.split_once('/').map_or((name, "0"), |(name, db)| (name, db));
        let sentinels: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let port = |host: &String| {
            host.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok())
        };
        if name.is_empty() || !sentinels.iter().all(port) {
            return Err(BadUrl("each Sentinel is host:port, and the name follows".to_owned()));
        }
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let server = format!("redis://{user}127.0.0.1:1/{db}");
        let server =
            server.into_connection_info().map_err(|error| BadUrl(error.category().to_owned()))?;
        Ok(Self::Sentinels { sentinels, name: name.to_owned(), server })
    }

    /// Where to connect to now.
    pub(crate) async fn find(&self) -> Result<ConnectionInfo, String> {
        let (sentinels, name, server) = match self {
            Self::Server(server) => return Ok(server.clone()),
            Self::Sentinels { sentinels, name, server } => (sentinels, name, server),
        };
        let mut last = String::new();
        for sentinel in sentinels {
            match tokio::time::timeout(SENTINEL, ask(sentinel, name)).await {
                Ok(Ok(Some((host, port)))) => {
                    return Ok(server.clone().set_addr(ConnectionAddr::Tcp(host, port)));
                }
                Ok(Ok(None)) => last = format!("Sentinel {sentinel} knows no {name:?}"),
                Ok(Err(error)) => last = format!("Sentinel {sentinel}: {error}"),
                Err(_) => last = format!("Sentinel {sentinel} does not answer"),
            }
        }
        Err(last)
    }
}

async fn ask(sentinel: &str, name: &str) -> redis::RedisResult<Option<(String, u16)>> {
    let client = Client::open(format!("redis://{sentinel}"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("SENTINEL")
        .arg("get-master-addr-by-name")
        .arg(name)
        .query_async(&mut connection)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_sentinels_are_told_apart() {
        let Place::Server(server) = Place::parse("redis://:pw@h:7000/2").unwrap() else {
            panic!("a server")
        };
        assert_eq!(server.addr(), &ConnectionAddr::Tcp("h".to_owned(), 7000));
        let parsed = Place::parse("redis+sentinel://app:p%40w@a:26379,b:26380/main").unwrap();
        let Place::Sentinels { sentinels, name, server } = parsed else { panic!("sentinels") };
        assert_eq!(
            (sentinels, name.as_str()),
            (vec!["a:26379".to_owned(), "b:26380".to_owned()], "main")
        );
        assert_eq!(server.redis_settings().username(), Some("app"));
        assert_eq!(server.redis_settings().password(), Some("p@w"));
    }

    #[test]
    fn a_wrong_url_is_refused_without_its_password() {
        for bad in [
            "http://user:secret@h",
            "redis://user:secret@:x",
            "redis+sentinel://secret@a:1",
            "redis+sentinel://secret@a/main",
            "redis+sentinel://secret@a:1/",
            "secret",
        ] {
            let error = Place::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
