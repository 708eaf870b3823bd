//! Which hosts are this machine: one rule for everything that is allowed without encryption or
//! authentication here alone.

use std::net::{IpAddr, Ipv6Addr};

/// Whether a host, as a URL or a `Host` header names it, is this machine: `localhost` in any case,
/// an IPv4 address written in full, or an IPv6 address, in brackets or alone, also one that stands
/// for an IPv4 address. Every other name is not, whatever it resolves to.
pub fn is_loopback_host(host: &str) -> bool {
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = match host.strip_prefix('[') {
        Some(rest) => {
            rest.strip_suffix(']').and_then(|host| Some(host.parse::<Ipv6Addr>().ok()?.into()))
        }
        None => host.parse::<IpAddr>().ok(),
    };
    address.is_some_and(|address: IpAddr| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "LocalHost",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "",
            "localhost.",
            "localhost.example",
            "x.localhost",
            "[localhost]",
            "[127.0.0.1]",
            "[::1",
            "::1]",
            "[[::1]]",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "0.0.0.0",
            "::",
            "[::]",
            "10.0.0.1",
            "[::ffff:10.0.0.1]",
            "127.0.0.1.example",
            " 127.0.0.1",
            "fe80::1",
            "1.0.0.127",
        ] {
            assert!(!is_loopback_host(host), "{host:?}");
        }
    }
}
