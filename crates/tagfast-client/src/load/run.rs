//! The load generator: open loop (a fixed rate, latency from the moment a request is due) and
//! closed loop (as fast as the server answers).
//!
//! The generator is cheap, so that on a small machine it measures the server and not itself: one
//! thread by default, its own HTTP client, requests written into one buffer. In the open loop the
//! due times are handed out in order to whichever connection is free; a stalled server therefore
//! delays the following requests too, and their waiting counts.
//!
//! SIGINT and SIGTERM end a measurement early: its requests in flight get a second to be answered,
//! what it wrote is removed, and it reports what it measured. A second signal ends the process at
//! once; the tags that it wrote then stay.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tagfast_resilience::secret::redacted;
use tokio_util::sync::CancellationToken;

use super::cleanup::remove_written;
use super::connection::{Answer, Connection};
use super::report::{Counts, Report};
use super::workload::{RequestKind, Workload};
use crate::args::{BenchArgs, ClientArgs};
use crate::error::{CliError, CommandResult, Exit};
use crate::http::Client;
use crate::process_usage::{Usage, usage};
use crate::progress::Progress;
use crate::runtime::runtime;
use crate::signal::stop_signal;
use crate::terminal::Terminal;

/// Resolution of timers: a request may be sent this long before it is due, and then counts from its
/// sending.
const TIMER_TOLERANCE: Duration = Duration::from_millis(1);

/// Pause of a connection after an error, so that an unreachable server does not make it spin.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// Time between two updates of the progress display.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout of the preparing requests, in seconds.
const PREPARE_TIMEOUT_SECONDS: u64 = 10;

/// How long a request in flight may still take after a signal: when it is answered, it is known
/// what it did.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// The times of a measurement.
#[derive(Debug, Clone, Copy)]
struct Plan {
    start: Instant,
    measure_from: Instant,
    end: Instant,
    timeout: Duration,
    /// Time between two due requests of one thread; `None` = closed loop.
    gap: Option<Duration>,
}

/// `bench`
///
/// # Errors
/// The flags are not usable, or the server answered no request.
pub fn run(args: &BenchArgs, terminal: &Terminal) -> CommandResult {
    let (host, address) = target(&args.url)?;
    let client = Client::new(&ClientArgs {
        url: args.url.clone(),
        token: args.token.clone(),
        timeout: PREPARE_TIMEOUT_SECONDS,
    })?;
    let runtime = runtime()?;
    let workload = Arc::new(runtime.block_on(Workload::prepare(args, &host, &client))?);
    if let Some(pid) = args.server_pid
        && usage(Some(pid)).is_none()
    {
        return Err(CliError::usage(format!("--server-pid {pid}: there is no such process")));
    }
    let threads = args.threads.min(args.connections);
    let start = Instant::now();
    let gap = args.rate.map(|rate| Duration::from_secs_f64(f64::from(threads) / f64::from(rate)));
    let measure_from = start + args.warmup;
    let plan =
        Plan { start, measure_from, end: measure_from + args.duration, timeout: args.timeout, gap };
    let stop = CancellationToken::new();
    let workers: Vec<_> = (0..threads)
        .map(|n| {
            let (workload, stop) = (Arc::clone(&workload), stop.clone());
            let connections =
                args.connections / threads + u32::from(n < args.connections % threads);
            let seed = args.seed.wrapping_add(u64::from(n) << 32);
            std::thread::Builder::new()
                .name(format!("tagfast-bench-{n}"))
                .spawn(move || worker(address, connections, seed, &workload, plan, &stop))
        })
        .collect::<Result<_, _>>()?;
    let watched = runtime.block_on(watch(args, plan, terminal, &stop));
    let counted = counts_of(workers);
    let cleaned = runtime.block_on(async {
        let written = workload.written();
        if written.is_empty() {
            return Ok(());
        }
        let contents = remove_written(&client, written, workload.tag_prefix()).await?;
        if !terminal.json {
            terminal.note(format_args!("the tags written to {contents} contents are removed"));
        }
        Ok(())
    });
    let (watched, counts) = (watched?, counted?);
    show(args, terminal, &watched, counts, &host).and_then(|exit| cleaned.map(|()| exit))
}

