//! Tells a webhook of each failover that lost acknowledged writes, or may have lost some that
//! no one can list.
//!
//! The process that closes the repair sends the notice, so there is one. It goes where the notices
//! of dead letters go, signed and retried like them.
//!
//! How it fails: a process that ends before the notice is delivered takes it along; the report in
//! `GET /v1/failovers` stays, and so does the alert.

use serde_json::{Value, json};
use tagfast_domain::time::rfc3339;
use tagfast_resilience::counter;
use tagfast_store::{FailoverObserver, FailoverReport};

use crate::telemetry::metrics::{WEBHOOK_MESSAGES, WebhookOutcome};
use crate::webhook::{Webhook, WebhookOptions};

/// Notices that wait while earlier ones are delivered: clusters may fail over together.
const NOTICES_WAITING_MAX: usize = 256;

/// Sends a notice for each failover that needs one.
pub(crate) struct FailoverNotices {
    webhook: Webhook,
}

impl FailoverNotices {
    /// Starts the sender.
    pub(crate) fn spawn(options: WebhookOptions) -> Self {
        Self { webhook: Webhook::spawn(options, NOTICES_WAITING_MAX) }
    }

    /// Ends the sender; what waits is not sent.
    pub(crate) async fn stop(&self) {
        self.webhook.stop().await;
    }
}

impl FailoverObserver for FailoverNotices {
    fn repair_closed(&self, report: &FailoverReport) {
        let Some(notice) = notice(report) else { return };
        if !self.webhook.send(notice) {
            let (cluster, epoch) = (&report.cluster, report.epoch.to_string());
            tracing::error!(
                cluster,
                epoch,
                "no place for the notice of a failover; it is given up"
            );
            counter!(WEBHOOK_MESSAGES, "outcome" => WebhookOutcome::GivenUp).increment(1);
        }
    }
}

/// The notice of a failover; `None`: it lost nothing.
fn notice(report: &FailoverReport) -> Option<Value> {
    let counts = &report.counts;
    let incomplete = || report.nodes.iter().flat_map(|node| &node.incomplete);
    // Also where it is not known how many writes it had.
    let is_complete = incomplete().next().is_none();
    let unlisted: u64 = incomplete().map(|log| log.writes).sum();
    if counts.lost == 0 && is_complete && report.missing_nodes.is_empty() {
        return None;
    }
    Some(json!({
        "type": "tagfast.failover.lost",
        "at": rfc3339(report.times.repair_closed_at.unwrap_or(report.times.minted_at)),
        "cluster": report.cluster,
        "epoch": report.epoch.to_string(),
        "began_at": rfc3339(report.times.minted_at),
        "primary": report.primary,
        "previous_primary": report.previous_primary,
        "kept": counts.kept,
        "repaired": counts.repaired,
        "lost": counts.lost,
        "unknown": counts.unknown,
        "unlisted": unlisted,
        "missing_nodes": report.missing_nodes,
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tagfast_domain::{EpochId, EpochOrdinal};
    use tagfast_resilience::{Backoff, Secret};
    use tagfast_store::{FailoverTimes, IncompleteLog, NodeRepair, VerdictCounts};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn report() -> FailoverReport {
        let times = FailoverTimes {
            minted_at: 1_767_225_600_000,
            repair_closed_at: Some(1_767_225_601_000),
            ..FailoverTimes::default()
        };
        let counts = VerdictCounts { kept: 8, repaired: 3, lost: 0, unknown: 1 };
        FailoverReport {
            cluster: "c0".to_owned(),
            epoch: EpochId([10; 16]),
            ordinal: EpochOrdinal(7),
            previous: None,
            primary: "c0-2".to_owned(),
            previous_primary: None,
            term: 1,
            timeline: 2,
            fork_lsn: None,
            times,
            counts,
            nodes: vec![NodeRepair {
                node: "api-1".to_owned(),
                counts,
                began_at: times.minted_at,
                ended_at: times.repair_closed_at,
                incomplete: Vec::new(),
                times,
            }],
            missing_nodes: Vec::new(),
            is_closed: true,
            superseded_by: None,
        }
    }

    #[test]
    fn only_a_failover_that_lost_something_has_a_notice() {
        assert_eq!(notice(&report()), None);
        let mut lost = report();
        lost.counts.lost = 2;
        let expected = json!({
            "type": "tagfast.failover.lost", "at": "2026-01-01T00:00:01.000Z", "cluster": "c0",
            "epoch": "0a".repeat(16), "began_at": "2026-01-01T00:00:00.000Z", "primary": "c0-2",
            "previous_primary": null, "kept": 8, "repaired": 3, "lost": 2, "unknown": 1,
            "unlisted": 0, "missing_nodes": [],
        });
        assert_eq!(notice(&lost), Some(expected));
        // What no one can list may be lost.
        let mut forgotten = report();
        let log = IncompleteLog { epoch: EpochId([9; 16]), from: 1, to: 2, writes: 5 };
        forgotten.nodes[0].incomplete = vec![log, log];
        assert_eq!(notice(&forgotten).unwrap()["unlisted"], 10);
        forgotten.nodes[0].incomplete = vec![IncompleteLog { writes: 0, to: u64::MAX, ..log }];
        assert_eq!(notice(&forgotten).unwrap()["unlisted"], 0, "no one knows how many");
        let mut unreported = report();
        unreported.missing_nodes = vec!["api-2".to_owned()];
        assert_eq!(notice(&unreported).unwrap()["missing_nodes"], json!(["api-2"]));
    }

    /// Takes one request, answers it and returns its body.
    async fn received(listener: &TcpListener) -> Value {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        loop {
            stream.read_buf(&mut bytes).await.unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let head = head.to_lowercase();
            assert!(head.contains("tagfast-delivery: "), "{head}");
            if let Ok(body) = serde_json::from_str(body) {
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                return body;
            }
        }
    }

    #[tokio::test]
    async fn failovers_of_several_clusters_at_once_are_all_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let notices = FailoverNotices::spawn(WebhookOptions {
            url: Secret::new(format!("http://{}/", listener.local_addr().unwrap())),
            secret: None,
            min_interval: Duration::from_secs(1),
            retry: Backoff {
                retries: 0,
                base: Duration::from_millis(1),
                factor: 1,
                cap: Duration::from_millis(1),
            },
        });
        notices.repair_closed(&report());
        for n in 0..3 {
            let mut lost = report();
            lost.cluster = format!("c{n}");
            lost.counts.lost = 1;
            notices.repair_closed(&lost);
        }
        for n in 0..3 {
            assert_eq!(received(&listener).await["cluster"], format!("c{n}"));
        }
        notices.stop().await;
    }
}
