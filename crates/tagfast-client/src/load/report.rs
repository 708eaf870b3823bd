//! The result of a measurement: counts, latencies, processor time.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::workload::RequestKind;
use crate::terminal::table;

/// Counts of one thread, or of all threads.
#[derive(Default)]
pub(super) struct Counts {
    /// Latencies in nanoseconds by kind, in the order of first use.
    pub(super) latencies: Vec<(RequestKind, Histogram<u64>)>,
    /// Number of answers by status.
    pub(super) statuses: BTreeMap<u16, u64>,
    /// Connections that failed or ended early, by the kind of I/O error.
    pub(super) broken: BTreeMap<String, u64>,
    /// Answers that were stale or lacked a part.
    pub(super) degraded: u64,
    /// Requests without an answer in time.
    pub(super) timeouts: u64,
    /// Requests that were due in the measured period but never sent (open loop).
    pub(super) unsent: u64,
    /// Bytes of answers, heads included.
    pub(super) bytes: u64,
    /// Answers that arrived within the measured period.
    pub(super) completed: u64,
}

/// Longest latency that a histogram tells apart, in nanoseconds.
const LATENCY_MAX_NS: u64 = 120_000_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("these bounds are valid")
}

impl Counts {
    /// Records the latency of one answer.
    pub(super) fn record(&mut self, kind: RequestKind, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.of(kind).saturating_record(nanos.max(1));
    }

    fn of(&mut self, kind: RequestKind) -> &mut Histogram<u64> {
        let at = self.latencies.iter().position(|(k, _)| *k == kind).unwrap_or_else(|| {
            self.latencies.push((kind, histogram()));
            self.latencies.len() - 1
        });
        &mut self.latencies[at].1
    }

    /// Adds the counts of another thread.
    pub(super) fn add(&mut self, other: Self) {
        for (kind, latencies) in &other.latencies {
            // Cannot fail: both have the same bounds.
            let _ = self.of(*kind).add(latencies);
        }
        other.statuses.into_iter().for_each(|(s, n)| *self.statuses.entry(s).or_default() += n);
        other.broken.into_iter().for_each(|(s, n)| *self.broken.entry(s).or_default() += n);
        self.degraded += other.degraded;
        self.timeouts += other.timeouts;
        self.unsent += other.unsent;
        self.bytes += other.bytes;
        self.completed += other.completed;
    }

    fn failed(&self) -> u64 {
        let refused: u64 = self.statuses.iter().filter(|(s, _)| **s >= 400).map(|(_, n)| n).sum();
        refused + self.broken.values().sum::<u64>() + self.timeouts + self.unsent
    }
}

/// A whole measurement.
pub(super) struct Report {
    /// The counts of all threads.
    pub(super) counts: Counts,
    /// `open loop, 5000/s` or `closed loop`.
    pub(super) mode: String,
    /// Number of connections.
    pub(super) connections: u32,
    /// Length of the measured period in seconds.
    pub(super) seconds: f64,
    /// CPU seconds of the server in that period; `None` = not measured.
    pub(super) server_cpu: Option<f64>,
    /// Resident bytes of the server at its end; `None` = not measured.
    pub(super) server_rss: Option<u64>,
    /// CPU seconds of the generator in that period; `None` = not measured.
    pub(super) own_cpu: Option<f64>,
}

impl Report {
    /// Requests that failed or were never sent.
    pub(super) fn failed(&self) -> u64 {
        self.counts.failed()
    }

    fn per_request(&self, cpu: Option<f64>) -> Option<f64> {
        cpu.filter(|_| self.counts.completed > 0).map(|s| s * 1e6 / self.counts.completed as f64)
    }

    fn rate(&self) -> f64 {
        self.counts.completed as f64 / self.seconds.max(1e-9)
    }

    fn all(&self) -> Histogram<u64> {
        let mut all = histogram();
        for (_, latencies) in &self.counts.latencies {
            let _ = all.add(latencies);
        }
        all
    }

