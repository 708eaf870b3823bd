//! The address of a Redis: one server, or a primary that Sentinels watch.
//!
//! How it fails: an invalid URL is refused. The error never repeats the URL, which may hold a
//! password.

use redis::{ConnectionInfo, IntoConnectionInfo};

const SENTINEL_SCHEME: &str = "redis+sentinel://";

/// A URL that is not a valid Redis address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not a Redis URL ({0}); write redis://[user:password@]host:port[/db] or redis+sentinel://[user:password@]host:port,host:port/name"
)]
pub struct InvalidUrl(pub(crate) String);

/// The address of a Redis.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A single server.
    Server(ConnectionInfo),
    /// A primary whose address Sentinels know.
    Sentinels {
        /// Sentinels as `host:port`.
        sentinels: Vec<String>,
        /// Name under which the Sentinels know the primary.
        name: String,
        /// User, password and database of the primary; its address is replaced by the discovered
        /// one. The Sentinels' user and password are not here.
        server: ConnectionInfo,
    },
}

impl Endpoint {
    /// The user at the server; `None`: the default user.
    pub(crate) fn user(&self) -> Option<&str> {
        let (Self::Server(server) | Self::Sentinels { server, .. }) = self;
        server.redis_settings().username()
    }

    /// Parses a `redis://`, `unix://`, `redis+unix://` or `redis+sentinel://` URL.
    ///
    /// # Errors
    /// [`InvalidUrl`]; it does not repeat the URL.
    pub fn parse(url: &str) -> Result<Self, InvalidUrl> {
        let Some(rest) = url.strip_prefix(SENTINEL_SCHEME) else {
            let known = url.starts_with("redis://")
                || url.starts_with("unix://")
                || url.starts_with("redis+unix://");
            if !known {
                return Err(InvalidUrl("unknown scheme".to_owned()));
            }
            return url
                .into_connection_info()
                .map(Self::Server)
                .map_err(|error| InvalidUrl(error.category().to_owned()));
        };
        let (user, rest) =
            rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let (hosts, name) = rest
            .split_once('/')
            .ok_or_else(|| InvalidUrl("the name of the primary is missing".to_owned()))?;
        let (name, db) = name.split_once('/').map_or((name, "0"), |(name, db)| (name, db));
        let sentinels: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let port = |host: &String| {
            host.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok())
        };
        if name.is_empty() || !sentinels.iter().all(port) {
            return Err(InvalidUrl(
                "each Sentinel must be host:port, followed by the name".to_owned(),
            ));
        }
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let server = format!("redis://{user}127.0.0.1:1/{db}");
        let server = server
            .into_connection_info()
            .map_err(|error| InvalidUrl(error.category().to_owned()))?;
        Ok(Self::Sentinels { sentinels, name: name.to_owned(), server })
    }
}

#[cfg(test)]
mod tests {
    use redis::ConnectionAddr;

    use super::*;

    #[test]
    fn server_and_sentinel_urls_are_distinguished() {
        let Endpoint::Server(server) = Endpoint::parse("redis://:pw@h:7000/2").unwrap() else {
            panic!("a server")
        };
        assert_eq!(server.addr(), &ConnectionAddr::Tcp("h".to_owned(), 7000));
        let parsed = Endpoint::parse("redis+sentinel://app:p%40w@a:26379,b:26380/main").unwrap();
        let Endpoint::Sentinels { sentinels, name, server } = parsed else { panic!("sentinels") };
        assert_eq!(
            (sentinels, name.as_str()),
            (vec!["a:26379".to_owned(), "b:26380".to_owned()], "main")
        );
        assert_eq!(server.redis_settings().username(), Some("app"));
        assert_eq!(server.redis_settings().password(), Some("p@w"));
    }

    #[test]
    fn an_invalid_url_is_refused_without_its_password() {
        for bad in [
            "http://user:secret@h",
            "redis://user:secret@:x",
            "redis+sentinel://secret@a:1",
            "redis+sentinel://secret@a/main",
            "redis+sentinel://secret@a:1/",
            "secret",
        ] {
            let error = Endpoint::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
