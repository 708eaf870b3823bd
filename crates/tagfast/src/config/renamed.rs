//! Keys of earlier layouts: each is refused with its new name, or with why it is gone.

use super::key::env_name;

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It has this section and name now.
    Renamed(&'static str, &'static str),
    /// It is gone, and why.
    Removed(&'static str),
}

use Fate::{Removed, Renamed};

/// Section and name as they were, and what became of them.
const OLD_KEYS: &[(&str, &str, Fate)] = &[
    ("store", "epochs_above", Renamed("store", "epoch_floors")),
    ("store", "lanes", Renamed("store", "writer_connections")),
    ("store", "hold_ms", Renamed("store", "primary_wait_ms")),
    ("store", "map_version", Renamed("store", "shard_map_version")),
    ("store", "cache_bytes", Renamed("store", "page_cache_bytes")),
    ("cache", "l1_max_bytes", Renamed("cache", "local_max_bytes")),
    ("dead_letters", "replay_after_ms", Renamed("dead_letters", "auto_replay_delay_ms")),
    ("dead_letters", "replay_times", Renamed("dead_letters", "auto_replay_max")),
    ("dead_letters", "webhook_every_ms", Renamed("dead_letters", "webhook_interval_min_ms")),
    ("drills", "enabled", Removed("no code read it")),
];

fn fate(section: &str, name: &str) -> Option<Fate> {
    OLD_KEYS.iter().find(|(s, n, _)| (*s, *n) == (section, name)).map(|(_, _, fate)| *fate)
}

/// What to say of a key of a file that had this name once; `None` if none had.
pub(super) fn key_message(section: &str, name: &str) -> Option<String> {
    let old = format!("{section}.{name}");
    Some(match fate(section, name)? {
        Renamed(section, name) => format!("{old} is now called {section}.{name}"),
        Removed(why) => format!("{old} is gone ({why}); leave it out"),
    })
}

/// What to say of a section that is gone with all its keys.
pub(super) fn section_message(section: &str) -> Option<String> {
    let of_section =
        |(s, _, fate): &&(&str, &str, Fate)| *s == section && matches!(fate, Removed(_));
    let (section, name, _) = OLD_KEYS.iter().find(of_section)?;
    key_message(section, name)
}

/// What to say of an environment variable whose key had this name once.
pub(super) fn env_message(section: &str, name: &str) -> Option<String> {
    let old = env_name(section, name);
    Some(match fate(section, name)? {
        Renamed(section, name) => {
            format!("environment variable {old} is now called {}", env_name(section, name))
        }
        Removed(why) => format!("environment variable {old} is gone ({why}); leave it out"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::find;

    #[test]
    fn old_names_are_no_keys_and_new_names_are() {
        for (section, name, fate) in OLD_KEYS {
            assert!(find(section, name).is_none(), "{section}.{name} is a key");
            if let Renamed(section, name) = fate {
                assert!(find(section, name).is_some(), "{section}.{name} is no key");
            }
        }
    }

    #[test]
    fn a_message_names_the_new_key() {
        assert_eq!(
            key_message("store", "hold_ms").unwrap(),
            "store.hold_ms is now called store.primary_wait_ms"
        );
        assert_eq!(
            env_message("store", "hold_ms").unwrap(),
            "environment variable TAGFAST__STORE__HOLD_MS is now called \
             TAGFAST__STORE__PRIMARY_WAIT_MS"
        );
        assert!(key_message("drills", "enabled").unwrap().contains("gone"));
        assert!(env_message("drills", "enabled").unwrap().contains("gone"));
        assert!(section_message("drills").unwrap().contains("drills.enabled is gone"));
        assert_eq!(key_message("server", "listen"), None);
        assert_eq!(section_message("server"), None);
    }
}
