//! The options of the dead-letter supervisor, from the configuration.
//!
//! How it fails: a webhook's secret that cannot be read, or is empty, fails the start.

use tagfast_client::error::CliError;
use tagfast_events::dead_letters::SupervisorOptions;

use crate::config::DeadLettersConfig;
use crate::credentials::CredentialFiles;
use crate::webhook::{DELIVERY_BACKOFF, Webhook, WebhookOptions};

/// Makes the options; reads the webhook's secret from its file and starts the webhook's sender.
pub(super) fn supervisor_options(
    dead_letters: &DeadLettersConfig,
    credentials: &CredentialFiles,
) -> Result<SupervisorOptions, CliError> {
    let webhook = match &dead_letters.webhook {
        None => None,
        Some(webhook) => Some(WebhookOptions {
            url: webhook.url.clone(),
            secret: credentials.open_some(webhook.secret())?,
            min_interval: webhook.interval_min,
            retry: DELIVERY_BACKOFF,
        }),
    };
    Ok(SupervisorOptions {
        auto_replay: dead_letters.auto_replay,
        notifier: webhook.map(Webhook::notifier),
    })
}
