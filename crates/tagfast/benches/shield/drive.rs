//! The load and its results, second by second.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tagfast_client::load::Connection;
use tagfast_client::load::{RequestKind, Workload};
use tagfast_testkit::Client;

const CONNECTIONS: u64 = 256;
/// Longest wait of a client; a client that retries waits shorter.
const TIMEOUT: Duration = Duration::from_secs(2);
const SHORT_TIMEOUT: Duration = Duration::from_millis(500);
/// Seconds after the fault's end that count as recovery.
const RECOVERY_SECONDS: u64 = 10;

/// A phase of the run, relative to the fault.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Before,
    During,
    /// From the tenth second of the fault on.
    After,
}

/// Requests of one second, or of several.
pub(crate) struct Second {
    sent: u64,
    /// Including retries.
    attempts: u64,
    answered: u64,
    degraded: u64,
    latencies: Histogram<u64>,
}

impl Default for Second {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, 10_000_000, 3).expect("valid bounds");
        Self { sent: 0, attempts: 0, answered: 0, degraded: 0, latencies }
    }
}

impl Second {
    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.attempts += other.attempts;
        self.answered += other.answered;
        self.degraded += other.degraded;
        self.latencies.add(&other.latencies).expect("the same bounds");
    }

    pub(crate) fn answered_share(&self) -> f64 {
        self.answered as f64 / self.sent.max(1) as f64
    }

    /// Attempts per request.
    pub(crate) fn attempts(&self) -> f64 {
        self.attempts as f64 / self.sent.max(1) as f64
    }

    pub(crate) fn degraded_share(&self) -> f64 {
        self.degraded as f64 / self.answered.max(1) as f64
    }

    /// Latencies, in milliseconds.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub(crate) fn latencies(&self) -> String {
        format!("{:.1} / {:.1} / {:.0}", self.at(0.5), self.at(0.99), self.at(1.0))
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "sent": self.sent, "answered": self.answered, "degraded": self.degraded,
            "p50_ms": self.at(0.5), "p99_ms": self.at(0.99), "max_ms": self.at(1.0),
        })
    }
}

/// The results of a run.
pub(crate) struct Timeline {
    /// Results of views and of sheddable calls.
    pub(crate) seconds: [BTreeMap<u64, Second>; 2],
    /// Statements sent to the database so far, at times since the start.
    counted: Vec<(f64, f64)>,
    pub(crate) transitions: Vec<String>,
    pub(crate) fault_at: u64,
}

impl Timeline {
    fn phase(&self, second: u64) -> Option<Phase> {
        let length = self.fault_at;
        match second {
            s if s < length => Some(Phase::Before),
            s if s < 2 * length => Some(Phase::During),
            s if s >= 2 * length + RECOVERY_SECONDS.min(length / 2) => Some(Phase::After),
            _ => None,
        }
    }

    pub(crate) fn of(&self, phase: Phase, critical: bool) -> Second {
        let mut sum = Second::default();
        let seconds = &self.seconds[usize::from(!critical)];
        seconds
            .iter()
            .filter(|(s, _)| self.phase(**s) == Some(phase))
            .for_each(|(_, second)| sum.add(second));
        sum
    }

    /// Statements in each second.
    pub(crate) fn by_second(&self) -> Vec<(f64, f64)> {
        let mut rates = Vec::new();
        for pair in self.counted.windows(2) {
            rates.push((pair[1].0, (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0)));
        }
        rates
    }

    /// Mean and largest rate.
    pub(crate) fn statements(&self, phase: Phase) -> (f64, f64) {
        let rates = self.by_second();
        let of: Vec<f64> = rates
            .iter()
            .filter(|(at, _)| self.phase(*at as u64) == Some(phase))
            .map(|(_, rate)| *rate)
            .collect();
        (
            of.iter().sum::<f64>() / of.len().max(1) as f64,
            of.iter().fold(0.0, |a, b| f64::max(a, *b)),
        )
    }

    /// Seconds from the fault's end until views are answered as before it, and stay so.
    pub(crate) fn recovery(&self) -> u64 {
        let (before, end) = (self.of(Phase::Before, true), 2 * self.fault_at);
        let bad = |second: &Second| {
            second.at(0.99) > 1.5 * before.at(0.99) + 1.0
                || second.answered_share() < before.answered_share() - 0.01
        };
        let last = self.seconds[0]
            .iter()
            .filter(|(s, second)| **s >= end && bad(second))
            .map(|(s, _)| *s)
            .max();
        last.map_or(0, |last| last + 1 - end)
    }
}

/// The load of a run.
pub(crate) struct Driver {
    pub(crate) load: Workload,
    /// The nodes: the first carries the load, the statements of both are counted.
    pub(crate) nodes: [SocketAddr; 2],
    pub(crate) rate: u64,
    /// Seconds before, during and after the fault.
    pub(crate) seconds: u64,
    /// The content of half of all views while the fault lasts; `None` = no hot content.
    pub(crate) hot: Option<Vec<u8>>,
    /// Retries of a client whose request was not answered.
    pub(crate) retries: u32,
}

