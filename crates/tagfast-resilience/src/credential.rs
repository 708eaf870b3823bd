//! Credentials that change while the process runs: passwords, keys, certificates of authorities.
//!
//! Who connects takes what a [`Credential`] holds at that moment and reports what the server said
//! to it. The owner of the file replaces the content; nothing is restarted, and connections that
//! are open go on. Server and file never change in the same moment, so that a content that a
//! server has accepted before is tried after the newest one ([`Credential::to_try`]).
//!
//! How it fails: a server that refuses the newest content is named by [`Credential::problem`] until
//! it accepts it, or until it has been offered nothing for [`REFUSAL_TTL`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Secret;

/// How long the refusal of a server that is not asked again is remembered. Too short: a refusal is
/// forgotten between two checks, which come every two to three seconds; too long: a server that is
/// gone, or is not asked any more, is named.
pub const REFUSAL_TTL: Duration = Duration::from_secs(5);
/// Servers whose refusals one credential remembers.
const REFUSALS_MAX: usize = 256;

/// A content of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialVersion<T> {
    /// Grows with each change of the content.
    pub number: u64,
    /// The content.
    pub value: T,
}

/// A password, key or certificate that may change while the process runs. Clones are the same
/// credential.
pub struct Credential<T = Secret>(Arc<Shared<T>>);

impl<T> Clone for Credential<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<T> {
    /// The configuration key and the file, as problems name them.
    name: String,
    held: RwLock<Held<T>>,
    /// The newest version's number.
    number: AtomicU64,
    changes: watch::Sender<u64>,
    refusals: Mutex<BTreeMap<String, Refusal>>,
}

struct Held<T> {
    newest: CredentialVersion<T>,
    /// Whether a server has accepted the newest content.
    newest_accepted: bool,
    /// The last content before the newest that a server accepted; `None`: there was none.
    former: Option<CredentialVersion<T>>,
}

/// What is known of a server that refuses the newest content.
struct Refusal {
    seen: Instant,
    /// Whether it still accepts the former content.
    takes_former: bool,
}

impl<T> std::fmt::Debug for Credential<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = self.0.held.read().newest.number;
        f.debug_struct("Credential")
            .field("name", &self.0.name)
            .field("version", &version)
            .finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq> Credential<T> {
    /// A credential with its first content; `name` is how problems name it, for example
    /// `store.password_file`.
    pub fn new(name: impl Into<String>, value: T) -> Self {
        let newest = CredentialVersion { number: 1, value };
        Self(Arc::new(Shared {
            name: name.into(),
            held: RwLock::new(Held { newest, newest_accepted: false, former: None }),
            number: AtomicU64::new(1),
            changes: watch::channel(1).0,
            refusals: Mutex::default(),
        }))
    }

    /// How problems name it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The number of the newest version, for who keeps what it made of the content. Takes no lock.
    pub fn number(&self) -> u64 {
        self.0.number.load(Ordering::Acquire)
    }

    /// The newest content.
    pub fn newest(&self) -> CredentialVersion<T> {
        self.0.held.read().newest.clone()
    }

    /// What to offer a server, in this order: the newest content, then the last one before it that
    /// a server accepted, because this server may not have changed yet.
    pub fn to_try(&self) -> Vec<CredentialVersion<T>> {
        let held = self.0.held.read();
        std::iter::once(&held.newest).chain(&held.former).cloned().collect()
    }

    /// Replaces the content; returns whether it differs from the newest one.
    pub fn replace(&self, value: T) -> bool {
        let mut held = self.0.held.write();
        if held.newest.value == value {
            return false;
        }
        let number = held.newest.number + 1;
        let old = std::mem::replace(&mut held.newest, CredentialVersion { number, value });
        if held.newest_accepted {
            held.former = Some(old);
        }
        held.newest_accepted = false;
        self.0.number.store(number, Ordering::Release);
        drop(held);
        self.0.changes.send_replace(number);
        true
    }

    /// Says when the content has changed; its value is the version's number.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// `server` accepted a version. `server` must be fit for a log.
    pub fn accepted(&self, server: &str, number: u64) {
        let is_newest = {
            let held = self.0.held.upgradable_read();
            let is_newest = held.newest.number == number;
            if is_newest && !held.newest_accepted {
                parking_lot::RwLockUpgradableReadGuard::upgrade(held).newest_accepted = true;
            }
            is_newest
        };
        let mut refusals = self.0.refusals.lock();
        if is_newest {
            refusals.remove(server);
        } else if let Some(refusal) = refusals.get_mut(server) {
            refusal.takes_former = true;
            refusal.seen = Instant::now();
        }
    }

    /// `server` refused a version. `server` must be fit for a log.
    pub fn refused(&self, server: &str, number: u64) {
        if self.0.held.read().newest.number != number {
            // The newest one was refused before, or has not been offered yet.
            return;
        }
        let mut refusals = self.0.refusals.lock();
        let now = Instant::now();
        refusals.retain(|_, refusal| now.duration_since(refusal.seen) < REFUSAL_TTL);
        if refusals.len() < REFUSALS_MAX || refusals.contains_key(server) {
            refusals.insert(server.to_owned(), Refusal { seen: now, takes_former: false });
        }
    }

    /// [`Credential::accepted`] or [`Credential::refused`].
    pub fn report(&self, server: &str, number: u64, accepted: bool) {
        if accepted { self.accepted(server, number) } else { self.refused(server, number) }
    }

    /// Which servers refuse the newest content at this moment; `None`: none does.
    pub fn problem(&self) -> Option<String> {
        let now = Instant::now();
        let refusals = self.0.refusals.lock();
        let current =
            refusals.iter().filter(|(_, known)| now.duration_since(known.seen) < REFUSAL_TTL);
        let (former, none): (Vec<_>, Vec<_>) = current.partition(|(_, known)| known.takes_former);
        let servers = |list: &[(&String, &Refusal)]| {
            list.iter().map(|(server, _)| server.as_str()).collect::<Vec<_>>().join(", ")
        };
        let name = &self.0.name;
        let mut parts = Vec::new();
        if !none.is_empty() {
            parts.push(format!("{} cannot be used with what {name} holds", servers(&none)));
        }
        if !former.is_empty() {
            parts.push(format!(
                "{} cannot be used with what {name} holds, only with what it held before",
                servers(&former)
            ));
        }
        (!parts.is_empty()).then(|| format!("authentication: {}", parts.join("; ")))
    }
}

