//! What a process does: everything, or some of the parts that a cluster can run apart.

use crate::cli::Role;
use crate::failure::Failure;

/// The roles of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Serves tags, search and popular tags over HTTP.
    pub api: bool,
    /// Publishes the outbox.
    pub relay: bool,
    /// Feeds the search index.
    pub indexer: bool,
    /// Counts popular tags.
    pub analytics: bool,
    /// Looks after dead letters.
    pub replayer: bool,
}

impl Roles {
    /// Everything in one process.
    pub const ALL: Self =
        Self { api: true, relay: true, indexer: true, analytics: true, replayer: true };
    const NONE: Self =
        Self { api: false, relay: false, indexer: false, analytics: false, replayer: false };

    /// What was asked for.
    pub fn of(asked: &[Role]) -> Result<Self, Failure> {
        let mut roles = Self::NONE;
        for role in asked {
            match role {
                Role::All => roles = Self::ALL,
                Role::Api => roles.api = true,
                Role::Relay => roles.relay = true,
                Role::Indexer => roles.indexer = true,
                Role::Analytics => roles.analytics = true,
                Role::Replayer => roles.replayer = true,
                Role::Guardian => {
                    return Err(Failure::usage(
                        "--role guardian: this version has no guardian yet".to_owned(),
                    ));
                }
            }
        }
        Ok(roles)
    }

    /// Whether something of it feeds on the bus.
    pub fn needs_bus(self) -> bool {
        self.indexer || self.analytics || self.replayer
    }

    /// The words for it.
    pub fn names(self) -> String {
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
        let roles = Roles::of(&[Role::Relay, Role::Indexer]).unwrap();
        assert_eq!(
            (roles.names().as_str(), roles.api, roles.needs_bus()),
            ("relay,indexer", false, true)
        );
        assert_eq!(Roles::of(&[Role::Api, Role::All]).unwrap(), Roles::ALL);
        assert!(!Roles::of(&[Role::Api, Role::Relay]).unwrap().needs_bus());
        assert!(Roles::of(&[Role::Guardian]).is_err());
    }
}
