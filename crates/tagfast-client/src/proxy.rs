//! The proxy between this program and a server, for the words of an error: a proxy that the
//! environment names is used without a word, and a failure then looks like one of the server.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

/// Variables that name a proxy, in the order in which they are looked at, by the URL's scheme.
const VARIABLES: &[(&str, &[&str])] = &[
    ("http", &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
    ("https", &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
];

/// A proxy that requests to a server go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// Its address, without the password that the variable may have.
    pub address: String,
    /// The variable that names it.
    pub variable: &'static str,
}

impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "through the proxy {} ({})", self.address, self.variable)
    }
}

impl Via {
    /// The proxy that requests to `url` go through; `None`: they go to the server. Decided by the
    /// rules of the HTTP library, with its own code.
    pub(crate) fn of(url: &str) -> Option<Self> {
        Self::matching(url, &Matcher::from_env(), |name| std::env::var(name).ok())
    }

    fn matching(
        url: &str,
        matcher: &Matcher,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let proxy = matcher.intercept(&url)?;
        let authority = proxy.uri().authority()?;
        let port = authority.port().map(|port| format!(":{port}")).unwrap_or_default();
        let scheme = proxy.uri().scheme_str().unwrap_or("http");
        let (_, names) = VARIABLES.iter().find(|(scheme, _)| url.scheme_str() == Some(scheme))?;
        let named = |name: &&&str| variable(name).is_some_and(|value| !value.is_empty());
        Some(Self {
            address: format!("{scheme}://{}{port}", authority.host()),
            variable: names.iter().find(named)?,
        })
    }

    /// What to do if the proxy is the fault.
    pub(crate) fn hint(&self) -> String {
        format!(
            "is the proxy meant for this server? unset {}, or add the server to NO_PROXY",
            self.variable
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(url: &str, variables: &[(&str, &str)]) -> Option<String> {
        let get = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        let any = |names: [&str; 2]| names.iter().find_map(|name| get(name)).unwrap_or_default();
        let matcher = Matcher::builder()
            .all(any(["ALL_PROXY", "all_proxy"]))
            .http(any(["HTTP_PROXY", "http_proxy"]))
            .https(any(["HTTPS_PROXY", "https_proxy"]))
            .no(any(["NO_PROXY", "no_proxy"]))
            .build();
        Via::matching(url, &matcher, get).map(|via| via.to_string())
    }

    #[test]
    fn a_proxy_is_named_with_its_variable_and_without_its_password() {
        let secret = [("HTTP_PROXY", "http://ana:secret@proxy.example:3128")];
        assert_eq!(
            via("http://tags.example:7070", &secret).as_deref(),
            Some("through the proxy http://proxy.example:3128 (HTTP_PROXY)")
        );
        assert_eq!(via("https://tags.example", &secret), None);
        for (variable, url) in [
            ("http_proxy", "http://tags.example"),
            ("https_proxy", "https://tags.example"),
            ("ALL_PROXY", "https://tags.example"),
        ] {
            let found = via(url, &[(variable, "http://p:1")]).unwrap();
            assert!(found.ends_with(&format!("http://p:1 ({variable})")), "{found}");
        }
    }

    #[test]
    fn a_server_without_a_proxy_has_none() {
        assert_eq!(via("http://tags.example", &[]), None);
        assert_eq!(via("http://tags.example", &[("HTTP_PROXY", "")]), None);
        let both = [("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "127.0.0.1,.example")];
        assert_eq!(via("http://tags.example", &both), None);
        assert_eq!(via("http://127.0.0.1:7070", &both), None);
        assert!(via("http://other.test", &both).is_some());
    }
}
