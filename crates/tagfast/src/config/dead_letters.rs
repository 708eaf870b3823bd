//! The part of a configuration that says what happens to dead letters: automatic replays, and the
//! webhook that receives notices of those that need attention.

use std::path::PathBuf;
use std::time::Duration;

use tagfast_events::AutoReplayPolicy;
use tagfast_resilience::{Secret, is_loopback_host};

use super::keys::DEAD_LETTERS;
use super::secrets::CredentialFile;
use super::values::Values;

/// Dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLettersConfig {
    /// When they are replayed automatically.
    pub auto_replay: AutoReplayPolicy,
    /// The webhook; `None` = only metrics and alert rules report.
    pub webhook: Option<WebhookConfig>,
}

/// The webhook that receives notices of dead letters that need attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// URL that takes the messages.
    pub url: Secret,
    /// Shortest time between two messages about growing trouble.
    pub interval_min: Duration,
    /// File with the secret that signs the messages; `None` = unsigned.
    pub secret_file: Option<PathBuf>,
}

impl WebhookConfig {
    /// The file of the secret; `None` = messages are not signed.
    pub fn secret(&self) -> Option<CredentialFile<Secret>> {
        let file = self.secret_file.as_deref()?;
        Some(CredentialFile::password("dead_letters.webhook_secret_file", file))
    }
}

/// Whether a URL is `https://`, or `http://` of this machine.
fn is_safe(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    match (url.scheme(), url.host_str()) {
        ("https", Some(_)) => true,
        ("http", Some(host)) => is_loopback_host(host),
        _ => false,
    }
}

pub(super) fn dead_letters(values: &mut Values<'_>) -> DeadLettersConfig {
    let url = values.text(&DEAD_LETTERS.webhook_url);
    if url.as_ref().is_some_and(|url| !is_safe(url)) {
        // The URL may hold a secret: it is not repeated.
        values.refuse(
            "dead_letters.webhook_url must begin with https://, or with http:// and an address of \
             this machine: messages name tenants' contents",
        );
    }
    let secret_file = values.text(&DEAD_LETTERS.webhook_secret_file).map(PathBuf::from);
    if secret_file.is_some() && url.is_none() {
        values.refuse("dead_letters.webhook_secret_file needs dead_letters.webhook_url");
    }
    let interval_min = values.millis(&DEAD_LETTERS.webhook_interval_min_ms);
    DeadLettersConfig {
        auto_replay: AutoReplayPolicy {
            first_ms: values.number(&DEAD_LETTERS.auto_replay_delay_ms) as i64,
            times: values.small(&DEAD_LETTERS.auto_replay_max),
            ..AutoReplayPolicy::default()
        },
        webhook: url.map(|url| WebhookConfig { url: Secret::new(url), interval_min, secret_file }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::sources::gather;

    fn resolve_text(text: &str) -> (DeadLettersConfig, Vec<String>) {
        let text = format!("[dead_letters]\n{text}");
        let sources = gather(Some((Path::new("t.toml"), &text)), &BTreeMap::new(), &[]).unwrap();
        let mut values = Values::new(&sources);
        let config = dead_letters(&mut values);
        (config, values.into_errors())
    }

    #[test]
    fn a_webhook_is_https_or_here() {
        for url in [
            "https://hooks.example/x",
            "http://127.0.0.1:9/x",
            "http://localhost",
            "http://[::1]:80/",
        ] {
            let (config, errors) = resolve_text(&format!("webhook_url = \"{url}\""));
            assert_eq!((config.webhook.unwrap().url.expose().as_str(), errors), (url, Vec::new()));
        }
        for url in [
            "http://hooks.example/s3cret",
            "ftp://127.0.0.1/s3cret",
            "s3cret",
            "http://127.0.0.1.example/s3cret",
        ] {
            let (_, errors) = resolve_text(&format!("webhook_url = \"{url}\""));
            assert!(
                errors[0].contains("dead_letters.webhook_url") && !errors[0].contains("s3cret"),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn each_fault_names_its_key() {
        for (text, word) in [
            ("auto_replay_delay_ms = 1", "auto_replay_delay_ms"),
            ("auto_replay_max = 11", "auto_replay_max"),
            ("webhook_interval_min_ms = 0", "webhook_interval_min_ms"),
            ("webhook_secret_file = \"s\"", "webhook_url"),
        ] {
            let (_, errors) = resolve_text(text);
            assert!(errors.iter().any(|e| e.contains(word)), "{text}: {errors:?}");
        }
    }
}
