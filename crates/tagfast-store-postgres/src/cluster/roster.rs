//! The roster of a cluster: every member that was ever seen, kept in etcd.
//!
//! Patroni's own keys expire, and a member without a key may still be promoted. So members are
//! added when they are seen, by compare-and-swap, and removed by an operator only.
//!
//! How it fails: a roster that cannot be read is left alone and reported; the members that this
//! process has seen count meanwhile.

use crate::cluster::node::Node;

/// Every member of a cluster that was ever seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    pub(crate) names: Vec<String>,
    /// Of the key in etcd; 0: it does not exist.
    pub(crate) mod_revision: u64,
}

impl Roster {
    /// The key in etcd.
    pub(crate) fn key(scope: &str) -> String {
        format!("/tagfast/v1/{scope}/roster")
    }

    /// Reads the key's value and its modification revision; `None` of them: the key does not exist.
    /// Returns `None` for a value that is not a list of names.
    pub(crate) fn read(entry: Option<(&[u8], u64)>) -> Option<Self> {
        let Some((value, mod_revision)) = entry else { return Some(Self::default()) };
        let names = tagfast_json::from_slice(value).ok()?;
        Some(Self { names, mod_revision })
    }

    /// A roster of these members that is in no etcd.
    pub(crate) fn of_names(names: &[String]) -> Self {
        Self { names: names.to_vec(), mod_revision: 0 }
    }

    /// The roster with these members; `None`: it has them all.
    pub(crate) fn with(&self, members: &[Node]) -> Option<Self> {
        let mut names = self.names.clone();
        names.extend(members.iter().map(|member| member.name.clone()));
        names.sort_unstable();
        names.dedup();
        let has_new = names.iter().any(|name| !self.names.contains(name));
        has_new.then_some(Self { names, mod_revision: self.mod_revision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        Node { name: name.to_owned(), address: String::new() }
    }

    #[test]
    fn a_roster_only_grows() {
        let fresh = Roster::read(None).expect("a cluster that was never seen");
        let first = fresh.with(&[node("b"), node("a")]).expect("two are new");
        assert_eq!((first.names.join(" ").as_str(), first.mod_revision), ("a b", 0));
        let known = Roster::read(Some((br#"["b","a","b"]"#, 7))).expect("it can be read");
        assert_eq!(known.with(&[node("a")]), None, "a member that is away stays");
        assert_eq!(known.with(&[]), None);
        let grown = known.with(&[node("c")]).expect("one is new");
        assert_eq!((grown.names.join(" ").as_str(), grown.mod_revision), ("a b c", 7));
    }

    #[test]
    fn what_is_no_list_of_names_is_no_roster() {
        for damaged in ["", "{}", "[1]", "\"a\"", "[\"a\"", "null"] {
            assert_eq!(Roster::read(Some((damaged.as_bytes(), 1))), None, "{damaged}");
        }
        assert!(Roster::read(Some((b"[]", 1))).is_some_and(|roster| roster.names.is_empty()));
    }
}
