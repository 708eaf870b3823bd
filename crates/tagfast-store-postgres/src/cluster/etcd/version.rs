//! The versions of etcd's members, for one known fault of older ones.
//!
//! A leader of etcd whose disk stood still revokes, when it goes on, leases that were kept alive at
//! its successor (etcd issue 15247; fixed in 3.5.13 and 3.4.31). A cluster's primary then loses its
//! leader key although it lives.
//!
//! How it fails: a member that does not tell its version is not named.

use futures_util::future::join_all;
use serde_json::Value;
use tagfast_resilience::Address;

use super::Etcd;

/// A version of etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EtcdVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl EtcdVersion {
    /// Reads `3.5.13`, also with something after it; `None`: it is no version.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.splitn(3, '.');
        let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let patch = numbers.next()?;
        let digits = patch.find(|c: char| !c.is_ascii_digit()).unwrap_or(patch.len());
        Some(Self { major, minor, patch: patch[..digits].parse().ok()? })
    }

    /// Whether a leader that stood still revokes leases that were kept alive at its successor.
    fn revokes_kept_leases(self) -> bool {
        match (self.major, self.minor) {
            (3, 4) => self.patch < 31,
            (3, 5) => self.patch < 13,
            (major, minor) => (major, minor) < (3, 4),
        }
    }
}

/// The warning about members of these versions; `None`: none is needed.
fn warning(versions: &[String]) -> Option<String> {
    let parsed = versions.iter().filter_map(|text| EtcdVersion::parse(text));
    let EtcdVersion { major, minor, patch } =
        parsed.filter(|version| version.revokes_kept_leases()).min()?;
    Some(format!(
        "etcd {major}.{minor}.{patch} is older than 3.5.13: when its leader stalls and goes on, it \
         can end the lease of a primary that lives (etcd issue 15247): a failover for nothing, \
         and writes acknowledged in the second after it can be lost, bounded and listed like \
         those of every failover; upgrade etcd to 3.5.13 or later (3.4: to 3.4.31)"
    ))
}

impl Etcd {
    /// Asks every URL for its version; the warning about old ones, `None`: none is needed.
    pub(crate) async fn version_warning(&self) -> Option<String> {
        let version = |url: &Address| {
            let request = self.http.get(format!("{}/version", url.expose()));
            async move {
                let answer = request.send().await.ok()?;
                let value: Value = tagfast_json::from_slice(&answer.bytes().await.ok()?).ok()?;
                value["etcdserver"].as_str().map(str::to_owned)
            }
        };
        let answers = join_all(self.urls.iter().map(version)).await;
        warning(&answers.into_iter().flatten().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_with_the_fault_are_named() {
        let of = |versions: &[&str]| {
            warning(&versions.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        for old in ["3.5.12", "3.5.0", "3.4.23", "3.4.30", "3.3.27", "2.3.8", "3.5.12-rc.1"] {
            let text = of(&["3.6.1", old, "3.5.13"]).expect(old);
            assert!(text.contains(old.trim_end_matches("-rc.1")), "{text}");
            assert!(text.contains("upgrade etcd"), "{text}");
        }
        for good in ["3.5.13", "3.5.21", "3.6.0", "3.6.0-rc.1", "3.4.31", "3.4.37", "4.0.0"] {
            assert_eq!(of(&[good]), None, "{good}");
        }
        // The oldest is named.
        assert!(of(&["3.5.9", "3.4.23"]).is_some_and(|text| text.contains("3.4.23")));
        assert_eq!(of(&["", "x.y.z", "3", "3.5", "not decided", "3.5."]), None);
        assert_eq!(of(&[]), None);
    }
}
