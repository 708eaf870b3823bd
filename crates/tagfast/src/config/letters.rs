//! The part of a configuration that says what happens to dead letters.

use std::path::PathBuf;
use std::time::Duration;

use tagfast_events::Cooldown;

use super::keys::RawConfig;
use super::resolved::{number, text};
use crate::replayer::ReplayerOptions;
use crate::webhook::{RETRY, WebhookOptions};

/// Dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LettersConfig {
    /// When they are replayed by themselves.
    pub cooldown: Cooldown,
    /// Where people are told, at most how often, and the file with what signs it.
    pub webhook: Option<(String, Duration, Option<PathBuf>)>,
}

impl LettersConfig {
    /// What a replayer needs; reads the secret.
    pub fn replayer(&self) -> Result<ReplayerOptions, String> {
        let webhook = match &self.webhook {
            None => None,
            Some((url, every, file)) => {
                let secret = file.as_ref().map(|file| {
                    let read = std::fs::read_to_string(file);
                    let text = read.map_err(|e| {
                        format!("dead_letters.webhook_secret_file {}: {e}", file.display())
                    })?;
                    let secret = text.trim_end_matches(['\r', '\n']).as_bytes().to_vec();
                    if secret.is_empty() {
                        return Err(format!(
                            "dead_letters.webhook_secret_file {} is empty",
                            file.display()
                        ));
                    }
                    Ok(secret)
                });
                Some(WebhookOptions {
                    url: url.clone(),
                    secret: secret.transpose()?,
                    every: *every,
                    retry: RETRY,
                })
            }
        };
        Ok(ReplayerOptions { cooldown: self.cooldown, webhook })
    }
}

/// Whether a URL is `https://`, or `http://` of this machine.
fn is_safe(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    match (url.scheme(), url.host_str()) {
        ("https", Some(_)) => true,
        ("http", Some(host)) => {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        _ => false,
    }
}

pub(super) fn letters(raw: &RawConfig, errors: &mut Vec<String>) -> LettersConfig {
    let letters = &raw.dead_letters;
    let first_ms = number(
        letters.replay_after_ms,
        300_000,
        "dead_letters.replay_after_ms",
        100..=86_400_000,
        errors,
    );
    let times = number(letters.replay_times, 3, "dead_letters.replay_times", 0..=10, errors);
    let every = number(
        letters.webhook_every_ms,
        900_000,
        "dead_letters.webhook_every_ms",
        1000..=86_400_000,
        errors,
    );
    let url = text(letters.webhook_url.as_ref());
    if url.as_ref().is_some_and(|url| !is_safe(url)) {
        // The URL may hold a secret: it is not repeated.
        errors.push(
            "dead_letters.webhook_url must begin with https://, or with http:// and an address of this machine: \
             messages name tenants' contents"
                .to_owned(),
        );
    }
    let file = text(letters.webhook_secret_file.as_ref()).map(PathBuf::from);
    if file.is_some() && url.is_none() {
        errors.push("dead_letters.webhook_secret_file needs dead_letters.webhook_url".to_owned());
    }
    let default = Cooldown::default();
    LettersConfig {
        cooldown: Cooldown { first_ms: first_ms as i64, times: times as u32, ..default },
        webhook: url.map(|url| (url, Duration::from_millis(every as u64), file)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> (LettersConfig, Vec<String>) {
        let mut errors = Vec::new();
        let config =
            letters(&toml::from_str(&format!("[dead_letters]\n{text}")).unwrap(), &mut errors);
        (config, errors)
    }

    #[test]
    fn a_webhook_is_https_or_here() {
        for url in [
            "https://hooks.example/x",
            "http://127.0.0.1:9/x",
            "http://localhost",
            "http://[::1]:80/",
        ] {
            let (config, errors) = judged(&format!("webhook_url = \"{url}\""));
            assert_eq!((config.webhook.unwrap().0.as_str(), errors), (url, Vec::new()));
        }
        for url in [
            "http://hooks.example/s3cret",
            "ftp://127.0.0.1/s3cret",
            "s3cret",
            "http://127.0.0.1.example/s3cret",
        ] {
            let (_, errors) = judged(&format!("webhook_url = \"{url}\""));
            assert!(
                errors[0].contains("dead_letters.webhook_url") && !errors[0].contains("s3cret"),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn each_fault_names_its_key() {
        for (text, word) in [
            ("replay_after_ms = 1", "replay_after_ms"),
            ("replay_times = 11", "replay_times"),
            ("webhook_every_ms = 0", "webhook_every_ms"),
            ("webhook_secret_file = \"s\"", "webhook_url"),
        ] {
            let (_, errors) = judged(text);
            assert!(errors.iter().any(|e| e.contains(word)), "{text}: {errors:?}");
        }
    }
}
