//! What keeps web pages of other sites away: the names by which the service may be called, and who
//! may change something from a browser.
//!
//! Without authentication the network position of a caller is all that he proves, and every page
//! in a browser on this machine has it too. Two rules take it away from such pages: a request must
//! name a host of this service (a page whose name was rebound to this address names its own), and a
//! change must not come from a page of a different origin. With tokens neither is needed, because a
//! browser adds no token by itself; the names are then checked only if some are configured.
//!
//! How it fails: 421 `host_not_allowed` and 403 `cross_site`. A client that is no browser sends
//! neither `Origin` nor `Sec-Fetch-Site` and is asked for nothing.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use tagfast_resilience::{counter, is_loopback_host};

use crate::metric::{Foreign, HTTP_FOREIGN};
use crate::problem::{Code, Problem};

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Longest part of a foreign name that the error repeats, in characters.
const SHOWN_NAME_CHARS_MAX: usize = 80;

/// A host and port as a client names them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    /// In lower case, without brackets and without the dot at the end.
    host: String,
    /// `None`: none is named.
    port: Option<u16>,
}

impl Authority {
    /// `None`: not a host with an optional port.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                let address: std::net::Ipv6Addr = host.parse().ok()?;
                (address.to_string(), rest.strip_prefix(':').or(rest.is_empty().then_some("")))
            }
            None => {
                let (host, port) = text.split_once(':').unwrap_or((text, ""));
                (host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(), Some(port))
            }
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if host.is_empty() || !host.bytes().all(plain) {
            return None;
        }
        let port = match port? {
            "" => None,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
            _ => return None,
        };
        Some(Self { host, port })
    }
}

/// The names by which the service may be called.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts {
    /// Names that were configured.
    names: Vec<Authority>,
    /// The address of the listener; `None`: it does not count.
    own: Option<IpAddr>,
    /// Whether every other name is accepted too.
    any: bool,
}

impl AllowedHosts {
    /// Loopback addresses and `localhost` with any port, and `names`, each a host or `host:port`; a
    /// name without a port is accepted with any. `any` accepts every other name too.
    ///
    /// # Errors
    ///
    /// The name that is not a host or `host:port`.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, any: bool) -> Result<Self, &'a str> {
        let parse = |name: &'a str| Authority::parse(name).ok_or(name);
        let names = names.into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { names, own: None, any })
    }

    /// Adds the address of the listener, with any port. A page of that address may still not change
    /// anything unless it is a page of this service.
    #[must_use]
    pub fn with_listener(mut self, address: IpAddr) -> Self {
        self.own = Some(address);
        self
    }

    /// Whether a name was configured.
    fn is_named(&self, given: &Authority) -> bool {
        let fits = |port: Option<u16>| port.is_none() || port == given.port;
        self.names.iter().any(|named| named.host == given.host && fits(named.port))
    }

    /// Refuses a request that names a foreign host, and a change that a foreign page asks for.
    pub(crate) fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Problem> {
        if !self.any {
            let hosts = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
            for host in hosts.chain(uri.authority().map(|a| a.as_str().as_bytes())) {
                self.check_host(host)?;
            }
        }
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
            return Ok(());
        }
        self.check_origin(headers)
    }

    fn check_host(&self, host: &[u8]) -> Result<(), Problem> {
        let named = std::str::from_utf8(host).ok().and_then(Authority::parse);
        let is_own = |host: &Authority| host.host.parse().ok().is_some_and(|a| self.own == Some(a));
        if named.is_some_and(|host| {
            is_loopback_host(&host.host) || is_own(&host) || self.is_named(&host)
        }) {
            return Ok(());
        }
        counter!(HTTP_FOREIGN, "what" => Foreign::Host).increment(1);
        let shown = shown(host);
        Err(Problem::new(
            Code::HostNotAllowed,
            format!("{shown:?} is not a host of this service (server.allowed_hosts)"),
        ))
    }

    /// A page may change something if its origin is the service as it was called, or a configured
    /// name.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.and_then(Authority::parse);
        let mut is_named = false;
        for origin in headers.get_all(header::ORIGIN) {
            let page = origin.to_str().ok().and_then(Page::parse);
            is_named = page.as_ref().is_some_and(|page| self.is_named(&page.authority));
            if !is_named && !page.zip(host.as_ref()).is_some_and(|(page, host)| page.is_of(host)) {
                let shown = shown(origin.as_bytes());
                return Err(foreign(Foreign::Origin, format!("a page of {shown:?} asks for it")));
            }
        }
        for site in headers.get_all(&SEC_FETCH_SITE) {
            if !is_named && !["same-origin", "none"].iter().any(|own| site == own) {
                let shown = shown(site.as_bytes());
                let detail = format!("a page asks for it with Sec-Fetch-Site {shown:?}");
                return Err(foreign(Foreign::FetchSite, detail));
            }
        }
        Ok(())
    }
}

