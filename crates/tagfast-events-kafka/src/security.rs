//! TLS and authentication towards the brokers, and which credentials clients are made with.
//!
//! A client takes its credentials when it is created. A changed credential is therefore tried by a
//! client of its own first (`rotation.rs`), and comes into force when a broker has accepted it:
//! clients of the former credentials go on until then.
//!
//! How it fails: what no broker has accepted does not come into force.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use tagfast_resilience::{Credential, CredentialVersion, Secret};

/// TLS and authentication. Clones share what is in force.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Whether connections use TLS; without it events can be read on the network.
    pub(crate) tls: bool,
    /// The authorities that signed the brokers' certificates, as PEM; `None`: the system's.
    pub(crate) authorities: Option<Credential<Vec<u8>>>,
    /// Credentials; `None`: no authentication.
    pub(crate) sasl: Option<Sasl>,
    in_force: Arc<InForce>,
}

/// The versions of the credentials with which clients are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClientCredentials {
    pub(crate) authorities: Option<CredentialVersion<Vec<u8>>>,
    pub(crate) password: Option<CredentialVersion<Secret>>,
}

#[derive(Debug, Default)]
struct InForce {
    /// Counts changes.
    generation: AtomicU64,
    credentials: RwLock<ClientCredentials>,
}

impl Security {
    /// TLS or not, authorities (PEM; `None`: the system's), and credentials (`None`: no
    /// authentication).
    pub fn new(tls: bool, authorities: Option<Credential<Vec<u8>>>, sasl: Option<Sasl>) -> Self {
        let this = Self { tls, authorities, sasl, in_force: Arc::default() };
        // Nothing was tried yet: the first clients try them.
        *this.in_force.credentials.write() = this.newest();
        this
    }

    /// Whether anything can change.
    pub(crate) fn can_change(&self) -> bool {
        self.authorities.is_some() || self.sasl.is_some()
    }

    /// The newest contents, which may not be in force yet.
    pub(crate) fn newest(&self) -> ClientCredentials {
        ClientCredentials {
            authorities: self.authorities.as_ref().map(Credential::newest),
            password: self.sasl.as_ref().map(|sasl| sasl.password.newest()),
        }
    }

    /// What clients are made with.
    pub(crate) fn in_force(&self) -> ClientCredentials {
        self.in_force.credentials.read().clone()
    }

    /// Grows when other credentials come into force.
    pub(crate) fn generation(&self) -> u64 {
        self.in_force.generation.load(Ordering::Acquire)
    }

    /// Brings credentials into force that a broker has accepted.
    pub(crate) fn put_in_force(&self, credentials: ClientCredentials) {
        *self.in_force.credentials.write() = credentials;
        self.in_force.generation.fetch_add(1, Ordering::Release);
    }

    /// Reports what a broker said to these credentials.
    pub(crate) fn report(&self, credentials: &ClientCredentials, accepted: bool) {
        const SERVER: &str = "Kafka";
        if let Some((known, version)) =
            self.authorities.as_ref().zip(credentials.authorities.as_ref())
        {
            known.report(SERVER, version.number, accepted);
        }
        if let Some((known, version)) = self.sasl.as_ref().zip(credentials.password.as_ref()) {
            known.password.report(SERVER, version.number, accepted);
        }
    }
}

/// SASL credentials.
#[derive(Debug, Clone)]
pub struct Sasl {
    /// The SASL mechanism.
    pub mechanism: SaslMechanism,
    /// The user name.
    pub user: String,
    /// The password.
    pub password: Credential,
}

/// A SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// The password in clear text: only with TLS.
    Plain,
    /// SCRAM with SHA-256.
    ScramSha256,
    /// SCRAM with SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// Kafka's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}
