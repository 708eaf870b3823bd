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
    Ok(SupervisorOptions {
        auto_replay: dead_letters.auto_replay,
        notifier: webhook_options(dead_letters, credentials)?.map(Webhook::notifier),
    })
}

/// Where notices go; `None`: no webhook is configured.
pub(super) fn webhook_options(
    dead_letters: &DeadLettersConfig,
    credentials: &CredentialFiles,
) -> Result<Option<WebhookOptions>, CliError> {
    let Some(webhook) = &dead_letters.webhook else { return Ok(None) };
    Ok(Some(WebhookOptions {
        url: webhook.url.clone(),
        secret: credentials.open_some(webhook.secret())?,
        min_interval: webhook.interval_min,
        retry: DELIVERY_BACKOFF,
    }))
}