/// The page that an `Origin` names.
struct Page {
    authority: Authority,
    default_port: u16,
}

impl Page {
    /// `None`: `null`, or no origin of a web page.
    fn parse(origin: &str) -> Option<Self> {
        let (authority, default_port) = match origin.strip_prefix("http://") {
            Some(rest) => (rest, 80),
            None => (origin.strip_prefix("https://")?, 443),
        };
        Some(Self { authority: Authority::parse(authority)?, default_port })
    }

    /// Whether the page was loaded from this host. A proxy may have taken the TLS away, so the
    /// scheme decides only what a missing port means.
    fn is_of(&self, host: &Authority) -> bool {
        let port = |port: Option<u16>| port.unwrap_or(self.default_port);
        self.authority.host == host.host && port(self.authority.port) == port(host.port)
    }
}

fn foreign(what: Foreign, detail: String) -> Problem {
    counter!(HTTP_FOREIGN, "what" => what).increment(1);
    Problem::new(Code::CrossSite, detail)
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(SHOWN_NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts(names: &[&str]) -> AllowedHosts {
        AllowedHosts::new(names.iter().copied(), false).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn host_is_allowed(hosts: &AllowedHosts, host: &str) -> bool {
        hosts.check(&Method::GET, &Uri::from_static("/"), &headers(&[("host", host)])).is_ok()
    }

    #[test]
    fn loopback_and_configured_names_are_hosts_of_the_service() {
        let named = hosts(&["Tags.Example.com", "one:8080", "192.0.2.7", "[2001:db8::1]:90"]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:7070",
            "127.9.9.9:1",
            "localhost",
            "LocalHost:7070",
            "localhost.:7070",
            "[::1]",
            "[::1]:7070",
            "[0:0::1]:7070",
            "[::ffff:127.0.0.1]:7070",
            "tags.example.com",
            "TAGS.example.com.:443",
            "one:8080",
            "192.0.2.7:7070",
            "[2001:DB8:0::1]:90",
        ] {
            assert!(host_is_allowed(&named, host), "{host}");
        }
        for host in [
            "",
            ".",
            ":7070",
            "evil.example",
            "evil.example:7070",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example#127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "0.0.0.0:7070",
            "[::]:7070",
            "[::1",
            "::1",
            "[::1]x",
            "127.0.0.1:x",
            "127.0.0.1:99999",
            "127.0.0.1:+80",
            "127.0.0.1, evil.example",
            "one",
            "one:80",
            "192.0.2.8",
            "[2001:db8::1]",
            "löcalhost",
        ] {
            assert!(!host_is_allowed(&named, host), "{host}");
        }
    }

    #[test]
    fn the_listener_is_a_host_and_pages_of_its_other_ports_are_foreign() {
        let hosts = hosts(&[]).with_listener("192.0.2.7".parse().unwrap());
        assert!(host_is_allowed(&hosts, "192.0.2.7:7070") && !host_is_allowed(&hosts, "192.0.2.8"));
        let check = |origin: &str| {
            let pairs = [("host", "192.0.2.7:7070"), ("origin", origin)];
            hosts.check(&Method::PUT, &Uri::from_static("/"), &headers(&pairs)).is_ok()
        };
        assert!(check("http://192.0.2.7:7070") && !check("http://192.0.2.7:3000"));
    }

    #[test]
    fn every_name_of_a_request_counts() {
        let own = hosts(&[]);
        let check = |uri: &'static str, pairs: &[(&'static str, &str)]| {
            own.check(&Method::GET, &Uri::from_static(uri), &headers(pairs)).is_ok()
        };
        assert!(check("/", &[]), "no browser sends no host");
        assert!(!check("/", &[("host", "localhost"), ("host", "evil.example")]));
        assert!(!check("http://evil.example/", &[("host", "localhost")]));
        assert!(check("http://localhost/", &[("host", "localhost")]));
        let any = AllowedHosts::new([], true).unwrap();
        assert!(host_is_allowed(&any, "evil.example"));
    }

    #[test]
    fn only_pages_of_the_service_change_something() {
        let named = hosts(&["tags.example.com"]);
        let check = |pairs: &[(&'static str, &str)]| {
            let uri = Uri::from_static("/");
            let reads = named.check(&Method::GET, &uri, &headers(pairs));
            assert!(reads.is_ok(), "{pairs:?}");
            let methods = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
            let changes = methods.map(|m| named.check(&m, &uri, &headers(pairs)).is_ok());
            assert!(changes.iter().all(|ok| *ok == changes[0]), "{pairs:?}");
            changes[0]
        };
        let host = ("host", "127.0.0.1:7070");
        for own in [
            &[host][..],
            &[],
            &[host, ("origin", "http://127.0.0.1:7070")],
            &[host, ("origin", "http://127.0.0.1:7070"), ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "none")],
            &[("host", "localhost"), ("origin", "http://localhost:80")],
            &[("host", "tags.example.com"), ("origin", "https://tags.example.com")],
            &[host, ("origin", "https://tags.example.com"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(check(own), "{own:?}");
        }
        for foreign in [
            &[host, ("origin", "http://evil.example")][..],
            &[host, ("origin", "http://127.0.0.1:3000")],
            &[host, ("origin", "http://localhost:7070")],
            &[host, ("origin", "http://127.0.0.1")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[host, ("origin", "file://")],
            &[host, ("origin", "http://127.0.0.1:7070@evil.example")],
            &[host, ("origin", "http://127.0.0.1:7070, http://evil.example")],
            &[host, ("origin", "http://127.0.0.1:7070"), ("origin", "http://evil.example")],
            &[("origin", "http://127.0.0.1:7070")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site")],
            &[host, ("sec-fetch-site", "Same-Origin")],
            &[host, ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
            &[host, ("origin", "http://127.0.0.1:7070"), ("sec-fetch-site", "cross-site")],
            &[host, ("origin", "https://tags.example.com.evil.example")],
        ] {
            assert!(!check(foreign), "{foreign:?}");
        }
    }

    #[test]
    fn a_name_that_is_no_host_is_refused() {
        for bad in ["", "*", "http://x", "a b", "a/b", "a:b", "[::1", "a:1:2"] {
            assert_eq!(AllowedHosts::new(["ok", bad], false).unwrap_err(), bad);
        }
    }

    proptest! {
        #[test]
        fn a_name_that_ends_in_a_foreign_one_is_foreign(
            front in "(127\\.0\\.0\\.1|localhost|\\[::1\\])?[:.@#/?\\\\ ,a-z0-9-]{0,12}",
            port in "(:[0-9]{1,5})?",
        ) {
            let host = format!("{front}evil.example{port}");
            prop_assert!(!host_is_allowed(&hosts(&["own.example"]), &host), "{}", host);
        }
    }
}
