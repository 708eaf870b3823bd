//! Delivers notices to a webhook: signed, retried, one at a time.
//!
//! A notice is a JSON document posted to the URL. `Tagfast-Signature: t=<unix seconds>,v1=<hex>`
//! holds the HMAC-SHA256 of `<t>.<body>` with the secret, so that the receiver can verify the
//! sender and the time; `Tagfast-Delivery` is the same in each attempt. Redirects are not followed.
//!
//! How it fails: a notice that is not answered with 2xx within five seconds is sent again, five
//! times in about five minutes, then given up. For dead letters the next change sends a new notice;
//! a failover has one notice, which waits while those before it are tried.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::StatusCode;
use reqwest::redirect::Policy;
use serde_json::Value;
use sha2::Sha256;
use tagfast_events::dead_letters::{DeadLetterNotice, DeadLetterNotifier};
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{Backoff, Credential, ErrorChain, Secret, counter};
use tokio::sync::mpsc;

use crate::telemetry::metrics::{WEBHOOK_MESSAGES, WebhookOutcome};

/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where notices go.
#[derive(Debug, Clone)]
pub(crate) struct WebhookOptions {
    /// `https://`, or `http://` of this machine. Often it is its own password.
    pub url: Secret,
    /// Key of the signature; a changed one signs the next attempt. `None`: unsigned.
    pub secret: Option<Credential>,
    /// Shortest time between two notices about growing numbers.
    pub min_interval: Duration,
    /// Delays between the attempts of one delivery.
    pub retry: Backoff,
}

/// The attempts of a running service.
pub(crate) const DELIVERY_BACKOFF: Backoff =
    Backoff { retries: 5, base: Duration::from_secs(1), factor: 4, cap: Duration::from_secs(240) };

/// A sender with space for some notices.
pub(crate) struct Webhook {
    messages: mpsc::Sender<Value>,
    min_interval: Duration,
    task: BackgroundTask,
}

impl Webhook {
    /// Starts a sender in which at most `queue` notices wait.
    pub(crate) fn spawn(options: WebhookOptions, queue: usize) -> Self {
        let (messages, mut queued) = mpsc::channel::<Value>(queue);
        let min_interval = options.min_interval;
        let task = BackgroundTask::spawn("webhook", async move |stop: StopSignal| {
            let deliver_all = async {
                while let Some(message) = queued.recv().await {
                    deliver(&options, &message).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = deliver_all => {}
            }
        });
        Self { messages, min_interval, task }
    }

    /// Starts a sender as the notifier of the dead-letter supervisor, which keeps what has no place
    /// and tells more the next time.
    pub(crate) fn notifier(options: WebhookOptions) -> Arc<dyn DeadLetterNotifier> {
        Arc::new(Self::spawn(options, 1))
    }

    /// Queues a notice. False: there is no place for it.
    pub(crate) fn send(&self, notice: Value) -> bool {
        self.messages.try_send(notice).is_ok()
    }

    /// Ends the sender; what waits is not sent.
    pub(crate) async fn stop(&self) {
        // Its panic is logged already.
        let _ = self.task.stop().await;
    }
}

#[async_trait]
impl DeadLetterNotifier for Webhook {
    fn min_interval(&self) -> Duration {
        self.min_interval
    }

    fn notify(&self, notice: &DeadLetterNotice) -> bool {
        self.send(notice.to_json())
    }

    async fn stop(&self) {
        Self::stop(self).await;
    }
}

/// Why an attempt failed.
#[derive(Debug)]
enum DeliveryError {
    Request(reqwest::Error),
    Status(StatusCode),
}

impl fmt::Display for DeliveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(_) => f.write_str("the webhook cannot be reached"),
            Self::Status(status) => write!(f, "the webhook answered {status}"),
        }
    }
}

impl Error for DeliveryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Request(error) => Some(error),
            Self::Status(_) => None,
        }
    }
}

fn signature(secret: &[u8], at: i64, body: &str) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(format!("{at}.{body}").as_bytes());
    Some(format!("t={at},v1={}", hex::encode(mac.finalize().into_bytes())))
}

async fn attempt(
    client: &reqwest::Client,
    options: &WebhookOptions,
    id: &str,
    body: &str,
) -> Result<(), DeliveryError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0));
    let mut request = client
        .post(options.url.expose())
        .header("content-type", "application/json")
        .header("tagfast-delivery", id)
        .body(body.to_owned());
    let secret = options.secret.as_ref().map(|secret| secret.newest().value);
    if let Some(signature) = secret.and_then(|s| signature(s.expose().as_bytes(), at, body)) {
        request = request.header("tagfast-signature", signature);
    }
    // The URL may hold a secret: no log contains it.
    let answer = request.send().await.map_err(|e| DeliveryError::Request(e.without_url()))?;
    if answer.status().is_success() { Ok(()) } else { Err(DeliveryError::Status(answer.status())) }
}

async fn deliver(options: &WebhookOptions, message: &Value) {
    let client = reqwest::Client::builder().timeout(ATTEMPT_TIMEOUT).redirect(Policy::none());
    let Ok(client) = client.build() else {
        return tracing::error!("the HTTP client of the webhook cannot be created");
    };
    let (id, body) = (uuid::Uuid::now_v7().to_string(), message.to_string());
    let mut failed = 0;
    loop {
        let Err(error) = attempt(&client, options, &id, &body).await else {
            counter!(WEBHOOK_MESSAGES, "outcome" => WebhookOutcome::Delivered).increment(1);
            return;
        };
        let error = ErrorChain(&error).to_string();
        let Some(delay) = options.retry.delay(failed, 0.5) else {
            tracing::error!(error, delivery = id, "a notice is given up");
            counter!(WEBHOOK_MESSAGES, "outcome" => WebhookOutcome::GivenUp).increment(1);
            return;
        };
        failed += 1;
        tracing::warn!(error, delivery = id, attempt = failed, "a notice was not delivered");
        counter!(WEBHOOK_MESSAGES, "outcome" => WebhookOutcome::Retried).increment(1);
        tokio::time::sleep(delay).await;
    }
}