    /// The report for programs; latencies in microseconds.
    pub(super) fn json(&self) -> Value {
        let by_kind: serde_json::Map<String, Value> = self
            .counts
            .latencies
            .iter()
            .map(|(k, h)| (k.as_str().to_owned(), latency_json(h)))
            .collect();
        let c = &self.counts;
        let statuses: serde_json::Map<String, Value> =
            c.statuses.iter().map(|(s, n)| (s.to_string(), json!(n))).collect();
        json!({
            "mode": self.mode,
            "connections": self.connections,
            "seconds": self.seconds,
            "requests": c.completed,
            "requests_per_second": self.rate(),
            "latency_us": latency_json(&self.all()),
            "by_kind": by_kind,
            "statuses": statuses,
            "broken": c.broken,
            "degraded": c.degraded,
            "timeouts": c.timeouts,
            "unsent": c.unsent,
            "failed": self.failed(),
            "bytes_per_second": c.bytes as f64 / self.seconds.max(1e-9),
            "server_cpu_us_per_request": self.per_request(self.server_cpu),
            "server_rss_bytes": self.server_rss,
            "generator_cpu_us_per_request": self.per_request(self.own_cpu),
        })
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let c = &self.counts;
        let mut out = format!(
            "{}, {} connections, {:.1} s: {} requests, {:.0}/s, {:.1} MB/s\n",
            self.mode,
            self.connections,
            self.seconds,
            c.completed,
            self.rate(),
            c.bytes as f64 / self.seconds.max(1e-9) / 1e6
        );
        let mut rows = vec![
            ["latency", "requests", "mean", "p50", "p90", "p99", "p99.9", "max"]
                .map(str::to_owned)
                .to_vec(),
            latency_row("all", &self.all()),
        ];
        if c.latencies.len() > 1 {
            rows.extend(c.latencies.iter().map(|(k, h)| latency_row(k.as_str(), h)));
        }
        out.push_str(&table(&rows));
        let statuses: Vec<String> = c.statuses.iter().map(|(s, n)| format!("{n} x {s}")).collect();
        out.push_str(&format!(
            "\nanswers: {}",
            if statuses.is_empty() { "none".to_owned() } else { statuses.join(", ") }
        ));
        for (what, n) in &c.broken {
            out.push_str(&format!("\nbroken: {n} x {what}"));
        }
        if c.degraded > 0 {
            out.push_str(&format!("\nstale or without a part: {}", c.degraded));
        }
        if c.timeouts > 0 {
            out.push_str(&format!("\ntimeouts: {}", c.timeouts));
        }
        if c.unsent > 0 {
            out.push_str(&format!(
                "\nnever sent, because the server was too far behind: {}",
                c.unsent
            ));
        }
        if let Some(us) = self.per_request(self.server_cpu) {
            let rss = self
                .server_rss
                .map(|b| format!(", {:.0} MB in memory", b as f64 / 1e6))
                .unwrap_or_default();
            out.push_str(&format!("\nserver: {us:.1} us CPU per request{rss}"));
        }
        if let Some(us) = self.per_request(self.own_cpu) {
            out.push_str(&format!("\ngenerator: {us:.1} us CPU per request"));
        }
        out
    }
}

fn latency_json(h: &Histogram<u64>) -> Value {
    let us = |nanos: u64| nanos as f64 / 1000.0;
    json!({
        "requests": h.len(),
        "mean": h.mean() / 1000.0,
        "p50": us(h.value_at_quantile(0.5)),
        "p90": us(h.value_at_quantile(0.9)),
        "p99": us(h.value_at_quantile(0.99)),
        "p999": us(h.value_at_quantile(0.999)),
        "max": us(h.max()),
    })
}

fn latency_row(name: &str, h: &Histogram<u64>) -> Vec<String> {
    let time = |nanos: f64| match nanos {
        n if n < 1e6 => format!("{:.0} us", n / 1e3),
        n if n < 1e9 => format!("{:.2} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    };
    let mut row = vec![name.to_owned(), h.len().to_string(), time(h.mean())];
    row.extend([0.5, 0.9, 0.99, 0.999].map(|q| time(h.value_at_quantile(q) as f64)));
    row.push(time(h.max() as f64));
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up_and_failures_are_counted() {
        let mut sum = Counts::default();
        for ms in [1, 100] {
            let mut one = Counts::default();
            one.record(RequestKind::View, Duration::from_millis(ms));
            one.statuses.insert(if ms == 1 { 200 } else { 503 }, 1);
            one.completed = 1;
            sum.add(one);
        }
        sum.timeouts = 2;
        let report = Report {
            counts: sum,
            mode: "closed loop".to_owned(),
            connections: 2,
            seconds: 2.0,
            server_cpu: Some(0.000_1),
            server_rss: None,
            own_cpu: None,
        };
        assert_eq!(report.failed(), 3);
        let json = report.json();
        assert_eq!(json["requests_per_second"], 1.0);
        assert_eq!(json["server_cpu_us_per_request"], 50.0);
        assert!(json["latency_us"]["p50"].as_f64().unwrap() < 1_100.0);
        assert!(json["latency_us"]["max"].as_f64().unwrap() > 99_000.0);
        assert!(report.text().contains("1 x 503") && report.text().contains("timeouts: 2"));
    }
}
