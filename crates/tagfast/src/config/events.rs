//! The part of a configuration that names the event bus and the search index of a cluster.

use std::path::PathBuf;

use tagfast_resilience::{Address, Secret};

use super::keys::{KAFKA, SEARCH};
use super::login::{LoginConfig, login};
use super::secrets::CredentialFile;
use super::values::{Values, is_http_url};

/// Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Bootstrap servers.
    pub brokers: Vec<String>,
    /// Partitions of each topic.
    pub partitions: u16,
    /// Whether connections to the brokers use TLS.
    pub tls: bool,
    /// File with the authorities' certificates; `None` = the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// SASL authentication; `None` = the brokers ask for none.
    pub sasl: Option<SaslConfig>,
}

/// The SASL mechanisms that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// `PLAIN`: the password itself is sent.
    Plain,
    /// `SCRAM-SHA-256`.
    ScramSha256,
    /// `SCRAM-SHA-512`.
    ScramSha512,
}

/// SASL authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslConfig {
    /// How the password is proven.
    pub mechanism: SaslMechanism,
    /// The user name.
    pub user: String,
    /// File with the password.
    pub password_file: PathBuf,
}

impl SaslConfig {
    /// The file of the password.
    pub fn password(&self) -> CredentialFile<Secret> {
        CredentialFile::password("kafka.sasl_password_file", &self.password_file)
    }
}

impl KafkaConfig {
    /// The file of the authorities' certificates; `None` = the system's.
    pub fn tls_authorities(&self) -> Option<CredentialFile<Vec<u8>>> {
        let file = self.tls_ca_file.as_deref()?;
        Some(CredentialFile::authorities("kafka.tls_ca_file", file))
    }
}

/// OpenSearch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSearchConfig {
    /// URL of the server.
    pub url: Address,
    /// User and password; `None` = the URL's, if it has some.
    pub login: Option<LoginConfig>,
    /// Shards of a new index.
    pub shards: u32,
}

/// How to get a build that can use `kafka.brokers`.
pub const WITHOUT_KAFKA: &str = "kafka.brokers is set, but this build of tagfast has no Kafka \
     client; build one that has it: cargo build --release --features kafka";

/// Refuses brokers that a build without the Kafka client cannot use. `has_kafka` says whether
/// this build has it.
pub(super) fn require_kafka(values: &mut Values<'_>, has_kafka: bool) {
    if !has_kafka && !values.list(&KAFKA.brokers).is_empty() {
        values.refuse(WITHOUT_KAFKA);
    }
}

fn sasl(values: &mut Values<'_>) -> Option<SaslConfig> {
    let given = [&KAFKA.sasl_user, &KAFKA.sasl_password_file];
    let Some(mechanism) = values.choice(&KAFKA.sasl_mechanism) else {
        if given.iter().any(|key| values.text(key).is_some()) {
            values.refuse(
                "kafka.sasl_user and kafka.sasl_password_file need kafka.sasl_mechanism: without \
                 it the brokers are asked without them",
            );
        }
        return None;
    };
    let mechanism = match mechanism {
        "SCRAM-SHA-512" => SaslMechanism::ScramSha512,
        "SCRAM-SHA-256" => SaslMechanism::ScramSha256,
        _ => SaslMechanism::Plain,
    };
    let user = values.text(&KAFKA.sasl_user);
    let Some((user, file)) = user.zip(values.text(&KAFKA.sasl_password_file)) else {
        values.refuse("kafka.sasl_mechanism needs kafka.sasl_user and kafka.sasl_password_file");
        return None;
    };
    Some(SaslConfig { mechanism, user, password_file: file.into() })
}

/// The bus; `None` without brokers.
pub(super) fn kafka(values: &mut Values<'_>) -> Option<KafkaConfig> {
    let brokers = values.list(&KAFKA.brokers);
    if brokers.is_empty() {
        return None;
    }
    for broker in &brokers {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-[]:".contains(c);
        let is_host = |host: &str| !host.is_empty() && host.chars().all(plain);
        if broker
            .rsplit_once(':')
            .is_none_or(|(host, port)| !is_host(host) || port.parse::<u16>().is_err())
        {
            values.refuse(format!("kafka.brokers holds {broker:?}; write it as host:port"));
        }
    }
    Some(KafkaConfig {
        brokers,
        partitions: values.small(&KAFKA.partitions) as u16,
        tls: values.flag(&KAFKA.tls),
        tls_ca_file: values.text(&KAFKA.tls_ca_file).map(PathBuf::from),
        sasl: sasl(values),
    })
}

