//! The part of a configuration that names the bus and the search index of a cluster.

use std::path::PathBuf;

use tagfast_events_kafka::{Sasl, SaslMechanism, Security};

use super::keys::RawConfig;
use super::resolved::{number, text};

/// Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Bootstrap servers.
    pub brokers: Vec<String>,
    /// Partitions of the topics.
    pub partitions: u16,
    /// TLS to the brokers.
    pub tls: bool,
    /// File with the authorities' certificates.
    pub tls_ca_file: Option<PathBuf>,
    /// How the password is shown, who shows it and the file it is in.
    pub sasl: Option<(SaslMechanism, String, PathBuf)>,
}

impl KafkaConfig {
    /// What is needed to be let in; reads the password.
    pub fn security(&self) -> Result<Security, String> {
        let sasl = match &self.sasl {
            None => None,
            Some((mechanism, user, file)) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|e| format!("kafka.sasl_password_file {}: {e}", file.display()))?;
                let password = text.trim_end_matches(['\r', '\n']).to_owned();
                Some(Sasl { mechanism: *mechanism, user: user.clone(), password })
            }
        };
        Ok(Security { tls: self.tls, ca_file: self.tls_ca_file.clone(), sasl })
    }
}

/// OpenSearch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSearchConfig {
    /// Its URL.
    pub url: String,
    /// Shards of an index that is made.
    pub shards: u32,
}

fn sasl(raw: &RawConfig, errors: &mut Vec<String>) -> Option<(SaslMechanism, String, PathBuf)> {
    let kafka = &raw.kafka;
    let mechanism = match text(kafka.sasl_mechanism.as_ref())?.as_str() {
        "PLAIN" => SaslMechanism::Plain,
        "SCRAM-SHA-256" => SaslMechanism::ScramSha256,
        "SCRAM-SHA-512" => SaslMechanism::ScramSha512,
        other => {
            errors.push(format!(
                "kafka.sasl_mechanism is {other:?}; use \"PLAIN\", \"SCRAM-SHA-256\" or \"SCRAM-SHA-512\""
            ));
            return None;
        }
    };
    let named = text(kafka.sasl_user.as_ref()).zip(text(kafka.sasl_password_file.as_ref()));
    if named.is_none() {
        errors.push(
            "kafka.sasl_mechanism needs kafka.sasl_user and kafka.sasl_password_file".to_owned(),
        );
    }
    named.map(|(user, file)| (mechanism, user, PathBuf::from(file)))
}

pub(super) fn kafka(raw: &RawConfig, errors: &mut Vec<String>) -> Option<KafkaConfig> {
    let brokers = raw.kafka.brokers.clone().filter(|brokers| !brokers.is_empty())?;
    for broker in &brokers {
        if broker
            .rsplit_once(':')
            .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            errors.push(format!("kafka.brokers holds {broker:?}; write it as host:port"));
        }
    }
    Some(KafkaConfig {
        brokers,
        partitions: number(raw.kafka.partitions, 64, "kafka.partitions", 1..=64, errors) as u16,
        tls: raw.kafka.tls.unwrap_or(false),
        tls_ca_file: text(raw.kafka.tls_ca_file.as_ref()).map(PathBuf::from),
        sasl: sasl(raw, errors),
    })
}

pub(super) fn opensearch(raw: &RawConfig, errors: &mut Vec<String>) -> Option<OpenSearchConfig> {
    let url = text(raw.search.opensearch_url.as_ref())?;
    if raw.kafka.brokers.as_ref().is_none_or(Vec::is_empty) {
        errors.push(
            "search.opensearch_url needs kafka.brokers: the index is fed through the bus"
                .to_owned(),
        );
    }
    let shards =
        number(raw.search.opensearch_shards, 8, "search.opensearch_shards", 1..=1024, errors);
    Some(OpenSearchConfig { url, shards: shards as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> (Option<KafkaConfig>, Option<OpenSearchConfig>, Vec<String>) {
        let (raw, mut errors) = (toml::from_str(text).unwrap(), Vec::new());
        let (kafka, opensearch) = (kafka(&raw, &mut errors), opensearch(&raw, &mut errors));
        (kafka, opensearch, errors)
    }

    #[test]
    fn without_brokers_there_is_no_bus() {
        assert_eq!(judged(""), (None, None, Vec::new()));
        let (kafka, opensearch, errors) = judged(
            "[kafka]\nbrokers = [\"k:9092\"]\nsasl_mechanism = \"SCRAM-SHA-512\"\nsasl_user = \"t\"\n\
             sasl_password_file = \"p\"\n[search]\nopensearch_url = \"http://o:9200\"",
        );
        assert_eq!(errors, Vec::<String>::new());
        let kafka = kafka.unwrap();
        assert_eq!((kafka.partitions, kafka.sasl.unwrap().0), (64, SaslMechanism::ScramSha512));
        assert_eq!(opensearch.unwrap().shards, 8);
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
                "[kafka]\nbrokers = [\"k:1\"]\n[search]\nopensearch_url = \"http://o\"\nopensearch_shards = 0",
                "opensearch_shards",
            ),
        ] {
            let (_, _, errors) = judged(text);
            assert!(errors.iter().any(|e| e.contains(word)), "{text}: {errors:?}");
        }
    }
}
