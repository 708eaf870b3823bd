//! The roles of a process: everything, or some of the parts that a cluster can run in processes of
//! their own.

use crate::cli::Role;

/// The roles of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Roles {
    /// Serves tags, search and popular tags over HTTP.
    pub(crate) api: bool,
    /// Publishes the outbox.
    pub(crate) relay: bool,
    /// Feeds the search index.
    pub(crate) indexer: bool,
    /// Counts popular tags.
    pub(crate) analytics: bool,
    /// Handles dead letters.
    pub(crate) replayer: bool,
}

impl Roles {
    /// Everything in one process.
    pub(crate) const ALL: Self =
        Self { api: true, relay: true, indexer: true, analytics: true, replayer: true };
    const NONE: Self =
        Self { api: false, relay: false, indexer: false, analytics: false, replayer: false };

    /// The union of the roles that the command line names.
    pub(crate) fn of(named: &[Role]) -> Self {
        let mut roles = Self::NONE;
        for role in named {
            match role {
                Role::All => roles = Self::ALL,
                Role::Api => roles.api = true,
                Role::Relay => roles.relay = true,
                Role::Indexer => roles.indexer = true,
                Role::Analytics => roles.analytics = true,
                Role::Replayer => roles.replayer = true,
            }
        }
        roles
    }

    /// Whether one of the roles reads the bus.
    pub(crate) fn needs_bus(self) -> bool {
        self.indexer || self.analytics || self.replayer
    }

    /// Their names on the command line, separated by commas.
    pub(crate) fn names(self) -> String {
        if self == Self::ALL {
            return "all".to_owned();
        }
        let all = [
            ("api", self.api),
            ("relay", self.relay),
            ("indexer", self.indexer),
            ("analytics", self.analytics),
            ("replayer", self.replayer),
        ];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_add_up() {
        let roles = Roles::of(&[Role::Relay, Role::Indexer]);
        assert_eq!(
            (roles.names().as_str(), roles.api, roles.needs_bus()),
            ("relay,indexer", false, true)
        );
        assert_eq!(Roles::of(&[Role::Api, Role::All]), Roles::ALL);
        assert!(!Roles::of(&[Role::Api, Role::Relay]).needs_bus());
    }
}