/// The search index; `None` without a URL.
pub(super) fn opensearch(values: &mut Values<'_>) -> Option<OpenSearchConfig> {
    let login = login(values, &SEARCH.opensearch_user, &SEARCH.opensearch_password_file);
    let Some(url) = values.text(&SEARCH.opensearch_url) else {
        if login.is_some() {
            values.refuse("search.opensearch_user needs search.opensearch_url");
        }
        return None;
    };
    if !is_http_url(&url) {
        values.refuse("search.opensearch_url must be a URL with http:// or https://");
    }
    if values.list(&KAFKA.brokers).is_empty() {
        values
            .refuse("search.opensearch_url needs kafka.brokers: the index is fed through the bus");
    }
    let shards = values.small(&SEARCH.opensearch_shards);
    Some(OpenSearchConfig { url: url.into(), login, shards })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::sources::gather;
    use crate::config::values::Sources;

    fn sources(text: &str) -> Sources {
        gather(Some((Path::new("t.toml"), text)), &BTreeMap::new(), &[]).unwrap()
    }

    fn resolve_text(text: &str) -> (Option<KafkaConfig>, Option<OpenSearchConfig>, Vec<String>) {
        let sources = sources(text);
        let mut values = Values::new(&sources);
        let (kafka, opensearch) = (kafka(&mut values), opensearch(&mut values));
        (kafka, opensearch, values.into_errors())
    }

    #[test]
    fn without_brokers_there_is_no_bus() {
        assert_eq!(resolve_text(""), (None, None, Vec::new()));
        let (kafka, opensearch, errors) = resolve_text(
            "[kafka]\nbrokers = [\"k:9092\"]\nsasl_mechanism = \"SCRAM-SHA-512\"\nsasl_user = \"t\"\n\
             sasl_password_file = \"p\"\n[search]\nopensearch_url = \"http://o:9200\"",
        );
        assert_eq!(errors, Vec::<String>::new());
        let kafka = kafka.unwrap();
        assert_eq!(
            (kafka.partitions, kafka.sasl.unwrap().mechanism),
            (64, SaslMechanism::ScramSha512)
        );
        assert_eq!(opensearch.unwrap().shards, 8);
    }

    #[test]
    fn a_build_without_kafka_refuses_brokers_and_says_how_to_get_one() {
        let errors_of = |text: &str, has_kafka| {
            let sources = sources(text);
            let mut values = Values::new(&sources);
            require_kafka(&mut values, has_kafka);
            values.into_errors()
        };
        let brokers = "[kafka]\nbrokers = [\"k:9092\"]";
        assert_eq!(errors_of(brokers, true), Vec::<String>::new());
        let errors = errors_of(brokers, false);
        assert!(errors[0].contains("cargo build --release --features kafka"), "{errors:?}");
        assert_eq!(errors_of("[kafka]\nbrokers = []", false), Vec::<String>::new());
    }

    #[test]
    fn each_fault_names_its_key() {
        for (text, word) in [
            ("[kafka]\nbrokers = [\"k\"]", "kafka.brokers"),
            ("[kafka]\nbrokers = [\"k:1\"]\npartitions = 65", "kafka.partitions"),
            ("[kafka]\nbrokers = [\"k:1\"]\nsasl_mechanism = \"GSSAPI\"", "kafka.sasl_mechanism"),
            ("[kafka]\nbrokers = [\"k:1\"]\nsasl_mechanism = \"PLAIN\"", "kafka.sasl_user"),
            ("[search]\nopensearch_url = \"http://o\"", "kafka.brokers"),
            (
                "[search]\nopensearch_url = \"http://o\"\nopensearch_user = \"u\"",
                "search.opensearch_password_file",
            ),
            (
                "[search]\nopensearch_user = \"u\"\nopensearch_password_file = \"p\"",
                "search.opensearch_url",
            ),
            (
                "[kafka]\nbrokers = [\"k:1\"]\n[search]\nopensearch_url = \"http://o\"\nopensearch_shards = 0",
                "opensearch_shards",
            ),
        ] {
            let (_, _, errors) = resolve_text(text);
            assert!(errors.iter().any(|e| e.contains(word)), "{text}: {errors:?}");
        }
    }
}
