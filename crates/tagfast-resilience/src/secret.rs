//! Secrets, and addresses that may hold one: no output shows them.
//!
//! A [`Secret`] is printed as `***` and cannot be serialised; the code that needs its value says so
//! with [`Secret::expose`]. An [`Address`] is printed without its user, password and query values.
//! [`scrubbed`] does the same for every URL in a text that a library wrote.
//!
//! How it fails: towards hiding too much. What cannot be told apart from a secret is hidden: all
//! that stands before the last `@`, and every value behind a `?` or `#`.

use std::borrow::Cow;
use std::fmt;

/// What is printed in place of a secret.
pub const HIDDEN: &str = "***";

/// A value that no output shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T = String>(T);

impl<T> Secret<T> {
    /// Hides a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for who must send it or compute with it. It must not be printed.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// The address of a server, which may hold a user, a password or a key: `Display` and `Debug` hide
/// them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Takes an address as it was configured.
    pub fn new(address: impl Into<String>) -> Self {
        Self(address.into())
    }

    /// The whole address, for who connects to it. It must not be printed.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Address {
    fn from(address: String) -> Self {
        Self(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&redacted(&self.0), f)
    }
}

/// An address without its user and password and without the values of its query and fragment; also
/// `host:port`, a list of them, and `NAME=URL`.
pub fn redacted(address: &str) -> String {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, address),
    };
    let mut text = String::new();
    if let Some(scheme) = scheme {
        text.push_str(&without_user(scheme));
        text.push_str("://");
    }
    let query = rest.find(['?', '#']);
    if query.is_some_and(|query| rest[query..].contains('@')) {
        // A password with a `?`, or a query with an `@`: either side may be the secret.
        text.push_str(HIDDEN);
        return text;
    }
    let place = without_user(rest);
    let end = place.find(['?', '#']).unwrap_or(place.len());
    let (place, hidden) = place.split_at(end);
    text.push_str(place);
    if let Some(mark) = hidden.chars().next() {
        text.push(mark);
        let names = hidden[1..].split('&').map(|pair| pair.split_once('='));
        let names = names.map(|pair| match pair {
            // Of a fragment, or of an odd query, nothing is known.
            Some((name, _)) if mark == '?' && is_plain(name) => format!("{name}={HIDDEN}"),
            Some(_) | None => HIDDEN.to_owned(),
        });
        text.push_str(&names.collect::<Vec<_>>().join("&"));
    }
    text
}

/// Scheme, host and port of a URL whose path may be a secret too, as that of a webhook.
pub fn origin(address: &str) -> String {
    let text = redacted(address);
    let Some((scheme, rest)) = text.split_once("://") else { return HIDDEN.to_owned() };
    match rest.find(['/', '?', '#']) {
        Some(end) => format!("{scheme}://{}/{HIDDEN}", &rest[..end]),
        None => text,
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// All that stands before the last `@` becomes [`HIDDEN`]: a password with a `/` or an `@` in it is
/// no valid part of a URL, and is hidden all the same.
fn without_user(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}").into(),
        None => text.into(),
    }
}

/// A text, for example a line of a log, with each URL in it [`redacted`].
pub fn scrubbed(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return text.into();
    }
    let outside = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>' | '\\');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let start = rest[..at].rfind(outside).map_or(0, |i| i + char_len(rest, i));
        let end = rest[at..].find(outside).map_or(rest.len(), |i| at + i);
        out.push_str(&rest[..start]);
        out.push_str(&redacted(&rest[start..end]));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out.into()
}

fn char_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_shown_without_what_may_be_secret() {
        for (address, shown) in [
            ("redis://me:geheim@host:1/0", "redis://***@host:1/0"),
            ("redis://:geheim@host", "redis://***@host"),
            ("redis+sentinel://u:geheim@a:1,b:2/main", "redis+sentinel://***@a:1,b:2/main"),
            ("https://u:ge/he@im@host/x", "https://***@host/x"),
            ("http://host:9200/?key=geheim&geheim", "http://host:9200/?key=***&***"),
            ("https://host/a#geheim", "https://host/a#***"),
            ("https://h/?to=https://u:geheim@other/?k=geheim", "https://***"),
            ("https://u:ge?heim@host/", "https://***"),
            ("c0=http://u:geheim@host:8008", "c0=http://***@host:8008"),
            ("http://u:geheim@a:1,http://v:geheim@b:2", "http://***@b:2"),
            ("user:geheim@host:9092", "***@host:9092"),
            ("host:9092", "host:9092"),
            ("http://[::1]:2379", "http://[::1]:2379"),
        ] {
            assert_eq!(redacted(address), shown, "{address}");
        }
        assert_eq!(
            origin("https://u:geheim@hooks.example/T0/geheim"),
            "https://***@hooks.example/***"
        );
        assert_eq!(origin("https://hooks.example"), "https://hooks.example");
        assert_eq!(origin("geheim"), HIDDEN);
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Secret::new("geheim".to_owned());
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        let address = Address::new("http://u:geheim@h/?k=geheim");
        assert_eq!(format!("{address} {address:?}"), "http://***@h/?k=*** \"http://***@h/?k=***\"");
        assert_eq!(address.expose(), "http://u:geheim@h/?k=geheim");
    }

    #[test]
    fn urls_in_a_text_are_scrubbed_and_the_rest_stays() {
        let line = "{\"url\":\"http://u:geheim@h:1/x\",\"to\":\"redis://:geheim@r\"} a@b é: end";
        assert_eq!(
            scrubbed(line),
            "{\"url\":\"http://***@h:1/x\",\"to\":\"redis://***@r\"} a@b é: end"
        );
        assert_eq!(scrubbed("request for url (http://h/?k=geheim) failed"), {
            "request for url (http://h/?k=*** failed"
        });
        assert_eq!(scrubbed("nothing @ all"), "nothing @ all");
    }

    proptest! {
        #[test]
        fn no_secret_of_an_address_is_left(
            scheme in "(c[0-9]=)?(https?|redis|redis\\+sentinel)",
            secret in "[A-Z0-9/?#@:&=%]{0,6}ZZSECRETZZ[A-Z0-9]{0,6}",
            host in "[a-z]{1,9}(:[0-9]{1,5})?",
            form in 0..4u8,
        ) {
            let address = match form {
                0 => format!("{scheme}://user:{secret}@{host}/path"),
                1 => format!("{scheme}://{secret}@{host}"),
                2 => format!("{scheme}://{host}/path?token={secret}"),
                _ => format!("{scheme}://{host}/#{secret}"),
            };
            for shown in [redacted(&address), scrubbed(&format!("to {address} \"")).into_owned()] {
                prop_assert!(!shown.contains("ZZSECRETZZ"), "{address} is shown as {shown}");
            }
        }
    }
}