/// A running load.
pub(crate) struct Running {
    start: Instant,
    generator: JoinHandle<[BTreeMap<u64, Second>; 2]>,
    watcher: JoinHandle<Vec<(f64, f64)>>,
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    before: Vec<String>,
    seconds: u64,
}

impl Driver {
    pub(crate) fn start(self) -> Running {
        let start = Instant::now() + Duration::from_millis(100);
        let (nodes, stop, seconds) = (self.nodes, Arc::new(AtomicBool::new(false)), self.seconds);
        let before = events(nodes[0]);
        let watcher = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || watch(nodes, start, &stop))
        };
        let generator = std::thread::spawn(move || generate(self, start));
        Running { start, generator, watcher, stop, address: nodes[0], before, seconds }
    }
}

impl Running {
    /// Seconds since the start of the load.
    pub(crate) fn second(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Sleeps until a second of the load.
    pub(crate) fn until(&self, second: u64) {
        let left =
            (self.start + Duration::from_secs(second)).saturating_duration_since(Instant::now());
        std::thread::sleep(left);
    }

    pub(crate) fn finish(self) -> Timeline {
        let seconds = self.generator.join().expect("the generator does not panic");
        self.stop.store(true, Ordering::SeqCst);
        let counted = self.watcher.join().expect("the watcher does not panic");
        let mut transitions = events(self.address);
        transitions.retain(|event| !self.before.contains(event));
        Timeline { seconds, counted, transitions, fault_at: self.seconds }
    }
}

/// State changes of breakers.
fn events(address: SocketAddr) -> Vec<String> {
    let body = Client::new(address).get("/v1/breakers").json();
    let event = |e: &Value| {
        let word = |name: &str| e[name].as_str().unwrap_or_default().to_owned();
        format!(
            "{} {}: {} -> {} ({})",
            word("at"),
            word("name"),
            word("from"),
            word("to"),
            word("reason")
        )
    };
    body["events"].as_array().map(|all| all.iter().map(event).collect()).unwrap_or_default()
}

/// Statements that nodes have sent to their database.
pub(crate) fn statements(nodes: &[SocketAddr]) -> f64 {
    let of = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
    let count = |node: &SocketAddr| -> f64 {
        let text = Client::new(*node).get("/metrics").text();
        text.lines().filter(|l| l.starts_with("tagfast_read_batch_keys_count")).filter_map(of).sum()
    };
    nodes.iter().map(count).sum()
}

/// Counts the statements twice a second.
fn watch(nodes: [SocketAddr; 2], start: Instant, stop: &AtomicBool) -> Vec<(f64, f64)> {
    let mut counted = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let sum = statements(&nodes);
        counted.push((start.elapsed().as_secs_f64(), sum));
        std::thread::sleep(Duration::from_millis(500));
    }
    counted
}

fn generate(driver: Driver, start: Instant) -> [BTreeMap<u64, Second>; 2] {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let seconds = Rc::new(RefCell::new([BTreeMap::new(), BTreeMap::new()]));
    let gap = Duration::from_secs_f64(1.0 / driver.rate as f64);
    let length = Duration::from_secs(driver.seconds * 3);
    let (driver, next) = (Rc::new(driver), Rc::new(Cell::new(0u64)));
    let local = tokio::task::LocalSet::new();
    for n in 0..CONNECTIONS {
        let (driver, next, seconds) = (Rc::clone(&driver), Rc::clone(&next), Rc::clone(&seconds));
        local.spawn_local(async move {
            let mut connection = Connection::new(driver.nodes[0]);
            let mut rng = Rng::with_seed(n + 1);
            let mut request = Vec::new();
            loop {
                let number = next.get();
                let since = gap.mul_f64(number as f64);
                if since >= length {
                    return;
                }
                next.set(number + 1);
                let due = start + since;
                if due > Instant::now() + Duration::from_millis(1) {
                    tokio::time::sleep_until(due.into()).await;
                }
                let kind = driver.load.next(&mut rng, &mut request);
                let during = since.as_secs() / driver.seconds == 1;
                if let Some(hot) =
                    driver.hot.as_ref().filter(|_| during && kind == RequestKind::View)
                    && rng.bool()
                {
                    request.clone_from(hot);
                }
                let timeout = if driver.retries > 0 { SHORT_TIMEOUT } else { TIMEOUT };
                let (mut attempts, mut answer) = (0, None);
                while answer.is_none() && attempts <= u64::from(driver.retries) {
                    attempts += 1;
                    let answered =
                        tokio::time::timeout(timeout, connection.exchange(&request)).await;
                    if answered.is_err() {
                        connection.abandon();
                    }
                    answer =
                        answered.ok().and_then(Result::ok).filter(|answer| answer.status == 200);
                }
                let latency = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
                let mut seconds = seconds.borrow_mut();
                let of: &mut BTreeMap<u64, Second> =
                    &mut seconds[usize::from(kind != RequestKind::View)];
                let second = of.entry(since.as_secs()).or_default();
                second.sent += 1;
                second.attempts += attempts;
                second.latencies.saturating_record(latency.max(1));
                if let Some(answer) = answer {
                    second.answered += 1;
                    second.degraded += u64::from(answer.degraded);
                }
            }
        });
    }
    runtime.block_on(local);
    Rc::into_inner(seconds).expect("all have ended").into_inner()
}