/// Joins the threads and adds what they counted.
fn counts_of(workers: Vec<JoinHandle<Result<Counts, CliError>>>) -> Result<Counts, CliError> {
    let mut counts = Counts::default();
    // All of them, so that none writes any more when one has failed.
    let joined: Vec<_> = workers.into_iter().map(JoinHandle::join).collect();
    for worker in joined {
        let failed = |_| CliError::new("a thread of the generator failed");
        counts.add(worker.map_err(failed)??);
    }
    Ok(counts)
}

/// Writes the report.
fn show(
    args: &BenchArgs,
    terminal: &Terminal,
    watched: &Watched,
    counts: Counts,
    host: &str,
) -> CommandResult {
    let cpu = |from: Option<Usage>, to: Option<Usage>| Some(to?.cpu_seconds - from?.cpu_seconds);
    let report = Report {
        mode: args
            .rate
            .map_or_else(|| "closed loop".to_owned(), |rate| format!("open loop, {rate}/s")),
        connections: args.connections,
        seconds: watched.measured.as_secs_f64(),
        server_cpu: cpu(watched.server.0, watched.server.1),
        server_rss: watched.server.1.map(|u| u.resident_bytes),
        own_cpu: cpu(watched.own.0, watched.own.1),
        counts,
    };
    let nothing_measured = watched.measured.is_zero();
    if terminal.json && !nothing_measured {
        terminal.value(&report.json())?;
    } else if !nothing_measured {
        terminal.line(report.text())?;
    }
    if watched.interrupted {
        return Err(CliError::new("interrupted"));
    }
    if report.counts.completed == 0 {
        let hint = "is the server running? start it with: tagfast serve --demo";
        return Err(CliError::new(format!("no request to {host} was answered")).hint(hint));
    }
    Ok(if report.failed() > 0 { Exit::Partly } else { Exit::Done })
}

/// Host and address of an `http://` URL.
fn target(url: &str) -> Result<(String, SocketAddr), CliError> {
    use std::net::ToSocketAddrs as _;
    let bad = || {
        CliError::usage(format!(
            "--url {}: the generator speaks http://HOST:PORT only",
            redacted(url)
        ))
    };
    let host = url.strip_prefix("http://").ok_or_else(bad)?.trim_end_matches('/');
    if host.is_empty() || host.contains(['/', '@']) {
        return Err(bad());
    }
    let with_port = if host.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let unresolved = || CliError::new(format!("cannot resolve {host}"));
    let mut addresses = with_port.to_socket_addrs().map_err(|e| unresolved().with_source(e))?;
    Ok((host.to_owned(), addresses.next().ok_or_else(unresolved)?))
}

/// What the watching saw: the usage at the beginning and the end of the measured period.
struct Watched {
    server: (Option<Usage>, Option<Usage>),
    own: (Option<Usage>, Option<Usage>),
    /// Length of the measured period.
    measured: Duration,
    /// A signal ended it.
    interrupted: bool,
}

/// Sleeps through the plan, shows progress, and samples the processes where the measured period
/// begins and ends. A signal ends the measurement through `stop`.
async fn watch(
    args: &BenchArgs,
    plan: Plan,
    terminal: &Terminal,
    stop: &CancellationToken,
) -> Result<Watched, CliError> {
    // The threads must not run on when this fails.
    let mut signal = stop_signal().inspect_err(|_| stop.cancel())?;
    let sample = || (args.server_pid.and_then(|pid| usage(Some(pid))), usage(None));
    let whole = plan.end - plan.start;
    let progress = Progress::new(
        terminal,
        "bench",
        Some(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX)),
    );
    let mut first = (None, None);
    let mut measuring = false;
    loop {
        let now = Instant::now();
        if !measuring && now >= plan.measure_from {
            first = sample();
            measuring = true;
        }
        if now >= plan.end {
            break;
        }
        let elapsed = now - plan.start;
        let phase = if measuring { "measuring" } else { "warming up" };
        progress.set_with(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), phase);
        let next = if measuring { plan.end } else { plan.measure_from };
        tokio::select! {
            () = tokio::time::sleep((next - now).min(PROGRESS_INTERVAL)) => {}
            _ = signal.wait_for(|stop| *stop) => {
                stop.cancel();
                progress.note(terminal, "stopping; a second signal leaves what was written");
                break;
            }
        }
    }
    let last = sample();
    progress.finish();
    Ok(Watched {
        server: (first.0, last.0),
        own: (first.1, last.1),
        measured: Instant::now().min(plan.end).saturating_duration_since(plan.measure_from),
        interrupted: stop.is_cancelled(),
    })
}

