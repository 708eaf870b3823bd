//! Messages to people's tools: signed, tried again, one at a time.
//!
//! A message is a JSON document posted to the URL. `Tagfast-Signature: t=<unix seconds>,v1=<hex>`
//! holds the HMAC-SHA256 of `<t>.<body>` with the secret, so that the receiver can tell who sent it
//! and when; `Tagfast-Delivery` is the same in each attempt. How it fails: what is not answered
//! with 2xx within five seconds is tried again, five times in about five minutes, then given up:
//! the next news is sent anew. Redirects are not followed.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::redirect::Policy;
use serde_json::Value;
use sha2::Sha256;
use tagfast_resilience::Backoff;
use tokio::sync::mpsc;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Where messages go.
#[derive(Clone)]
pub struct WebhookOptions {
    /// `https://`, or `http://` of this machine.
    pub url: String,
    /// Signs; none: unsigned.
    pub secret: Option<Vec<u8>>,
    /// Between two messages of growing trouble at least.
    pub every: Duration,
    /// Between the attempts.
    pub retry: Backoff,
}

impl std::fmt::Debug for WebhookOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A webhook's URL often is its password.
        f.debug_struct("WebhookOptions").field("every", &self.every).finish_non_exhaustive()
    }
}

/// The attempts of a running service.
pub const RETRY: Backoff =
    Backoff { retries: 5, base: Duration::from_secs(1), factor: 4, cap: Duration::from_secs(240) };

/// A sender with a place for one message.
pub struct Webhook {
    messages: mpsc::Sender<Value>,
    every: Duration,
}

impl Webhook {
    /// Starts a sender; it ends with its owner.
    pub fn spawn(options: WebhookOptions) -> Self {
        let (messages, mut waiting) = mpsc::channel(1);
        let every = options.every;
        tokio::spawn(async move {
            while let Some(message) = waiting.recv().await {
                deliver(&options, &message).await;
            }
        });
        Self { messages, every }
    }

    /// Between two messages of growing trouble at least.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// Hands a message over; false while another one is on its way.
    pub fn send(&self, message: Value) -> bool {
        self.messages.try_send(message).is_ok()
    }
}

fn signature(secret: &[u8], at: i64, body: &str) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(format!("{at}.{body}").as_bytes());
    let hex: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("t={at},v1={hex}"))
}

async fn attempt(
    client: &reqwest::Client,
    options: &WebhookOptions,
    id: &str,
    body: &str,
) -> Result<(), String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let at = now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0));
    let mut request = client
        .post(&options.url)
        .header("content-type", "application/json")
        .header("tagfast-delivery", id)
        .body(body.to_owned());
    if let Some(signature) = options.secret.as_ref().and_then(|secret| signature(secret, at, body))
    {
        request = request.header("tagfast-signature", signature);
    }
    // The URL may hold a secret: it is in no message.
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("it answered {}", answer.status()))
    }
}

async fn deliver(options: &WebhookOptions, message: &Value) {
    let client = reqwest::Client::builder().timeout(ATTEMPT).redirect(Policy::none()).build();
    let Ok(client) = client else { return tracing::error!("the webhook's client cannot be made") };
    let (id, body) = (uuid::Uuid::now_v7().to_string(), message.to_string());
    let mut failed = 0;
    loop {
        let Err(error) = attempt(&client, options, &id, &body).await else {
            metrics::counter!("tagfast_webhook_messages_total", "outcome" => "delivered")
                .increment(1);
            return;
        };
        let Some(delay) = options.retry.delay(failed, 0.5) else {
            tracing::error!(error, delivery = id, "the webhook took no message; it is given up");
            metrics::counter!("tagfast_webhook_messages_total", "outcome" => "given_up")
                .increment(1);
            return;
        };
        tracing::warn!(
            error,
            delivery = id,
            attempt = failed + 1,
            "the webhook did not take a message"
        );
        metrics::counter!("tagfast_webhook_messages_total", "outcome" => "retried").increment(1);
        tokio::time::sleep(delay).await;
        failed += 1;
    }
}