impl<T: Clone + PartialEq> From<T> for Credential<T> {
    /// A credential that never changes.
    fn from(value: T) -> Self {
        Self::new("the configuration", value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(value: &str) -> Credential {
        Credential::new("store.password_file", Secret::new(value.to_owned()))
    }

    fn tried(credential: &Credential) -> Vec<String> {
        credential.to_try().into_iter().map(|v| v.value.expose().clone()).collect()
    }

    fn replace(credential: &Credential, value: &str) -> bool {
        credential.replace(Secret::new(value.to_owned()))
    }

    /// A server that holds one password; returns whether it let the credential in.
    fn connect(credential: &Credential, server: &str, password: &str) -> bool {
        for version in credential.to_try() {
            if version.value.expose() == password {
                credential.accepted(server, version.number);
                return true;
            }
            credential.refused(server, version.number);
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn both_orders_of_a_rotation_work_at_servers_that_change_one_after_the_other() {
        let password = credential("old");
        assert!(connect(&password, "a", "old") && connect(&password, "b", "old"));
        // The file first: the servers still take the former content.
        assert!(replace(&password, "new") && !replace(&password, "new"));
        assert_eq!(tried(&password), ["new", "old"]);
        assert!(connect(&password, "a", "old") && connect(&password, "b", "old"));
        let problem = password.problem().expect("they refuse the newest");
        assert!(problem.contains("a, b cannot") && problem.contains("before"), "{problem}");
        assert!(connect(&password, "a", "new") && connect(&password, "b", "old"));
        let problem = password.problem().expect("b refuses the newest");
        assert!(problem.starts_with("authentication: b cannot"), "{problem}");
        assert!(connect(&password, "b", "new"));
        assert_eq!(password.problem(), None);
        // The server first: nothing works until the file follows, and the server is named.
        assert!(!connect(&password, "a", "third"));
        let problem = password.problem().expect("a refuses everything");
        assert_eq!(problem, "authentication: a cannot be used with what store.password_file holds");
        assert!(replace(&password, "third"));
        assert!(connect(&password, "a", "third"));
        assert_eq!(password.problem(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_content_that_no_server_accepted_is_not_kept() {
        let password = credential("good");
        assert!(connect(&password, "a", "good"));
        for wrong in ["w1", "w2", "w3"] {
            replace(&password, wrong);
            assert_eq!(tried(&password), [wrong, "good"]);
            assert!(connect(&password, "a", "good"), "the last good content works on");
        }
        replace(&password, "good");
        assert!(connect(&password, "a", "good"));
        assert_eq!(password.problem(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_forgotten_when_no_caller_asks_again() {
        let password = credential("old");
        let mut changes = password.changes();
        assert!(!changes.has_changed().expect("it lives"));
        assert!(!connect(&password, "a", "new"));
        assert!(password.problem().is_some());
        tokio::time::advance(REFUSAL_TTL).await;
        assert_eq!(password.problem(), None);
        replace(&password, "new");
        assert_eq!(*changes.borrow_and_update(), 2);
        // A late answer to the version before changes nothing.
        password.refused("a", 1);
        assert_eq!(password.problem(), None);
        let shown = format!("{password:?}");
        assert!(shown.contains("store.password_file") && !shown.contains("new"), "{shown}");
    }

    #[test]
    fn refusals_are_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let password = credential("old");
            for server in 0..2 * REFUSALS_MAX {
                password.refused(&format!("s{server}"), 1);
            }
            assert_eq!(password.0.refusals.lock().len(), REFUSALS_MAX);
        });
    }
}