fn worker(
    address: SocketAddr,
    connections: u32,
    seed: u64,
    workload: &Arc<Workload>,
    plan: Plan,
    stop: &CancellationToken,
) -> Result<Counts, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counts = Rc::new(RefCell::new(Counts::default()));
    let next = Rc::new(Cell::new(0u64));
    let local = tokio::task::LocalSet::new();
    for n in 0..connections {
        let (workload, counts, next) = (Arc::clone(workload), Rc::clone(&counts), Rc::clone(&next));
        let stop = stop.clone();
        let rng =
            Rng::with_seed(seed.wrapping_add(u64::from(n).wrapping_mul(0x2545_f491_4f6c_dd1d)));
        local.spawn_local(async move {
            let connection = Connection::new(address);
            let mut loop_ = Loop { connection, rng, workload, counts, plan, stop };
            match plan.gap {
                Some(gap) => loop_.open(gap, &next).await,
                None => loop_.closed().await,
            }
        });
    }
    runtime.block_on(local);
    let mut counts = Rc::into_inner(counts)
        .ok_or_else(|| CliError::new("a task outlived its thread"))?
        .into_inner();
    if let Some(gap) = plan.gap.filter(|_| !stop.is_cancelled()) {
        // Requests that were due before the end and that no connection took.
        let due = ((plan.end - plan.start).as_nanos() / gap.as_nanos().max(1)) as u64;
        counts.unsent = due.saturating_sub(next.get());
    }
    Ok(counts)
}

struct Loop {
    connection: Connection,
    rng: Rng,
    workload: Arc<Workload>,
    counts: Rc<RefCell<Counts>>,
    plan: Plan,
    stop: CancellationToken,
}

impl Loop {
    /// Sends one request after the other until the end.
    async fn closed(&mut self) {
        let mut request = Vec::with_capacity(512);
        while Instant::now() < self.plan.end && !self.stop.is_cancelled() {
            self.one(None, &mut request).await;
        }
    }

    /// Takes the next due time, until the end. A connection that is behind sends at once, but gives
    /// up when a timeout has passed since the end.
    async fn open(&mut self, gap: Duration, next: &Cell<u64>) {
        let mut request = Vec::with_capacity(512);
        loop {
            let number = next.get();
            let nanos = gap.as_nanos().saturating_mul(u128::from(number));
            let due =
                self.plan.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            if due >= self.plan.end || Instant::now() >= self.plan.end + self.plan.timeout {
                return;
            }
            next.set(number + 1);
            if due > Instant::now() + TIMER_TOLERANCE {
                tokio::select! {
                    () = tokio::time::sleep_until((due - TIMER_TOLERANCE).into()) => {}
                    () = self.stop.cancelled() => return,
                }
            }
            if self.stop.is_cancelled() {
                return;
            }
            self.one(Some(due), &mut request).await;
        }
    }

    /// Sends one request, due at `due` (`None` = closed loop), and counts its answer.
    async fn one(&mut self, due: Option<Instant>, request: &mut Vec<u8>) {
        let kind = self.workload.next(&mut self.rng, request);
        let sent = Instant::now();
        let from = due.map_or(sent, |due| due.min(sent));
        let stop = &self.stop;
        let stopped = async move {
            stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        let answered = tokio::select! {
            biased;
            answered = self.connection.exchange(request) => Ok(answered),
            () = tokio::time::sleep(self.plan.timeout) => Err(()),
            () = stopped => Err(()),
        };
        let done = Instant::now();
        let refused = matches!(answered, Ok(Err(_)));
        if answered.is_err() {
            self.connection.abandon();
        }
        self.count(kind, from, done, due.unwrap_or(done), answered.ok());
        if refused {
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }

    /// Counts a request that belongs to the moment `at`: when it was due in the open loop, when it
    /// ended in the closed loop. `answered` = `None` means no answer in time.
    fn count(
        &self,
        kind: RequestKind,
        from: Instant,
        done: Instant,
        at: Instant,
        answered: Option<std::io::Result<Answer>>,
    ) {
        let within = |moment: Instant| moment >= self.plan.measure_from && moment < self.plan.end;
        let mut counts = self.counts.borrow_mut();
        if within(done) && matches!(answered, Some(Ok(_))) {
            counts.completed += 1;
        }
        if !within(at) {
            return;
        }
        match answered {
            Some(Ok(answer)) => {
                *counts.statuses.entry(answer.status).or_default() += 1;
                counts.bytes += answer.bytes as u64;
                counts.degraded += u64::from(answer.degraded);
                counts.record(kind, done - from);
            }
            Some(Err(error)) => *counts.broken.entry(error.kind().to_string()).or_default() += 1,
            None => {
                counts.timeouts += 1;
                counts.record(kind, done - from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_urls_are_taken() {
        assert_eq!(target("http://127.0.0.1:7070/").unwrap().0, "127.0.0.1:7070");
        assert_eq!(target("http://127.0.0.1").unwrap().1.port(), 80);
        for bad in ["https://x:1", "127.0.0.1:1", "http://", "http://x:1/path"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    /// A server that answers at once, except for a stall of length `stall` after `stalls_at`
    /// answers.
    fn stalling_server(stalls_at: u32, stall: Duration) -> (SocketAddr, tokio::runtime::Runtime) {
        let runtime = runtime().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let mut answered = 0;
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut request) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(_) => continue,
                }
                if answered == stalls_at {
                    tokio::time::sleep(stall).await;
                }
                answered += 1;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
            }
        });
        (address, runtime)
    }

    fn measure(gap: Option<Duration>, timeout: Duration) -> Counts {
        let (address, _server) = stalling_server(20, Duration::from_millis(400));
        let args = <Args as clap::Parser>::parse_from([
            "bench",
            "--path",
            "/hello",
            "--url",
            "http://127.0.0.1:1",
        ])
        .bench;
        let client =
            Client::new(&ClientArgs { url: args.url.clone(), token: None, timeout: 1 }).unwrap();
        let workload = runtime().unwrap().block_on(Workload::prepare(&args, "h", &client));
        let workload = Arc::new(workload.unwrap());
        let start = Instant::now();
        let end = start + Duration::from_millis(800);
        let plan = Plan { start, measure_from: start, end, timeout, gap };
        worker(address, 1, 1, &workload, plan, &CancellationToken::new()).unwrap()
    }

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn the_open_loop_counts_the_waiting_that_a_stall_causes() {
        let counts = measure(Some(Duration::from_millis(5)), Duration::from_secs(5));
        let latencies = &counts.latencies[0].1;
        assert_eq!((latencies.len(), counts.unsent), (160, 0));
        // Of 160 requests, one every 5 ms, the stall delays the 80 that were due during it, by 200
        // ms on average.
        let late = latencies.count_between(50_000_000, u64::MAX);
        assert!((60..=110).contains(&late), "{late} of 160 were late");
        assert!(latencies.max() >= 390_000_000);
    }

    #[test]
    fn the_closed_loop_sees_the_stall_once() {
        let counts = measure(None, Duration::from_secs(5));
        let latencies = &counts.latencies[0].1;
        assert_eq!(latencies.count_between(390_000_000, u64::MAX), 1);
        assert!(latencies.len() > 100, "{}", latencies.len());
    }

    #[test]
    fn a_timeout_is_counted_and_the_rest_was_never_sent() {
        let counts = measure(Some(Duration::from_millis(5)), Duration::from_millis(100));
        // The stalled connection is abandoned; the server takes no second one.
        assert!(counts.timeouts >= 1 && counts.unsent > 0, "{} {}", counts.timeouts, counts.unsent);
    }
}
